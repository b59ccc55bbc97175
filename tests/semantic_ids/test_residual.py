"""Residual quantization: shared steps, by hand and by brute force."""

import pytest
import torch

from tesserec.errors import DataError, RecipeError
from tesserec.semantic_ids import ResidualKMeans, residual
from tesserec.types import ComponentState, SideInformation

COARSE = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
FINE = torch.tensor([[0.0, 1.0], [0.0, -1.0], [2.0, 0.0]])


def test_level_sizes_repeat_one_number_and_keep_a_tuple():
    assert residual.level_sizes(3, 4) == (4, 4, 4)
    assert residual.level_sizes(2, (4, 8)) == (4, 8)
    with pytest.raises(RecipeError, match=r"codebook_size has 2 sizes for 3 levels: give one a level, or one number"):
        residual.level_sizes(3, (4, 8))


def test_features_are_checked_and_become_float32():
    assert residual.check_features(torch.ones(1, 2, dtype=torch.float64), 2).dtype == torch.float32
    with pytest.raises(DataError, match=r"features have shape \(2,\): expected \[items, features\]"):
        residual.check_features(torch.ones(2))
    with pytest.raises(DataError, match=r"features have shape \(0, 3\)"):
        residual.check_features(torch.ones(0, 3))
    with pytest.raises(DataError, match=r"features have 2 columns, the codebooks were fitted on 3: embed these items"):
        residual.check_features(torch.ones(1, 2), 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e16, -3e38])
def test_features_that_are_not_finite_name_the_item(value):
    features = torch.zeros(4, 2)
    features[2, 1] = value
    with pytest.raises(
        DataError, match=r"features of item 2 hold NaN, infinity or more than 1e\+15: remove, replace or"
    ):
        residual.check_features(features)


def test_features_that_float32_cannot_hold_are_refused():
    with pytest.raises(DataError, match="features of item 0 hold NaN, infinity or more"):
        residual.check_features(torch.full((4, 2), 1e200, dtype=torch.float64))
    large = torch.full((4, 2), -1e15)
    assert torch.equal(residual.check_features(large), large)


@pytest.mark.parametrize("offset", [0.0, 3.0, 1e4, 1e6])
def test_what_all_features_have_in_common_does_not_blur_the_codes(offset):
    generator = torch.Generator().manual_seed(0)
    features = torch.cat([torch.randn(2000, 16, generator=generator), torch.full((2000, 2), offset)], 1)
    quantizer = ResidualKMeans(num_levels=3, codebook_size=16)
    quantizer.fit(features, SideInformation())
    first = quantizer.state().tensors["codebook_0"].double()
    exact = torch.cdist(features.double(), first).argmin(1)
    assert (quantizer.encode(features)[:, 0] == exact).float().mean() > 0.999
    assert residual.explained_share(features, quantizer.decode(quantizer.encode(features))) == pytest.approx(
        0.5, abs=0.1
    )


def test_codes_beyond_a_codebook_are_refused():
    with pytest.raises(DataError, match="codes of level 2 reach from 0 to 9: the codebook has 3, decode with the"):
        residual.decode(torch.tensor([[0, 9], [0, 0]]), [COARSE, FINE])
    with pytest.raises(DataError, match="codes of level 1 reach from -1 to 0"):
        residual.decode(torch.tensor([[-1, 0], [0, 0]]), [COARSE, FINE])
    assert residual.decode(torch.zeros(0, 2, dtype=torch.int64), [COARSE, FINE]).shape == (0, 2)


def test_encode_by_hand():
    points = torch.tensor([[0.0, 0.9], [11.5, 0.2], [9.0, -3.0], [4.9, 0.0], [5.1, 0.0]])
    # residuals after COARSE: (0, .9) (1.5, .2) (−1, −3) (4.9, 0) (−4.9, 0)
    assert residual.encode(points, [COARSE, FINE]).tolist() == [[0, 0], [1, 2], [1, 1], [0, 2], [1, 0]]


def test_equally_near_codes_give_the_lowest():
    assert residual.nearest(torch.tensor([[5.0, 0.0]]), COARSE).tolist() == [0]


