"""Splits on disk, in the user's own ids, so that anyone's output can be judged on them.

| file | columns |
|---|---|
| train.parquet | user_id, item_id, timestamp (s since 1970 UTC; null: unknown), order (tie-break) |
| | where the log has them: value, kind, domain, session, impression_id |
| refit.parquet | the same, for training and validation events together |
| validation.parquet, test.parquet | request (0, 1, …), user_id, timestamp (when it is asked), |
| | history (item ids, oldest first), history_* (lists beside it: time, step, positive, kind, domain, value), |
| | targets (item ids) |
| users.parquet, items.parquet | all ids, in the order in which they are numbered inside |
| split.json | format, config (as in a recipe), report, kinds, positive_kinds, domains, has_order |

An answer to ``test.parquet`` ranks items for each request; with ``report.exclude_history`` the items of ``history``
do not count.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tesserec.config import build, settings_of
from tesserec.data.leaks import check_leaks
from tesserec.data.splits import HoldoutReport, PartReport, Split, SplitConfig, SplitReport
from tesserec.errors import DataError
from tesserec.types import NO_TIME, Filters, History, Holdout, Interactions, Ragged, Requests, Vocabulary

__all__ = ["export_split", "load_split"]

_FORMAT = 1
_EVENT_NAMES = {"value_E": "value", "session_E": "session", "impression_E": "impression_id"}


def export_split(split: Split, folder: Path) -> None:
    """Write a split to ``folder`` (made if need be), as the table above says."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"user_id": split.train.users.ids}), folder / "users.parquet")
    pq.write_table(pa.table({"item_id": split.train.items.ids}), folder / "items.parquet")
    pq.write_table(_event_table(split.train), folder / "train.parquet")
    pq.write_table(_event_table(split.refit), folder / "refit.parquet")
    for name, holdout in (("validation", split.validation), ("test", split.test)):
        pq.write_table(_holdout_table(holdout, split.train), folder / f"{name}.parquet")
    about = {
        "format": _FORMAT,
        "config": settings_of(split.config),
        "report": dataclasses.asdict(split.report),
        "kinds": split.train.kinds,
        "positive_kinds": split.train.positive_kinds,
        "domains": split.train.domains,
        "has_order": split.train.has_order,
    }
    (folder / "split.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _ids(vocabulary: Vocabulary, indices: Tensor) -> pa.Array:
    return vocabulary.ids.take(pa.array(indices.numpy()))


def _times(times: Tensor) -> pa.Array:
    return pa.array(times.numpy(), mask=(times == NO_TIME).numpy())


def _labels(names: tuple[str, ...], codes: Tensor) -> pa.Array:
    return pa.array(names, pa.string()).take(pa.array(codes.numpy()))


def _event_table(events: Interactions) -> pa.Table:
    columns: dict[str, pa.Array] = {
        "user_id": _ids(events.users, events.user_E),
        "item_id": _ids(events.items, events.item_E),
        "timestamp": _times(events.time_E),
        "order": pa.array(events.order_E.numpy()),
    }
    present = events.columns()
    columns |= {ours: pa.array(present[name].numpy()) for name, ours in _EVENT_NAMES.items() if name in present}
    if events.kind_E is not None:
        columns["kind"] = _labels(events.kinds, events.kind_E)
    if events.domain_E is not None:
        columns["domain"] = _labels(events.domains, events.domain_E)
    return pa.table(columns)


def _holdout_table(holdout: Holdout, events: Interactions) -> pa.Table:
    requests, history = holdout.requests, holdout.requests.history
    assert requests.user_B is not None, "the requests of a split have users"
    assert requests.time_B is not None, "the requests of a split have times"
    names = {"kind": events.kinds, "domain": events.domains}
    columns = {
        "request": pa.array(np.arange(len(holdout))),
        "user_id": _ids(events.users, requests.user_B),
        "timestamp": _times(requests.time_B),
        "history": _lists(history.offsets, _ids(events.items, history.items)),
    }
    for name, column in history.columns.items():
        values = _labels(names[name], column) if name in names else pa.array(column.numpy())
        columns[f"history_{name}"] = _lists(history.offsets, values)
    columns["targets"] = _lists(holdout.relevant.offsets, _ids(events.items, holdout.relevant.values))
    return pa.table(columns)


def _lists(offsets: Tensor, values: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array(offsets.numpy()), values)


def load_split(folder: Path) -> Split:
    """The split that ``export_split`` wrote; it is checked for leaks again.

    Raises ``DataError`` where a file is missing, damaged or of a newer format, ``LeakError`` where the parts leak.
    """
    folder = Path(folder)
    about = _about(folder)
    users = Vocabulary(_table(folder, "users")["user_id"].combine_chunks())
    items = Vocabulary(_table(folder, "items")["item_id"].combine_chunks())
    labels = {"kind": tuple(about["kinds"]), "domain": tuple(about["domains"])}
    shared: dict[str, Any] = {
        "kinds": labels["kind"],
        "domains": labels["domain"],
        "positive_kinds": tuple(about["positive_kinds"]),
        "has_order": about["has_order"],
    }
    train, refit = (_events(_table(folder, name), users, items, shared) for name in ("train", "refit"))
    report = about["report"]
    exclude = bool(report["exclude_history"])
    validation, test = (_holdout(_table(folder, n), users, items, labels, exclude) for n in ("validation", "test"))
    parts = {name: PartReport(**report[name]) for name in ("train", "refit")}
    holdouts = {name: HoldoutReport(**report[name]) for name in ("validation", "test")}
    config = build(SplitConfig, about["config"], f"{folder / 'split.json'}: config")
    result = Split(config, train, validation, test, refit, SplitReport(**(report | parts | holdouts)))
    check_leaks(result)
    return result


def _about(folder: Path) -> dict[str, Any]:
    path = folder / "split.json"
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no split.json in {folder}: give a folder that export_split wrote") from None
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}; export the split again") from None
    if about["format"] != _FORMAT:
        raise DataError(
            f"{path} has format {about['format']}, this version reads {_FORMAT}: use the version that wrote it"
        )
    return about


