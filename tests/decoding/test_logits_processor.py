import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.decoding.tiny_models import FAMILIES, tiny_model
from transformers import LogitsProcessorList

from tesserec.decoding.logits_processor import SemanticIdLogitsProcessor
from tesserec.decoding.token_space import TokenSpace
from tesserec.decoding.top_k import allowed_items
from tesserec.decoding.trie import Trie
from tesserec.errors import DataError
from tesserec.testing.data import requests_of
from tesserec.testing.decoding import random_requests, random_semantic_ids
from tesserec.types import SemanticIds

# Tokens: 0 to 4 text, 5 to 7 the first level, 8 to 9 the second, 10 the begin of an item, 11 its end.
SIZES = (3, 2)
TRIE = Trie.build(SemanticIds(torch.tensor([[0, 0], [0, 1], [2, 1], [2, 1]]), SIZES, "test"))
TEXT = [0, 1, 2, 3, 4]


def space_of(sizes=SIZES, num_text=5, begin=True, end=True):
    after = num_text + sum(sizes)
    return TokenSpace.after(num_text, sizes, item_begin=after if begin else None, item_end=after + 1 if end else None)


def allowed(tokens, space=None, prompt_length=1, vocabulary=12, **options):
    """What may follow each row."""
    processor = SemanticIdLogitsProcessor(TRIE, space or space_of(), prompt_length=prompt_length, **options)
    scores = torch.arange(vocabulary).float().expand(len(tokens), -1)
    found = processor(torch.tensor(tokens), scores)
    finite = found > -torch.inf
    assert found[finite].equal(scores[finite])
    return [row.nonzero().squeeze(1).tolist() for row in finite]


def test_states_one_after_the_other():
    written = [[0], [0, 10], [0, 10, 7], [0, 10, 7, 9], [0, 10, 7, 9, 11], [0, 10, 7, 9, 11, 3]]
    expected = [[*TEXT, 10], [5, 7], [9], [11], [*TEXT, 10], [*TEXT, 10]]
    assert [allowed([tokens])[0] for tokens in written] == expected


def test_rows_in_different_states_at_once():
    assert allowed([[0, 10, 5], [0, 0, 1], [10, 5, 8], [1, 1, 10]]) == [[8, 9], [*TEXT, 10], [11], [5, 7]]


def test_without_an_end_text_follows_and_without_a_begin_codes_do():
    assert allowed([[10, 5, 8], [2, 10, 5]], space_of(end=False)) == [[*TEXT, 10, 11], [8, 9]]
    bare = space_of(begin=False, end=False)
    assert allowed([[1, 5, 8], [2, 2, 7], [5, 8, 5]], bare) == [[*TEXT, 5, 7, 10, 11], [9], [8, 9]]


def test_filters_of_a_prompt_hold_for_all_its_rows():
    requests = requests_of([[[0]], []], exclude_history=True, excluded=[[], [2, 3]])
    rows = [[0, 10], [1, 10], [2, 10], [3, 10]]
    assert allowed(rows, requests=requests) == [[5, 7], [5, 7], [5], [5]]
    rows = [[10, 5], [10, 5], [10, 5], [3, 3]]
    assert allowed(rows, requests=requests) == [[9], [9], [8, 9], [*TEXT, 10]]
    assert allowed([[10], [10]], requests=requests_of([[], []], available=[False, True, False, False])) == [[5], [5]]


def test_no_item_begins_where_none_is_allowed():
    requests = requests_of([[], []], excluded=[[0, 1, 2, 3], [0, 1, 2]])
    assert allowed([[0], [0]], requests=requests) == [TEXT, [*TEXT, 10]]


def test_a_tuple_is_written_once_and_its_prefix_closes_with_its_last_one():
    first, both = [0, 10, 5, 9, 11, 10, 5], [0, 10, 5, 9, 11, 10, 5, 8, 11, 10]
    assert allowed([first], unique=True) == [[8]]
    assert allowed([both], unique=True) == [[7]]
    assert allowed([[*both, 7, 9, 11]], unique=True) == [TEXT]
    assert allowed([first]) == [[8, 9]]
    # (2, 1) is two items; one of them excluded leaves the other, and the tuple.
    one_left = requests_of([[]], excluded=[[0, 1, 3]])
    assert allowed([[0, 10]], requests=one_left, unique=True) == [[7]]
    assert allowed([[0, 10, 7, 9, 11]], requests=one_left, unique=True) == [TEXT]


