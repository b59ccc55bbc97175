"""``judge`` recommendations that anyone made, as a file, against an exported split.

Dimensions: B requests · E rows of the file · K candidates.

The file has a row an item and the columns ``item_id``, ``user_id`` or ``request`` (the number in the exported
``test.parquet``), and ``score`` (higher is better), ``rank`` (lower is better) or both. Where both are given they must
agree, and the score counts: equal scores tie whatever their ranks say. Equal ranks tie likewise.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import torch
from torch import Tensor

from tesserec.data.columns import encode_ids, positions
from tesserec.data.split_files import load_split
from tesserec.data.tables import Source, Table, match_columns, open_table
from tesserec.decoding.top_k import excluded_keys
from tesserec.errors import DataError, UnknownIdError
from tesserec.evaluation.evaluate import judge_lists
from tesserec.evaluation.report import Report
from tesserec.types import PAD, Candidates, Catalog, Holdout, Vocabulary, as_numpy

__all__ = ["COLUMNS", "judge", "read_lists"]

LOGGER = logging.getLogger(__name__)

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "request": ("request_id",),
    "user_id": ("user", "user_idx"),
    "item_id": ("item", "item_idx"),
    "score": ("prediction",),
    "rank": ("position",),
}
"""Our names of the columns, and what else each may be called."""

Part = Literal["validation", "test"]
Numbers = npt.NDArray[Any]


def judge(
    recommendations: Source,
    split_folder: Path | str,
    *,
    part: Part = "test",
    catalog: Catalog | None = None,
    ks: Sequence[int] = (5, 10),
    label: str | None = None,
    refit: bool = False,
    num_candidates: int = 100,
    columns: Mapping[str, str | None] | None = None,
    seed: int = 0,
) -> Report:
    """The report on a file (or frame) of recommendations for the split that ``export_split`` wrote to a folder.

    ``refit`` says that the makers trained on validation events too. What ``read_lists`` counts is in the report's
    ``notes``. Raises ``DataError`` for unusable rows and ``UnknownIdError`` for ids that the split does not have.
    """
    split = load_split(Path(split_folder))
    holdout = split.test if part == "test" else split.validation
    candidates, notes = read_lists(
        recommendations,
        holdout,
        users=split.train.users,
        items=split.train.items,
        num_candidates=num_candidates,
        columns=columns,
    )
    stem = Path(recommendations).stem if isinstance(recommendations, str | Path) else "recommendations"
    return judge_lists(
        candidates,
        holdout,
        train=split.refit if refit else split.train,
        catalog=catalog,
        ks=ks,
        label=label or stem,
        split=f"{split.name}.{part}",
        refit=refit,
        seed=seed,
        notes=notes,
    )


def read_lists(
    recommendations: Source,
    holdout: Holdout,
    *,
    users: Vocabulary,
    items: Vocabulary,
    num_candidates: int = 100,
    columns: Mapping[str, str | None] | None = None,
) -> tuple[Candidates, dict[str, int]]:
    """The lists of a file for the requests of ``holdout``, and what was counted on the way.

    ``requests_without_list`` get an empty list and miss. ``rows_without_request`` are of known users whom the holdout
    does not ask about; they are left out. ``rows_excluded`` hold what the request's own filters exclude, such as seen
    items; they are removed, as from everyone's answers. Of each list the best ``num_candidates`` are kept. ``columns``
    maps our names of columns to the file's. The scores that come out are minus the places of distinct scores, so that
    ties survive and nothing else does.
    """
    table = open_table(recommendations)
    names = _names(table, columns)
    row_E = _request_rows(table, names, holdout, users)
    item_E = _known(table, names["item_id"], items, "item")
    key_E = _keys(table, names, row_E)
    asked_E = row_E >= 0
    frame = pl.DataFrame({"row": row_E, "item": item_E, "key": key_E}).with_row_index("line").filter(asked_E)
    _refuse_duplicates(frame, table, items)
    excluded = _excluded(frame, holdout, len(items))
    candidates = _candidates(frame.filter(~excluded), len(holdout), num_candidates)
    notes = {
        "requests_without_list": len(holdout) - frame["row"].n_unique(),
        "rows_without_request": int((~asked_E).sum()),
        "rows_excluded": int(excluded.sum()),
    }
    for name, count in notes.items():
        if count:
            LOGGER.warning("%s: %d %s", table.name, count, name.replace("_", " "))
    return candidates, notes


def _names(table: Table, columns: Mapping[str, str | None] | None) -> dict[str, str]:
    names = match_columns(table, COLUMNS, columns)
    for wanted in (("item_id",), ("user_id", "request"), ("score", "rank")):
        if not set(wanted) & set(names):
            raise DataError(f"{table.name} has no column {' or '.join(wanted)}: it has {', '.join(table.names)}")
    return names


def _known(table: Table, name: str, vocabulary: Vocabulary, what: str) -> Numbers:
    """The dense index of each row's id, [E]; every one must be in ``vocabulary``."""
    codes_E, ids = encode_ids(table, name)
    found = positions(ids, vocabulary)
    if (found < 0).any():
        unknown = ids[int(np.argmax(found < 0))].as_py()
        line = int(np.argmax(found[codes_E] < 0))
        raise UnknownIdError(
            f"{table.name}: {int((found < 0).sum())} {what}s are not in the split, such as {unknown!r} "
            f"(the first is in row {line}): use the ids of {what}s.parquet"
        )
    return found[codes_E].astype(np.int64)


