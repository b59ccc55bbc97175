import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tesserec.decoding.token_space import TokenSpace, extend_vocabulary
from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_updates import without_items
from tesserec.errors import DataError
from tesserec.types import SemanticIds

SPACE = TokenSpace.after(10, (3, 2), item_begin=4, item_end=20)
TABLE = SemanticIds(torch.tensor([[0, 0], [1, 1]]), (2, 2), "test")


def test_codes_follow_the_text_level_by_level():
    assert [level.tolist() for level in SPACE.tokens] == [[10, 11, 12], [13, 14]]
    assert (SPACE.codebook_sizes, SPACE.num_levels, SPACE.min_vocabulary) == ((3, 2), 2, 21)
    assert SPACE.tokens_of(torch.tensor([[2, 0], [0, 1]])).tolist() == [[12, 13], [10, 14]]
    assert SPACE.tokens_of(torch.tensor([[2], [0]])).tolist() == [[12], [10]]
    assert SPACE.tokens_of(torch.zeros(3, 0)).shape == (3, 0)
    assert SPACE.written(torch.tensor([[2, 0], [0, 1]])).tolist() == [[4, 12, 13, 20], [4, 10, 14, 20]]
    assert TokenSpace.after(5, (2, 1)).written(torch.tensor([1, 0])).tolist() == [6, 7]


def test_codes_may_be_anywhere_in_the_vocabulary():
    space = TokenSpace.of([[7, 0], [3, 9, 5]], item_begin=1)
    assert space.tokens_of(torch.tensor([[0, 2], [1, 1]])).tolist() == [[7, 5], [0, 9]]
    level, code = space.locate(torch.tensor([[7, 0, 3, 9], [5, 1, 2, 4]]))
    assert level.tolist() == [[0, 0, 1, 1], [1, -1, -1, -1]]
    assert code.tolist() == [[0, 1, 0, 1], [2, -1, -1, -1]]


def test_what_is_no_code_is_found_nowhere():
    for tokens in SPACE.locate(torch.tensor([-100, -1, 0, 4, 9, 15, 20, 21, 10**6])):
        assert tokens.tolist() == [-1] * 9


def test_whole_tuples_are_found_in_a_text():
    text = torch.tensor([1, 10, 13, 4, 12, 14, 20, 11, 2, 13, 11, 10, 13, 12])
    assert SPACE.tuples_in(text).tolist() == [[0, 0], [2, 1], [0, 0]]
    assert SPACE.tuples_in(torch.tensor([12])).shape == (0, 2)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 99_999))
def test_there_and_back(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(50, generator=generator)
    table = [level.tolist() for level in ids[: sum(sizes)].split(sizes)]
    spaces = (TokenSpace.of(table, item_begin=int(ids[-1])), TokenSpace.after(seed % 7, sizes))
    codes = torch.stack([torch.randint(size, (6, 2), generator=generator) for size in sizes], -1)
    for space in spaces:
        tokens = space.tokens_of(codes)
        assert space.codes_of(tokens).equal(codes)
        assert space.tuples_in(tokens.flatten()).equal(codes.flatten(0, 1))
        assert space.to("cpu").tokens_of(codes).equal(tokens)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TokenSpace(()), r"^tokens have shapes \[\], expected one or more levels \[codes\]: give a token a c"),
        (lambda: TokenSpace.of([[1], []]), r"^tokens have shapes \[\(1,\), \(0,\)\], expected"),
        (lambda: TokenSpace.of([[1, -2]]), "^token id -2 is below 0: token ids are places in a vocabulary$"),
        (lambda: TokenSpace.of([[1, 2], [3, 2]]), "^token 2 stands for 2 codes or item marks: give each its own$"),
        (lambda: TokenSpace.after(3, [2], item_end=4), "^token 4 stands for 2 codes or item marks"),
        (lambda: TokenSpace.after(3, [2, 0]), r"^codebook_sizes = \[2, 0\]: every level needs at least one code$"),
        (
            lambda: SPACE.tokens_of(torch.tensor([[0, 1], [1, 2]])),
            r"^level 1 has codes in \[1, 2\], this space has tokens for \[0, 1\]: give it the codebook sizes",
        ),
        (lambda: SPACE.tokens_of(torch.tensor([[0, -1]])), r"^level 1 has codes in \[-1, -1\]"),
        (lambda: SPACE.tokens_of(torch.zeros(1, 3)), "^tuples of 3 codes, expected at most 2: this space has no more$"),
        (lambda: SPACE.written(torch.zeros(1, 1)), "^tuples of 1 codes, expected 2: write whole items$"),
        (
            lambda: SPACE.codes_of(torch.tensor([[10, 13], [13, 13]])),
            r"^token 13 at \[1, 0\] is no code of level 0: give the tokens of code tuples only, or look for",
        ),
        (lambda: TokenSpace((torch.tensor([0.5]),)), r"^tokens have types \[torch.float32\]: token ids are integers$"),
        (
            lambda: SPACE.tuples_in(torch.zeros(1, 9)),
            r"^tokens_T has shape \(1, 9\): give the tokens of one text, \[T\]$",
        ),
        (
            lambda: SPACE.require_codes_of(Trie.build(TABLE, order=(1, 0))),
            r"^the trie fills levels in the order \(1, 0\), a text has them from left to right: build it wit",
        ),
        (
            lambda: SPACE.require_codes_of(without_items(Trie.build(TABLE), torch.arange(2))),
            "^the trie has no items: add some with with_items",
        ),
    ],
)
def test_what_cannot_be_is_refused(build, message):
    with pytest.raises(DataError, match=message):
        build()


def words():
    model = WordLevel({"[UNK]": 0, "then": 1, "buy": 2}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def llama(rows):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=rows,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def test_a_vocabulary_grows_by_the_codes_and_a_second_time_not_at_all():
    tokenizer, model = words(), llama(3)
    before = model.get_input_embeddings().weight.detach().clone()
    space = extend_vocabulary(model, tokenizer, (3, 2), item_end="<|/item|>")
    assert (len(tokenizer), model.config.vocab_size, space.min_vocabulary) == (10, 10, 10)
    assert model(torch.tensor([[1, 9]])).logits.shape == (1, 2, 10)
    assert model.get_input_embeddings().weight[:3].equal(before)
    tokens = tokenizer("buy <|item|><|0:2|><|1:0|><|/item|> then").input_ids
    assert tokens == [2, *space.written(torch.tensor([2, 0])).tolist(), 1]
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "buy then"
    grown = model.get_input_embeddings().weight.detach().clone()
    again = extend_vocabulary(model, tokenizer, (3, 2), item_end="<|/item|>")
    assert model.get_input_embeddings().weight.equal(grown)
    assert torch.cat(again.tokens).equal(torch.cat(space.tokens))
    assert (again.item_begin, again.item_end) == (space.item_begin, space.item_end)


def test_new_rows_come_from_the_seed_and_the_callers_generator_is_left_alone():
    rows = []
    for seed in (1, 1, 2):
        model = llama(3)
        torch.manual_seed(5)
        extend_vocabulary(model, words(), (3, 2), item_begin=None, seed=seed)
        assert torch.rand(1).equal(torch.rand(1, generator=torch.Generator().manual_seed(5)))
        rows.append(model.get_input_embeddings().weight.detach().clone())
    assert rows[0].equal(rows[1])
    assert not rows[0].equal(rows[2])


def test_rows_that_a_model_has_to_spare_are_used():
    model = llama(64)
    space = extend_vocabulary(model, words(), (3, 2))
    assert model.config.vocab_size == 64
    assert space.min_vocabulary == 9
