"""SASRec and HSTU whose item vectors are made of codes too: the contract, and items that were never seen."""

import dataclasses
from functools import partial

import pytest
import torch

from tesserec.errors import RecipeError, VersionMismatchError
from tesserec.nn.items import GateConfig
from tesserec.nn.sid_features import SIDKeys
from tesserec.nn.transformer import TransformerConfig
from tesserec.retrievers.hstu import HSTU, HSTUConfig
from tesserec.retrievers.sasrec import SASRec
from tesserec.testing.data import catalog_of_size, interactions_of, requests_of
from tesserec.testing.retriever_contract import RetrieverContract
from tesserec.training.loop import TrainingConfig
from tesserec.types import FitContext, SemanticIds, TakesNewItems

KEYS = SIDKeys("prefixes", max_depth=1)


def sasrec(epochs=1, **settings):
    training = TrainingConfig(epochs=epochs, batch_size=8, learning_rate=0.02)
    model = TransformerConfig(width=16, num_layers=1, dropout=0.0)
    return SASRec(**({"model": model, "max_length": 4, "training": training, "keys": KEYS} | settings))


def hstu(epochs=1, **settings):
    training = TrainingConfig(epochs=epochs, batch_size=8, learning_rate=0.02, weight_decay=0.0)
    model = HSTUConfig(width=16, num_layers=1, dropout=0.0)
    return HSTU(**({"model": model, "max_length": 4, "training": training, "keys": KEYS} | settings))