def test_tuples_of_the_prompt_do_not_count_but_one_that_ends_after_it_does():
    tokens = [[0, 10, 5, 9, 11, 10, 5]]
    assert allowed(tokens, prompt_length=4, unique=True) == [[8, 9]]
    assert allowed(tokens, prompt_length=3, unique=True) == [[8]]


def test_nothing_follows_codes_that_are_no_prefix_as_a_beam_of_probability_zero_may_hold_them():
    trie = Trie.build(SemanticIds(torch.tensor([[0, 0, 1], [0, 1, 0], [2, 1, 1]]), (3, 2, 2), "test"))
    processor = SemanticIdLogitsProcessor(trie, TokenSpace.after(2, (3, 2, 2)), prompt_length=1)
    tokens = torch.tensor([[0, 2, 5], [0, 2, 6], [0, 4, 5], [0, 0, 5], [2, 5, 6], [5, 0, 4], [5, 2, 3], [2, 2, 5]])
    found = processor(tokens, torch.zeros(8, 9)) == 0
    assert [row.nonzero().squeeze(1).tolist() for row in found] == [[8], [7], [], [], [], [6], [], [8]]


def test_prompts_may_be_shorter_than_an_item_or_embeddings_alone():
    processor = SemanticIdLogitsProcessor(TRIE, space_of(), prompt_length=0)
    for length in (0, 1, 2):
        found = processor(torch.full((2, length), 3), torch.zeros(2, 12)) == 0
        assert [row.nonzero().squeeze(1).tolist() for row in found] == [[*TEXT, 10]] * 2
    assert not torch.isfinite(processor(torch.tensor([[6], [6]]), torch.zeros(2, 12))).any()


def test_new_arrays_are_made_where_the_tokens_are():
    requests = requests_of([[[0]]], exclude_history=True)
    processor = SemanticIdLogitsProcessor(TRIE, space_of(), prompt_length=1, requests=requests)
    tokens, scores = torch.tensor([[0, 10, 5], [2, 4, 1]]), torch.zeros(2, 12)
    expected = processor(tokens, scores)  # this reads the filters, which are on the CPU
    with torch.device("meta"):
        found = processor(tokens, scores)
    assert found.equal(expected)
    assert [row.nonzero().squeeze(1).tolist() for row in found == 0] == [[9], [*TEXT, 10]]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: allowed([[0, 6]], prompt_length=2), "^row 0: the prompt ends inside an item, and no allowed one goes"),
        (
            lambda: allowed([[0], [10]], requests=requests_of([[], []], available=[False] * 4)),
            "^row 1: the prompt ends inside an item",
        ),
        (lambda: allowed([[0, 6]], prompt_length=3), "^2 tokens after a prompt of 3: give prompt_length = input_ids"),
        (lambda: allowed([[0]], vocabulary=11), "^scores of 11 tokens, the token space has ids up to 11: add room"),
        (lambda: allowed([[0]] * 3, requests=requests_of([[], []])), "^3 rows for 2 requests: give one request a pro"),
        (lambda: allowed([[0]], requests=requests_of([])), "^1 rows for 0 requests"),
        (lambda: allowed([[0]], prompt_length=-1), r"^prompt_length = -1: give input_ids.shape\[1\] of the prompts"),
        (
            lambda: SemanticIdLogitsProcessor(TRIE, space_of(), prompt_length=1)(
                torch.zeros(1, 1).long(), torch.zeros(2, 12)
            ),
            "^scores of 2 rows for 1 rows of tokens: give both of the same rows$",
        ),
        (
            lambda: allowed([[0]], space_of((2, 2))),
            r"^the trie has codes below \[3, 2\] at its levels, the token",
        ),
    ],
)
def test_what_cannot_be_is_refused(build, message):
    with pytest.raises(DataError, match=message):
        build()


