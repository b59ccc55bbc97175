"""Items that come and go: a trie with or without them, bit for bit what a new one would be, without sorting anew.

Paper: none; the merge of a sorted run into a sorted table.
Adds: new items are placed by bisection and merged into the sorted codes, and one pass over those makes the arrays.
Differs: no second trie beside the first one that every step would have to ask too.
Checked: tests/decoding/test_trie_updates.py (rounds of insertion and removal equal a rebuild, hypothesis); tests/prove
    (100 rounds).

Taking items away at once is a mask (``tesserec.decoding.trie_mask``); ``without_items`` is the compaction that makes
them disappear later.

Dimensions: X new items · N items · L levels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tesserec.decoding.trie import Trie, lexicographic_order
from tesserec.errors import DataError

__all__ = ["with_items", "without_items"]


def with_items(trie: Trie, codes_XL: Tensor) -> Trie:
    """The trie with X more items at the end of the catalog, behind the items that are in their buckets already.

    Equal to ``Trie.build`` of the longer table, where the new items have no popularity. On the CPU. Raises
    ``DataError`` for codes of another shape or type, or outside of the codebooks.
    """
    sizes = trie.codebook_sizes
    if codes_XL.ndim != 2 or codes_XL.shape[1] != len(sizes):
        raise DataError(f"codes_XL has shape {tuple(codes_XL.shape)}, expected [new items, {len(sizes)}]")
    if codes_XL.is_floating_point():
        raise DataError(f"codes_XL has type {codes_XL.dtype}: give integers")
    if not len(codes_XL):
        return trie
    if bool(((codes_XL < 0) | (codes_XL >= torch.tensor(sizes))).any()):
        raise DataError(
            f"new codes are outside of the codebooks, of {sizes} codes: encode them with the same quantizer"
        )
    columns_X = [codes_XL[:, level].long() for level in trie.order]
    order_X = lexicographic_order(columns_X, [sizes[level] for level in trie.order])
    sorted_X = [column[order_X] for column in columns_X]
    node_X, at_X = trie.find(trie.num_levels, torch.stack(sorted_X, 1))
    places_X = trie.item_bounds[-1][at_X + (node_X >= 0)].numpy()
    columns = [
        _inserted(column, places_X, new.to(column.dtype)) for column, new in zip(_columns(trie), sorted_X, strict=True)
    ]
    items = _inserted(trie.items, places_X, (trie.num_items + order_X).int())
    return Trie.of_sorted(columns, sizes, items, trie.num_items + len(codes_XL), trie.order)


def without_items(trie: Trie, items: Tensor) -> Trie:
    """The trie without some items, whose numbers stay free: the others keep theirs.

    ``items`` are indices, int64. Equal to a new trie of the items that are left. On the CPU. Raises ``DataError`` for
    an index that is no item's, and for flags or other numbers in place of indices.
    """
    if items.is_floating_point() or items.dtype == torch.bool:
        raise DataError(f"items to remove have type {items.dtype}: give their indices, int64")
    if len(items) and not (int(items.min()) >= 0 and int(items.max()) < trie.num_items):
        raise DataError(
            f"items to remove reach from {int(items.min())} to {int(items.max())}: legal: 0 to {trie.num_items - 1}"
        )
    gone_N = torch.zeros(trie.num_items, dtype=torch.bool)
    gone_N[items] = True
    stays = ~gone_N.index_select(0, trie.items)
    columns = [column[stays] for column in _columns(trie)]
    return Trie.of_sorted(columns, trie.codebook_sizes, trie.items[stays], trie.num_items, trie.order)


def _columns(trie: Trie) -> list[Tensor]:
    """The code of the item at each place, a column a depth."""
    pairs = zip(trie.child_codes, trie.item_bounds[1:], strict=True)
    return [torch.from_numpy(np.repeat(codes.numpy(), bounds.diff().numpy())) for codes, bounds in pairs]


def _inserted(values: Tensor, places: np.ndarray, new: Tensor) -> Tensor:
    """``values`` with ``new`` ones before ``places``, which ascend."""
    return torch.from_numpy(np.insert(values.numpy(), places, new.numpy()))
