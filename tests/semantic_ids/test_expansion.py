"""Items unseen at the fit: their codes by brute force, versions, foreign items, and other codebooks refused."""

import pytest
import torch

from tesserec.errors import DataError, VersionMismatchError
from tesserec.semantic_ids import RQVAE, ResidualKMeans, RQVAETraining, build_semantic_ids
from tesserec.semantic_ids.crab import CRAB
from tesserec.semantic_ids.expansion import ForeignItems, expand, unexplained
from tesserec.semantic_ids.residual import fingerprint
from tesserec.types import SideInformation


def vectors(num_items, seed=0):
    """Items around eight centres in the first six of eight dimensions."""
    generator = torch.Generator().manual_seed(seed)
    centres = 5 * torch.randn(8, 6, generator=torch.Generator().manual_seed(9))
    inside = centres[torch.arange(num_items) % 8] + 0.3 * torch.randn(num_items, 6, generator=generator)
    return torch.cat([inside, torch.zeros(num_items, 2)], 1)


def fitted(seed=0):
    quantizer = ResidualKMeans(num_levels=2, codebook_size=8)
    quantizer.fit(vectors(160), SideInformation(seed=seed))
    return quantizer


def table_of(quantizer, collisions="digit"):
    codes_NL = quantizer.encode(vectors(160))
    return build_semantic_ids(codes_NL, quantizer.codebook_sizes, fingerprint(quantizer.state()), collisions)


@pytest.mark.parametrize("collisions", ["digit", "bucket"])
def test_later_items_get_the_best_codes_of_the_frozen_codebooks(collisions):
    quantizer = fitted()
    table = table_of(quantizer, collisions)
    later = vectors(20, seed=1)
    grown = expand(table, quantizer, later)
    assert torch.equal(grown.codes_NL[:160], table.codes_NL)
    assert grown.codebook_version == table.codebook_version
    assert grown.codebook_sizes == table.codebook_sizes
    assert grown.table_revision == table.table_revision + 1
    books = list(quantizer.state().tensors.values())
    for row in range(20):
        left_D = later[row]
        for level, book in enumerate(books):
            errors = [float((left_D - vector).square().sum()) for vector in book]
            assert grown.codes_NL[160 + row, level] == errors.index(min(errors))
            left_D = left_D - book[errors.index(min(errors))]
    if collisions == "digit":
        assert len(torch.unique(grown.codes_NL, dim=0)) == 180


def test_items_of_a_full_bucket_take_the_next_best_last_code_one_at_a_time_and_all_at_once():
    quantizer = fitted()
    table = table_of(quantizer)
    *_, capacity = table.codebook_sizes
    later = torch.cat([vectors(1, seed=1).expand(40, -1), vectors(8, seed=2)])
    grown = expand(table, quantizer, later)
    own = quantizer.encode(later[:1])[0]
    new = grown.codes_NL[160:200]
    assert len(torch.unique(grown.codes_NL, dim=0)) == 208
    assert (new[:, 0] == own[0]).all()
    room = capacity - int((table.codes_NL[:, :2] == own).all(1).sum())
    assert (new[:room, 1] == own[1]).all()
    tried = torch.stack([own[0].expand(8), torch.arange(8)], 1)
    best = (quantizer.decode(tried) - later[0]).square().sum(1).argsort().tolist()
    assert best[0] == own[1]
    taken = [int((table.codes_NL[:, :2] == codes).all(1).sum()) for codes in tried[best]]
    expected = [last for last, count in zip(best, taken, strict=True) for _ in range(capacity - count)]
    assert new[:, 1].tolist() == expected[:40]
    one_by_one = table
    for row in range(len(later)):
        one_by_one = expand(one_by_one, quantizer, later[row : row + 1])
    assert torch.equal(one_by_one.codes_NL, grown.codes_NL)


def test_items_without_a_place_below_their_prefix_are_refused():
    quantizer = fitted()
    table = table_of(quantizer)
    with pytest.raises(DataError, match=r"new item \d+: all 128 places below its codes \(\d,\) are taken: fit"):
        expand(table, quantizer, vectors(1, seed=1).expand(130, -1))


def test_no_items_no_revision():
    quantizer = fitted()
    table = table_of(quantizer)
    assert expand(table, quantizer, vectors(0)) is table


@pytest.mark.parametrize("quantile", [0.5, 0.9])
def test_as_many_fitted_items_are_foreign_as_the_quantile_leaves(quantile):
    found = ForeignItems(quantile=quantile).find(fitted(), vectors(160), vectors(160))
    assert found.sum().item() == 160 - 1 - int(quantile * 159 + 0.5)


def test_another_codebook_is_refused_by_name():
    quantizer, table = fitted(), table_of(fitted())
    later = vectors(2)
    with pytest.raises(
        VersionMismatchError, match=f"version {table.codebook_version}, the codebooks of this ResidualK"
    ):
        expand(table, fitted(seed=5), later)
    other = RQVAE(num_levels=2, codebook_size=8, hidden_sizes=(4,), training=RQVAETraining(num_steps=2))
    other.fit(vectors(160), SideInformation())
    with pytest.raises(VersionMismatchError, match="of this RQVAE make"):
        expand(table, other, later)
    split, _ = CRAB(level=0, over_popular=1.0, split_share=1.0).split(
        table, torch.arange(160), quantizer.state().tensors["codebook_1"]
    )
    with pytest.raises(VersionMismatchError, match="add_items with its own recode"):
        expand(split, quantizer, later)
    with pytest.raises(DataError, match="hold NaN, infinity"):
        expand(table, quantizer, later * torch.nan)
    with pytest.raises(DataError, match="features have 3 columns, the codebooks were fitted on 8"):
        expand(table, quantizer, later[:, :3])


def test_a_planted_foreign_direction_is_found():
    quantizer, later = fitted(), vectors(40, seed=2)
    later[30:, 6] += 4.0
    found_M = ForeignItems().find(quantizer, vectors(160), later)
    assert found_M[30:].all()
    assert found_M[:30].double().mean() < 0.2
    assert ForeignItems().find(quantizer, vectors(160), vectors(160)).sum() <= 2


def test_what_is_left_over_by_hand():
    quantizer = fitted()
    x_ND = vectors(3)
    codes_NL = quantizer.encode(x_ND)
    books = list(quantizer.state().tensors.values())
    left = x_ND - books[0][codes_NL[:, 0]] - books[1][codes_NL[:, 1]]
    expected = left.square().sum(1) / x_ND.square().sum(1)
    assert torch.allclose(unexplained(quantizer, x_ND), expected, atol=1e-6)
    zero = torch.zeros(1, 8)
    assert unexplained(quantizer, zero).item() == torch.inf
    assert ForeignItems().find(quantizer, torch.cat([x_ND, zero]), zero).tolist() == [True]
    assert ForeignItems().find(quantizer, x_ND, zero[:0]).tolist() == []
    with pytest.raises(DataError, match="all vectors of the fit are zero"):
        ForeignItems().find(quantizer, zero, x_ND)