def ids(num_items):
    """Six groups of neighbours: the first code is the group, the second the place in it."""
    codes_NL = torch.stack([torch.arange(num_items) // 2 % 6, torch.arange(num_items) % 2], 1)
    return SemanticIds(codes_NL, (6, 2), "planted")


def groups():
    """Group g is followed by g + 1 modulo 6; item 5, the second of group 2, never occurs."""
    users = [[[2 * ((user + day) % 6) + (user + day) // 6 % 2] for day in range(6)] for user in range(24)]
    return interactions_of([[[4 if item == 5 else item] for [item] in user] for user in users], 12)


def fitted(make, **settings):
    retriever = make(**settings)
    retriever.fit(groups(), catalog_of_size(12), FitContext(seed=1, semantic_ids=ids(12)))
    return retriever


class Contract(RetrieverContract):
    def context(self, catalog):
        return FitContext(seed=3, semantic_ids=ids(len(catalog)))


class TestSASRecOfCodes(Contract):
    make = sasrec


class TestSASRecWithAGate(Contract):
    make = partial(sasrec, gate=GateConfig())


class TestHSTUOfCodes(Contract):
    make = hstu


class TestHSTUWithAGate(Contract):
    make = partial(hstu, gate=GateConfig())


@pytest.mark.parametrize("make", [sasrec, hstu])
@pytest.mark.parametrize("gate", [None, GateConfig()])
def test_an_item_without_events_is_known_by_its_codes(make, gate):
    """What follows item 5 is what follows its group, and it is proposed after what its group follows."""
    retriever = fitted(make, epochs=25, gate=gate)
    after, before = (retriever.score_all(requests_of([[[item]]]))[0] for item in (5, 2))
    assert set(after.topk(2).indices.tolist()) <= {6, 7}
    assert set(before.topk(2).indices.tolist()) == {4, 5}
    alone = fitted(make, epochs=25, keys=None).score_all(requests_of([[[2]]]))[0]
    assert 5 not in alone.topk(2).indices


@pytest.mark.parametrize("make", [sasrec, hstu])
def test_the_vectors_of_an_item_are_pulled_together(make):
    def closeness(alignment):
        encoder = fitted(make, epochs=5, gate=GateConfig(alignment=alignment))._network.items
        seen = torch.arange(12) != 5
        return torch.cosine_similarity(encoder._own(None)[seen], encoder._semantic(None)[seen]).mean()

    assert closeness(1.0) > closeness(0.0) + 0.2


@pytest.mark.parametrize("make", [sasrec, hstu])
@pytest.mark.parametrize("settings", [{}, {"gate": GateConfig()}, {"keys": SIDKeys("pieces", max_rows=10)}])
def test_later_items_are_those_of_their_codes(make, settings):
    retriever = fitted(make, epochs=2, **settings)
    other = make(**settings)
    other.restore(retriever.state(), catalog_of_size(12), FitContext(semantic_ids=ids(12)))
    requests = requests_of([[[item]] for item in range(12)])
    assert torch.equal(other.score_all(requests), retriever.score_all(requests))
    other.add_items(catalog_of_size(18), FitContext(semantic_ids=ids(18)))  # item 17 has the codes of item 5
    scores_BN = other.score_all(requests)
    assert torch.equal(scores_BN[:, :12], retriever.score_all(requests))
    torch.testing.assert_close(scores_BN[:, 17], scores_BN[:, 5])


@pytest.mark.parametrize("make", [sasrec, hstu])
@pytest.mark.parametrize("settings", [{"gate": GateConfig()}, {"keys": SIDKeys("pieces", max_rows=10)}])
def test_a_warm_start_goes_on_with_a_larger_catalog(make, settings):
    """Item 5 has events by then, so that the rows of all later items are others."""
    earlier = fitted(make, epochs=5, **settings)
    more = [[[2 * ((user + day) % 6) + (user + day) // 6 % 2] for day in range(6)] for user in range(24)]
    context = FitContext(seed=2, semantic_ids=ids(14), warm_start=earlier.state())
    grown = make(epochs=0, **settings)
    grown.fit(interactions_of(more, 14), catalog_of_size(14), context)
    before, after = earlier._network.items, grown._network.items
    seen = [item for item in range(12) if item != 5]
    assert after.row_N[6] == before.row_N[6] + 1
    assert torch.equal(after._own(torch.tensor(seen)), before._own(torch.tensor(seen)))
    assert torch.equal(after._semantic(torch.tensor(seen)), before._semantic(torch.tensor(seen)))


@pytest.mark.parametrize("make", [sasrec, hstu])
@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ({"keys": None}, {}),
        ({}, {"keys": None}),
        ({"gate": GateConfig()}, {}),
        ({}, {"gate": GateConfig()}),
        ({"keys": SIDKeys("codes")}, {"keys": SIDKeys("prefixes")}),
    ],
)
def test_weights_of_other_settings_are_refused(make, earlier, later):
    state = fitted(make, epochs=0, **earlier).state()
    retriever = make(epochs=0, **later)
    with pytest.raises(VersionMismatchError, match="fit with the same settings"):
        retriever.restore(state, catalog_of_size(12), FitContext(semantic_ids=ids(12)))
    with pytest.raises(VersionMismatchError, match="fit with the same settings"):
        retriever.fit(groups(), catalog_of_size(12), FitContext(semantic_ids=ids(12), warm_start=state))


@pytest.mark.parametrize("make", [sasrec, hstu])
def test_a_gate_learns_in_bfloat16(make):
    training = dataclasses.replace(make(epochs=15).training, precision="bfloat16")
    retriever = fitted(make, gate=GateConfig(), training=training)
    losses = [entry["loss"] for entry in retriever.training_log]
    assert losses[-1] < 0.6 * losses[0]
    assert retriever._network.items.gate.out.weight.any()


def test_only_with_keys_do_they_take_new_items():
    assert isinstance(sasrec(), TakesNewItems)
    assert not isinstance(sasrec(keys=None), TakesNewItems)


@pytest.mark.parametrize("make", [sasrec, hstu])
def test_settings_that_make_no_sense_are_refused(make):
    with pytest.raises(ValueError, match="a gate mixes an item's own vector with that of its codes: name their keys"):
        make(keys=None, gate=GateConfig())
    with pytest.raises(RecipeError, match=r"was given none: add a \[semantic_ids\] table to the recipe, or leave out"):
        make().fit(groups(), catalog_of_size(12), FitContext(seed=1))
