import math

import pytest
import torch
import torch.nn.functional as F

from tesserec.nn.losses import NegativeSampler, catalog_log_probs, sampled_softmax_loss

N, S = 7, 3
COUNTS = torch.tensor([0, 15, 1, 80, 3, 0, 255])
STATE_P = torch.tensor([0, 2, 1, 2])
TARGETS_P = torch.tensor([3, 6, 0, 6])


def parts():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(S, 4, generator=generator), torch.randn(N, 4, generator=generator)


@pytest.mark.parametrize("num_negatives", [None, N, N + 5])
def test_the_full_softmax_equals_cross_entropy(num_negatives):
    states_SD, items_ND = parts()
    sampler = NegativeSampler(COUNTS, num_negatives)
    logits_PN = (states_SD @ items_ND.T)[STATE_P]
    found = sampled_softmax_loss(states_SD, items_ND.__getitem__, STATE_P, TARGETS_P, sampler)
    torch.testing.assert_close(found, F.cross_entropy(logits_PN, TARGETS_P))


def test_weights_and_bonus():
    states_SD, items_ND = parts()
    sampler, weights_P = NegativeSampler(COUNTS, None), torch.tensor([1.0, 0.5, 3.0, 0.0])
    expected = (F.cross_entropy((states_SD @ items_ND.T)[STATE_P], TARGETS_P, reduction="none") * weights_P).sum() / 4.5
    found = sampled_softmax_loss(states_SD, items_ND.__getitem__, STATE_P, TARGETS_P, sampler, weights_P)
    torch.testing.assert_close(found, expected)
    bonus_SN = torch.arange(S * N).view(S, N) / 10.0
    log_probs_SN = catalog_log_probs(states_SD, items_ND, bonus_SN)
    torch.testing.assert_close(log_probs_SN, F.log_softmax(states_SD @ items_ND.T + bonus_SN, 1))
    one = NegativeSampler(COUNTS, 1)
    torch.manual_seed(5)
    mean = sampled_softmax_loss(states_SD, items_ND.__getitem__, STATE_P, TARGETS_P, one)
    torch.manual_seed(5)
    torch.testing.assert_close(
        sampled_softmax_loss(states_SD, items_ND.__getitem__, STATE_P, TARGETS_P, one, torch.full((4,), 2.0)), mean
    )


def test_many_samples_come_near_the_full_softmax():
    states_SD, items_ND = parts()
    full = sampled_softmax_loss(states_SD, items_ND.__getitem__, STATE_P, TARGETS_P, NegativeSampler(COUNTS, None))
    sampler = NegativeSampler(COUNTS, None)
    sampler.num_negatives = 200_000
    torch.manual_seed(0)
    found = sampled_softmax_loss(states_SD, items_ND.__getitem__, STATE_P, TARGETS_P, sampler)
    assert float(found) == pytest.approx(float(full), abs=0.01)


def test_a_drawn_item_is_corrected_and_a_drawn_target_left_out(monkeypatch):
    """One state, logits 1, 2, 3; items 0, 0 and 2 are drawn, and 2 is the target."""
    sampler = NegativeSampler(torch.tensor([15, 0, 80, 0]), 3)
    monkeypatch.setattr(sampler, "draw", lambda: torch.tensor([0, 0, 2]))
    assert sampler.log_q_N.exp().tolist() == pytest.approx([8 / 37, 1 / 37, 27 / 37, 1 / 37])
    items_ND = torch.tensor([[1.0], [2.0], [3.0], [0.0]])
    found = sampled_softmax_loss(torch.ones(1, 1), items_ND.__getitem__, torch.tensor([0]), torch.tensor([2]), sampler)
    negatives = 2 * math.e / (3 * 8 / 37)
    assert float(found) == pytest.approx(math.log(math.exp(3) + negatives) - 3, rel=1e-5)


def test_a_sample_of_nothing_but_the_target_teaches_nothing(monkeypatch):
    sampler = NegativeSampler(torch.tensor([15, 0, 80, 0]), 2)
    monkeypatch.setattr(sampler, "draw", lambda: torch.tensor([2, 2]))
    items_ND = torch.tensor([[1.0], [2.0], [3.0], [0.0]], requires_grad=True)
    found = sampled_softmax_loss(torch.ones(1, 1), items_ND.__getitem__, torch.tensor([0]), torch.tensor([2]), sampler)
    found.backward()
    assert found.item() == 0
    assert items_ND.grad.tolist() == [[0.0]] * 4


def test_items_are_drawn_by_count_to_the_power_of_three_quarters():
    sampler = NegativeSampler(COUNTS, 6)
    sampler.num_negatives = 100_000
    torch.manual_seed(1)
    weights = torch.tensor([1, 8, 2**0.75, 81**0.75, 4**0.75, 1, 64])
    shares = torch.bincount(sampler.draw(), minlength=N) / 100_000
    assert shares.tolist() == pytest.approx((weights / weights.sum()).tolist(), abs=0.005)
    assert sampler.log_q_N.exp().tolist() == pytest.approx((weights / weights.sum()).tolist(), rel=1e-5)
    assert NegativeSampler(COUNTS, 6).draw().shape == (6,)
    torch.manual_seed(2)
    first = NegativeSampler(COUNTS, 6).draw()
    torch.manual_seed(2)
    assert torch.equal(NegativeSampler(COUNTS, 6).draw(), first)


def test_no_draw_falls_behind_the_last_item(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda size, dtype: torch.full((size,), 1.5, dtype=dtype))
    assert NegativeSampler(COUNTS, 2).draw().tolist() == [6, 6]
