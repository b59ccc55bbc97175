"""Tables of any kind, column by column, and which of their columns means what.

``open_table`` hides where a table comes from: Parquet (a file or a folder of parts, read one column at a time), CSV,
TSV, JSON lines, RecBole's atomic files (``.inter``, ``.item``: tab separated, a header of ``name:type``), all but
Parquet also with ``.gz``; or an Arrow table, a Polars frame, or whatever else speaks Arrow's stream interface, as
pandas does.

Text files carry no types. Their values stay strings here, and ``from_text`` says so, for the parsers in
``tesserec.data.columns`` to decide on whole columns: one leading zero keeps a column of numbers an id of strings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import polars as pl
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from tesserec.errors import DataError

__all__ = ["ArrowStream", "Source", "Table", "advice", "match_columns", "open_table", "to_frame"]

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".item": "\t"}
_ATOMIC = (".inter", ".item")
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_JSON_BLOCK_BYTES = 16 << 20
_FORMATS = ".parquet, .csv, .tsv, .jsonl, .ndjson, .json (one object a line), .inter or .item, all but Parquet also .gz"


class ArrowStream(Protocol):
    """Anything that exports an Arrow stream: pandas, Polars and Arrow tables do."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """A PyCapsule with the stream (the Arrow PyCapsule interface)."""


Source: TypeAlias = str | Path | pa.Table | pl.DataFrame | pl.LazyFrame | ArrowStream


@dataclass(frozen=True)
class Table:
    """Named columns that are read when asked for."""

    name: str
    """What to call the table in messages: its path, or its type."""
    names: tuple[str, ...]
    read: Callable[[str], pa.ChunkedArray]
    from_text: bool = False
    """Whether values are strings because the format has no types."""
    texts: frozenset[str] = frozenset()
    """Columns that the file itself declares to be text."""


def open_table(source: Source) -> Table:
    """A file or a frame as a ``Table``; raises ``DataError`` where it is missing, of unknown format or unreadable."""
    if isinstance(source, str | Path):
        return _open_file(Path(source))
    name = f"the {type(source).__module__.partition('.')[0]} {type(source).__name__}"
    try:
        table = pa.table(source.collect() if isinstance(source, pl.LazyFrame) else source)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{name} has a column of mixed types: {error.args}: cast it to strings or integers") from None
    except TypeError:
        raise DataError(
            f"cannot read events or items from {name}: give a path or an Arrow, Polars or pandas frame"
        ) from None
    return _in_memory(table, name)


def _open_file(path: Path) -> Table:
    if not path.exists():
        raise DataError(f"no file at {path}: check the path")
    suffixes = path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]
    suffix = suffixes[0].lower() if suffixes else ""
    if suffix == ".parquet" or path.is_dir():
        return _open_parquet(path)
    if suffix in _SEPARATORS:
        return _open_text(path, suffix)
    if suffix in _JSON_LINES:
        return _open_json(path)
    raise DataError(f"{path} has an unknown format {suffix or '(no suffix)'}: expected {_FORMATS}")


def _open_parquet(path: Path) -> Table:
    parts = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not parts:
        raise DataError(f"{path} holds no .parquet files: give a file or a folder of Parquet files")
    schemas = [_schema(part) for part in parts]
    for part, schema in zip(parts, schemas, strict=True):
        if not schema.equals(schemas[0]):
            raise DataError(f"{part} has other columns or types than {parts[0]}: write all parts alike")

    def read(name: str) -> pa.ChunkedArray:
        columns = [_read_column(part, name) for part in parts]
        return pa.chunked_array([chunk for column in columns for chunk in column.chunks], schemas[0].field(name).type)

    return Table(str(path), tuple(schemas[0].names), read)


def _read_column(path: Path, name: str) -> pa.ChunkedArray:
    """One column in one piece; what decoding it took is given back to the system."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        column = file.read(columns=[name], use_threads=False).column(0)
    pa.default_memory_pool().release_unused()
    return column


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not readable as Parquet: {error}") from None


