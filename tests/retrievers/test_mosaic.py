import copy
import dataclasses
import math
import signal
from typing import ClassVar

import pytest
import torch

from tesserec.data.batches import history_of, next_step_labels, training_windows, windows_of
from tesserec.decoding.beginnings import Beginnings
from tesserec.errors import RecipeError, TrainingInterrupted, VersionMismatchError
from tesserec.nn.items import GateConfig, own_rows
from tesserec.nn.losses import NegativeSampler
from tesserec.nn.sid_features import SIDKeys
from tesserec.nn.transformer import TransformerConfig
from tesserec.retrievers.content_knn import closeness
from tesserec.retrievers.fusion import NUM_GROUPS, fit_weights, groups_of
from tesserec.retrievers.mosaic import PRIOR, SOURCES, HeadsConfig, Mosaic, RowsConfig
from tesserec.retrievers.mosaic_network import times_after
from tesserec.testing.data import baskets, catalog_of_size, chain, interactions_of, requests_of
from tesserec.testing.retriever_contract import RetrieverContract
from tesserec.training.loop import TrainingConfig
from tesserec.types import (
    NO_TIME,
    PAD,
    Candidates,
    ComponentState,
    FitContext,
    Holdout,
    ItemEmbeddings,
    Ragged,
    SemanticIds,
)

EVERY = [[[item]] for item in range(12)]
NEXT = [(item + 1) % 12 for item in range(12)]
MODES = ["fused", "generative", "dense"]


