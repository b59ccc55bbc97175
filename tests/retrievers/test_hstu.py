import dataclasses

import numpy as np
import pytest
import torch

from tesserec.data.batches import history_of, training_windows, windows_of
from tesserec.retrievers.hstu import HSTU, NUM_TIME_BUCKETS, HSTUConfig, _Layer, _Network, gap_buckets
from tesserec.testing.data import catalog_of_size, chain, interactions_of, requests_of
from tesserec.testing.retriever_contract import RetrieverContract
from tesserec.training.loop import TrainingConfig
from tesserec.types import NO_TIME, FitContext, Holdout, Ragged, Requests

EVERY = [[[item]] for item in range(12)]
NEXT = [(item + 1) % 12 for item in range(12)]


def tiny(epochs=1, **settings):
    training = TrainingConfig(epochs=epochs, batch_size=8, learning_rate=0.02, weight_decay=0.0)
    model = HSTUConfig(width=16, num_layers=1, dropout=0.0)
    return HSTU(**({"model": model, "max_length": 4, "training": training} | settings))


def fitted(train, num_items=12, context=None, **settings):
    retriever = tiny(**settings)
    retriever.fit(train, catalog_of_size(num_items), context or FitContext(seed=1))
    return retriever


class TestHSTUContract(RetrieverContract):
    make = tiny


@pytest.mark.parametrize("settings", [{}, {"num_negatives": 6}, {"max_length": 1}, {"num_negatives": None}])
def test_a_chain_is_learnt(settings):
    retriever = fitted(chain()[0], epochs=15, **settings)
    assert retriever.retrieve(requests_of(EVERY), 1).items_BK[:, 0].tolist() == NEXT
    losses = [entry["loss"] for entry in retriever.training_log]
    assert losses[-1] < 0.3 * losses[0]


def test_the_order_of_the_history_counts():
    """After 0 1 comes 2, after 1 0 comes 3."""
    log = interactions_of([[[0], [1], [2]], [[1], [0], [3]]] * 8, 4)
    retriever = fitted(log, 4, epochs=25)
    found = retriever.retrieve(requests_of([[[0], [1]], [[1], [0]]], exclude_history=True), 1)
    assert found.items_BK.tolist() == [[2], [3]]


def test_the_time_between_events_counts():
    """After 0 and 1 on the next day comes 2, after 0 and 1 a year later comes 3."""
    soon, late = [[0], [1]], [[0], *[[]] * 364, [1]]
    log = interactions_of([[*soon, [2]], [*late, [3]]] * 8, 4)
    requests = requests_of([soon, late], exclude_history=True)
    retriever = fitted(log, 4, epochs=40, model=HSTUConfig(16, num_layers=2, dropout=0.0))
    assert retriever.retrieve(requests, 1).items_BK.tolist() == [[2], [3]]
    timeless = dataclasses.replace(log, time_E=torch.full_like(log.time_E, NO_TIME))
    before, after = (fitted(timeless, 4, epochs=epochs).state().tensors for epochs in (0, 2))
    assert torch.equal(before["network.layers.0.gaps"], after["network.layers.0.gaps"])
    assert not torch.equal(before["network.layers.0.distances"], after["network.layers.0.distances"])


def silu(x):
    return x / (1 + np.exp(-x))


def normal(x):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6)


def layer_by_hand(layer, x_TD, first, times_T):
    """The layer's formula position by position, head by head; events before ``first`` are padding."""
    tensors = {name: value.double().numpy() for name, value in layer.state_dict().items()}
    length, width = x_TD.shape
    parts_TX = np.stack([silu(tensors["project.weight"] @ normal(x)) for x in x_TD])
    gate, value, query, key = (parts_TX[:, i * width : (i + 1) * width] for i in range(4))
    out, size = x_TD.copy(), width // layer.num_heads
    for i in range(first, length):
        mixed = np.zeros(width)
        for head in range(layer.num_heads):
            own = slice(head * size, (head + 1) * size)
            for j in range(first, i + 1):
                bias = tensors["distances"][i - j]
                if NO_TIME not in {times_T[i], times_T[j]}:
                    gap = max(1, abs(times_T[i] - times_T[j]))
                    bias += tensors["gaps"][int(np.floor(np.log(gap) / 0.301))]
                mixed[own] += silu(query[i, own] @ key[j, own] + bias) / layer.max_length * value[j, own]
        out[i] += tensors["output.weight"] @ (gate[i] * normal(mixed)) + tensors["output.bias"]
    return out


@pytest.mark.parametrize("num_heads", [1, 2])
def test_a_layer_is_the_formula(num_heads):
    torch.manual_seed(4)
    layer = _Layer(HSTUConfig(8, num_layers=1, num_heads=num_heads, dropout=0.0), 6)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    x_BTD = torch.randn(2, 5, 8)
    times_BT = torch.tensor([[0, 1, 90, 4_000, 10**9], [NO_TIME, NO_TIME, 7, NO_TIME, 90_000]])
    first = [0, 2]
    valid_BT = torch.arange(5) >= torch.tensor(first)[:, None]
    allowed_BTT = torch.ones(5, 5, dtype=torch.bool).tril() & valid_BT[:, None, :]
    with torch.no_grad():
        found_BTD = layer(x_BTD, allowed_BTT, gap_buckets(times_BT))
    for row in range(2):
        expected = layer_by_hand(layer, x_BTD[row].double().numpy(), first[row], times_BT[row].tolist())
        assert found_BTD[row, first[row] :].numpy() == pytest.approx(expected[first[row] :], abs=1e-4)


