"""The types that flow between stages: what they refuse, in which words, and what they compute by hand."""

import dataclasses

import polars as pl
import pyarrow as pa
import pytest
import torch

from tesserec.errors import DataError, UnknownIdError
from tesserec.testing.data import catalog_of_size, interactions_of, requests_of
from tesserec.types import (
    Candidates,
    Catalog,
    ComponentState,
    Filters,
    History,
    Holdout,
    ItemEmbeddings,
    Ragged,
    Requests,
    SemanticIds,
    Vocabulary,
)


def test_a_vocabulary_refuses_what_is_no_id():
    with pytest.raises(DataError, match="ids must be int64 or large_string, not double: cast the column first"):
        Vocabulary(pa.array([1.5]))
    with pytest.raises(DataError, match="1 ids are null: every id must be given"):
        Vocabulary(pa.array([1, None], pa.int64()))
    with pytest.raises(DataError, match="ids mix strings and integers: use one type"):
        Vocabulary.of(["a", 1])
    with pytest.raises(DataError, match="a vocabulary must hold distinct ids: drop the duplicates"):
        Vocabulary.of([1, 2, 1])
    with pytest.raises(DataError, match=r"the id 0.7 is not a whole number: give integers or strings"):
        Vocabulary.of([1.0, 0.7])


def test_ids_are_found_in_either_spelling():
    numbers, words = Vocabulary.of([30, 10]), Vocabulary.of(["b", "7"])
    assert numbers.find(["10", 30, "x", 5]).tolist() == [1, 0, -1, -1]
    assert numbers.find([30.0, 10.7, float("inf")]).tolist() == [0, -1, -1]
    assert words.find([7, "b", "c"]).tolist() == [1, 0, -1]
    assert words.to_ids(torch.tensor([1, 0])) == ["7", "b"]
    with pytest.raises(UnknownIdError, match="unknown item 'c': the 2 known ones look like b"):
        words.index(["b", "c"], "item")


def test_ragged_rows():
    rows = Ragged.of([[4, 5], [], [6]])
    assert (len(rows), rows[0].tolist(), rows.lengths.tolist()) == (3, [4, 5], [2, 0, 1])
    assert rows.rows.tolist() == [0, 0, 2]
    taken = rows.take(torch.tensor([2, 0]))
    assert (taken.offsets.tolist(), taken.values.tolist()) == ([0, 1, 3], [6, 4, 5])
    with pytest.raises(DataError, match="offsets must run from 0 to 2, one more than there are rows"):
        Ragged(torch.tensor([0, 1]), torch.tensor([3, 4]))
    with pytest.raises(DataError, match="offsets must not decrease"):
        Ragged(torch.tensor([0, 2, 1, 2]), torch.tensor([3, 4]))


def test_interactions_refuse_what_does_not_fit_together():
    log = interactions_of([[[0], [1]], [[2]]], 3)
    with pytest.raises(DataError, match=r"time_E has \(2,\) rows, user_E \(3,\): align them"):
        dataclasses.replace(log, time_E=log.time_E[:2])
    with pytest.raises(DataError, match=r"positive_kinds \['buy'\] are not among the kinds \['view'\]"):
        dataclasses.replace(log, kinds=("view",), positive_kinds=("buy",))
    with pytest.raises(DataError, match="events must be sorted by user, time, order"):
        dataclasses.replace(log, user_E=log.user_E.flip(0))


def test_a_catalog_has_a_row_an_item_and_names_for_all():
    items = Vocabulary.of([1, 2])
    with pytest.raises(DataError, match="the catalog frame has 1 rows for 2 items: give one row each"):
        Catalog(items, pl.DataFrame({"title": ["a"]}))
    with pytest.raises(DataError, match=r"available_N has shape \(3,\), expected \(2,\)"):
        Catalog(items, pl.DataFrame({"title": ["a", "b"]}), torch.ones(3, dtype=torch.bool))
    named = Catalog(items, pl.DataFrame({"title": ["a", None], "text": ["long", None]}))
    assert (named.titles, named.texts) == (["a", "2"], ["long", ""])
    texts = Catalog(items, pl.DataFrame({"text": ["long", None]}))
    assert texts.titles == ["long", "2"]
    bare = Catalog(items, pl.DataFrame({"price": [1.0, 2.0]}))
    assert (bare.titles, bare.texts) == (["1", "2"], ["", ""])


def test_embeddings_are_finite_matrices():
    with pytest.raises(DataError, match=r"vectors_ND has shape \(3,\): expected \[items, features\]"):
        ItemEmbeddings(torch.zeros(3), "own")
    with pytest.raises(DataError, match="vector of item 1 holds NaN or infinity: remove or replace it"):
        ItemEmbeddings(torch.tensor([[0.0], [torch.nan]]), "own")