class Naive:
    """The constraint over lists: reads one row from the prompt's end on, token by token."""

    def __init__(self, space, tuples, vocabulary, unique):
        self.space, self.tuples, self.vocabulary, self.unique = space, set(tuples), vocabulary, unique
        self.code_of = {token: code for level in space.tokens for code, token in enumerate(level.tolist())}

    def after(self, answer):
        left, prefix, ending = set(self.tuples), None, False
        for token in answer:
            if token in self.code_of:
                prefix = [*(prefix or []), self.code_of[token]]
            elif token == self.space.item_begin:
                prefix = []
            ending = prefix is not None and len(prefix) == self.space.num_levels
            if ending:
                assert tuple(prefix) in left
                left -= {tuple(prefix)} if self.unique else set()
                prefix = None
        if ending and self.space.item_end is not None and answer[-1] != self.space.item_end:
            return [self.space.item_end]
        if prefix is not None:
            return self.codes(left, prefix)
        special = {*self.code_of, self.space.item_begin, self.space.item_end}
        begins = self.codes(left, []) if self.space.item_begin is None else [self.space.item_begin] * bool(left)
        return sorted({*range(self.vocabulary)} - special | {*begins})

    def codes(self, left, prefix):
        length = len(prefix)
        next_codes = {found[length] for found in left if list(found[:length]) == prefix}
        return sorted(int(self.space.tokens[length][code]) for code in next_codes)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 14),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(0, 99_999),
    st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
)
def test_it_equals_a_state_machine_over_lists(num_items, sizes, seed, switches):
    begin, end, unique, filtered = switches
    generator = torch.Generator().manual_seed(seed)
    ids = random_semantic_ids(num_items, tuple(sizes), generator)
    space = space_of(tuple(sizes), num_text=2, begin=begin, end=end)
    vocabulary = space.min_vocabulary + seed % 2
    requests = random_requests(3, num_items, generator) if filtered else None
    items_BN = allowed_items(requests, num_items) if filtered else torch.ones(3, num_items, dtype=torch.bool)
    per_prompt = 1 + seed % 3
    naive = [
        Naive(space, [tuple(c) for c in ids.codes_NL[items].tolist()], vocabulary, unique)
        for items in items_BN.repeat_interleave(per_prompt, 0)
    ]
    tokens = torch.zeros(len(naive), 2, dtype=torch.int64)
    processor = SemanticIdLogitsProcessor(Trie.build(ids), space, prompt_length=2, requests=requests, unique=unique)
    for _ in range(14):
        found = processor(tokens, torch.zeros(len(naive), vocabulary)) == 0
        expected = [row.after(answer) for row, answer in zip(naive, tokens[:, 2:].tolist(), strict=True)]
        assert [row.nonzero().squeeze(1).tolist() for row in found] == expected
        weight = found.float()
        weight[:, :2] /= 4  # fewer words, more items
        tokens = torch.cat([tokens, weight.multinomial(1, generator=generator)], 1)
        # The rows of a prompt change places, as beams do.
        order = torch.rand(3, per_prompt, generator=generator).argsort(1) + torch.arange(3)[:, None] * per_prompt
        tokens = tokens[order.flatten()]


IDS = random_semantic_ids(40, (4, 3, 5), torch.Generator().manual_seed(1))
LARGE = Trie.build(IDS)
MARKED = space_of((4, 3, 5), num_text=8)
WAYS = {
    "greedy": {"do_sample": False},
    "sample": {"do_sample": True, "num_return_sequences": 4, "temperature": 2.0},
    "beam": {"do_sample": False, "num_beams": 4, "num_return_sequences": 4},
    "beam sample": {"do_sample": True, "num_beams": 3, "num_return_sequences": 2},
}


def generated(model, prompts, processor, **options):
    """What a model writes after prompts padded with 0 on the left; items are made more likely, the end less."""
    torch.manual_seed(0)
    found = model.generate(
        prompts,
        attention_mask=(prompts > 0).long(),
        logits_processor=LogitsProcessorList([processor]),
        sequence_bias=[[[MARKED.item_begin], 5.0], [[7], -9.0]],
        pad_token_id=0,
        **options,
    )
    return found[:, prompts.shape[1] :]