def _request_rows(table: Table, names: Mapping[str, str], holdout: Holdout, users: Vocabulary) -> Numbers:
    """The request that each row of the file answers, [E] int64, −1 where the holdout has none of that user."""
    assert holdout.requests.user_B is not None, "the requests of a split have users"
    user_B = as_numpy(holdout.requests.user_B)
    user_E = _known(table, names["user_id"], users, "user") if "user_id" in names else None
    if "request" in names:
        numbers = _numbers(table, names["request"])
        wrong_E = ~np.isin(numbers, np.arange(len(holdout)))
        if wrong_E.any():
            line = int(np.argmax(wrong_E))
            raise UnknownIdError(
                f"{table.name}: request {numbers[line]:g} in row {line} does not exist: "
                f"the holdout has requests 0 to {len(holdout) - 1}"
            )
        row_E = numbers.astype(np.int64)
        if user_E is not None and (user_B[row_E] != user_E).any():
            line = int(np.argmax(user_B[row_E] != user_E))
            raise DataError(f"{table.name}: row {line} gives a request of another user: correct or drop one column")
        return row_E
    assert user_E is not None, "one of user_id and request is there"
    if len(np.unique(user_B)) < len(user_B):
        raise DataError(f"{table.name} names users, but some have several requests: give the column request instead")
    row_U = np.full(len(users), -1, dtype=np.int64)
    row_U[user_B] = np.arange(len(user_B))
    return np.asarray(row_U[user_E])


def _keys(table: Table, names: Mapping[str, str], row_E: Numbers) -> Numbers:
    """A number for each row that is lower for better items, [E] float64."""
    if "score" not in names:
        return _numbers(table, names["rank"])
    key_E = -_numbers(table, names["score"])
    if "rank" in names:
        rank_E = _numbers(table, names["rank"])
        order = np.lexsort((key_E, rank_E, row_E))
        same = (np.diff(row_E[order]) == 0) & (row_E[order][1:] >= 0)
        wrong = same & (np.diff(key_E[order]) < 0)
        if wrong.any():
            line = int(order[int(np.argmax(wrong)) + 1])
            raise DataError(
                f"{table.name}: row {line} has a better score than one of a better rank: "
                "correct them, or drop the column that does not count"
            )
    return key_E


def _numbers(table: Table, name: str) -> Numbers:
    """A column of finite numbers, [E] float64."""
    where = f"{table.name}: column {name}"
    column = table.read(name)
    try:
        values = np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(f"{where} has values that are no numbers ({column.type}): correct or cast it") from None
    finite_E = np.isfinite(values)
    if not finite_E.all():
        line = int(np.argmin(finite_E))
        raise DataError(f"{where} is {column[line].as_py()} in row {line}: every row needs a finite number")
    return values


def _refuse_duplicates(frame: pl.DataFrame, table: Table, items: Vocabulary) -> None:
    twice = frame.filter(pl.struct("row", "item").is_duplicated()).sort("row", "item", "line")
    if len(twice):
        lines, item = twice["line"][:2].to_list(), int(twice["item"][0])
        raise DataError(
            f"{table.name}: item {items.ids[item].as_py()!r} is twice in one list (rows {lines[0]} and {lines[1]}): "
            "drop the duplicate"
        )


def _excluded(frame: pl.DataFrame, holdout: Holdout, num_items: int) -> pl.Series:
    """Whether each row's item must not be an answer by the request's own filters, bool."""
    excluded = as_numpy(excluded_keys(holdout.requests, num_items))
    return pl.Series(
        np.isin(frame["row"].to_numpy() * num_items + frame["item"].to_numpy(), excluded), dtype=pl.Boolean
    )


def _candidates(frame: pl.DataFrame, num_requests: int, num_candidates: int) -> Candidates:
    best = frame.sort("row", "key", "line").with_columns(
        place=pl.int_range(pl.len()).over("row"), score=-pl.col("key").rank("dense").over("row").cast(pl.Float32)
    )
    best = best.filter(pl.col("place") < num_candidates)
    width = int(best["place"].to_numpy().max(initial=0)) + 1
    items_BK = torch.full((num_requests, width), PAD)
    scores_BK = torch.full((num_requests, width), -torch.inf)
    at = (_index(best["row"]), _index(best["place"]))
    items_BK[at] = _index(best["item"])
    scores_BK[at] = torch.from_numpy(best["score"].to_numpy(writable=True))
    return Candidates(items_BK, scores_BK)


def _index(column: pl.Series) -> Tensor:
    return torch.from_numpy(column.cast(pl.Int64).to_numpy(writable=True))