def _open_text(path: Path, suffix: str) -> Table:
    quote = None if suffix in _ATOMIC else '"'
    try:
        frame = pl.read_csv(path, separator=_SEPARATORS[suffix], infer_schema=False, quote_char=quote)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise DataError(f"{path} is not readable as {suffix[1:].upper()}: {reason}") from None
    texts: frozenset[str] = frozenset()
    if suffix in _ATOMIC:
        types = {name.partition(":")[0]: name.partition(":")[2] for name in frame.columns}
        texts = frozenset(name for name, kind in types.items() if kind.startswith("token"))
        frame.columns = list(types)
    return _in_memory(frame.to_arrow(), str(path), from_text=True, texts=texts)


def _open_json(path: Path) -> Table:
    options = pj.ReadOptions(block_size=_JSON_BLOCK_BYTES)
    try:
        with pa.input_stream(path, compression="detect") as stream:
            table = pj.read_json(stream, read_options=options)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not readable as JSON lines of one type a column: {error}") from None
    return _in_memory(table, str(path))


def _in_memory(table: pa.Table, name: str, *, from_text: bool = False, texts: frozenset[str] = frozenset()) -> Table:
    return Table(name, tuple(table.column_names), table.column, from_text, texts)


def to_frame(table: Table) -> pl.DataFrame:
    """The whole table in Polars; columns of text formats that are numbers throughout become numbers."""
    frame = pl.DataFrame({name: pl.from_arrow(table.read(name)) for name in table.names})
    if not table.from_text:
        return frame
    return frame.with_columns(_numbers(frame[name]) for name in table.names if name not in table.texts)


def _numbers(column: pl.Series) -> pl.Series:
    for dtype in (pl.Int64, pl.Float64):
        number = column.cast(dtype, strict=False)
        if number.null_count() == column.null_count() < len(column):
            return number
    return column


def match_columns(
    table: Table,
    aliases: Mapping[str, tuple[str, ...]],
    columns: Mapping[str, str | None] | None,
    setting: str | None = None,
) -> dict[str, str]:
    """Our name → the table's name, for each of our names (the keys of ``aliases``) that the table has.

    ``columns`` decides where it speaks (None: do not use); then our own name, then its aliases, both compared
    without case and punctuation. ``setting`` is what a recipe calls ``columns``, for messages (see ``advice``). Raises
    ``DataError`` where two aliases could be meant, or ``columns`` is wrong.
    """
    columns = columns or {}
    unknown = sorted(set(columns) - set(aliases))
    if unknown:
        raise DataError(f"columns names {unknown[0]!r}, which is not one of ours: {', '.join(aliases)}")
    absent = [theirs for theirs in columns.values() if theirs is not None and theirs not in table.names]
    if absent:
        raise DataError(f"{table.name} has no column {absent[0]!r}: it has {', '.join(table.names)}")
    found: dict[str, str | None] = dict(columns)
    free = [name for name in table.names if name not in columns.values()]
    for ours in aliases:
        if ours not in columns:
            found[ours] = _match(table.name, ours, aliases[ours], free, setting)
    return {ours: theirs for ours, theirs in found.items() if theirs is not None}


def advice(ours: str, theirs: str, setting: str | None) -> str:
    """How to say that column ``theirs`` is ``ours``: in Python, in a recipe with a ``setting`` for it, in the file."""
    in_recipe = "" if setting is None else f', {setting}.{ours} = "{theirs}" under [data] in a recipe'
    return f'say which is with columns={{"{ours}": "{theirs}"}} in Python{in_recipe}, or rename columns'


def _match(where: str, ours: str, aliases: tuple[str, ...], names: list[str], setting: str | None) -> str | None:
    if ours in names:
        return ours
    for wanted in ({_bare(ours)}, {_bare(alias) for alias in aliases}):
        found = [name for name in names if _bare(name) in wanted]
        if len(found) > 1:
            raise DataError(
                f"{where}: columns {' and '.join(found)} could each be {ours}: {advice(ours, found[0], setting)}"
            )
        if found:
            return found[0]
    return None


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