def ids(num_items=12, bucket=1):
    """Item ``i`` is (i % 3, i // 3 % 5, 0); with ``bucket`` 2, items 2 n and 2 n + 1 share the tuple of n."""
    number = torch.arange(num_items) // bucket
    codes_NL = torch.stack([number % 3, number // 3 % 5, torch.zeros_like(number)], 1)
    return SemanticIds(codes_NL, (3, 5, 2), "planted", has_digit=True)


def given(num_items=12, **context):
    content_ND = torch.sin(torch.arange(num_items * 4.0)).view(num_items, 4)
    return FitContext(
        **({"seed": 3, "semantic_ids": ids(num_items), "embeddings": ItemEmbeddings(content_ND, "test")} | context)
    )


def tiny(epochs=1, **settings):
    model = TransformerConfig(width=16, num_layers=1, dropout=0.0)
    training = TrainingConfig(epochs=epochs, batch_size=8, learning_rate=0.02)
    heads = HeadsConfig(num_beams=12, num_candidates=12, scale=10.0)
    return Mosaic(**({"model": model, "max_length": 8, "heads": heads, "training": training} | settings))


def fitted(train, context=None, **settings):
    retriever = tiny(**settings)
    retriever.fit(train, catalog_of_size(len(train.items)), context or given(len(train.items)))
    return retriever


def answers(retriever, mode, histories, k=1, **filters):
    """The lists of a fitted retriever in another mode."""
    other = copy.copy(retriever)
    other.answer = mode
    return other.retrieve(requests_of(histories, **filters), k)


class MosaicContract(RetrieverContract):
    """The contract, with one fit for all tests of a class."""

    fits: ClassVar = {}
    answer = "fused"
    bucket = 1

    def context(self, catalog):
        return given(len(catalog), semantic_ids=ids(len(catalog), self.bucket))

    def fitted(self):
        key = self.answer, self.bucket
        if key not in self.fits:
            self.fits[key] = super().fitted()
        return copy.deepcopy(self.fits[key])

    def test_the_same_seed_gives_the_same_lists(self):
        self.fits.clear()
        super().test_state_and_restore_give_the_same_lists()
        first = self.fitted().state()
        self.fits.clear()
        second = self.fitted().state()
        assert all(torch.equal(value, second.tensors[name]) for name, value in first.tensors.items())


class TestFused(MosaicContract):
    make = tiny


class TestGenerative(MosaicContract):
    answer = "generative"

    @staticmethod
    def make():
        return tiny(answer="generative")


class TestDense(MosaicContract):
    answer = "dense"

    @staticmethod
    def make():
        return tiny(answer="dense")


class TestBuckets(MosaicContract):
    answer = "generative"
    bucket = 2

    @staticmethod
    def make():
        return tiny(answer="generative")


# What it learns.


@pytest.fixture(scope="module")
def chained():
    return fitted(chain()[0], epochs=12)


@pytest.fixture(scope="module")
def repeating():
    return fitted(baskets()[0], epochs=12)


@pytest.mark.parametrize("mode", MODES)
def test_a_chain_is_learnt(chained, mode):
    assert answers(chained, mode, EVERY).items_BK[:, 0].tolist() == NEXT
    losses = [entry["loss"] for entry in chained.training_log]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("mode", MODES)
def test_baskets_and_repeats_are_learnt(repeating, mode):
    """A pair is followed by the next one, and the third pair by the first again."""
    histories = [[[2, 3]], [[8, 9], [10, 11]], [[4, 5], [6, 7], [8, 9]], [[10, 11], [0, 1], [2, 3]]]
    found = answers(repeating, mode, histories, k=2).items_BK.sort(1).values
    assert found.tolist() == [[4, 5], [0, 1], [4, 5], [10, 11]]


def test_there_is_a_bonus_only_where_there_are_repeats(chained, repeating):
    assert chained._network.repeats is None
    assert repeating._network.repeats is not None
    sampled = fitted(baskets()[0], epochs=0, heads=HeadsConfig(num_negatives=5))
    assert sampled._network.repeats is None
    few = interactions_of([[[item % 101] for item in range(102)]], 101)
    assert fitted(few, given(101), epochs=0)._network.repeats is None
    more = interactions_of([[[item % 98] for item in range(100)]], 98)
    assert fitted(more, given(98), epochs=0)._network.repeats is not None


@pytest.mark.parametrize(
    "heads", [HeadsConfig(num_negatives=6, scale=10.0), HeadsConfig(generative_weight=0.0, scale=10.0)]
)
def test_a_chain_is_learnt_from_samples_and_without_the_generative_loss(heads):
    retriever = fitted(chain()[0], epochs=12, heads=heads)
    assert answers(retriever, "dense", EVERY).items_BK[:, 0].tolist() == NEXT


def test_codes_alone_will_do():
    retriever = fitted(chain()[0], given(embeddings=None), epochs=12, rows=RowsConfig(min_events=1000))
    assert "network.items.content.weight" not in retriever.state().tensors
    assert len(retriever._network.tree.row_key) == 0
    assert answers(retriever, "fused", EVERY).items_BK[:, 0].tolist() == NEXT


@pytest.mark.parametrize("kind", ["codes", "ngrams", "prefixes", "memory", "pieces"])
def test_keys_of_codes_are_learnt_kept_and_know_later_items(kind):
    keys = SIDKeys(kind, max_rows=10)  # eight codes, and two pieces or hashed pairs
    retriever = fitted(chain()[0], given(embeddings=None), epochs=12, keys=keys, rows=RowsConfig(min_events=1000))
    features = retriever._network.items.codes
    assert features.num_rows == {"codes": 8, "ngrams": 10, "prefixes": 13, "memory": 18, "pieces": 10}[kind]
    if kind != "ngrams":  # ten hashed rows are too few for twelve items
        assert answers(retriever, "dense", EVERY).items_BK[:, 0].tolist() == NEXT
    other = tiny(keys=keys)
    other.restore(retriever.state(), catalog_of_size(12), given(embeddings=None))
    for mode in MODES:
        expected, found = answers(retriever, mode, EVERY, k=5), answers(other, mode, EVERY, k=5)
        assert torch.equal(found.items_BK, expected.items_BK)
    codes_NL = torch.cat([ids().codes_NL, torch.tensor([[2, 1, 1]])])  # those of item 5
    grown = SemanticIds(codes_NL, (3, 5, 2), "planted", has_digit=True)
    other.add_items(catalog_of_size(13), given(13, semantic_ids=grown, embeddings=None))
    vectors_ND = other._network.items.table()
    assert torch.equal(vectors_ND[12], vectors_ND[5])
    warm = given(embeddings=None, warm_start=retriever.state())
    later = fitted(chain()[0], warm, epochs=0, keys=keys, rows=retriever.rows)
    assert torch.equal(later._network.items.codes.merges_M2, features.merges_M2)
    assert torch.equal(later._network.items.table()[5], vectors_ND[5])


def test_keys_need_codes():
    with pytest.raises(ValueError, match=r'keys are made of codes, which inputs leave out: add "codes", or leave out'):
        tiny(keys=SIDKeys(), inputs=("content", "own"))


def test_a_gate_is_learnt_and_kept():
    gate, rows = GateConfig(), RowsConfig(min_events=1)
    retriever = fitted(chain()[0], given(), epochs=12, gate=gate, rows=rows)
    assert answers(retriever, "fused", EVERY).items_BK[:, 0].tolist() == NEXT
    assert retriever._network.items.gate.out.weight.any()  # 0 before
    assert retriever._network.items.events_N.tolist() == chain()[0].item_counts().tolist()
    other = tiny(gate=gate)
    other.restore(retriever.state(), catalog_of_size(12), given())
    for mode in MODES:
        expected, found = answers(retriever, mode, EVERY, k=5), answers(other, mode, EVERY, k=5)
        assert torch.equal(found.items_BK, expected.items_BK)
    more = fitted(chain(num_users=36)[0], given(warm_start=retriever.state()), epochs=0, gate=gate, rows=rows)
    assert more._network.items.events_N.tolist() == chain(num_users=36)[0].item_counts().tolist()
    assert torch.equal(more._network.items.gate.hidden.weight, retriever._network.items.gate.hidden.weight)


def test_a_gate_pulls_the_vectors_of_an_item_together():
    def closeness(alignment):
        gate = GateConfig(alignment=alignment)
        encoder = fitted(chain()[0], given(), epochs=5, gate=gate, rows=RowsConfig(min_events=1))._network.items
        return torch.cosine_similarity(encoder._own(None), encoder._semantic(None)).mean()

    assert closeness(1.0) > closeness(0.0) + 0.2


@pytest.mark.parametrize("inputs", [("codes", "content"), ("own", "times")])
def test_a_gate_needs_both_sides(inputs):
    with pytest.raises(ValueError, match=r'inputs need "own" and either'):
        tiny(gate=GateConfig(), inputs=inputs)


# Answers.


def test_generation_equals_exhaustive_search(repeating):
    histories = [[[0, 1], [2, 3]], [[4, 5]], [[6, 7], [8], [6, 7]]]
    found = answers(repeating, "generative", histories, k=12)
    network = repeating._network
    with torch.no_grad():
        encoded = network.encode(windows_of(requests_of(histories).history, 8))
        every_BN = network.item_log_probs(encoded, torch.arange(12).repeat(3, 1))
    torch.testing.assert_close(found.scores_BK, every_BN.sort(1, descending=True).values)
    torch.testing.assert_close(every_BN.gather(1, found.items_BK), found.scores_BK)
    assert every_BN.exp().sum(1).tolist() == pytest.approx([1] * 3, abs=1e-5)
    assert found.trace == {}
    padded = network.item_log_probs(encoded, torch.tensor([[PAD, 3], [PAD, PAD], [1, PAD]]))
    expected = torch.stack([torch.tensor([0.0, every_BN[0, 3]]), torch.zeros(2), torch.tensor([every_BN[2, 1], 0.0])])
    torch.testing.assert_close(padded, expected)
    given = Candidates(
        torch.tensor([[3, 5], [3, PAD], [2, 1]]), torch.tensor([[-7.0, -8.0], [-9.0, -torch.inf], [0, 0]])
    )
    told = network.item_log_probs(encoded, torch.tensor([[PAD, 3, 4], [3, PAD, 0], [1, 2, 3]]), given)
    expected = torch.tensor([[0, -7, every_BN[0, 4]], [-9, 0, every_BN[1, 0]], [0, 0, every_BN[2, 3]]])
    torch.testing.assert_close(told, expected, msg="what was generated keeps its score, and the others get theirs")


def test_dense_scores_are_log_probabilities_of_all_items(repeating):
    found = answers(repeating, "dense", EVERY, k=12)
    assert found.scores_BK.exp().sum(1).tolist() == pytest.approx([1] * 12, abs=1e-5)


def test_vectors_of_items_are_kept_until_training_goes_on(repeating):
    network = copy.deepcopy(repeating._network)
    with torch.no_grad():
        kept_ND = network.all_units()
        assert network.all_units() is kept_ND
        torch.testing.assert_close(kept_ND, network.units(torch.arange(12)))
        network.train()
        network.items.codes.weight *= -3
        changed_ND = network.all_units()
        assert not torch.allclose(changed_ND, kept_ND)
        assert network.all_units() is not changed_ND
        torch.testing.assert_close(network.eval().all_units(), changed_ND)
    assert network.eval().all_units() is not network.all_units()


def test_a_fused_score_is_the_weighted_evidence_of_all_sources(repeating):
    histories = [[[0, 1], [2, 3]], [[4, 5]]]
    found = answers(repeating, "fused", histories, k=12)
    assert found.sources == tuple(found.trace) == SOURCES
    torch.testing.assert_close(sum(found.trace.values()), found.scores_BK)
    requests = requests_of(histories)
    expected = {
        "generative": answers(repeating, "generative", histories, k=12),
        "dense": answers(repeating, "dense", histories, k=12),
    }
    for name, weight in zip(SOURCES, PRIOR, strict=True):
        if name in expected:
            scores_BN = torch.empty(2, 12).scatter(1, expected[name].items_BK, expected[name].scores_BK)
        elif name == "popularity":
            scores_BN = (repeating.personal.popularity.shares(requests).dense() + 1e-4).log()
        elif name == "content":
            every_BN = torch.arange(12).expand(2, -1)
            scores_BN = (closeness(repeating._network.items.content_NF, requests.history, every_BN) + 1e-4).log()
        else:
            scores_BN = (getattr(repeating, name).score_all(requests) + 1e-4).log()
        torch.testing.assert_close(found.trace[name], weight * scores_BN.gather(1, found.items_BK))


def test_lists_are_full_though_each_source_proposes_little():
    retriever = fitted(baskets()[0], epochs=1, heads=HeadsConfig(num_beams=1, num_candidates=1))
    assert bool((answers(retriever, "fused", EVERY, k=12).items_BK != PAD).all())
    assert bool((answers(retriever, "generative", EVERY, k=12).items_BK != PAD).all())
    # Each of five sources proposes one item, and at least one of them another than the best.
    one = retriever._evidence(retriever._network, *_encoded(retriever, EVERY), 1, torch.ones(6))[0]
    assert one.shape == (12, 5)


def _encoded(retriever, histories):
    requests = requests_of(histories)
    with torch.no_grad():
        return retriever._network.encode(windows_of(requests.history, 8)), requests


def test_content_proposes_items_that_no_other_source_does():
    content_ND = torch.eye(12)
    content_ND[11] = content_ND[0] + 0.1 * content_ND[11]  # nobody had item 11, which is like item 0
    context = given(embeddings=ItemEmbeddings(content_ND, "planted"))
    train, requests = interactions_of([[[0], [1], [2]], [[3], [0], [1]]], num_items=12), requests_of([[[0]]])
    only = {"num_beams": 2, "num_candidates": 2}
    without = fitted(train, context, heads=HeadsConfig(**only))
    heads = HeadsConfig(**only, num_content_candidates=3)
    asked = dataclasses.replace(without, heads=heads)
    asked.restore(without.state(), catalog_of_size(12), context)
    for retriever in (without, asked):
        retriever._weights_GS = torch.tensor([float(name == "content") for name in SOURCES]).expand(NUM_GROUPS, -1)
    assert asked.retrieve(requests, 2).items_BK.tolist() == [[0, 11]]
    assert 11 not in without.retrieve(requests, 2).items_BK


@pytest.mark.parametrize("mode", MODES)
def test_without_a_history_popular_items_are_proposed(mode):
    log = interactions_of([[[5], [7], [5]], [[5], [7], [2]]], 8)
    retriever = fitted(log, epochs=1)
    found = answers(retriever, mode, [[[1]], [], [[2]], []], k=3)
    popular = retriever.cooccurrence.popularity.retrieve(requests_of([[]]), 3)
    assert popular.items_BK.tolist() == [[5, 7, 2]]
    assert found.items_BK[[1, 3]].tolist() == [[5, 7, 2]] * 2
    torch.testing.assert_close(found.scores_BK[[1, 3]], popular.scores_BK.repeat(2, 1))
    for row, history in ((0, [[1]]), (2, [[2]])):
        alone = answers(retriever, mode, [history], k=3)
        assert found.items_BK[row].tolist() == alone.items_BK[0].tolist()
        torch.testing.assert_close(found.scores_BK[row], alone.scores_BK[0])
    if mode == "fused":
        assert found.source_BK[[1, 3]].tolist() == [[-1] * 3] * 2
        assert bool((found.source_BK[[0, 2]] >= 0).all())
        assert [found.trace[name][1].tolist() for name in SOURCES] == [[0] * 3] * 6
        assert bool(found.trace["dense"][2].any())
    else:
        assert found.source_BK is None
        assert found.trace == {}


def test_many_requests_are_answered_in_batches(chained):
    histories = [EVERY[n % 12] for n in range(300)]
    found = chained.retrieve(requests_of(histories), 2)
    few = chained.retrieve(requests_of(EVERY), 2)
    assert found.items_BK.tolist() == [few.items_BK[n % 12].tolist() for n in range(300)]
    torch.testing.assert_close(found.scores_BK[288:], few.scores_BK)


# Steps.


def test_the_order_within_a_basket_means_nothing(repeating):
    for mode in ("dense", "generative"):
        found = answers(repeating, mode, [[[0, 1], [2, 3]]], k=12)
        swapped = answers(repeating, mode, [[[1, 0], [3, 2]]], k=12)
        assert found.items_BK[0, :2].tolist() == swapped.items_BK[0, :2].tolist()
        torch.testing.assert_close(found.scores_BK, swapped.scores_BK)
        later = answers(repeating, mode, [[[2, 3], [0, 1]]], k=12)
        assert not torch.allclose(found.scores_BK, later.scores_BK, atol=0.01)


@pytest.mark.parametrize("mode", ["generative", "dense"])
def test_the_order_within_a_basket_is_learnt_where_events_are_asked_for(mode):
    """Item 2 i + 1 comes after item 2 i of the same basket; baskets follow each other at random."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(6, (80, 3), generator=generator).tolist()
    log = interactions_of([[[2 * first, 2 * first + 1] for first in user] for user in pairs], 12)
    by_event = fitted(log, epochs=20, targets="events")
    later = answers(by_event, mode, [[[2 * first]] for first in range(6)])
    assert later.items_BK[:, 0].tolist() == [2 * first + 1 for first in range(6)]
    swapped = answers(by_event, mode, [[[0, 1]], [[1, 0]]], k=12)
    assert not torch.allclose(swapped.scores_BK[0], swapped.scores_BK[1], atol=0.01)


def test_the_time_between_events_is_read():
    """After a day comes item 1, after a week item 2, whatever the items were."""
    days = [[0, 1], [0, 7]]
    rows = [[day * 86_400 for day in days[user % 2]] for user in range(40)]
    log = interactions_of([[[0], [0], [1 + user % 2]] for user in range(40)], 12)
    times_E = torch.cat([torch.tensor([*row, row[1] + 86_400]) for row in rows])
    log = dataclasses.replace(log, time_E=times_E)
    retriever = fitted(log, epochs=20)
    history = requests_of([[[0], [0]], [[0], [0]]]).history
    time_H = torch.tensor([0, 86_400, 0, 7 * 86_400])
    history = dataclasses.replace(history, columns={**history.columns, "time": time_H})
    retriever.answer = "dense"
    found = retriever.retrieve(dataclasses.replace(requests_of([[[0], [0]], [[0], [0]]]), history=history), 1)
    assert found.items_BK[:, 0].tolist() == [1, 2]


def test_windows_are_also_trained_on_without_their_times(monkeypatch):
    log = interactions_of([[[0], [1], [2]]], 12)
    now = windows_of(history_of(log), 8)
    later = windows_of(history_of(dataclasses.replace(log, time_E=log.time_E * 9)), 8)
    network = copy.deepcopy(fitted(log, epochs=3)._network).train()
    with torch.no_grad():
        torch.nn.init.normal_(network.gaps.weight)
    for share, same in ((0.0, False), (1.0, True)):
        monkeypatch.setattr("tesserec.retrievers.mosaic_network.UNTIMED_SHARE", share)
        assert torch.equal(network(now), network(later)) == same


def test_what_is_learnt_in_a_window_is_what_a_request_gets(repeating):
    """The state and bonuses after each basket of a window are those of a request that ends there."""
    history = [[0, 1], [4], [2, 3], [0, 5]]
    network = repeating._network
    with torch.no_grad():
        whole = network.encode(windows_of(requests_of([history]).history, 8), torch.tensor([1, 2, 4]))
        for row, end in enumerate((1, 2, 3)):
            part = network.encode(windows_of(requests_of([history[:end]]).history, 8))
            torch.testing.assert_close(whole.states_SD[row], part.states_SD[0])
            torch.testing.assert_close(whole.bonus_SN[row], part.bonus_SN[0])
            for ours, theirs in zip(whole.level_bonuses, part.level_bonuses, strict=True):
                torch.testing.assert_close(ours[row], theirs[0])


def test_the_loss_is_that_of_both_heads_and_a_step_weighs_one(repeating):
    log = interactions_of([[[0], [1, 2, 3], [4]], [[5, 6], [7]]], 12)
    windows = training_windows(history_of(log), 8)
    positions_P, targets_P = next_step_labels(windows)
    weights_P = torch.tensor([1 / 3, 1 / 3, 1 / 3, 1, 1])
    assert targets_P.tolist() == [1, 2, 3, 4, 7]
    network, sampler = repeating._network, NegativeSampler(log.item_counts(), None)
    encoded = network.encode(windows, positions_P)
    dense_P = -network.dense_log_probs(encoded)[torch.arange(5), targets_P]
    paths_P = -network.item_log_probs(encoded, targets_P[:, None])[:, 0]
    dense = (dense_P * weights_P).sum() / 3
    whole = network.loss(windows, HeadsConfig(generative_weight=0.25), sampler)
    torch.testing.assert_close(whole, dense + 0.25 * (paths_P * weights_P).sum() / 3)
    torch.testing.assert_close(network.loss(windows, HeadsConfig(generative_weight=0.0), sampler), dense)
    taught = network.loss(windows, HeadsConfig(generative_weight=0.25, distillation=0.5), sampler)
    teacher = network.dense_log_probs(encoded).detach()
    soft_P = network.tree.distilled(encoded.states_SD, torch.arange(5), targets_P, teacher, encoded.level_bonuses)[1]
    torch.testing.assert_close(taught, dense + 0.125 * ((paths_P - soft_P) * weights_P).sum() / 3)
    torch.manual_seed(5)
    drawn = int(torch.randperm(5)[0])
    torch.manual_seed(5)
    one = network.loss(windows, HeadsConfig(generative_weight=1.0, max_pairs=1), sampler)
    torch.testing.assert_close(one, dense + paths_P[drawn])


@pytest.mark.parametrize("discount", [0.0, 2.0, 1e4])
def test_items_without_an_event_so_far_count_less_as_negatives(repeating, discount):
    log = interactions_of([[[0], [1], [7]], [[2], [3]], [[4], [5]]], 12)
    later = [[6, 7, *range(8, 12)], range(8, 12), [6, 7, *range(8, 12)], [6, 7, *range(8, 12)]]
    windows, network = training_windows(history_of(log), 8), repeating._network
    positions_P, targets_P = next_step_labels(windows)
    assert targets_P.tolist() == [1, 7, 3, 5]
    encoded = network.encode(windows, positions_P)
    tree_PN = network.item_log_probs(encoded, torch.arange(12).expand(4, -1)).exp()
    dense_P, paths_P = [], []
    for row, target in enumerate(targets_P.tolist()):
        later_N = torch.zeros(12, dtype=torch.bool).index_fill(0, torch.tensor(list(later[row])), True)
        dense_N = network.dense_log_probs(encoded)[row] - discount * later_N
        dense_P.append(dense_N.log_softmax(0)[target])
        paths_P.append(discounted_path(network.tree.trie.paths_NL, tree_PN[row], target, later_N, discount))
    heads = HeadsConfig(generative_weight=0.25, future_discount=discount)
    expected = -torch.stack(dense_P).mean() - 0.25 * torch.stack(paths_P).mean()
    sampler = NegativeSampler(log.item_counts(), None)
    beginnings = Beginnings.of(log.first_times(), network.tree.trie)
    torch.testing.assert_close(network.loss(windows, heads, sampler, beginnings), expected, atol=1e-3, rtol=0)
    assert network.loss(windows, dataclasses.replace(heads, distillation=1.0), sampler, beginnings).isfinite()
    if not discount:
        plain = dataclasses.replace(heads, future_discount=None)
        torch.testing.assert_close(network.loss(windows, plain, sampler, beginnings), expected)


def discounted_path(paths_NL, probability_N, target, later_N, discount):
    """The target's log-probability where nodes with ``later_N`` items only have their logit reduced."""
    total, rest_N = 0.0, torch.ones(len(later_N), dtype=torch.bool)
    for path_N in paths_NL.T:
        weights = {}
        for node in path_N[rest_N].unique().tolist():
            below_N = rest_N & (path_N == node)
            weights[node] = probability_N[below_N].sum() * math.exp(-discount * bool(later_N[below_N].all()))
        total += (weights[int(path_N[target])] / sum(weights.values())).log()
        rest_N = rest_N & (path_N == path_N[target])
    return total


def test_of_a_sample_too_those_without_an_event_so_far_count_less(repeating):
    log = interactions_of([[[0], [1]], [[2], [3]], [[2], [3], [3], [3], [7]]], 12)
    windows, heads = training_windows(history_of(log), 8).take(torch.arange(2)), HeadsConfig(generative_weight=0.0)
    beginnings, found = Beginnings.of(log.first_times(), repeating._network.tree.trie), []
    for discount in (None, 0.0, 3.0, 1e4):
        torch.manual_seed(0)
        config, sampler = dataclasses.replace(heads, future_discount=discount), NegativeSampler(log.item_counts(), 9)
        found.append(repeating._network.loss(windows, config, sampler, beginnings).item())
    assert found[0] == found[1] > found[2] > found[3]


def test_a_fit_that_discounts_the_future_leaves_items_without_events_possible():
    log = interactions_of([[[0], [1], [2]], [[1], [2], [0]], [[2], [0], [1]]] * 4, 12)
    unseen = []
    for discount in (None, 1e4):
        found = answers(fitted(log, epochs=10, heads=HeadsConfig(future_discount=discount)), "dense", [[[0]]], k=12)
        unseen.append(found.scores_BK[found.items_BK >= 3].logsumexp(0).item())
    assert unseen[0] < unseen[1] - 1


def test_a_log_without_times_has_all_its_items_from_the_start():
    log = interactions_of([[[0], [1], [7]], [[2], [3]]], 12)
    untimed = dataclasses.replace(log, time_E=torch.full_like(log.time_E, NO_TIME))
    windows = training_windows(history_of(untimed), 8)
    positions_P, _ = next_step_labels(windows)
    first_N, time_P = untimed.first_times(), times_after(windows, positions_P)
    assert (first_N[:, None] > time_P).any(1).nonzero().squeeze(1).tolist() == [4, 5, 6, *range(8, 12)]


def test_kinds_are_told_apart():
    log, _ = chain(num_users=8)
    kinds = {"kind_E": torch.arange(len(log)) % 2, "kinds": ("buy", "return"), "positive_kinds": ("buy",)}
    retriever = fitted(dataclasses.replace(log, **kinds), epochs=2)
    requests = requests_of([[[1], [2]], [[1], [2]]])
    columns = {**requests.history.columns, "kind": torch.tensor([0, 0, 0, 1])}
    told = dataclasses.replace(requests, history=dataclasses.replace(requests.history, columns=columns))
    found = dataclasses.replace(retriever, answer="dense")
    found._network = retriever._network
    scores_BK = found.retrieve(told, 12).scores_BK
    assert not torch.allclose(scores_BK[0], scores_BK[1])
    assert torch.equal(scores_BK[0], found.retrieve(requests, 12).scores_BK[0])


# Settings of the network.


def test_the_most_frequent_items_have_rows_of_their_own():
    counts_N = torch.tensor([4, 9, 5, 0, 5, 7])
    assert own_rows(counts_N, 5, 100).tolist() == [-1, 0, 1, -1, 2, 3]
    assert own_rows(counts_N, 5, 3).tolist() == [-1, 0, 1, -1, -1, 2]
    assert own_rows(counts_N, 6, 3).tolist() == [-1, 0, -1, -1, -1, 1]
    assert own_rows(counts_N, 1, 0).tolist() == [-1] * 6


def test_rows_and_scale_are_as_set():
    log = interactions_of([[[0], [1], [0], [3]], [[0], [1], [3]]], 12)
    network = fitted(log, epochs=0, rows=RowsConfig(min_events=2, max_rows=2), heads=HeadsConfig(scale=7.0))._network
    assert network.items.row_N.tolist() == [0, 1] + [-1] * 10
    # (0 0) has 3 events below it and (0 1), of item 3, has 2, as has (1 0); deeper ones come after.
    assert list(zip(network.tree.row_depth.tolist(), network.tree.row_key.tolist(), strict=True)) == [(2, 0), (3, 0)]
    assert network.log_scale.exp().item() == pytest.approx(7)
    assert network.tree.log_scale.exp().tolist() == pytest.approx([7] * 3)


def test_a_large_catalog_is_sampled():
    assert tiny()._num_negatives(50_000) is None
    assert tiny()._num_negatives(50_001) == 4096
    assert tiny(heads=HeadsConfig(num_negatives=7))._num_negatives(10) == 7


@pytest.mark.parametrize("inputs", [("codes",), ("content", "times"), ("own",)])
def test_the_trunk_sees_only_what_it_is_to_see(inputs):
    log = interactions_of([[[0], [1], [2]], [[3], [4], [5]]] * 3, 12)
    content_NF = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    context = given(embeddings=ItemEmbeddings(content_NF, "planted"))
    retriever = fitted(log, context, epochs=1, inputs=inputs, rows=RowsConfig(min_events=1))
    items = retriever._network.items
    assert ("content" in inputs) == (items.content is not None)
    assert ("own" in inputs) == (len(items.own.weight) > 1)
    assert ("codes" in inputs) == bool(items.codes_NL.shape[1])
    assert ("times" in inputs) == bool(retriever._network.gaps.weight.any())
    restored = tiny(inputs=inputs, rows=RowsConfig(min_events=1))
    restored.restore(retriever.state(), catalog_of_size(12), context)
    for mode in MODES:
        torch.testing.assert_close(
            answers(restored, mode, EVERY, k=12).scores_BK, answers(retriever, mode, EVERY, k=12).scores_BK
        )


def test_an_item_must_be_told_from_others():
    with pytest.raises(ValueError, match="inputs name nothing of an item"):
        Mosaic(inputs=("times",))


def test_sources_that_are_not_listened_to_weigh_nothing(repeating):
    alone = dataclasses.replace(repeating, sources=("dense",))
    alone.restore(repeating.state(), catalog_of_size(12), given())
    found = answers(alone, "fused", EVERY, k=3)
    assert [name for name in SOURCES if bool(found.trace[name].any())] == ["dense"]
    assert torch.equal(found.items_BK, answers(repeating, "dense", EVERY, k=3).items_BK)


def test_the_tree_is_made_of_items_where_all_of_them_are_at_hand():
    log = baskets()[0]
    whole, sampled = fitted(log, epochs=1), fitted(log, epochs=1, heads=HeadsConfig(num_negatives=5))
    assert whole._network.tree.share.shape == (3,)
    assert sampled._network.tree.share is None
    for retriever in (whole, sampled):
        restored = tiny(heads=retriever.heads)
        restored.restore(retriever.state(), catalog_of_size(12), given())
        assert (restored._network.tree.share is None) == (retriever is sampled)
        for mode in MODES:
            before, after = answers(retriever, mode, EVERY), answers(restored, mode, EVERY)
            assert torch.equal(before.items_BK, after.items_BK)


def test_settings():
    made = Mosaic()
    assert (made.max_length, made.answer, made.model) == (128, "fused", TransformerConfig())
    assert (made.rows.min_events, made.rows.max_rows) == (5, 200_000)
    heads = made.heads
    assert (heads.scale, heads.generative_weight, heads.max_pairs) == (20.0, 0.5, 1024)
    assert (heads.num_negatives, heads.num_beams, heads.num_candidates) == (None, 50, 100)


def test_without_semantic_ids_it_says_what_to_add():
    train, catalog = chain()
    with pytest.raises(RecipeError, match=r"^Mosaic generates Semantic IDs and was given none: add a \[semantic_ids\]"):
        tiny().fit(train, catalog, FitContext())


# Validation.


def test_the_weights_of_the_fusion_are_fitted_on_the_validation_requests():
    train, _ = chain()
    holdout = Holdout(requests_of([*EVERY, []]), Ragged.of([[item] for item in [*NEXT, 3]]))
    retriever = fitted(train, given(validation=holdout), epochs=4)
    found_GS = retriever.state().tensors["fusion"]
    known = holdout.take(torch.arange(12))
    encoded, requests = _encoded(retriever, EVERY)
    with torch.no_grad():
        parts = [retriever._evidence(retriever._network, encoded, requests, 10, torch.ones(6))]
    group_N = groups_of(train.positives().item_counts())
    assert retriever.state().tensors["group"].tolist() == group_N.tolist()
    torch.testing.assert_close(found_GS, fit_weights(parts, known.relevant, torch.tensor(PRIOR), group_N))
    assert [0 <= entry["validation"] <= 1 for entry in retriever.training_log] == [True] * 4


def test_weights_may_be_the_same_for_all_items():
    train, _ = chain()
    holdout = Holdout(requests_of(EVERY), Ragged.of([[item] for item in NEXT]))
    retriever = fitted(train, given(validation=holdout), epochs=4, weights="shared")
    assert not retriever.state().tensors["group"].any()
    again = tiny(weights="shared")
    again.restore(retriever.state(), catalog_of_size(12), given())
    assert again.state().tensors["fusion"].equal(retriever.state().tensors["fusion"])
    assert fitted(train, epochs=1).state().tensors["group"].all()


def test_one_head_alone_needs_no_weights():
    log = baskets()[0]
    holdout = Holdout(requests_of(EVERY), Ragged.of([[(item + 1) % 12] for item in range(12)]))
    weights_GS = [
        fitted(log, given(validation=holdout), epochs=1, answer=answer).state().tensors["fusion"]
        for answer in ("fused", "dense")
    ]
    assert weights_GS[1].tolist() == [pytest.approx(PRIOR)] * NUM_GROUPS
    assert weights_GS[0].tolist() != [pytest.approx(PRIOR)] * NUM_GROUPS


def test_without_any_known_history_the_weights_stay():
    holdout = Holdout(requests_of([[]]), Ragged.of([[3]]))
    retriever = fitted(chain()[0], given(validation=holdout))
    assert retriever.state().tensors["fusion"].tolist() == [pytest.approx(PRIOR)] * NUM_GROUPS


def test_a_state_with_one_weight_a_source_is_that_of_all_groups(chained):
    state = chained.state()
    tensors = {name: tensor for name, tensor in state.tensors.items() if name != "group"}
    earlier = tiny()
    earlier.restore(ComponentState({**tensors, "fusion": torch.tensor(PRIOR)}), catalog_of_size(12), given())
    prior = copy.copy(chained)
    prior._weights_GS = torch.tensor(PRIOR).expand(NUM_GROUPS, -1)
    found, wanted = answers(earlier, "fused", EVERY), answers(prior, "fused", EVERY)
    assert found.items_BK.tolist() == wanted.items_BK.tolist()
    torch.testing.assert_close(found.scores_BK, wanted.scores_BK)


def test_items_that_came_later_are_of_the_group_without_events(chained):
    later = tiny()
    codes_NL = torch.cat([ids().codes_NL, torch.tensor([[2, 1, 1]])])
    context = given(13, semantic_ids=SemanticIds(codes_NL, (3, 5, 2), "x", has_digit=True))
    later.restore(chained.state(), catalog_of_size(13), context)
    assert later.state().tensors["group"].tolist() == [*chained.state().tensors["group"].tolist(), 0]
    assert min(chained.state().tensors["group"].tolist()) > 0


# Growing, going on.


@pytest.mark.parametrize("mode", ["generative", "dense"])
def test_a_new_item_is_reached_through_its_codes(mode):
    """Item 12 arrives with the codes of item 5 and no vector of its own: it is proposed where 5 is."""
    retriever = fitted(chain()[0], given(embeddings=None), epochs=12, rows=RowsConfig(min_events=1000))
    codes_NL = torch.cat([ids().codes_NL, torch.tensor([[2, 1, 1]])])
    retriever.add_items(
        catalog_of_size(13),
        given(13, semantic_ids=SemanticIds(codes_NL, (3, 5, 2), "x", has_digit=True), embeddings=None),
    )
    found = answers(retriever, mode, EVERY, k=2).items_BK.tolist()
    assert [items[0] for row, items in enumerate(found) if row != 4] == NEXT[:4] + NEXT[5:]
    assert 12 in found[4]
    assert answers(retriever, mode, [[[4]]], excluded=[[5]]).items_BK.tolist() == [[12]]


def test_a_warm_start_knows_what_it_knew_in_a_larger_catalog(chained):
    train = dataclasses.replace(chain()[0], items=catalog_of_size(14).items)
    later = fitted(train, given(14, warm_start=chained.state()), epochs=0)
    assert later.state().tensors["fusion"] is chained.state().tensors["fusion"]
    assert answers(later, "dense", EVERY).items_BK[:, 0].tolist() == NEXT
    old = answers(chained, "dense", EVERY, k=12)
    new = answers(later, "dense", EVERY, k=12, available=[True] * 12 + [False] * 2)
    torch.testing.assert_close(new.scores_BK.diff(), old.scores_BK.diff(), rtol=1e-4, atol=1e-4)
    cold = fitted(train, given(14), epochs=0)
    assert answers(cold, "dense", EVERY).items_BK[:, 0].tolist() != NEXT


def test_a_warm_start_moves_rows_to_where_they_are_now(chained):
    """The later log has no events of item 0 and more of item 1: rows are numbered anew, vectors follow their items."""
    log = interactions_of([[[1], [2], [3]], [[1], [4]]] * 5, 12)
    later = fitted(log, given(warm_start=chained.state()), epochs=0)
    earlier, now = chained._network, later._network
    assert earlier.items.row_N.tolist() == list(range(12))
    assert now.items.row_N.tolist() == [-1, 0, 1, 2, 3] + [-1] * 7
    assert torch.equal(now.items.own.weight, earlier.items.own.weight[[1, 2, 3, 4, 12]])
    place = {pair: row for row, pair in enumerate(zip(*_prefixes(earlier), strict=True))}
    rows = [place[pair] for pair in zip(*_prefixes(now), strict=True)]
    assert len(rows) == 8
    assert torch.equal(now.tree.rows.weight[:-1], earlier.tree.rows.weight[rows])
    assert torch.equal(now.kinds.weight, earlier.kinds.weight)


def _prefixes(network):
    return network.tree.row_depth.tolist(), network.tree.row_key.tolist()


def test_a_warm_start_may_be_the_first_to_see_repeats(chained):
    later = fitted(baskets()[0], given(warm_start=chained.state()), epochs=0)
    fresh = fitted(baskets()[0], epochs=0)
    assert torch.equal(later._network.repeats.bias, fresh._network.repeats.bias)
    assert torch.equal(later._network.items.codes.weight, chained._network.items.codes.weight)
    back = fitted(chain()[0], given(warm_start=later.state()), epochs=0)
    assert back._network.repeats is None


def test_a_warm_start_of_another_catalog_or_shape_is_refused(chained):
    message = r"^the earlier fit knows 12 items and the catalog has 10: a warm start needs the same items"
    with pytest.raises(VersionMismatchError, match=message):
        fitted(chain(10)[0], given(10, warm_start=chained.state()))
    with pytest.raises(VersionMismatchError, match=r"codes.weight is \(8, 16\) in the saved model and \(8, 8\) here"):
        fitted(chain()[0], given(warm_start=chained.state()), model=TransformerConfig(width=8, num_layers=1))


def test_popular_items_of_a_bucket_come_first_also_after_a_restore():
    log = interactions_of([[[1], [5], [3]], [[1], [5], [3], [3]], [[5], [0]]], 6)
    context = given(6, semantic_ids=ids(6, bucket=2))
    retriever = fitted(log, context, epochs=2, answer="generative")
    restored = tiny(answer="generative")
    restored.restore(retriever.state(), catalog_of_size(6), context)
    for each in (retriever, restored):
        items = each.retrieve(requests_of([[[1]]]), 6).items_BK[0].tolist()
        assert all(items.index(odd) < items.index(odd - 1) for odd in (1, 3, 5))


def test_a_fit_that_was_stopped_goes_on_to_the_same_state(tmp_path):
    train, catalog = baskets()
    calls = []

    def progress(task, done, total, note=""):
        calls.append(task)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)

    context = given(checkpoint_folder=tmp_path, progress=progress)
    retriever = tiny(epochs=2)
    with pytest.raises(TrainingInterrupted, match=r"training of Mosaic was stopped in epoch 2: .*Mosaic\.safetensors"):
        retriever.fit(train, catalog, context)
    resumed = fitted(train, context, epochs=2).state().tensors
    expected = fitted(train, epochs=2).state().tensors
    assert set(calls) == {"train Mosaic"}
    assert len(calls) == 6
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())
