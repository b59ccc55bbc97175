"""Which items moved and why: each reason planted, counts by hand."""

import dataclasses

import pytest
import torch

from tesserec.errors import DataError
from tesserec.semantic_ids import add_items, build_semantic_ids, remove_items
from tesserec.semantic_ids.moves import LevelMoves, moves
from tesserec.types import SemanticIds, Vocabulary

CODES = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 0], [1, 0], [1, 1]])
ITEMS = Vocabulary.of(["a", "b", "c", "d", "e", "f"])


def reasons(found):
    return {row["item_id"]: (row["reason"], row["kept_codes"]) for row in found.frame.iter_rows(named=True)}


def test_the_same_table_has_no_moves():
    table = build_semantic_ids(CODES, (2, 2), "f")
    found = moves(table, table, ITEMS, ITEMS)
    assert found.same_codebooks
    assert len(found.frame) == sum(found.reasons.values()) == found.churn.whole == 0
    assert found.levels == (LevelMoves(0, 2, 0), LevelMoves(0, 2, 0))


def test_new_and_gone_items_of_one_codebook():
    old = build_semantic_ids(CODES, (2, 2), "f")
    new = add_items(remove_items(old, torch.tensor([1])), torch.tensor([[1, 1]]))
    found = moves(old, new, ITEMS, Vocabulary.of(["a", "c", "d", "e", "f", "g"]))
    assert reasons(found) == {"g": ("new", None), "b": ("gone", None)}
    assert found.frame["old_codes"].to_list() == [None, [0, 0, 1]]
    assert found.frame["new_codes"].to_list() == [[1, 1, 1], None]
    assert {name: n for name, n in found.reasons.items() if n} == {"new": 1, "gone": 1}
    assert found.churn.num_items == 5


def test_another_digit_content_and_assignment_of_one_codebook():
    old = build_semantic_ids(CODES, (2, 2), "f", popularity_N=torch.tensor([2, 1, 0, 0, 0, 0]))
    codes_NL = CODES.clone()
    codes_NL[2, 0], codes_NL[5, 1] = 1, 0
    new = build_semantic_ids(codes_NL, (2, 2), "f", popularity_N=torch.tensor([1, 2, 0, 0, 0, 0]))
    changed_N = torch.tensor([False, False, True, False, False, False])
    assert reasons(moves(old, new, ITEMS, ITEMS, changed_N)) == {
        "a": ("digit", 2),
        "b": ("digit", 2),
        "c": ("content", 0),
        "f": ("reassigned", 1),
    }


def test_renamed_and_regrouped_items_of_other_codebooks():
    old = SemanticIds(CODES, (2, 2), "old")
    # the first codes change their names, and f leaves d and e; a and b leave c at the second level, together
    new = SemanticIds(torch.tensor([[1, 2], [1, 2], [1, 1], [0, 0], [0, 0], [1, 0]]), (2, 3), "new")
    found = moves(old, new, ITEMS, ITEMS)
    assert not found.same_codebooks
    renamed = dict.fromkeys("abcde", ("renamed", 0))
    assert reasons(found) == {**renamed, "f": ("regrouped", 1)}
    # first codes: all items but f have another one, so that 0 and 1 keep less than half of their items;
    # second codes: a and b from 0 to 2, f from 1 to 0, so that 0 keeps 2 of 5, 1 keeps 1 of 2 and 2 none of 2
    assert found.levels == (LevelMoves(pytest.approx(5 / 6), 2, 2), LevelMoves(0.5, 3, 2))
    together = dataclasses.replace(new, codes_NL=torch.tensor([[0, 2], [0, 2], [0, 1], [1, 0], [1, 0], [1, 0]]))
    assert reasons(moves(old, together, ITEMS, ITEMS)) == {
        "a": ("renamed", 1),
        "b": ("renamed", 1),
        "f": ("regrouped", 1),
    }


def test_without_codebooks_no_reason_is_read_off_the_versions():
    old, new = SemanticIds(CODES, (2, 2), "old"), SemanticIds(CODES[:, [1, 0]], (2, 2), "new")
    changed_N = torch.tensor([False, False, True, False, False, False])
    found = moves(old, new, ITEMS, ITEMS, changed_N, has_codebooks=False)
    assert found.same_codebooks is None
    moved = {"c": ("content", 0), "d": ("changed", 0), "e": ("changed", 0)}
    assert reasons(found) == moved


def test_ids_of_text_and_of_numbers_are_matched():
    table = SemanticIds(torch.tensor([[0], [1]]), (2,), "v")
    found = moves(table, table, Vocabulary.of(["1", "x"]), Vocabulary.of([1, 2]))
    assert reasons(found) == {"2": ("new", None), "x": ("gone", None)}


def test_tables_that_cannot_be_compared():
    table = SemanticIds(CODES, (2, 2), "v")
    with pytest.raises(DataError, match="no item in common"):
        moves(table, table, ITEMS, Vocabulary.of(list("uvwxyz")))


def test_tables_of_other_depth_are_compared_at_the_levels_of_both():
    deep, flat = build_semantic_ids(CODES, (2, 2), "f"), SemanticIds(CODES[:, :1].clone(), (2,), "g")
    flat.codes_NL[2, 0] = 1
    for old, new, shown in ((deep, flat, ([0, 1, 0], [1])), (flat, deep, ([1], [0, 1, 0]))):
        found = moves(old, new, ITEMS, ITEMS)
        assert reasons(found) == {"c": ("regrouped", 0)}, "the second codes and the digit do not count"
        assert found.churn.prefixes == (pytest.approx(1 / 6),)
        assert found.churn.whole == pytest.approx(1 / 6)
        # c is one of 3 items with code 0 on the one side, one of 4 with code 1 on the other
        assert found.levels == (LevelMoves(pytest.approx(1 / 6), 2, 0),)
        assert (found.frame["old_codes"].to_list(), found.frame["new_codes"].to_list()) == ([shown[0]], [shown[1]])
