"""The report of a table: every figure by hand on six items."""

import json
import math

import polars as pl
import pytest
import torch

from tesserec.errors import DataError
from tesserec.semantic_ids import ResidualKMeans, build_semantic_ids, diagnose, remove_items, tree
from tesserec.types import Catalog, Interactions, ItemEmbeddings, SideInformation, Vocabulary

CODES = torch.tensor([[0, 0], [0, 0], [0, 1], [2, 0], [0, 0], [2, 0]])
TABLE = build_semantic_ids(CODES, (4, 2), "f")
ITEMS = Vocabulary.of([10, 11, 12, 13, 14, 15])


def events(user, item, time):
    return Interactions(
        users=Vocabulary.of(list(range(max(user) + 1))),
        items=ITEMS,
        user_E=torch.tensor(user, dtype=torch.int32),
        item_E=torch.tensor(item, dtype=torch.int32),
        time_E=torch.tensor(time),
        order_E=torch.arange(len(user)),
    )


def test_uniqueness_and_buckets():
    report = diagnose(TABLE)
    assert (report.num_items, report.has_digit) == (6, True)
    assert (report.codebook_version, report.table_revision) == (TABLE.codebook_version, 0)
    assert report.unique_share == 1.0
    assert report.unique_share_content == 3 / 6  # (0, 0) three times, (0, 1) once, (2, 0) twice
    assert report.shared_items_share == 5 / 6
    assert report.bucket_sizes == {1: 1, 2: 1, 3: 1}
    assert report.explained_share is None
    without_digit = diagnose(build_semantic_ids(CODES, (4, 2), "f", collisions="bucket"))
    assert without_digit.unique_share == 3 / 6
    assert not without_digit.has_digit
    assert diagnose(remove_items(TABLE, torch.tensor([0]))).table_revision == 1


def test_bucket_sizes_come_in_ascending_order():
    codes = torch.tensor([[0], [0], [1], [2], [2], [3]])
    assert list(diagnose(build_semantic_ids(codes, (4,), "f")).bucket_sizes.items()) == [(1, 2), (2, 2)]


def test_use_of_each_level():
    first, second = diagnose(TABLE).levels  # the digit is no level of content
    assert first.items_of_code == [4, 0, 2, 0]
    assert (first.codebook_size, first.num_used, first.used_share) == (4, 2, 0.5)
    # exp(−(⅔·ln ⅔ + ⅓·ln ⅓))
    assert first.perplexity == pytest.approx(math.exp(2 / 3 * math.log(3 / 2) + 1 / 3 * math.log(3)))
    # shares 0, 0, ⅓, ⅔ in order: (1·⅓ + 3·⅔) / 4
    assert first.gini == pytest.approx((1 / 3 + 3 * 2 / 3) / 4)
    assert second.items_of_code == [5, 1]
    assert second.gini == pytest.approx((5 / 6 - 1 / 6) / 2)
    assert first.events_of_code is None


def test_even_and_one_sided_use():
    even = diagnose(build_semantic_ids(torch.arange(8)[:, None], (8,), "f")).levels[0]
    assert even.perplexity == pytest.approx(8)
    assert even.gini == pytest.approx(0)
    assert (even.num_used, even.used_share) == (8, 1.0)
    one = diagnose(build_semantic_ids(torch.zeros(8, 1, dtype=torch.int64), (8,), "f")).levels[0]
    assert one.perplexity == pytest.approx(1)
    assert one.gini == pytest.approx(7 / 8)


def test_popularity_of_each_code():
    train = events([0, 0, 0, 1], [0, 3, 3, 2], [1, 2, 3, 1])
    first, second = diagnose(TABLE, train).levels
    assert first.events_of_code == [0.5, 0, 0.5, 0]
    assert second.events_of_code == [0.75, 0.25]


def test_coherence_of_vectors_is_the_mean_cosine_over_pairs():
    vectors = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 5.0]])
    one, two = diagnose(TABLE, embeddings=ItemEmbeddings(vectors, "x")).coherence
    assert (one.depth, two.depth) == (1, 2)
    # depth 1: {0, 1, 2} has cosines 0, 1, 0 and {3, 5} has 1; item 4 has no vector
    assert one.cosine_within == pytest.approx(2 / 4)
    # depth 2: {0, 1} has 0, {3, 5} has 1
    assert two.cosine_within == pytest.approx(1 / 2)
    # 5 items: {0, 2} are alike, {1, 3, 5} are alike: 1 + 3 of 10 pairs
    assert one.cosine_random == two.cosine_random == pytest.approx(4 / 10)
    assert one.neighbours_share is None
    assert one.random_share is None


def test_coherence_without_pairs_is_unknown():
    table = build_semantic_ids(torch.tensor([[0], [1]]), (2,), "f")
    found = diagnose(table, embeddings=ItemEmbeddings(torch.ones(2, 2), "x")).coherence[0]
    assert found.cosine_within is None
    assert found.cosine_random == pytest.approx(1)