def _table(folder: Path, name: str) -> pa.Table:
    path = folder / f"{name}.parquet"
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is missing or damaged ({error}): export the split again") from None


def _tensor(column: Any, dtype: torch.dtype) -> Tensor:
    return torch.tensor(np.asarray(column), dtype=dtype)


def _codes(column: Any, values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
    codes = pc.index_in(column, value_set=values)
    if codes.null_count:
        raise DataError(f"the exported split has an id or label that its lists lack ({column.type}): export it again")
    return _tensor(codes, dtype)


def _events(table: pa.Table, users: Vocabulary, items: Vocabulary, shared: dict[str, Any]) -> Interactions:
    optional: dict[str, Any] = {}
    for field, name in _EVENT_NAMES.items():
        if name in table.column_names:
            optional[field] = _tensor(table[name], torch.float32 if name == "value" else torch.int64)
    for name in ("kind", "domain"):
        if name in table.column_names:
            optional[f"{name}_E"] = _codes(table[name], pa.array(shared[f"{name}s"], pa.string()), torch.int32)
    return Interactions(
        users,
        items,
        _codes(table["user_id"], users.ids, torch.int32),
        _codes(table["item_id"], items.ids, torch.int32),
        _tensor(table["timestamp"].fill_null(NO_TIME), torch.int64),
        _tensor(table["order"], torch.int64),
        **optional,
        **shared,
    )


def _holdout(
    table: pa.Table, users: Vocabulary, items: Vocabulary, labels: dict[str, tuple[str, ...]], exclude_history: bool
) -> Holdout:
    lists = {
        name: table[name].combine_chunks() for name in table.column_names if pa.types.is_large_list(table[name].type)
    }
    columns: dict[str, Tensor] = {}
    for name, column in lists.items():
        if name.startswith("history_"):
            ours = name.removeprefix("history_")
            names = labels.get(ours)
            columns[ours] = (
                _values(column.values) if names is None else _codes(column.values, pa.array(names, pa.string()))
            )
    history = History(
        _tensor(lists["history"].offsets, torch.int64), _codes(lists["history"].values, items.ids), columns
    )
    requests = Requests(
        history,
        _tensor(table["timestamp"].fill_null(NO_TIME), torch.int64),
        _codes(table["user_id"], users.ids),
        Filters(exclude_history),
    )
    targets = lists["targets"]
    return Holdout(requests, Ragged(_tensor(targets.offsets, torch.int64), _codes(targets.values, items.ids)))


def _values(values: Any) -> Tensor:
    return torch.tensor(values.to_numpy(zero_copy_only=False))
