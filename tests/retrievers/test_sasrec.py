import dataclasses

import pytest
import torch

from tesserec.data.batches import history_of, training_windows, windows_of
from tesserec.errors import VersionMismatchError
from tesserec.nn.transformer import TransformerConfig
from tesserec.retrievers.next_item import next_event_labels
from tesserec.retrievers.sasrec import SASRec, binary_loss
from tesserec.testing.data import catalog_of_size, chain, interactions_of, requests_of
from tesserec.testing.retriever_contract import RetrieverContract
from tesserec.training.loop import TrainingConfig
from tesserec.types import FitContext, Holdout, Ragged, Requests

EVERY = [[[item]] for item in range(12)]
NEXT = [(item + 1) % 12 for item in range(12)]


def tiny(epochs=1, **settings):
    model = TransformerConfig(width=16, num_layers=1, dropout=0.0)
    training = TrainingConfig(epochs=epochs, batch_size=8, learning_rate=0.02)
    return SASRec(**({"model": model, "max_length": 4, "training": training} | settings))


def fitted(train, num_items=12, context=None, **settings):
    retriever = tiny(**settings)
    retriever.fit(train, catalog_of_size(num_items), context or FitContext(seed=1))
    return retriever


class TestSASRecContract(RetrieverContract):
    make = tiny


@pytest.mark.parametrize("settings", [{}, {"num_negatives": 6}, {"max_length": 1}])
def test_a_chain_is_learnt(settings):
    retriever = fitted(chain()[0], epochs=15, **settings)
    assert retriever.retrieve(requests_of(EVERY), 1).items_BK[:, 0].tolist() == NEXT
    assert retriever.retrieve(
        requests_of([[[3], [4], [5]], [[9], [10]]], exclude_history=True), 1
    ).items_BK.tolist() == [
        [6],
        [11],
    ]
    losses = [entry["loss"] for entry in retriever.training_log]
    assert losses[-1] < 0.2 * losses[0]


def test_the_order_of_the_history_counts():
    """After 0 1 comes 2, after 1 0 comes 3."""
    log = interactions_of([[[0], [1], [2]], [[1], [0], [3]]] * 8, 4)
    retriever = fitted(log, 4, epochs=25)
    found = retriever.retrieve(requests_of([[[0], [1]], [[1], [0]]], exclude_history=True), 1)
    assert found.items_BK.tolist() == [[2], [3]]


def test_sampling_all_items_equals_the_full_softmax():
    train, _ = chain()
    full = fitted(train, epochs=2)
    sampled = fitted(train, epochs=2, num_negatives=12)
    assert torch.equal(full.score_all(requests_of(EVERY)), sampled.score_all(requests_of(EVERY)))
    fewer = fitted(train, epochs=2, num_negatives=11)
    assert not torch.equal(full.score_all(requests_of(EVERY)), fewer.score_all(requests_of(EVERY)))


def test_each_event_is_the_label_of_the_one_before():
    windows = training_windows(history_of(interactions_of([[[0], [1, 2], [3], [4]], [[5]], [[6], [7]]], 8)), 4)
    assert windows.items_BT.tolist() == [[1, 2, 3, 4], [-1, 0, 1, 2], [-1, -1, -1, 5], [-1, -1, 6, 7]]
    positions, items = next_event_labels(windows)
    assert list(zip(positions.tolist(), items.tolist(), strict=True)) == [(1, 3), (2, 4), (5, 1), (6, 2), (14, 7)]
    assert len(next_event_labels(windows_of(windows.history, 4))[0]) == 0


def test_every_place_in_a_history_is_trained():
    """Users have four events and three are read, so that each place is read before a target."""
    log = interactions_of([[[user % 5], [1], [2], [3]] for user in range(8)], 5)

    def positions(epochs):
        training = TrainingConfig(epochs=epochs, weight_decay=0.0)
        retriever = fitted(log, 5, max_length=3, training=training)
        return retriever.state().tensors["network.positions.weight"]

    assert positions(0).shape == (3, 16)
    assert bool((positions(0) != positions(1)).any(1).all())