def test_nearest_is_the_same_in_small_chunks(monkeypatch):
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    whole = residual.nearest(points, FINE)
    assert whole.tolist() == torch.cdist(points, FINE).argmin(1).tolist()
    monkeypatch.setattr(residual, "_DISTANCES_AT_ONCE", 7)  # 2 points at once
    assert residual.nearest(points, FINE).tolist() == whole.tolist()
    monkeypatch.setattr(residual, "_DISTANCES_AT_ONCE", 1)
    assert residual.nearest(points, FINE).tolist() == whole.tolist()


def test_encode_is_the_same_in_small_parts(monkeypatch):
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    whole = residual.encode(points, [COARSE, FINE])
    assert residual.encode(points, []).shape == (50, 0)
    for rows in (1, 7, 50):
        monkeypatch.setattr(residual, "ROWS_AT_ONCE", rows)
        assert torch.equal(residual.encode(points, [COARSE, FINE]), whole)
        batches = [residual.encode(batch, [COARSE, FINE]) for batch in torch.split(points, 11)]
        assert torch.equal(torch.cat(batches), whole)


def test_decode_sums_code_vectors_of_a_whole_tuple_or_a_prefix():
    assert residual.decode(torch.tensor([[1, 0], [0, 2]]), [COARSE, FINE]).tolist() == [[10, 1], [2, 0]]
    assert residual.decode(torch.tensor([[1], [0]]), [COARSE, FINE]).tolist() == [[10, 0], [0, 0]]


@pytest.mark.parametrize("shape", [(2, 3), (2, 0), (2,)])
def test_decode_refuses_tuples_of_another_length(shape):
    with pytest.raises(DataError, match=r"codes have shape \(2.*expected \[items, levels\] with 1 to 2 levels"):
        residual.decode(torch.zeros(shape, dtype=torch.int64), [COARSE, FINE])


def test_k_means_of_few_distinct_points_is_these_points():
    points = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0], [-0.0, 0.0]])
    assert sorted(residual.k_means(points, 2, 0).tolist()) == [[0, 0], [1, 2]]
    assert sorted(residual.k_means(points, 8, 0).tolist()) == [[0, 0], [1, 2]]
    assert residual.k_means(points, 1, 0).tolist() == [[0.5, 1.0]]


def test_k_means_meets_planted_clusters_and_repeats_itself():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(12, 6, generator=generator) * 10
    points = (centres[:, None] + 0.01 * torch.randn(12, 40, 6, generator=generator)).reshape(-1, 6)
    found = residual.k_means(points, 12, 3)
    assert torch.cdist(centres, found).min(1).values.max() < 0.05
    assert torch.equal(found, residual.k_means(points, 12, 3))
    sampled = residual.k_means(points, 12, 3, points_per_code=20)
    assert sampled.shape == (12, 6)
    assert not torch.equal(sampled, found)


def test_k_means_samples_no_more_points_than_it_is_told():
    points = torch.arange(100.0)[:, None]
    few = residual.k_means(points, 4, 1, points_per_code=1)  # 4 points for 4 codes: the points themselves
    assert len(few) == 4
    assert set(few[:, 0].tolist()) <= set(range(100))
    many = torch.arange(600.0)[:, None]
    assert residual.k_means(many, 1, 0, points_per_code=600).tolist() == [[299.5]]
    exactly = residual.k_means(points[:4], 4, 1, points_per_code=1)
    assert sorted(exactly[:, 0].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize(("num_points", "num_features", "size"), [(3000, 16, 40), (333, 5, 4), (2000, 130, 33)])
def test_the_number_of_threads_does_not_change_the_centroids(num_points, num_features, size):
    points = torch.randn(num_points, num_features, generator=torch.Generator().manual_seed(0))
    found = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(residual.k_means(points, size, 0, num_iterations=10))
    finally:
        torch.set_num_threads(1)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_k_means_starts_from_distinct_points_however_rare_they_are():
    points = torch.zeros(5000, 1)
    points[:6, 0] = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0, 60.0])
    assert sorted(residual.k_means(points, 7, 0, points_per_code=1000)[:, 0].tolist()) == [0, 10, 20, 30, 40, 50, 60]
    points[6] = 60.5
    assert sorted(residual.k_means(points, 7, 0, points_per_code=1000)[:, 0].tolist()) == [0, 10, 20, 30, 40, 50, 60.25]


