"""TIGER: the contract, an exhaustive oracle, and a planted chain."""

import dataclasses

import pytest
import torch

from tesserec.data.batches import history_of
from tesserec.errors import RecipeError
from tesserec.nn.transformer import TransformerConfig
from tesserec.retrievers.tiger import TIGER
from tesserec.testing.data import catalog_of_size, chain, interactions_of, requests_of
from tesserec.testing.retriever_contract import RetrieverContract
from tesserec.training.loop import TrainingConfig
from tesserec.types import Catalog, FitContext, SemanticIds

CODES = SemanticIds(torch.cartesian_prod(torch.arange(3), torch.arange(4)), (3, 4), "planted")


def tiny(epochs: int = 1) -> TIGER:
    model = TransformerConfig(16, 1, 2, head_width=12, dropout=0.0)
    training = TrainingConfig(epochs=epochs, batch_size=32, learning_rate=0.01)
    return TIGER(model=model, max_length=3, num_user_tokens=5, num_beams=12, training=training)


class TestTIGER(RetrieverContract):
    make = tiny

    def context(self, catalog: Catalog) -> FitContext:
        extra = len(catalog) - len(CODES)
        codes_NL = torch.cat([CODES.codes_NL, torch.tensor([[1, 1]]).expand(extra, 2)])
        return FitContext(seed=3, semantic_ids=dataclasses.replace(CODES, codes_NL=codes_NL))


def fitted(epochs: int) -> TIGER:
    train, catalog = chain()
    tiger = tiny(epochs)
    tiger.fit(train, catalog, FitContext(seed=1, semantic_ids=CODES))
    return tiger


def test_the_chain_is_learnt() -> None:
    tiger = fitted(12)
    found = tiger.retrieve(requests_of([[[i]] for i in range(12)]), 1).items_BK[:, 0]
    assert (found == (torch.arange(12) + 1) % 12).float().mean() > 0.8
    losses = [entry["loss"] for entry in tiger.training_log]
    assert losses[-1] < 0.5 * losses[0]


def test_a_beam_as_wide_as_the_catalog_equals_teacher_forcing_of_every_item() -> None:
    tiger = fitted(1)
    network = tiger._network
    assert network is not None
    requests = requests_of([[[2], [3]], [[7]]])
    found = tiger.retrieve(requests, 12)
    with torch.no_grad():
        items_BH = torch.tensor([[-1, 2, 3], [-1, -1, 7]])
        source = network.encode(items_BH, torch.tensor([5, 5]))
        codes = network.codes_NL[None].expand(2, -1, -1)
        states = network.write(source, codes[..., :-1])
        first = network.heads[0](states[:, :, 0]).log_softmax(-1).gather(2, codes[..., :1])
        second = network.heads[1](states[:, :, 1]).log_softmax(-1).gather(2, codes[..., 1:] - 3)
        total_BN = (first + second).squeeze(-1)
    torch.testing.assert_close(total_BN.gather(1, found.items_BK), found.scores_BK)
    assert found.items_BK.sort(1).values.tolist() == [list(range(12))] * 2


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