def test_a_request_is_read_as_in_training():
    """The state before a target in training is the state of a request that ends there."""
    retriever = fitted(chain()[0], epochs=1)
    log = interactions_of([[[0], [1], [2], [3], [4]]], 12)
    network = retriever._network
    with torch.no_grad():
        states_BTD = network(training_windows(history_of(log), 5), num_targets=1)
        last = network(windows_of(requests_of([[[0], [1], [2], [3]]]).history, 4))[:, -1]
    torch.testing.assert_close(states_BTD[:, 3], last)


def test_signals_are_neither_read_nor_learnt():
    log, _ = chain(num_users=6, length=4)
    kinds = {"kind_E": torch.zeros(len(log), dtype=torch.int64), "kinds": ("buy", "return"), "positive_kinds": ("buy",)}
    with_kinds = dataclasses.replace(log, **kinds)
    returned = with_kinds.kind_E.clone()
    returned[2::4] = 1
    kept = torch.arange(len(log)) % 4 != 2
    noisy = fitted(dataclasses.replace(with_kinds, kind_E=returned))
    assert torch.equal(
        noisy.score_all(requests_of(EVERY)), fitted(with_kinds.select(kept)).score_all(requests_of(EVERY))
    )
    requests = requests_of([[[0], [5], [3]]])
    columns = {**requests.history.columns, "positive": torch.tensor([True, False, True])}
    signals = Requests(dataclasses.replace(requests.history, columns=columns))
    assert torch.equal(noisy.score_all(signals), noisy.score_all(requests_of([[[0], [3]]])))


def test_the_epoch_with_the_best_lists_is_kept():
    train, catalog = chain()
    holdout = Holdout(requests_of(EVERY), Ragged.of([[item] for item in NEXT]))
    retriever = tiny(epochs=6)
    retriever.fit(train, catalog, FitContext(seed=1, validation=holdout))
    values = [entry["validation"] for entry in retriever.training_log]
    assert len(values) == 6
    assert max(values) > 0.9 > values[0]


def test_a_history_longer_than_is_read_counts_by_its_end():
    retriever = fitted(chain()[0], max_length=3)
    long, short = requests_of([[[7], [2], [3], [4]]]), requests_of([[[2], [3], [4]]])
    assert torch.equal(retriever.score_all(long), retriever.score_all(short))
    empty = requests_of([[]])
    assert torch.equal(retriever.score_all(empty), retriever.popularity.score_all(empty))


def test_a_warm_start_goes_on_with_a_larger_catalog():
    train, _ = chain()
    earlier = fitted(train, epochs=15)
    context = FitContext(seed=2, warm_start=earlier.state())
    grown = fitted(dataclasses.replace(train, items=catalog_of_size(14).items), 14, context, epochs=0)
    requests = requests_of(EVERY)
    assert torch.equal(grown.score_all(requests)[:, :12], earlier.score_all(requests))
    with pytest.raises(
        VersionMismatchError, match=r"items.weight is \(12, 16\) in the saved model and \(11, 16\) here"
    ):
        fitted(chain(11)[0], 11, context)


def test_binary_cross_entropy_is_the_formula():
    """Weights are of one item, so that every draw is the target."""
    items = torch.nn.Embedding(1, 2)
    torch.nn.init.constant_(items.weight, 0.5)
    states_PD, targets_P = torch.tensor([[1.0, 2.0], [-1.0, 0.0]]), torch.zeros(2, dtype=torch.int64)
    scores_P = torch.tensor([1.5, -0.5], dtype=torch.float64)
    expected = -(scores_P.sigmoid().log() + (1 - scores_P.sigmoid()).log()).mean()
    torch.testing.assert_close(binary_loss(states_PD, items, 1, targets_P).double(), expected, atol=1e-6, rtol=0)


def test_binary_cross_entropy_learns_the_chain_too():
    retriever = fitted(chain()[0], epochs=40, loss="bce")
    assert retriever.retrieve(requests_of(EVERY), 1).items_BK[:, 0].tolist() == NEXT
    softmax = fitted(chain()[0]).score_all(requests_of(EVERY))
    assert not torch.equal(fitted(chain()[0], loss="bce").score_all(requests_of(EVERY)), softmax)


def test_settings():
    made = SASRec()
    assert (made.max_length, made.num_negatives, made.loss) == (50, None, "softmax")
    with pytest.raises(ValueError, match='loss "bce" draws one negative a position: leave out num_negatives = 9'):
        SASRec(loss="bce", num_negatives=9)
    assert made.model == TransformerConfig(dropout=0.5)
    assert made.training == TrainingConfig()