def test_semantic_ids_stay_inside_their_codebooks():
    with pytest.raises(DataError, match=r"^codes_NL has type torch.float32: codes are integers$"):
        SemanticIds(torch.zeros(1, 2), (2, 2), "v1")
    with pytest.raises(DataError, match=r"codes_NL has shape \(1, 3\), expected \[items, 2\]"):
        SemanticIds(torch.zeros(1, 3, dtype=torch.int64), (2, 2), "v")
    with pytest.raises(DataError, match=r"level 1 has codes in \[0, 5\], legal: \[0, 3\]"):
        SemanticIds(torch.tensor([[0, 0], [1, 5]]), (2, 4), "v")
    table = SemanticIds(torch.tensor([[1, 0], [0, 1], [1, 0], [1, 1]]), (2, 2), "v")
    assert (table.items_of([1]).tolist(), table.items_of([1, 0]).tolist()) == ([0, 2, 3], [0, 2])
    assert table.items_of([0, 0]).tolist() == []
    distinct_PL, of_N, items = table.buckets
    assert (distinct_PL.tolist(), of_N.tolist()) == ([[0, 1], [1, 0], [1, 1]], [1, 0, 1, 2])
    assert [items[row].tolist() for row in range(3)] == [[1], [0, 2], [3]]


def test_requests_have_columns_of_one_length():
    with pytest.raises(DataError, match=r"history column time has shape \(1,\), items \(2,\)"):
        History(torch.tensor([0, 2]), torch.tensor([1, 2]), {"time": torch.tensor([5])})
    history = History(torch.tensor([0, 1, 3]), torch.tensor([4, 5, 6]), {"positive": torch.tensor([True, False, True])})
    with pytest.raises(DataError, match=r"time_B has shape \(1,\), expected \(2,\)"):
        Requests(history, time_B=torch.tensor([1]))
    with pytest.raises(DataError, match=r"filters.excluded has 1 rows for 2 requests"):
        Requests(history, filters=Filters(excluded=Ragged.of([[1]])))
    kept = history.positives()
    assert (kept.offsets.tolist(), kept.items.tolist()) == ([0, 1, 2], [4, 6])
    requests = Requests(history, torch.tensor([7, 8]), torch.tensor([0, -1]), query=("a", "b"))
    one = requests.take(torch.tensor([1]))
    assert (one.history.items.tolist(), one.time_B.tolist(), one.user_B.tolist(), one.query) == (
        [5, 6],
        [8],
        [-1],
        ("b",),
    )
    assert [rows.tolist() for rows in requests.batches(1)] == [[0], [1]]
    assert requests_of([]).batches(4) == []


def test_candidates_are_sorted_and_padded():
    with pytest.raises(DataError, match=r"items_BK \(1, 2\) and scores_BK \(1, 3\) must be \[B, K\]"):
        Candidates(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 3))
    with pytest.raises(AssertionError, match="PAD and -inf must go together"):
        Candidates(torch.tensor([[1, -1]]), torch.tensor([[1.0, 0.5]]))
    with pytest.raises(AssertionError, match="candidates must be sorted, best first"):
        Candidates(torch.tensor([[1, 2]]), torch.tensor([[0.5, 1.0]]))
    one = Candidates(
        torch.tensor([[3, 1]]), torch.tensor([[2.0, 1.0]]), torch.tensor([[0, 1]]), ("a", "b"), {"x": torch.ones(1, 2)}
    )
    top = one.top(1)
    assert (top.items_BK.tolist(), top.source_BK.tolist(), top.trace["x"].tolist()) == ([[3]], [[0]], [[1.0]])
    both = Candidates.concatenate([one, one])
    assert (both.items_BK.tolist(), both.source_BK.tolist(), both.sources) == ([[3, 1]] * 2, [[0, 1]] * 2, ("a", "b"))


def test_a_holdout_has_an_answer_for_every_request():
    requests = requests_of([[[0]], [[1]]])
    with pytest.raises(DataError, match="2 requests but 1 rows of relevant items"):
        Holdout(requests, Ragged.of([[1]]))
    with pytest.raises(DataError, match="a request without a relevant item cannot be judged: leave it out"):
        Holdout(requests, Ragged.of([[1], []]))


def test_states_nest():
    inner = ComponentState({"w": torch.ones(1)}, {"kind": "a"})
    outer = ComponentState.merged(inner.under("left"), ComponentState({"b": torch.zeros(1)}))
    assert set(outer.tensors) == {"left.w", "b"}
    assert (outer.part("left").tensors["w"].tolist(), outer.part("left").metadata) == ([1.0], {"kind": "a"})
    assert catalog_of_size(2).titles == ["item 0", "item 1"]