def test_gaps_are_in_buckets_of_their_logarithm():
    times_BT = torch.tensor([[NO_TIME, 100, 100, 101, 103, 186_500, 2**62]])
    found = gap_buckets(times_BT)[0]
    assert torch.equal(found, found.T)
    assert found[1].tolist() == [128, 0, 0, 0, 3, 40, 127]
    assert found[0].tolist() == [NUM_TIME_BUCKETS] * 7


def test_later_events_are_not_seen():
    log = interactions_of([[[0], [1], [2], [3], [4]], [[0], [1], [2], [7], [9]]], 12)
    torch.manual_seed(1)
    network = _Network(HSTUConfig(8), 12, 5, None).eval()
    with torch.no_grad():
        states_BTD = network(windows_of(history_of(log), 5))
    torch.testing.assert_close(states_BTD[0, :3], states_BTD[1, :3])
    assert not torch.allclose(states_BTD[0, 3], states_BTD[1, 3])
    torch.testing.assert_close(states_BTD.norm(dim=-1), torch.ones(2, 5))


def test_a_request_is_read_as_in_training():
    """The state before a target in training is the state of a request that ends there, in a longer batch too."""
    network = fitted(chain()[0])._network
    with torch.no_grad():
        log = interactions_of([[[0], [1], [2], [3], [4]], [[5], [6], [7]]], 12)
        states_BTD = network(training_windows(history_of(log), 5))
        last = network(windows_of(requests_of([[[0], [1], [2], [3]], [[5], [6]]]).history, 4))[:, -1]
        alone = network(windows_of(requests_of([[[5], [6]]]).history, 4))[:, -1]
    torch.testing.assert_close(states_BTD[:, 3], last)
    torch.testing.assert_close(alone, last[1:])


def test_scores_are_cosines():
    retriever = fitted(chain()[0])
    network = retriever._network
    with torch.no_grad():
        state_BD = network(windows_of(requests_of(EVERY).history, 4))[:, -1]
        expected_BN = torch.cosine_similarity(state_BD[:, None], network.items.weight[None], dim=2)
    torch.testing.assert_close(retriever.score_all(requests_of(EVERY)), expected_BN)


def test_the_loss_is_a_softmax_of_cosines_over_the_temperature():
    train, catalog = chain()
    retriever = tiny(temperature=0.2, num_negatives=None)
    job = retriever.job(train, catalog, FitContext(seed=1))
    batch = next(iter(job.batches(torch.Generator().manual_seed(0))))
    network = retriever._network
    with torch.no_grad():
        states_BTD = network(batch)
        terms = []
        for row, items in enumerate(batch.items_BT.tolist()):
            for place in range(len(items) - 1):
                if batch.valid_BT[row, place] and batch.fresh_BT[row, place + 1]:
                    cosines_N = torch.cosine_similarity(states_BTD[row, place], network.items.weight, dim=1)
                    terms.append(-(cosines_N / 0.2).log_softmax(0)[items[place + 1]])
        torch.testing.assert_close(job.loss(batch), torch.stack(terms).mean())


def test_signals_are_not_read():
    retriever = fitted(chain()[0])
    requests = requests_of([[[0], [5], [3]]])
    columns = {**requests.history.columns, "positive": torch.tensor([True, False, True])}
    signals = Requests(dataclasses.replace(requests.history, columns=columns))
    kept = requests_of([[[0], [], [3]]])
    assert torch.equal(retriever.score_all(signals), retriever.score_all(kept))


def test_the_epoch_with_the_best_lists_is_kept():
    train, catalog = chain()
    holdout = Holdout(requests_of(EVERY), Ragged.of([[item] for item in NEXT]))
    retriever = tiny(epochs=6)
    retriever.fit(train, catalog, FitContext(seed=1, validation=holdout))
    values = [entry["validation"] for entry in retriever.training_log]
    assert len(values) == 6
    assert max(values) > 0.9 > values[0]


def test_an_empty_history_is_answered_by_popularity():
    retriever, empty = fitted(chain()[0]), requests_of([[]])
    assert torch.equal(retriever.score_all(empty), retriever.popularity.score_all(empty))


def test_a_warm_start_goes_on_with_a_larger_catalog():
    train, _ = chain()
    earlier = fitted(train, epochs=15)
    context = FitContext(seed=2, warm_start=earlier.state())
    grown = fitted(dataclasses.replace(train, items=catalog_of_size(14).items), 14, context, epochs=0)
    requests = requests_of(EVERY)
    assert torch.equal(grown.score_all(requests)[:, :12], earlier.score_all(requests))


def test_an_estimate_needs_no_fit():
    train, catalog = chain()
    estimate = tiny().estimate(train, catalog, FitContext())
    assert estimate.seconds > 0
    assert estimate.peak_bytes > 0


def test_settings():
    made = HSTU()
    assert (made.max_length, made.num_negatives, made.temperature) == (50, 128, 0.05)
    assert made.model == HSTUConfig(50, 2, 1, 0.2)
    assert (made.training.epochs, made.training.batch_size, made.training.learning_rate) == (100, 128, 1e-3)
    assert made.training.weight_decay == 0
    with pytest.raises(ValueError, match="width 9 must be a multiple of num_heads 2"):
        HSTUConfig(9, num_heads=2)
