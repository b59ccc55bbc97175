"""Assigners: Sinkhorn against an iteration in the log domain, brute force with offsets, shares of the codes."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from tesserec.semantic_ids import RQVAE, RQVAEParts, RQVAETraining
from tesserec.semantic_ids.assigners import Assigner, Nearest, Sinkhorn, assign
from tesserec.semantic_ids.residual import nearest
from tesserec.types import SideInformation


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("epsilon", [0.003, 0.3])
def test_sinkhorn_is_the_log_domain_iteration(epsilon):
    points, codebook = randn(40, 3), randn(5, 3, seed=1)
    distances = torch.cdist(points.double(), codebook.double()).square().numpy()
    unit = epsilon * (distances.max() - distances.min()) / 2
    log_v = np.zeros(5)
    for _ in range(23):
        log_u = -logsumexp(log_v - distances / unit, 1) - np.log(40)
        log_v = -logsumexp(log_u[:, None] - distances / unit, 0) - np.log(5)
    expected = unit * (log_v - log_v.mean())
    found = Sinkhorn(epsilon=epsilon, num_iterations=23).offsets(points, codebook)
    assert found.numpy() == pytest.approx(expected, abs=1e-4)


def test_sinkhorn_shares_the_codes_where_the_nearest_does_not():
    points = torch.cat([randn(90, 2) * 0.1, randn(10, 2, seed=1) + 4])
    codebook = torch.tensor([[0.0, 0.0], [4.0, 4.0]])
    assert nearest(points, codebook).bincount().tolist() == [90, 10]
    codes = assign(points, codebook, Sinkhorn(num_iterations=200).offsets(points, codebook))
    assert max(codes.bincount().tolist()) <= 60
    assert (codes[90:] == 1).all()  # the far ones stay where they are


def test_points_that_are_all_equal_have_no_range():
    points = torch.ones(4, 2)
    offsets = Sinkhorn().offsets(points, torch.ones(3, 2))
    assert torch.isfinite(offsets).all()


def test_assign_is_brute_force_with_offsets():
    points, codebook, offsets = randn(50, 4), randn(7, 4, seed=1), randn(7, seed=2)
    expected = (torch.cdist(points.double(), codebook.double()).square() - offsets).argmin(1)
    assert torch.equal(assign(points, codebook, offsets), expected)
    assert torch.equal(assign(points, codebook, Nearest().offsets(points, codebook)), nearest(points, codebook))
    assert isinstance(Sinkhorn(), Assigner)


def fitted(*assigners):
    features = torch.cat([randn(280, 6) * 0.3, randn(20, 6, seed=1) * 3])
    training = RQVAETraining(num_steps=40, batch_size=100)
    quantizer = RQVAE(
        num_levels=2,
        codebook_size=8,
        hidden_sizes=(16,),
        num_latents=4,
        training=training,
        parts=RQVAEParts(assigners=assigners),
    )
    quantizer.fit(features, SideInformation())
    return quantizer, features


def test_sinkhorn_on_the_last_level_makes_its_use_even_and_codes_do_not_depend_on_company():
    plain, features = fitted()
    even, _ = fitted(Nearest(), Sinkhorn())
    largest = [int(q.encode(features)[:, 1].bincount().max()) for q in (plain, even)]
    assert largest[1] < min(60, largest[0])  # 300 items on 8 codes: 37.5 each
    codes = even.encode(features)
    assert torch.equal(torch.cat([even.encode(features[i : i + 1]) for i in range(30)]), codes[:30])
    again = RQVAE(num_levels=2, codebook_size=8, hidden_sizes=(16,), num_latents=4, parts=even.parts)
    again.restore(even.state())
    assert torch.equal(again.encode(features), codes)


def test_no_other_code_is_better_given_the_assigner():
    quantizer, features = fitted(Sinkhorn(epsilon=0.1), Sinkhorn())
    network, codes = quantizer._fitted(), quantizer.encode(features)
    rest = network.latents(features)
    for level, codebook in enumerate(network.codebooks):
        costs = torch.cdist(rest.double(), codebook.double()).square() - network.get_buffer(f"offsets_{level}")
        assert torch.all(costs.gather(1, codes[:, level : level + 1]).squeeze(1) <= costs.min(1).values + 1e-5)
        rest = rest - codebook[codes[:, level]]