def items_in(answer, space):
    """The tuples of an answer, after a check that its marks and codes stand nowhere else."""
    rest, tuples = answer.tolist(), []
    while rest:
        token = rest.pop(0)
        if token == space.item_begin:
            item, rest = rest[: space.num_levels + 1], rest[space.num_levels + 1 :]
            if len(item) <= space.num_levels:
                break
            assert item[-1] == space.item_end
            tuples.append(tuple(space.codes_of(torch.tensor(item[:-1])).tolist()))
        else:
            assert token < 8
    return tuples


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_generate_writes_legal_items_among_text_and_none_twice(family, way):
    model = tiny_model(family, MARKED.min_vocabulary, eos_token_id=7)
    prompts = torch.tensor([[0, 0, 3, 1], [2, 8, 13, 6], [0, 4, 4, MARKED.item_begin]])
    requests = requests_of([[list(range(20))], [], []], exclude_history=True, excluded=[[], list(range(20)), []])
    processor = SemanticIdLogitsProcessor(LARGE, MARKED, prompt_length=4, requests=requests, unique=True)
    answers = generated(model, prompts, processor, max_new_tokens=40, **WAYS[way])
    legal = {tuple(codes) for codes in IDS.codes_NL.tolist()}
    later = {tuple(codes) for codes in IDS.codes_NL[20:].tolist()}
    num_items = 0
    for row, answer in enumerate(answers):
        prompt = row * 3 // len(answers)
        begun = answer if prompt < 2 else torch.cat([prompts[2, -1:], answer])
        tuples = items_in(begun, MARKED)
        assert len(set(tuples)) == len(tuples)
        assert set(tuples) <= (later if prompt < 2 else legal)
        num_items += len(tuples)
    assert num_items >= 2 * len(answers)


def test_text_alone_is_left_when_every_item_is_written():
    model = tiny_model("llama", MARKED.min_vocabulary)
    requests = requests_of([[]], available=[item < 3 for item in range(40)])
    processor = SemanticIdLogitsProcessor(LARGE, MARKED, prompt_length=2, requests=requests, unique=True)
    answer = generated(model, torch.tensor([[3, 1]]), processor, max_new_tokens=60, do_sample=True)[0]
    assert sorted(items_in(answer, MARKED)) == sorted({tuple(codes) for codes in IDS.codes_NL[:3].tolist()})
    assert (answer[-20:] < 8).all()


def test_a_trained_model_continues_the_chain_it_was_taught():
    num_items, sizes = 8, (4, 2)
    codes = torch.tensor([[item % 4, item // 4] for item in range(num_items)])
    space = space_of(sizes, num_text=3)
    written = torch.cat([space.written(codes), torch.ones(num_items, 1, dtype=torch.int64)], 1)
    item = torch.arange(num_items)[:, None] + torch.arange(4)
    sequences = torch.cat([torch.full((num_items, 1), 2), written[item % num_items].flatten(1)], 1)
    model = tiny_model("llama", space.min_vocabulary, hidden_size=32, initializer_range=0.1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        model(input_ids=sequences, labels=sequences).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    prompts = sequences[:, : 1 + written.shape[1]]
    trie = Trie.build(SemanticIds(codes, sizes, "chain"))

    def follow(requests):
        processor = SemanticIdLogitsProcessor(trie, space, prompt_length=6, requests=requests, unique=True)
        found = model.eval().generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=15,
            do_sample=False,
            logits_processor=LogitsProcessorList([processor]),
            pad_token_id=0,
        )
        return [space.tuples_in(row[6:]).tolist() for row in found]

    assert follow(None) == codes[item[:, 1:] % num_items].tolist()
    without_next = requests_of([[]] * num_items, excluded=[[(i + 1) % num_items] for i in range(num_items)])
    for row, tuples in enumerate(follow(without_next)):
        assert codes[(row + 1) % num_items].tolist() not in tuples
        assert len(tuples) == 3
