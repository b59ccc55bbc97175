"""The tree of codes as the page shows it, and the colours of tiles."""

import dataclasses
import gc
import re
import weakref

import pytest
import torch
from tests.serving.served_shop import model

from tesserec.errors import DataError
from tesserec.serving.snapshot import CatalogSnapshot
from tesserec.serving.web_view import NUM_TITLES, Palette, palette_of, read_prefix, tree_of


@pytest.fixture(scope="module")
def snapshot() -> CatalogSnapshot:
    return CatalogSnapshot.of(model().catalog, model().num_fitted)


def codes():
    return model().content.semantic_ids.codes_NL


def test_the_root_has_a_branch_a_first_code_the_largest_first(snapshot: CatalogSnapshot) -> None:
    tree = tree_of(model(), snapshot, ())
    first, counts = codes()[:, 0].unique(return_counts=True)
    assert {b.codes[0]: b.num_items for b in tree.branches} == dict(zip(first.tolist(), counts.tolist(), strict=True))
    sizes = [b.num_items for b in tree.branches]
    assert sizes == sorted(sizes, reverse=True)
    assert (tree.num_items, tree.leaves) == (24, [])
    assert all(len(b.titles) == min(NUM_TITLES, b.num_items) for b in tree.branches)


def test_following_every_branch_leads_to_every_item_once(snapshot: CatalogSnapshot) -> None:
    found: list[str] = []
    waiting = [()]
    while waiting:
        tree = tree_of(model(), snapshot, waiting.pop())
        assert sum(b.num_items for b in tree.branches) + len(tree.leaves) == tree.num_items
        waiting += [b.codes for b in tree.branches]
        found += [leaf.item_id for leaf in tree.leaves]
        for leaf in tree.leaves:
            index = snapshot.index(leaf.item_id)
            assert tuple(codes()[index].tolist())[: len(tree.prefix)] == tree.prefix
            assert leaf.title == snapshot.titles[index]
    assert sorted(found) == [f"i{n:02}" for n in range(24)]


def test_deleted_items_are_not_there_and_others_say_what_they_are(snapshot: CatalogSnapshot) -> None:
    index = snapshot.index("i07")
    deleted_N = torch.zeros(24, dtype=torch.bool)
    deleted_N[index] = True
    now = dataclasses.replace(
        snapshot, deleted_N=deleted_N, available_N=torch.zeros(24, dtype=torch.bool), num_fitted=0
    )
    assert tree_of(model(), now, ()).num_items == 23
    prefix = tuple(codes()[index].tolist()[:-1])
    leaves = tree_of(model(), now, prefix).leaves
    assert "i07" not in [leaf.item_id for leaf in leaves]
    assert all(leaf.cold and not leaf.available for leaf in leaves)


def test_a_prefix_of_no_item_is_an_error(snapshot: CatalogSnapshot) -> None:
    with pytest.raises(DataError, match="code 99 of level 1 does not exist"):
        tree_of(model(), snapshot, (99,))


@pytest.mark.parametrize(("text", "prefix"), [("", ()), ("3", (3,)), ("3.17", (3, 17))])
def test_prefixes_are_read(text: str, prefix: tuple[int, ...]) -> None:
    assert read_prefix(text) == prefix


@pytest.mark.parametrize("text", [".", "3.", "-1", "a", "3,4", "٣", "9" * 20])
def test_what_is_no_prefix_is_an_error(text: str) -> None:
    with pytest.raises(DataError, match=r"expected codes joined by dots, such as 3\.17"):
        read_prefix(text)


def test_items_that_begin_alike_begin_in_one_colour() -> None:
    palette = palette_of(model())
    tiles = [palette.of_item(index) for index in range(24)]
    for a in range(24):
        for b in range(24):
            assert (tiles[a][0] == tiles[b][0]) == (int(codes()[a, 0]) == int(codes()[b, 0]))
    assert all(
        re.fullmatch(r"oklch\(calc\(var\(--tile-l\) \+ -?[\d.]+\) [\d.]+ -?\d+\)", fill) for t in tiles for fill in t
    )


def test_without_codes_there_are_no_tiles_and_no_tree(snapshot: CatalogSnapshot) -> None:
    plain = dataclasses.replace(model(), content=dataclasses.replace(model().content, semantic_ids=None))
    assert tree_of(plain, snapshot, ()) is None
    assert (Palette(None).strip, Palette(None).of_item(0)) == ([], [])


def test_colours_are_computed_once_and_go_with_their_model() -> None:
    other = dataclasses.replace(model())
    assert palette_of(other) is palette_of(other)
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None
