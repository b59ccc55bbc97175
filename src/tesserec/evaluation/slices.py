"""Slices: parts of the requests, or of their relevant items, over which metrics are taken again.

Dimensions: B requests · M relevant items of all requests · N items.

A slice of requests (by history length) keeps their values. A slice of items (``items:``, ``targets:``, ``domain:``)
keeps of each request only the relevant items that belong to it: recall is the share of *those* that were found, and a
request without any is undefined there.
"""

from __future__ import annotations

import polars as pl
from torch import Tensor

from tesserec.data.leaks import in_history
from tesserec.types import Catalog, Holdout, Ragged

__all__ = ["HISTORY_LENGTHS", "item_slices", "request_slices"]

HISTORY_LENGTHS = (0, 1, 5, 20, 100)
"""Where the buckets of history length start."""

MAX_DOMAINS = 20
"""Domains of the catalog beyond these, the largest first, have no slice of their own."""


def request_slices(holdout: Holdout) -> dict[str, Tensor]:
    """Masks [B] by the number of events in a request's history: ``history:0``, ``history:1-4``, … ``history:100+``."""
    lengths_B = holdout.requests.history.lengths
    found = {}
    for start, end in zip(HISTORY_LENGTHS, [*HISTORY_LENGTHS[1:], None], strict=True):
        if end is None:
            found[f"history:{start}+"] = lengths_B >= start
        else:
            name = f"history:{start}" if end == start + 1 else f"history:{start}-{end - 1}"
            found[name] = (lengths_B >= start) & (lengths_B < end)
    return found


def item_slices(holdout: Holdout, counts_N: Tensor, catalog: Catalog | None = None) -> dict[str, Tensor]:
    """Masks [M] over relevant items.

    ``items:cold`` are unseen in training. Of the others, ``items:tail`` is the half with the fewest training events,
    all items of the median count included, and ``items:head`` the rest. ``targets:repeated`` the user
    had before, ``targets:new`` not. ``domain:`` follows the catalog's ``domain`` column, where it has several.
    """
    relevant = holdout.relevant
    counts_M = counts_N[relevant.values]
    seen = counts_N[counts_N > 0]
    median = int(seen.median()) if len(seen) else 0
    repeated_M = in_history(holdout)
    found: dict[str, Tensor] = {
        "items:head": counts_M > median,
        "items:tail": (counts_M > 0) & (counts_M <= median),
        "items:cold": counts_M == 0,
        "targets:repeated": repeated_M,
        "targets:new": ~repeated_M,
    }
    return found | (_domains(relevant, catalog) if catalog is not None else {})


def _domains(relevant: Ragged, catalog: Catalog) -> dict[str, Tensor]:
    if "domain" not in catalog.frame.columns:
        return {}
    column = catalog.frame["domain"].cast(pl.String)
    names = column.drop_nulls().value_counts(sort=True, name="n").sort(["n", "domain"], descending=[True, False])
    if len(names) < 2:
        return {}
    target_domains = column.gather(relevant.values.numpy())
    return {
        f"domain:{name}": (target_domains == name).fill_null(False).to_torch() for name in names["domain"][:MAX_DOMAINS]
    }
