import dataclasses

import numpy as np
import polars as pl
import torch

import shop
from tesserec.bundle import Content
from tesserec.retrievers.popularity import Popularity
from tesserec.serving.segments import BACK_OFF, SegmentPopularity, segments_of
from tesserec.testing.data import catalog_of_size, interactions_of, requests_of
from tesserec.types import Catalog, FitContext, SemanticIds


def fitted(users, segments):
    log = interactions_of(users, len(segments))
    popularity = Popularity()
    popularity.fit(log, catalog_of_size(len(segments)), FitContext())
    return SegmentPopularity.fitted(log, torch.tensor(segments), popularity.share_N()), popularity.share_N()


def test_scores_by_hand() -> None:
    # u0 and u1 are of segment 0 (two of three events; a tie goes to the lower), u2 of segment 1
    users = [[[0], [1], [2]], [[3], [0]], [[2], [3]]]
    counted, popular_N = fitted(users, [0, 0, 1, 1, -1])
    found = counted.score_all(requests_of([[[1]], [[3]], [[4]], []]))
    counts = np.array([[2, 1, 1, 1, 0], [0, 0, 1, 1, 0], [0] * 5, [0] * 5], float)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    wanted = (1 - BACK_OFF) * share + BACK_OFF * popular_N.numpy()
    assert np.allclose(found.numpy(), wanted)
    assert counted.segments(requests_of([[[1]], [[3]], [[4]], [], [[0], [2]]])).tolist() == [0, 1, -1, -1, 0]


def test_returns_do_not_count() -> None:
    log, catalog = shop.data()
    everything = dataclasses.replace(log, positive_kinds=())
    segment_N = torch.arange(24) // 6
    popularity = Popularity()
    popularity.fit(log, catalog, FitContext())
    one = SegmentPopularity.fitted(log, segment_N, popularity.share_N()).share_SN
    other = SegmentPopularity.fitted(everything, segment_N, popularity.share_N()).share_SN
    assert one[0, 0] < other[0, 0], "u99 only returned i00"


def test_further_items_have_a_segment_and_no_counts() -> None:
    counted, popular_N = fitted([[[0], [1]], [[2], [3]]], [0, 0, 1, 1])
    wider = counted.grown(torch.tensor([0, 0, 1, 1, 1, 2]), torch.cat([popular_N, torch.zeros(2)]))
    assert np.shares_memory(wider.share_SN.data, counted.share_SN.data), "counts are shared"
    found = wider.score_all(requests_of([[[4]], [[5]]]))
    assert torch.equal(found[0, :4], counted.score_all(requests_of([[[2]]]))[0])
    assert found[:, 4:].tolist() == [[0, 0], [0, 0]]
    assert wider.retrieve(requests_of([[[4]]]), 6).items_BK[0, :2].tolist() == [2, 3]


def test_the_segment_of_an_item_is_its_first_code_else_its_domain() -> None:
    codes = SemanticIds(torch.tensor([[3, 0], [1, 2]]), (4, 4), "planted")
    catalog = Catalog(catalog_of_size(2).items, pl.DataFrame({"domain": ["books", None]}))
    first = segments_of(catalog, Content(semantic_ids=codes))
    assert first is not None
    assert first.tolist() == [3, 1]
    domains = segments_of(catalog, Content())
    assert domains is not None
    assert domains.tolist() == [0, -1]
    assert segments_of(catalog_of_size(2), Content()) is None
