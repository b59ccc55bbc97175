"""Re-tokenization: shuffled codebooks come back, the assignment is the best one, and nothing but labels changes."""

from itertools import permutations

import pytest
import torch

from tesserec.config import fresh
from tesserec.errors import DataError, VersionMismatchError
from tesserec.semantic_ids import RQVAE, ResidualKMeans, RQVAETraining, build_semantic_ids, content_codes
from tesserec.semantic_ids.diagnostics import churn
from tesserec.semantic_ids.expansion import check_codebook
from tesserec.semantic_ids.residual import fingerprint
from tesserec.semantic_ids.retokenize import (
    continued_codebooks,
    match_items,
    match_vectors,
    relabel_codes,
    relabel_state,
    retokenize,
)
from tesserec.semantic_ids.table import groups
from tesserec.types import ComponentState, SemanticIds, SideInformation


def fitted(vectors_ND, seed=0):
    quantizer = ResidualKMeans(num_levels=2, codebook_size=8)
    quantizer.fit(vectors_ND, SideInformation(seed=seed))
    return quantizer


def table_of(quantizer, vectors_ND, collisions="digit"):
    codes_NL = quantizer.encode(vectors_ND)
    return build_semantic_ids(codes_NL, quantizer.codebook_sizes, fingerprint(quantizer.state()), collisions)


def points(num_items=200):
    generator = torch.Generator().manual_seed(1)
    centres = 10 * torch.randn(8, 6, generator=generator)
    return centres[torch.arange(num_items) % 8] + torch.randn(num_items, 6, generator=generator)


@pytest.fixture(scope="module")
def old():
    quantizer = fitted(points())
    return quantizer, table_of(quantizer, points())


