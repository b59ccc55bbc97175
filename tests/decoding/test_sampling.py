import math

import pytest
import torch

from tesserec.decoding.frontier import Distribution
from tesserec.decoding.sampling import sample_independently, stochastic_beam_search
from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_mask import TrieMask
from tesserec.testing.data import requests_of
from tesserec.testing.decoding import TableModel
from tesserec.types import SemanticIds

# Leaves: (0 0) 0 · (0 1) 1 · (1 0) 2 · (1 2) 3 · (2 1) 4
TRIE = Trie.build(SemanticIds(torch.tensor([[0, 1], [0, 0], [1, 2], [1, 0], [2, 1]]), (3, 3), "test"))
FIRST = torch.tensor([0.5, 0.3, 0.2]).log()
SECOND = torch.tensor([0.9, 0.1, 0.4, 0.6, 1.0]).log()
PROBABILITY = [0.45, 0.05, 0.12, 0.18, 0.2]
ROWS = 20_000


def model(rows=ROWS):
    return TableModel(TRIE, (FIRST.repeat(rows, 1), SECOND.repeat(rows, 1)))


def sampled(search, num_beams, rows=ROWS, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return search(model(rows), (), TRIE, num_requests=rows, num_beams=num_beams, generator=generator, **options)


def shares(leaves_BM):
    return [float((leaves_BM == leaf).any(1).float().mean()) for leaf in range(5)]


def without_replacement(weights, size):
    """The probability of each item to be among ``size`` drawn one after the other without replacement."""
    if size == 0:
        return [0.0] * len(weights)
    total, found = sum(weights), [0.0] * len(weights)
    for first, weight in enumerate(weights):
        if weight:
            rest = without_replacement([0 if i == first else w for i, w in enumerate(weights)], size - 1)
            for i, later in enumerate(rest):
                found[i] += weight / total * (1 if i == first else later)
    return found


@pytest.mark.parametrize("size", [1, 2, 4])
def test_stochastic_beams_are_drawn_without_replacement(size):
    found = sampled(stochastic_beam_search, size)
    assert shares(found.leaves_BM) == pytest.approx(without_replacement(PROBABILITY, size), abs=0.018)
    assert all(len(set(row)) == size for row in found.leaves_BM[:500].tolist())
    assert found.log_probs_BM.exp()[found.leaves_BM == 3] == pytest.approx(0.18)
    assert bool((found.scores_BM[:, 1:] <= found.scores_BM[:, :-1]).all())


@pytest.mark.parametrize("search", [stochastic_beam_search, sample_independently])
def test_sums_over_inclusion_are_unbiased(search):
    found = sampled(search, 3)
    value = torch.tensor([1.0, 10.0, -3.0, 2.0, 4.0])
    inside = found.leaves_BM >= 0
    terms = value[found.leaves_BM.clamp(min=0)] * found.log_probs_BM.exp() / found.inclusion_BM
    expected = sum(p * v for p, v in zip(PROBABILITY, value.tolist(), strict=True))
    sums = torch.where(inside, terms, 0).sum(1)
    assert float(sums.mean()) == pytest.approx(expected, abs=5 * float(sums.std()) / math.sqrt(ROWS))


@pytest.mark.parametrize("search", [stochastic_beam_search, sample_independently])
def test_each_tuple_counts_once_on_average(search):
    mask = TrieMask.of(TRIE, requests_of([[]] * ROWS, available=[True, True, True, False, True]))  # without leaf 2
    found = sampled(search, 2, mask=mask)
    for leaf in (0, 1, 3, 4):
        counts = torch.where(found.leaves_BM == leaf, 1 / found.inclusion_BM, 0).sum(1)
        assert float(counts.mean()) == pytest.approx(1, abs=5 * float(counts.std()) / math.sqrt(ROWS))


@pytest.mark.parametrize("search", [stochastic_beam_search, sample_independently])
def test_a_sample_of_everything_includes_all_with_certainty(search):
    found = sampled(search, 5 if search is stochastic_beam_search else 2_000, rows=2)
    assert shares(found.leaves_BM) == [1] * 5
    assert found.inclusion_BM[:, :5].tolist() == [[1] * 5] * 2
    assert bool((found.leaves_BM[:, 5:] == -1).all())


@pytest.mark.parametrize("num_beams", [1, 2, 3, 5, 9])
def test_more_beams_than_there_are_tuples_are_padded(num_beams):
    trie = Trie.build(SemanticIds(torch.tensor([[0], [1]]), (2,), "test"))
    step = TableModel(trie, (torch.tensor([[0.5, 0.5]]).log(),))
    found = stochastic_beam_search(
        step, (), trie, num_requests=1, num_beams=num_beams, generator=torch.Generator().manual_seed(0)
    )
    assert sorted(found.leaves_BM[0].tolist()) == sorted([0, 1] + [-1] * (num_beams - 2)) or num_beams == 1
    assert (found.inclusion_BM[0, :2].tolist() == [1, 1]) == (num_beams > 1)
    assert found.inclusion_BM[0, 2:].tolist() == [0] * (num_beams - 2)


def test_independent_draws_have_the_probability_to_be_drawn_at_least_once():
    found = sampled(sample_independently, 3)
    expected = [1 - (1 - p) ** 3 for p in PROBABILITY]
    assert shares(found.leaves_BM) == pytest.approx(expected, abs=0.012)
    assert found.inclusion_BM[found.leaves_BM == 2] == pytest.approx(expected[2])
    drawn = [[leaf for leaf in row if leaf >= 0] for row in found.leaves_BM[:500].tolist()]
    assert all(len(set(row)) == len(row) for row in drawn)
    assert {len(row) for row in drawn} == {1, 2, 3}


def test_filters_temperature_and_nucleus_change_what_is_drawn():
    mask = TrieMask.of(TRIE, requests_of([[]] * ROWS, available=[True, False, True, False, False]))  # leaves 1 and 3
    found = sampled(sample_independently, 1, mask=mask)
    assert shares(found.leaves_BM) == pytest.approx([0, 0.5 / 0.8, 0, 0.3 / 0.8, 0], abs=0.012)
    cold = sampled(sample_independently, 1, distribution=Distribution("allowed", temperature=0.5))
    first = [p**2 / (0.25 + 0.09 + 0.04) for p in (0.5, 0.3, 0.2)]
    assert shares(cold.leaves_BM)[4] == pytest.approx(first[2], abs=0.012)
    few = sampled(sample_independently, 1, distribution=Distribution("allowed", nucleus=0.7))
    assert shares(few.leaves_BM) == pytest.approx([0.5 / 0.8, 0, 0.4 * 0.3 / 0.8, 0.6 * 0.3 / 0.8, 0], abs=0.012)


def test_prompts_hold_in_samples_too():
    prompts = torch.tensor([[1]] * 100)
    for search in (stochastic_beam_search, sample_independently):
        found = sampled(search, 2, rows=100, prompts_Bl=prompts)
        assert set(found.leaves_BM.flatten().tolist()) <= {2, 3, -1}


def test_the_same_seed_draws_the_same():
    one, two, other = (sampled(stochastic_beam_search, 2, rows=50, seed=seed) for seed in (3, 3, 4))
    assert one.leaves_BM.tolist() == two.leaves_BM.tolist() != other.leaves_BM.tolist()


@pytest.mark.parametrize("search", [stochastic_beam_search, sample_independently])
@pytest.mark.parametrize("normalizer", ["model", "tree"])
def test_what_is_not_normalised_is_not_sampled(search, normalizer):
    with pytest.raises(
        ValueError, match=rf"^normalizer = '{normalizer}': a sample needs .* set normalizer to \"allowed"
    ):
        sampled(search, 2, rows=1, distribution=Distribution(normalizer))


@pytest.mark.parametrize("search", [stochastic_beam_search, sample_independently])
def test_a_sample_of_nothing_is_refused(search):
    with pytest.raises(ValueError, match=r"^num_beams = 0: search with at least one beam$"):
        sampled(search, 0, rows=1)
