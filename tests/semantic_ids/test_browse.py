"""Walking through a table: branches, members, neighbours and words, by hand."""

import pytest
import torch

from tesserec.errors import DataError
from tesserec.semantic_ids.browse import Branch, branches, members, prefix_neighbours, words_of_groups
from tesserec.types import SemanticIds

TABLE = SemanticIds(
    torch.tensor([[0, 1, 0], [0, 1, 1], [0, 2, 0], [2, 0, 0], [2, 0, 1], [2, 0, 2]]), (3, 3, 16), "v", has_digit=True
)
POPULARITY = torch.tensor([1, 5, 2, 0, 7, 7])


def test_branches_come_with_the_largest_first_and_popular_items_first():
    assert branches(TABLE, (), POPULARITY) == [Branch((0,), [1, 2, 0]), Branch((2,), [4, 5, 3])]
    assert branches(TABLE, (0,)) == [Branch((0, 1), [0, 1]), Branch((0, 2), [2])]
    assert branches(TABLE, (0, 1)) == [], "the digit is no branch"


def test_members_of_a_prefix_and_of_a_tuple():
    assert members(TABLE, (), POPULARITY).tolist() == [4, 5, 1, 2, 0, 3]
    assert members(TABLE, (0, 1), POPULARITY).tolist() == [1, 0]
    assert members(TABLE, (2, 0, 1)).tolist() == [4]


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ((0, 1, 0, 0), "the prefix 0-1-0-0 has 4 codes, an item 3: give fewer"),
        ((3,), "code 3 of level 1 does not exist: expected 0 to 2"),
        ((1,), "no item has the codes 1: the codes of the first level that items have are 0, 2"),
        ((0, 0, 4), "no item has the codes 0-0-4: the codes after 0 that items have are 1, 2"),
    ],
)
def test_prefixes_that_are_not_there(prefix, message):
    with pytest.raises(DataError, match=message):
        branches(TABLE, prefix)


def test_many_codes_are_not_all_listed():
    table = SemanticIds(torch.arange(20)[:, None], (30,), "v")
    with pytest.raises(DataError, match=r"are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …$"):
        members(table, (25,))


def test_neighbours_share_most_first_codes_and_the_digit_is_none():
    assert prefix_neighbours(TABLE, 0, 10) == [(1, 2), (2, 1)]
    assert prefix_neighbours(TABLE, 3, 10, POPULARITY) == [(4, 2), (5, 2)]
    assert prefix_neighbours(TABLE, 3, 1, POPULARITY) == [(4, 2)]
    apart = SemanticIds(torch.tensor([[0], [1]]), (2,), "v")
    assert prefix_neighbours(apart, 0, 5) == []


def test_words_tell_a_group_from_the_others():
    titles = ["red lamp", "Red LAMP large", "red chair", "chair of oak", "red oak box 12"]
    found = words_of_groups(titles, [0, 0, 1, 1, 2])
    # "red" is in 4 of 5 titles, "lamp" in 2, both in group 0; "large" is in one title of two
    assert found == {0: ["lamp", "red"], 1: ["chair"], 2: ["box", "oak", "red"]}
    assert words_of_groups(titles, [0, 0, 1, 1, 2], 1) == {0: ["lamp"], 1: ["chair"], 2: ["box"]}
