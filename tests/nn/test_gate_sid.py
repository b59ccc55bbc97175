"""GateSID: the closed form, and that a gate learns whom to trust."""

import pytest
import torch
import torch.nn.functional as F

from tesserec.errors import DataError
from tesserec.nn.gate_sid import GateSID


def test_it_starts_half_way():
    own, semantic = torch.randn(5, 4), torch.randn(5, 4)
    mixed, gate_B = GateSID(4, 1)(own, semantic, torch.zeros(5, 1))
    assert torch.equal(gate_B, torch.full((5,), 0.5))
    assert torch.allclose(mixed, (own + semantic) / 2)


def test_the_mixture_and_the_alignment_by_hand():
    torch.manual_seed(0)
    module = GateSID(4, 2)
    torch.nn.init.normal_(module.out.weight)
    own, semantic, statistics = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 2)
    mixed, gate_B = module(own, semantic, statistics)
    hidden = F.gelu(torch.cat([own, semantic, statistics], 1) @ module.hidden.weight.T + module.hidden.bias)
    expected = 1 / (1 + torch.exp(-(hidden @ module.out.weight[0] + module.out.bias)))
    assert torch.allclose(gate_B, expected)
    assert torch.allclose(mixed, (1 - expected[:, None]) * own + expected[:, None] * semantic, atol=1e-6)
    total = 0.0
    for i in range(3):
        scores = torch.stack([F.cosine_similarity(own[i], semantic[j], dim=0) / 0.1 for j in range(3)])
        total += expected[i] * (scores.exp().sum().log() - scores[i])
    assert torch.allclose(module.alignment(own, semantic, gate_B), total / 3, atol=1e-5)


def test_the_alignment_does_not_move_the_gate():
    module = GateSID(4, 1)
    own, semantic = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    gate_B = module.gate(own.detach(), semantic.detach(), torch.zeros(3, 1))
    module.alignment(own, semantic, gate_B).backward()
    assert module.out.weight.grad is None
    assert own.grad.any()
    assert semantic.grad.any()


def test_items_with_few_events_come_to_trust_their_content():
    torch.manual_seed(0)
    log_events_B1 = torch.linspace(0, 3, 200)[:, None]
    truth = torch.randn(200, 4)
    own = torch.where(log_events_B1 > 1.5, truth, torch.randn(200, 4))  # noise for new items
    semantic = torch.where(log_events_B1 > 1.5, torch.randn(200, 4), truth)  # too coarse for mature ones
    module = GateSID(4, 1)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(150):
        mixed, gate_B = module(own, semantic, log_events_B1)
        loss = (mixed - truth).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert gate_B[:80].min() > 0.8
    assert gate_B[120:].max() < 0.2
    assert loss < 0.2 * torch.minimum((own - truth).square().mean(), (semantic - truth).square().mean())


def test_what_does_not_fit_is_refused():
    module = GateSID(4, 1)
    with pytest.raises(DataError, match=r"widths \(4, 3, 1\): expected \(4, 4, 1\)"):
        module(torch.zeros(2, 4), torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(DataError, match="statistics hold NaN or infinity"):
        module(torch.zeros(2, 4), torch.zeros(2, 4), torch.full((2, 1), -torch.inf))