def test_lloyd_by_hand():
    points = torch.tensor([[0.0], [1.0], [4.0], [5.0]])
    start = torch.tensor([[0.0], [1.0]])
    assert residual.lloyd(points, start, 0).tolist() == [[0], [1]]
    assert residual.lloyd(points, start, 1).tolist() == [[0], [pytest.approx(10 / 3)]]
    assert residual.lloyd(points, start, 2).tolist() == [[0.5], [4.5]]
    assert residual.lloyd(points, start, 100).tolist() == [[0.5], [4.5]]


def test_lloyd_stops_where_no_code_changes():
    rounds = []

    def counting(points, codebook):
        rounds.append(len(points))
        return residual.nearest(points, codebook)

    residual.lloyd(torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([[0.0], [1.0]]), 100, counting)
    assert rounds == [4, 4, 4]  # 1 | 3, 2 | 2, and again 2 | 2


def test_a_code_without_points_moves_to_the_one_that_is_furthest_from_its_centroid():
    points = torch.tensor([[0.0], [1.0], [3.0], [8.0]])
    start = torch.tensor([[1.0], [100.0], [200.0]])
    assert residual.lloyd(points, start, 1).tolist() == [[3], [8], [3]]  # 8 is furthest from 1, then 3
    assert residual.lloyd(points, start, 10).tolist() == [[2], [8], [0]]


def test_k_means_assigns_as_it_is_told():
    points = torch.tensor([[0.0], [1.0], [2.0], [30.0]])
    alone = residual.k_means(points, 2, 0)
    assert sorted(alone[:, 0].tolist()) == [1, 30]
    by_order = residual.k_means(points, 2, 0, assign=lambda points, codebook: torch.tensor([0, 1, 0, 1]))
    assert by_order[:, 0].tolist() == [1, 15.5]


def test_sample_draws_without_repeats_and_keeps_few_as_they_are():
    points = torch.arange(20.0)[:, None]
    assert residual.sample(points, 20, 0) is points
    drawn = residual.sample(points, 19, 1)
    assert len(torch.unique(drawn)) == 19
    assert torch.equal(drawn, residual.sample(points, 19, 1))
    assert not torch.equal(drawn, residual.sample(points, 19, 2))


def test_explained_share_by_hand():
    features = torch.tensor([[0.0], [2.0], [4.0]])  # spread around the mean: 4 + 0 + 4
    assert residual.explained_share(features, features) == 1.0
    assert residual.explained_share(features, torch.tensor([[1.0], [2.0], [4.0]])) == pytest.approx(1 - 1 / 8)
    assert residual.explained_share(features, torch.full((3, 1), 2.0)) == 0.0


def test_fingerprint_changes_with_every_part_of_the_state():
    def of(name="a", values=(1.0, 2.0), shape=(2,), dtype=torch.float32, metadata=None):
        tensor = torch.tensor(values, dtype=dtype).reshape(shape)
        return residual.fingerprint(ComponentState({name: tensor}, metadata or {}))

    variants = [
        of(),
        of(name="b"),
        of(values=(1.0, 3.0)),
        of(shape=(1, 2)),
        of(dtype=torch.float64),
        of(metadata={"k": "v"}),
        of(metadata={"k": "w"}),
        of(metadata={"l": "v"}),
    ]
    assert len(set(variants)) == len(variants)
    assert of() == of()
    assert len(of()) == 64
    one, two = torch.zeros(1), torch.ones(1)
    assert residual.fingerprint(ComponentState({"x": one, "y": two}, {"p": "1", "q": "2"})) == residual.fingerprint(
        ComponentState({"y": two, "x": one}, {"q": "2", "p": "1"})
    )
