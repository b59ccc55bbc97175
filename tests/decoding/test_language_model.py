import subprocess
import sys

import pytest
import torch
from tests.decoding.tiny_models import FAMILIES, tiny_model

from tesserec.decoding.beam_search import beam_search
from tesserec.decoding.language_model import LanguageModelStep, generate_items
from tesserec.decoding.token_space import TokenSpace
from tesserec.decoding.top_k import allowed_items
from tesserec.decoding.trie import Trie
from tesserec.errors import DataError
from tesserec.testing.data import requests_of
from tesserec.testing.decoding import random_requests, random_semantic_ids
from tesserec.types import Ragged, SemanticIds

SIZES = (4, 3, 5)
SPACE = TokenSpace.after(9, SIZES)
IDS = random_semantic_ids(30, SIZES, torch.Generator().manual_seed(4))
TRIE = Trie.build(IDS)
PROMPTS = Ragged.of([[3, 1, 10, 14, 18, 2], [5], [7, 8, 0, 4, 9, 13, 16, 11, 14, 20, 6], [2, 2, 1]])
NO_FILTER = requests_of([[]] * 4)


def item_scores(model, prompts, space=SPACE, ids=IDS):
    """Log-probability of each item's tokens after each prompt, [B, N]: every sequence alone, whole, without a cache."""
    rows = []
    for prompt in prompts:
        sequences = torch.cat([prompt.expand(len(ids), -1), space.tokens_of(ids.codes_NL)], 1)
        log_probs = model(sequences).logits.float().log_softmax(-1)
        picked = log_probs[:, :-1].gather(2, sequences[:, 1:, None])[..., 0]
        rows.append(picked[:, -ids.num_levels :].sum(1))
    return torch.stack(rows)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_scores_are_those_of_whole_sequences_through_the_plain_model(family, attention):
    model = tiny_model(family, 30, attention=attention)
    found = generate_items(model, PROMPTS, TRIE, SPACE, NO_FILTER, num_beams=60, k=len(IDS), batch_size=3)
    assert found.items_BK.sort(1).values.tolist() == [list(range(len(IDS)))] * 4
    expected_BN = item_scores(model, PROMPTS)
    assert torch.allclose(found.scores_BK, expected_BN.gather(1, found.items_BK), atol=1e-4)
    assert (found.scores_BK.diff(dim=1) <= 0).all()
    assert float(expected_BN.std(1).min()) > 0.5, "the model must tell items apart"
    assert IDS.codes_NL[found.items_BK].equal(found.trace["codes"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_beams", [1, 3, 6])
def test_lists_are_those_of_generate_with_prefix_allowed_tokens(family, num_beams):
    model = tiny_model(family, 30, seed=num_beams)
    tuples = {tuple(codes) for codes in SPACE.tokens_of(IDS.codes_NL).tolist()}
    longest = int(PROMPTS.lengths.max())

    def allowed(request, tokens):
        written = tuple(tokens[longest:].tolist())
        return sorted({found[len(written)] for found in tuples if found[: len(written)] == written})

    padded = torch.stack([torch.cat([prompt.new_zeros(longest - len(prompt)), prompt]) for prompt in PROMPTS])
    generated = model.generate(
        padded,
        attention_mask=(torch.arange(longest) >= longest - PROMPTS.lengths[:, None]).long(),
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=len(SIZES),
        do_sample=False,
        prefix_allowed_tokens_fn=allowed,
        pad_token_id=0,
    )
    expected = SPACE.codes_of(generated[:, longest:]).view(4, num_beams, len(SIZES))
    step = LanguageModelStep(model, TRIE, SPACE)
    beams = beam_search(step, step.read(PROMPTS), TRIE, num_requests=4, num_beams=num_beams)
    assert beams.codes_BML.equal(expected)


@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_filters_and_random_tables(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(7,), (2, 6), (3, 2, 2, 4)][seed % 3]
    ids = random_semantic_ids(25, sizes, generator)
    space = TokenSpace.of(
        [level.tolist() for level in torch.randperm(40, generator=generator)[: sum(sizes)].split(sizes)]
    )
    model = tiny_model(FAMILIES[seed % 3], 40, seed=seed)
    requests = random_requests(5, 25, generator)
    lengths = torch.randint(1, 12, (5,), generator=generator)
    prompts = Ragged.of([torch.randint(40, (int(n),), generator=generator).tolist() for n in lengths])
    trie = Trie.build(ids)
    found = generate_items(model, prompts, trie, space, requests, num_beams=100, k=25)
    expected_BN = item_scores(model, prompts, space, ids).masked_fill(~allowed_items(requests, 25), -torch.inf)
    assert torch.allclose(found.scores_BK, expected_BN.sort(1, descending=True).values, atol=1e-4)
    shown = found.items_BK >= 0
    assert torch.allclose(found.scores_BK[shown], expected_BN.gather(1, found.items_BK.clamp(min=0))[shown], atol=1e-4)


def test_a_prompt_is_read_alone_or_beside_longer_ones_with_the_same_answer():
    model = tiny_model("qwen3", 30)
    together = generate_items(model, PROMPTS, TRIE, SPACE, NO_FILTER, num_beams=4, k=4)
    alone = generate_items(model, PROMPTS, TRIE, SPACE, NO_FILTER, num_beams=4, k=4, batch_size=1)
    assert alone.items_BK.equal(together.items_BK)
    assert torch.allclose(alone.scores_BK, together.scores_BK, atol=1e-5)


def test_the_prompt_is_kept_once_whatever_the_number_of_beams():
    step = LanguageModelStep(tiny_model("llama", 30), TRIE, SPACE)
    reading = step.read(PROMPTS)
    beam_search(step, reading, TRIE, num_requests=4, num_beams=7)
    first = [min(7, TRIE.num_nodes(1)), 7]
    for layer in reading.keys_values.layers:
        assert layer.keys.shape[:3] == (4, 1, 11 + sum(first))


def test_a_reading_is_for_one_search():
    step = LanguageModelStep(tiny_model("llama", 30), TRIE, SPACE)
    reading = step.read(PROMPTS)
    beam_search(step, reading, TRIE, num_requests=4, num_beams=2)
    with pytest.raises(DataError, match=r"^a search has added to this reading already: read the prompts anew"):
        beam_search(step, reading, TRIE, num_requests=4, num_beams=2)


def test_new_arrays_are_made_where_the_model_is():
    step = LanguageModelStep(tiny_model("llama", 30), TRIE, SPACE)
    expected = beam_search(step, step.read(PROMPTS), TRIE, num_requests=4, num_beams=5)
    reading = step.read(PROMPTS)
    with torch.device("meta"):
        found = beam_search(step, reading, TRIE, num_requests=4, num_beams=5)
    assert found.codes_BML.equal(expected.codes_BML)


def test_bfloat16_gives_nearly_the_same():
    model = tiny_model("llama", 30, initializer_range=0.1)
    exact = generate_items(model, PROMPTS, TRIE, SPACE, NO_FILTER, num_beams=60, k=30)
    coarse = generate_items(model.to(torch.bfloat16), PROMPTS, TRIE, SPACE, NO_FILTER, num_beams=60, k=30)
    assert coarse.scores_BK.dtype == torch.float32
    assert torch.allclose(
        exact.scores_BK.gather(1, exact.items_BK.argsort(1)),
        coarse.scores_BK.gather(1, coarse.items_BK.argsort(1)),
        atol=0.1,
    )


def test_no_requests_give_no_candidates():
    found = generate_items(tiny_model("llama", 30), Ragged.of([]), TRIE, SPACE, requests_of([]), num_beams=2, k=3)
    assert found.items_BK.shape == (0, 3)


MARKED = TokenSpace.after(9, SIZES, item_begin=1)


@pytest.mark.parametrize(
    ("prompts", "space", "message"),
    [
        ([[1]], SPACE, "^1 prompts for 2 requests: give one each$"),
        ([[1], []], SPACE, "^prompt 1 has no tokens: begin it with some text or a mark$"),
        ([[1], [30]], SPACE, "^prompts hold token 30, the model has 0 to 29: use the model's own tokenizer$"),
        ([[-1], [3]], SPACE, "^prompts hold token -1, the model has"),
        ([[2, 1], [1, 2]], MARKED, "^prompt 1 does not end with item_begin, token 1: add it, codes follow it$"),
        ([[1], [2]], TokenSpace.after(19, SIZES), "^the token space has ids up to 30, the model 30 tokens: add room"),
        ([[1], [2]], TokenSpace.after(9, (4, 3, 4)), r"^the trie has codes below \[4, 3, 5\] at its levels, the token"),
        ([[1], [2]], TokenSpace.after(9, (4, 3)), r"^the trie has codes below .* the token space \[4, 3\] tokens"),
    ],
)
def test_what_does_not_fit_together_is_refused(prompts, space, message):
    with pytest.raises(DataError, match=message):
        generate_items(
            tiny_model("llama", 30), Ragged.of(prompts), TRIE, space, requests_of([[], []]), num_beams=2, k=1
        )


def test_models_that_cannot_share_a_prompt_are_refused():
    with pytest.raises(DataError, match=r"^the model is in training mode, .*: call model\.eval\(\)$"):
        LanguageModelStep(tiny_model("llama", 30).train(), TRIE, SPACE)
    other = tiny_model("llama", 30)
    other.config._attn_implementation = "flash_attention_2"
    with pytest.raises(
        DataError, match=r"^the model's attention is 'flash_attention_2', .*attn_implementation=\"sdpa\"$"
    ):
        LanguageModelStep(other, TRIE, SPACE)
    sliding = tiny_model("qwen3", 30, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    with pytest.raises(DataError, match=r"^the model has layers that do not keep all tokens"):
        LanguageModelStep(sliding, TRIE, SPACE)


def test_a_planted_chain_is_learned_and_generated():
    num_items, sizes = 12, (4, 3)
    codes = torch.tensor([[item % 4, item // 4] for item in range(num_items)])
    space = TokenSpace.after(3, sizes, item_begin=2)
    written = space.written(codes)
    follows = torch.arange(num_items).roll(-1)
    text = torch.tensor([[0]]).expand(num_items, 1)
    then = torch.tensor([[1]]).expand(num_items, 1)
    sequences = torch.cat([text, written, then, written[follows]], 1)
    model = tiny_model("llama", space.min_vocabulary, hidden_size=32, initializer_range=0.1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        loss = model(input_ids=sequences, labels=sequences).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    prompts = Ragged.of(sequences[:, : -len(sizes)].tolist())
    trie = Trie.build(SemanticIds(codes, sizes, "chain"))
    requests = requests_of([[[item]] for item in range(num_items)], exclude_history=True)
    found = generate_items(model.eval(), prompts, trie, space, requests, num_beams=4, k=3)
    assert found.items_BK[:, 0].equal(follows)
    assert (found.scores_BK[:, 0] > -0.2).all()
    assert not (found.items_BK == torch.arange(num_items)[:, None]).any()


def test_transformers_is_not_imported_before_it_is_needed():
    modules = "tesserec.decoding.language_model, tesserec.decoding.token_space, tesserec.decoding.logits_processor"
    code = f"import sys, {modules}; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