def shuffled(quantizer, seed=3):
    """The same quantizer under other labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = [torch.randperm(size, generator=generator) for size in quantizer.codebook_sizes]
    other = fresh(quantizer)
    other.restore(relabel_state(quantizer.state(), labels))
    return other


def test_shuffled_codebooks_come_back(old):
    quantizer, table = old
    other = shuffled(quantizer)
    new = table_of(other, points())
    found = retokenize(table, new, other.state())
    assert found.churn_unmatched.whole > 0.8
    assert found.churn.whole == 0
    assert torch.equal(found.semantic_ids.codes_NL, table.codes_NL)
    assert found.semantic_ids.codebook_version == table.codebook_version  # the very same codebooks
    for name, tensor in quantizer.state().tensors.items():
        assert torch.equal(found.state.tensors[name], tensor)


def test_the_same_table_is_left_as_it_is(old):
    quantizer, table = old
    found = retokenize(table, table, quantizer.state())
    assert all(torch.equal(labels_C, torch.arange(len(labels_C))) for labels_C in found.labels)
    assert torch.equal(found.semantic_ids.codes_NL, table.codes_NL)
    assert found.semantic_ids.codebook_version == table.codebook_version


@pytest.mark.parametrize("digit", ["digit", "bucket"])
def test_a_refit_keeps_most_items_and_all_buckets(old, digit):
    quantizer = old[0]
    table = table_of(quantizer, points(), digit)
    moved = torch.cat([points() + 0.02, points(240)[200:]])
    refit = fitted(moved, seed=7)
    new = table_of(refit, moved, digit)
    found = retokenize(table, new, refit.state())
    assert found.churn.codes[0] < 0.05 < found.churn_unmatched.codes[0]
    assert found.churn.whole <= found.churn_unmatched.whole
    content, sizes = content_codes(found.semantic_ids), refit.codebook_sizes
    partition = [set() for _ in range(2)]
    for number, codes_NL in enumerate((content, content_codes(new))):
        group_N = groups(codes_NL, sizes)
        partition[number] = {tuple((group_N == g).nonzero()[:, 0].tolist()) for g in group_N.unique()}
    assert partition[0] == partition[1]
    assert len(torch.unique(found.semantic_ids.codes_NL, dim=0)) == (240 if digit == "digit" else len(partition[0]))
    # the relabelled codebooks are those of the table: they may code later items
    again = fresh(refit)
    again.restore(found.state)
    assert torch.equal(again.encode(moved), content)
    check_codebook(found.semantic_ids, again)
    same_N = (content[:200] == content_codes(table)).all(1)
    assert torch.equal(found.semantic_ids.codes_NL[:200][same_N], table.codes_NL[same_N])


def test_matching_on_items_is_the_best_of_all_permutations():
    generator = torch.Generator().manual_seed(0)
    before, after = (
        SemanticIds(torch.randint(4, (60, 1), generator=generator), (4,), version) for version in ("a", "b")
    )
    (labels_C,) = match_items(before, after)
    kept = [
        int((torch.tensor(order)[after.codes_NL[:, 0]] == before.codes_NL[:, 0]).sum())
        for order in permutations(range(4))
    ]
    assert int((labels_C[after.codes_NL[:, 0]] == before.codes_NL[:, 0]).sum()) == max(kept)


def test_the_second_level_serves_those_that_kept_the_first():
    # Three items keep code 0 of level one and swap the codes of level two; five that lost theirs would have them stay
    before = SemanticIds(torch.tensor([[0, 0]] * 3 + [[0, 1]] * 4 + [[1, 0]] * 5), (2, 2), "a")
    after = SemanticIds(torch.tensor([[0, 1]] * 3 + [[0, 0]] * 4 + [[0, 0]] * 5), (2, 2), "b")
    labels = match_items(before, after)
    assert [labels_C.tolist() for labels_C in labels] == [[0, 1], [1, 0]]


def test_matching_on_vectors_is_the_best_of_all_permutations():
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator)
    (labels_C,) = match_vectors([before], [after])
    costs = {order: float((after - before[list(order)]).square().sum()) for order in permutations(range(4))}
    assert tuple(labels_C.tolist()) == min(costs, key=costs.get)


def test_more_codes_than_before_take_new_labels_and_fewer_give_labels_up():
    before = torch.tensor([[0.0], [10.0]])
    (labels_C,) = match_vectors([before], [torch.tensor([[9.0], [50.0], [1.0]])])
    assert labels_C.tolist() == [1, 2, 0]
    (labels_C,) = match_vectors([torch.tensor([[5.0], [0.0], [10.0]])], [torch.tensor([[0.0], [5.0]])])
    assert labels_C.tolist() == [1, 0]
    old = SemanticIds(torch.tensor([[2], [2], [0]]), (3,), "a")
    new = SemanticIds(torch.tensor([[1], [1], [0]]), (2,), "b")
    assert match_items(old, new)[0].tolist() == [0, 1]


def test_codes_of_anyone_are_relabelled_without_codebooks(old):
    _, table = old
    codes_NL = relabel_codes(content_codes(table), [torch.arange(8).flip(0), torch.arange(8).flip(0)])
    found = retokenize(table, build_semantic_ids(codes_NL, (8, 8), "anyone"))
    assert found.state is None
    assert torch.equal(found.semantic_ids.codes_NL, table.codes_NL)
    assert found.semantic_ids.codebook_version != table.codebook_version
    bucket = retokenize(
        build_semantic_ids(content_codes(table), (8, 8), "f", "bucket"), build_semantic_ids(codes_NL, (8, 8), "anyone")
    )
    assert torch.equal(content_codes(bucket.semantic_ids), content_codes(table))


def test_labels_may_be_given(old):
    quantizer, table = old
    other = shuffled(quantizer)
    books = [[*q.state().tensors.values()] for q in (quantizer, other)]
    found = retokenize(table, table_of(other, points()), other.state(), labels=match_vectors(*books))
    assert found.churn.whole == 0


def test_an_rq_vae_is_relabelled_in_its_codebooks_only():
    quantizer = RQVAE(num_levels=2, codebook_size=8, hidden_sizes=(8,), training=RQVAETraining(num_steps=5))
    quantizer.fit(points(), SideInformation())
    labels = [torch.arange(8).flip(0), torch.arange(8).roll(3)]
    other = fresh(quantizer)
    other.restore(relabel_state(quantizer.state(), labels, "codebooks.{}"))
    codes_NL = quantizer.encode(points())
    assert torch.equal(other.encode(points()), relabel_codes(codes_NL, labels))
    assert torch.equal(other.decode(relabel_codes(codes_NL, labels)), quantizer.decode(codes_NL))


def test_one_more_round_by_hand():
    state = ComponentState(
        {"codebook_0": torch.tensor([[0.0], [10.0], [99.0]]), "codebook_1": torch.tensor([[-1.0], [1.0]])}
    )
    found = continued_codebooks(state, torch.tensor([[0.0], [2.0], [9.0], [13.0]]), 1).tensors
    assert found["codebook_0"].tolist() == [[1.0], [11.0], [99.0]]  # the last has no item
    assert found["codebook_1"].tolist() == [[-1.5], [1.5]]  # what is left over: −1, 1, −2, 2
    assert state.tensors["codebook_0"].tolist() == [[0.0], [10.0], [99.0]]


def test_codebooks_of_the_same_items_go_on_as_they_are(old):
    quantizer, table = old
    again = fresh(quantizer)
    again.restore(continued_codebooks(quantizer.state(), points(), 20))
    settled = table_of(again, points())
    further = continued_codebooks(again.state(), points(), 1)
    assert all(torch.allclose(further.tensors[name], tensor) for name, tensor in again.state().tensors.items())
    assert churn(table, settled).codes[0] < 0.05


def test_continued_codebooks_keep_more_tuples_than_a_refit():
    generator = torch.Generator().manual_seed(2)
    vectors_ND = torch.randn(600, 6, generator=generator)  # no clusters: many partitions are as good
    quantizer, refit, later = fitted(vectors_ND[:500]), fitted(vectors_ND), fresh(fitted(vectors_ND))
    later.restore(continued_codebooks(quantizer.state(), vectors_ND))
    table = table_of(quantizer, vectors_ND[:500])
    matched = retokenize(table, table_of(refit, vectors_ND), refit.state())
    continued = retokenize(table, table_of(later, vectors_ND), later.state())
    assert continued.churn.prefixes[-1] < 0.3 < matched.churn.prefixes[-1]
    error = [float((vectors_ND - q.decode(q.encode(vectors_ND))).square().mean()) for q in (quantizer, later, refit)]
    assert error[1] < error[0]
    assert error[1] < 1.05 * error[2]


def test_what_does_not_fit_is_refused(old):
    for broken, message in ((points()[:, :2], "have 2 columns, the codebooks"), (points() * torch.nan, "NaN")):
        with pytest.raises(DataError, match=message):
            continued_codebooks(old[0].state(), broken)
    with pytest.raises(DataError, match=r"no codes under the name codebooks\.0: give codebook_name"):
        continued_codebooks(old[0].state(), points(), codebook_name="codebooks.{}")
    quantizer, table = old
    other = shuffled(quantizer)
    with pytest.raises(VersionMismatchError, match=f"has codebook version {table.codebook_version}"):
        retokenize(table, table, other.state())
    with pytest.raises(DataError, match="2 levels cannot be matched with 1"):
        retokenize(table, SemanticIds(table.codes_NL[:, :1], (8,), "x"))
    with pytest.raises(DataError, match="labels of level 0 are no permutation of 0 to 1"):
        relabel_codes(torch.zeros(1, 1).long(), [torch.tensor([0, 0])])
    for code in (2, -1):
        with pytest.raises(DataError, match=f"level 0 has codes from {code} to {code}, labels for 2 codes"):
            relabel_codes(torch.tensor([[code]]), [torch.tensor([1, 0])])
    with pytest.raises(DataError, match=r"no codes under the name codebooks\.0, expected 8: give codebook_name"):
        retokenize(table, table, quantizer.state(), codebook_name="codebooks.{}")
    with pytest.raises(DataError, match="has 1 codes under the name codebook_0, expected 2"):
        relabel_state(ComponentState({"codebook_0": torch.zeros(1, 1)}), [torch.tensor([1, 0])])
    with pytest.raises(DataError, match="level 0: code vectors of 2 and 1 features"):
        match_vectors([torch.zeros(1, 2)], [torch.zeros(1, 1)])
    with pytest.raises(DataError, match="level 0: a code vector holds NaN"):
        match_vectors([torch.zeros(1, 1)], [torch.full((1, 1), torch.nan)])