def test_coherence_of_behaviour_counts_consecutive_steps_of_one_user():
    # user 0: 0 → 1 (same tuple), 1 → 2 (same first code), 2 and 3 in one basket (no pair), 3 → 3 (same item, no pair)
    # user 1: 4 → 3 (nothing in common); between users there is no pair
    train = events([0, 0, 0, 0, 0, 1, 1], [0, 1, 2, 3, 3, 4, 3], [1, 2, 3, 3, 4, 1, 2])
    one, two = diagnose(TABLE, train).coherence
    assert one.neighbours_share == pytest.approx(2 / 3)
    assert two.neighbours_share == pytest.approx(1 / 3)
    # events: items 0, 1, 2, 4 once, item 3 three times; Σ items n² = 4 + 9; E² = 49
    assert one.random_share == pytest.approx((16 + 9 - 13) / (49 - 13))
    assert two.random_share == pytest.approx((9 + 1 + 9 - 13) / (49 - 13))
    assert one.cosine_within is None
    assert one.cosine_random is None


def test_coherence_of_too_few_events_is_unknown():
    report = diagnose(TABLE, events([0], [3], [1]))
    assert report.levels[0].events_of_code == [0, 0, 1, 0]
    alone = report.coherence[0]
    assert (alone.neighbours_share, alone.random_share) == (None, None)


def test_explained_share_needs_vectors_and_their_quantizer():
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0], [6.0, 5.0]])
    quantizer = ResidualKMeans(num_levels=2, codebook_size=4)
    quantizer.fit(vectors, SideInformation())
    table = build_semantic_ids(quantizer.encode(vectors), quantizer.codebook_sizes, "f")
    assert diagnose(table, embeddings=ItemEmbeddings(vectors, "x"), quantizer=quantizer).explained_share == 1.0
    assert diagnose(table, quantizer=quantizer).explained_share is None
    assert diagnose(table, embeddings=ItemEmbeddings(vectors, "x")).explained_share is None


def test_goes_to_json():
    out = json.loads(diagnose(TABLE, events([0, 0], [0, 3], [1, 2])).to_json())
    assert out["bucket_sizes"] == {"1": 1, "2": 1, "3": 1}
    assert out["levels"][0]["items_of_code"] == [4, 0, 2, 0]
    assert out["coherence"][1]["depth"] == 2


def test_refuses_what_does_not_belong_together():
    empty = build_semantic_ids(torch.zeros(0, 2, dtype=torch.int64), (4, 2), "f")
    with pytest.raises(DataError, match=r"^the table of Semantic IDs is empty: there is nothing to report"):
        diagnose(empty)
    with pytest.raises(DataError, match="embeddings are of 2 items, the table of 6: use those that belong together"):
        diagnose(TABLE, embeddings=ItemEmbeddings(torch.ones(2, 2), "x"))
    with pytest.raises(DataError, match="events are of 6 items, the table of 5"):
        diagnose(remove_items(TABLE, torch.tensor([0])), events([0], [1], [1]))


def catalog():
    return Catalog(ITEMS, pl.DataFrame({"title": ["a", "b", "c", "d", "e", "f"]}))


def test_tree_has_prefixes_with_the_largest_and_most_popular_first():
    root = tree(TABLE, catalog(), torch.tensor([1, 5, 9, 0, 5, 7]))
    assert (root["codes"], root["num_items"], root["titles"], root["num_children"]) == ([], 6, ["c", "f", "b"], 2)
    large, small = root["children"]
    assert (large["codes"], large["num_items"], large["titles"]) == ([0], 4, ["c", "b", "e"])
    assert (small["codes"], small["num_items"], small["titles"]) == ([2], 2, ["f", "d"])
    assert [(n["codes"], n["num_items"]) for n in large["children"]] == [([0, 0], 3), ([0, 1], 1)]
    leaf = large["children"][0]
    assert "children" not in leaf
    assert leaf["items"] == [
        {"item": 1, "item_id": 11, "title": "b", "codes": [0, 0, 1]},
        {"item": 4, "item_id": 14, "title": "e", "codes": [0, 0, 2]},
        {"item": 0, "item_id": 10, "title": "a", "codes": [0, 0, 0]},
    ]
    json.dumps(root)


def test_tree_is_cut_where_asked():
    root = tree(TABLE, catalog(), max_children=1, max_items=2)
    assert root["num_children"] == 2
    assert [n["codes"] for n in root["children"]] == [[0]]
    leaf = root["children"][0]["children"][0]
    assert leaf["num_items"] == 3
    assert [i["title"] for i in leaf["items"]] == ["a", "b"]


def test_tree_without_popularity_follows_the_index_and_equal_sizes_the_code():
    codes = torch.tensor([[1], [0], [3], [3]])
    items = Vocabulary.of(["w", "x", "y", "z"])
    root = tree(build_semantic_ids(codes, (4,), "f"), Catalog(items, pl.DataFrame({"title": ["W", "X", "Y", "Z"]})))
    assert root["titles"] == ["W", "X", "Y"]
    assert root["num_children"] == 3
    assert [n["codes"] for n in root["children"]] == [[3], [0], [1]]
    assert root["children"][0]["items"][1] == {"item": 3, "item_id": "z", "title": "Z", "codes": [3, 1]}
