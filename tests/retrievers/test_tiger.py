"""TIGER: the contract, an exhaustive oracle, and a planted chain."""

import dataclasses
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from tesserec.data.batches import history_of
from tesserec.errors import RecipeError
from tesserec.nn.sid_features import SIDKeys
from tesserec.nn.transformer import TransformerConfig
from tesserec.retrievers.tiger import TIGER
from tesserec.testing.data import catalog_of_size, chain, interactions_of, requests_of
from tesserec.testing.retriever_contract import RetrieverContract
from tesserec.training.loop import TrainingConfig
from tesserec.types import Catalog, FitContext, SemanticIds

CODES = SemanticIds(torch.cartesian_prod(torch.arange(3), torch.arange(4)), (3, 4), "planted")


def tiny(epochs: int = 1, keys: SIDKeys | None = None) -> TIGER:
    model = TransformerConfig(16, 1, 2, head_width=12, dropout=0.0)
    training = TrainingConfig(epochs=epochs, batch_size=32, learning_rate=0.01)
    return TIGER(model=model, max_length=3, num_user_tokens=5, num_beams=12, training=training, keys=keys)


class TestTIGER(RetrieverContract):
    make = tiny

    def context(self, catalog: Catalog) -> FitContext:
        extra = len(catalog) - len(CODES)
        codes_NL = torch.cat([CODES.codes_NL, torch.tensor([[1, 1]]).expand(extra, 2)])
        return FitContext(seed=3, semantic_ids=dataclasses.replace(CODES, codes_NL=codes_NL))


class TestTIGERWithKeys(TestTIGER):
    make = partial(tiny, keys=SIDKeys("memory"))


def fitted(epochs: int, keys: SIDKeys | None = None) -> TIGER:
    train, catalog = chain()
    tiger = tiny(epochs, keys)
    tiger.fit(train, catalog, FitContext(seed=1, semantic_ids=CODES))
    return tiger


def test_the_chain_is_learnt() -> None:
    tiger = fitted(12)
    found = tiger.retrieve(requests_of([[[i]] for i in range(12)]), 1).items_BK[:, 0]
    assert (found == (torch.arange(12) + 1) % 12).float().mean() > 0.8
    losses = [entry["loss"] for entry in tiger.training_log]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("keys", [None, SIDKeys("memory")])
def test_a_beam_as_wide_as_the_catalog_equals_teacher_forcing_of_every_item(keys: SIDKeys | None) -> None:
    tiger = fitted(3, keys)
    network = tiger._network
    assert network is not None
    requests = requests_of([[[2], [3]], [[7]]])
    found = tiger.retrieve(requests, 12)
    with torch.no_grad():
        items_BH = torch.tensor([[-1, 2, 3], [-1, -1, 7]])
        total_BN = torch.zeros(2, 12)
        for item, (first, second) in enumerate(network.tokens_NL.tolist()):
            added_BTD = None
            if network.memory is not None:
                ending = network.memory.of_codes  # its rows of the first code, and of the pair less those
                assert torch.allclose(network._remembered(torch.tensor(item)).sum(0), ending(CODES.codes_NL[item]))
                added_BTD = F.pad(network._remembered(torch.tensor([item] * 2))[:, :1], (0, 0, 1, 0))
                assert added_BTD[:, 1].any()
            tokens_BT = torch.tensor([[0, first]] * 2)
            logits_BTV = network.t5(network.read(items_BH, torch.tensor([5, 5])), tokens_BT, added_BTD)
            log_probs_BTV = logits_BTV.log_softmax(-1)
            total_BN[:, item] = log_probs_BTV[:, 0, first] + log_probs_BTV[:, 1, second]
    torch.testing.assert_close(total_BN.gather(1, found.items_BK), found.scores_BK)
    assert found.items_BK.sort(1).values.tolist() == [list(range(12))] * 2


def test_lists_and_scores_equal_those_of_hugging_face_with_the_same_weights() -> None:
    transformers = pytest.importorskip("transformers")
    codes = SemanticIds(CODES.codes_NL[[0, 2, 3, 5, 6, 7, 9, 11, 5, 1, 4, 10]], (3, 4), "planted")
    train, catalog = chain()
    tiger = dataclasses.replace(tiny(0), num_beams=5)
    tiger.fit(train, catalog, FitContext(seed=1, semantic_ids=codes))
    network = tiger._network
    assert network is not None
    torch.manual_seed(6)
    config = transformers.T5Config(
        vocab_size=1 + 3 + 4,
        d_model=16,
        d_kv=12,
        d_ff=16 * 4,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
        decoder_start_token_id=0,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    network.t5.load_huggingface(theirs.state_dict())
    tokens_NL = network.tokens_NL.tolist()

    def allowed(row: int, prefix: torch.Tensor) -> list[int]:
        before = prefix.tolist()[1:]
        return sorted({tokens[len(before)] for tokens in tokens_NL if tokens[: len(before)] == before})

    requests = dataclasses.replace(requests_of([[[2], [3]], [[7]], [[1], [4], [5]]]), user_B=torch.tensor([3, 4, -1]))
    items = [[2, 3], [7], [1, 4, 5]]
    length = 1 + 2 * 3
    read_BSD = torch.zeros(3, length, 16)
    exists_BS = torch.zeros(3, length, dtype=torch.int64)
    with torch.no_grad():
        for row, user in enumerate([3, 4, 5]):
            codes_T = torch.tensor([token for item in items[row] for token in tokens_NL[item]])
            exists_BS[row, : 1 + len(codes_T)] = 1
            read_BSD[row, : 1 + len(codes_T)] = torch.cat([network.users.weight[[user]], theirs.shared(codes_T)])
    found = theirs.generate(
        inputs_embeds=read_BSD,
        attention_mask=exists_BS,
        num_beams=5,
        num_return_sequences=5,
        max_new_tokens=2,
        do_sample=False,
        length_penalty=0.0,
        prefix_allowed_tokens_fn=allowed,
        return_dict_in_generate=True,
        output_scores=True,
    )
    lists = tiger.retrieve(requests, 5)
    for row in range(3):
        sequences = found.sequences[5 * row : 5 * row + 5, 1:].tolist()
        scores = dict(zip(map(tuple, sequences), found.sequences_scores[5 * row : 5 * row + 5].tolist(), strict=True))
        for item, score in zip(lists.items_BK[row].tolist(), lists.scores_BK[row].tolist(), strict=True):
            assert scores[tuple(tokens_NL[item])] == pytest.approx(score, abs=1e-4)


def test_keys_start_as_if_they_were_not_there() -> None:
    requests = requests_of([[[2], [3]], [[7]]])
    plain, with_keys = fitted(0).retrieve(requests, 5), fitted(0, SIDKeys()).retrieve(requests, 5)
    assert torch.equal(plain.items_BK, with_keys.items_BK)
    assert torch.equal(plain.scores_BK, with_keys.scores_BK)


def test_the_collision_digit_is_no_key() -> None:
    codes = dataclasses.replace(CODES, has_digit=True)
    tiger = tiny(2, SIDKeys("codes"))
    tiger.fit(*chain(), FitContext(seed=1, semantic_ids=codes))
    network = tiger._network
    assert network is not None
    added_NLD = network._remembered(torch.arange(12))
    assert added_NLD[:, 0].any()
    assert not added_NLD[:, 1].any()


def test_keys_that_need_later_codes_are_refused() -> None:
    with pytest.raises(ValueError, match='keys of kind "pieces" may need codes that are not written yet'):
        TIGER(keys=SIDKeys("pieces"))


def test_lists_do_not_depend_on_the_requests_beside_them() -> None:
    tiger = fitted(1)
    requests = requests_of([[[i % 12]] * (i % 4) for i in range(40)])
    together = tiger.retrieve(requests, 3)
    for row in range(40):
        alone = tiger.retrieve(requests.take(torch.tensor([row])), 3)
        assert torch.equal(alone.items_BK[0], together.items_BK[row])
        torch.testing.assert_close(alone.scores_BK[0], together.scores_BK[row])


def test_a_search_in_bfloat16_is_near() -> None:
    tiger = fitted(12)
    requests = requests_of([[[i]] for i in range(12)])
    exact = tiger.retrieve(requests, 1)
    near = dataclasses.replace(tiger, precision="bfloat16")
    near.restore(tiger.state(), chain()[1], FitContext(seed=1, semantic_ids=CODES))
    found = near.retrieve(requests, 1)
    assert (found.items_BK == exact.items_BK).float().mean() > 0.9
    assert found.scores_BK.dtype == torch.float32
    assert not torch.equal(found.scores_BK, exact.scores_BK)
    torch.testing.assert_close(found.scores_BK, exact.scores_BK, atol=0.1, rtol=0)


def test_a_known_user_is_told_from_an_unknown_one() -> None:
    tiger = fitted(3)
    requests = requests_of([[[2], [3]]])
    known = dataclasses.replace(requests, user_B=torch.tensor([0]))
    unknown = dataclasses.replace(requests, user_B=torch.tensor([-1]))
    assert torch.equal(tiger.retrieve(unknown, 12).scores_BK, tiger.retrieve(requests, 12).scores_BK)
    assert not torch.equal(tiger.retrieve(known, 12).scores_BK, tiger.retrieve(requests, 12).scores_BK)


def test_examples_are_all_prefixes() -> None:
    tiger = tiny()
    train, catalog = chain(num_users=2, length=4)
    seen = []
    tiger.fit(train, catalog, FitContext(semantic_ids=CODES, progress=lambda *args: seen.append(args)))
    examples = tiger._examples(history_of(train), torch.tensor([1, 2, 3, 7]))
    assert examples.items_BH.tolist() == [[-1, -1, 0], [-1, 0, 1], [0, 1, 2], [1, 2, 3]]
    assert examples.target_B.tolist() == [1, 2, 3, 4]
    assert examples.user_B.tolist() == [0, 0, 0, 1]


def test_an_example_alone_has_the_loss_it_has_in_a_padded_batch() -> None:
    tiger = fitted(1)
    network = tiger._network
    assert network is not None
    history = history_of(interactions_of([[[4]], [[0], [1], [2], [3], [4]], [], [[7], [9]]], 12))
    ends = torch.tensor([2, 4, 7])
    together = tiger._examples(history, ends)
    assert together.items_BH.tolist() == [[-1, -1, 0], [0, 1, 2], [-1, -1, 7]]
    assert (together.user_B.tolist(), together.target_B.tolist()) == ([1, 1, 3], [1, 3, 9])
    alone = [tiger._examples(history, end[None]) for end in ends]
    assert [examples.items_BH.shape[1] for examples in alone] == [1, 3, 1]
    with torch.no_grad():
        mean = torch.stack([network.loss(examples) for examples in alone]).mean()
        torch.testing.assert_close(network.loss(together), mean)


def test_batches_hold_histories_of_like_length_and_every_example_once() -> None:
    users = [[[(user + day) % 12] for day in range(1 + user % 4)] for user in range(60)]
    log = interactions_of(users, 12)
    training = TrainingConfig(batch_size=10)
    tiger = dataclasses.replace(tiny(), training=training)
    job = tiger.job(log, catalog_of_size(12), FitContext(seed=1, semantic_ids=CODES))
    batches = list(job.batches(torch.Generator().manual_seed(0)))
    assert len(batches) == job.num_batches == 9
    assert sorted(batch.items_BH.shape[1] for batch in batches) == [1, 1, 1, 1, 2, 2, 2, 3, 3]
    lasts = torch.cat([batch.items_BH[:, -1] for batch in batches])
    targets = torch.cat([batch.target_B for batch in batches])
    assert torch.equal((lasts + 1) % 12, targets)
    wanted = [item for items in users for (item,) in items[1:]]
    assert sorted(targets.tolist()) == sorted(wanted)
    none = tiger.job(interactions_of([[]], 12), catalog_of_size(12), FitContext(seed=1, semantic_ids=CODES))
    assert list(none.batches(torch.Generator())) == []


def test_bfloat16_learns_the_chain_too() -> None:
    train, catalog = chain()
    training = TrainingConfig(epochs=12, batch_size=32, learning_rate=0.01, precision="bfloat16")
    tiger = dataclasses.replace(tiny(), training=training)
    tiger.fit(train, catalog, FitContext(seed=1, semantic_ids=CODES))
    losses = [entry["loss"] for entry in tiger.training_log]
    assert losses[-1] < 0.5 * losses[0]
    assert losses[0] != fitted(12).training_log[0]["loss"]


def test_a_warm_start_goes_on_from_the_weights() -> None:
    train, catalog = chain()
    earlier = fitted(8)
    later = tiny(1)
    context = FitContext(seed=1, semantic_ids=CODES, warm_start=earlier.state())
    later.fit(train, catalog, context)
    assert later.training_log[0]["loss"] < 0.8 * fitted(1).training_log[0]["loss"]


def test_without_semantic_ids_it_says_what_to_add() -> None:
    train, catalog = chain()
    with pytest.raises(RecipeError, match=r"TIGER generates Semantic IDs and was given none: add a \[semantic_ids\]"):
        tiny().fit(train, catalog, FitContext())
