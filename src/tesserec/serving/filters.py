"""Filters: a small expression language over the attributes of items, compiled to Polars.

    price < 10 and category in ["mugs", "bags"] and not contains(title, "red")

An expression is read by Python's own parser, and only the few kinds of nodes named here are translated: nothing in it
is ever run. A missing value makes neither a comparison nor its negation true, as in SQL. ``docs/filters.md`` is the
reference.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import polars as pl

from tesserec.config import did_you_mean
from tesserec.errors import FilterError
from tesserec.serving.kinds import BOOLEAN, EMPTY, NUMBER, TEXT, TEXTS, TIME, comparable, kind_of, microseconds

__all__ = ["MAX_DEPTH", "MAX_LENGTH", "compile_filter"]

MAX_LENGTH = 1000
"""Characters in an expression, at most."""
MAX_DEPTH = 32
"""Levels of ``and``, ``or``, ``not`` and calls within each other, at most."""

_EXAMPLES = {NUMBER: "10", TEXT: '"mugs"', BOOLEAN: "true", TIME: '"2024-05-31"'}
_SIGNS = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_FUNCTIONS = ("attribute", "contains", "is_missing", "starts_with")

# Python's tokenizer warns of some odd literals, and a warning cannot be silenced in one thread alone: only tokens that
# it takes without a word get through.
_TOKEN = re.compile(
    r"""\s+ | "(?:[^"\\\x00-\x1f]|\\["'\\])*" | '(?:[^'\\\x00-\x1f]|\\["'\\])*'
    | (?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.]) | [^\W\d]\w*(?!["'\w]) | [=!<>]= | [<>()\[\],+-]""",
    re.VERBOSE,
)

Constant = str | int | float | bool


@dataclass(frozen=True)
class _Column:
    """An attribute, as an expression of the one type that its kind is compared in."""

    label: str
    kind: str
    expr: pl.Expr


def compile_filter(text: str, columns: Mapping[str, pl.DataType]) -> pl.Expr:
    """A filter over a frame with these columns: true or false for every row, never null.

    Raises ``FilterError``, which says at which character, for what is no filter, is longer than ``MAX_LENGTH`` or
    deeper than ``MAX_DEPTH``, names no attribute, or compares an attribute with what it cannot be.
    """
    if len(text) > MAX_LENGTH:
        raise FilterError(f"the filter has {len(text)} characters, more than {MAX_LENGTH}: shorten it")
    if not text.strip():
        raise FilterError("the filter is empty: leave it out, or write one such as price < 10")
    start = len(text) - len(text.lstrip())
    source = re.sub(r"\s", " ", text.strip())
    expression = _parsed(source, start)
    return _Compiler(source, start, columns).truth(expression, 1).fill_null(False)


def _parsed(source: str, start: int) -> ast.expr:
    position = 0
    while position < len(source):
        token = _TOKEN.match(source, position)
        if token is None:
            shown = source[position : position + 10]
            raise FilterError(f"filter, character {start + position + 1}: cannot read {shown!r}; {_HINT}")
        position = token.end()
    try:
        return ast.parse(source, mode="eval").body
    except SyntaxError as error:
        position = start + min(max(error.offset or 1, 1), len(source))
        raise FilterError(f"filter, character {position}: {error.msg}; {_HINT}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise FilterError(f"the filter cannot be read ({error}): simplify it") from None


_HINT = 'write it such as price < 10 and not (category in ["mugs", "bags"] or contains(title, "red"))'


class _Compiler:
    """Translates the nodes of one expression; everything that is not asked for by name is refused."""

    def __init__(self, source: str, start: int, columns: Mapping[str, pl.DataType]) -> None:
        self._source, self._start, self._columns = source.encode(), start, columns

    def _error(self, node: ast.expr, what: str) -> FilterError:
        position = self._start + len(self._source[: node.col_offset].decode()) + 1
        return FilterError(f"filter, character {position}: {what}")

    def truth(self, node: ast.expr, depth: int) -> pl.Expr:
        """A boolean expression, null where a missing value leaves it open."""
        if depth > MAX_DEPTH:
            raise self._error(node, f"more than {MAX_DEPTH} levels within each other: simplify the filter")
        match node:
            case ast.BoolOp():
                parts = [self.truth(value, depth + 1) for value in node.values]
                return pl.all_horizontal(parts) if isinstance(node.op, ast.And) else pl.any_horizontal(parts)
            case ast.UnaryOp(op=ast.Not()):
                return ~self.truth(node.operand, depth + 1)
            case ast.Compare():
                operands = [node.left, *node.comparators]
                pairs = zip(operands, node.ops, operands[1:], strict=False)
                return pl.all_horizontal([self._compared(left, op, right) for left, op, right in pairs])
            case ast.Call(func=ast.Name(id=("contains" | "starts_with") as name)):
                return self._text_call(node, name)
            case ast.Call(func=ast.Name(id="is_missing")):
                return self._column(self._arguments(node, 1)[0]).expr.is_null()
        operand = self._operand(node)
        if isinstance(operand, _Column) and operand.kind in (BOOLEAN, EMPTY):
            return operand.expr.cast(pl.Boolean)
        what = f"{operand.label} is {operand.kind}" if isinstance(operand, _Column) else f"{operand!r} is a constant"
        raise self._error(node, f"{what}, not something true or false: compare it, such as price < 10")

    def _compared(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pl.Expr:
        if isinstance(op, ast.In):
            return self._in(left, right)
        if isinstance(op, ast.NotIn):
            return ~self._in(left, right)
        if type(op) not in _SIGNS:
            raise self._error(left, "is and is not have no meaning here: use ==, != or is_missing(...)")
        first, second = self._operand(left), self._operand(right)
        if isinstance(first, _Column):
            column, other = first, second
        elif isinstance(second, _Column):
            column, other = second, first
        else:
            raise self._error(left, f"{first!r} and {second!r} are both constants: name an attribute to compare")
        if column.kind == EMPTY or (isinstance(other, _Column) and other.kind == EMPTY):
            empty = column if column.kind == EMPTY else other
            assert isinstance(empty, _Column)
            return empty.expr.cast(pl.Boolean)
        self._check_order(left, column, op)
        if isinstance(other, _Column) and other.kind != column.kind:
            raise self._error(left, f"{column.label} is {column.kind}, {other.label} is {other.kind}: compare alike")
        a, b = (
            operand.expr if isinstance(operand, _Column) else pl.lit(self._fitted(node, operand, column))
            for node, operand in ((left, first), (right, second))
        )
        return _sign(a, _SIGNS[type(op)], b)

    def _check_order(self, node: ast.expr, column: _Column, op: ast.cmpop) -> None:
        if column.kind == TEXTS:
            raise self._error(node, f'{column.label} is a list of texts: ask for one, such as "red" in {column.label}')
        if column.kind == BOOLEAN and not isinstance(op, ast.Eq | ast.NotEq):
            raise self._error(node, f"{column.label} is true or false and has no order: use == or !=")

    def _fitted(self, node: ast.expr, value: Constant, column: _Column) -> Constant:
        """The constant as the column's kind is compared: times become microseconds."""
        kind = BOOLEAN if isinstance(value, bool) else TEXT if isinstance(value, str) else NUMBER
        if column.kind == TIME and kind != BOOLEAN:
            return self._microseconds(node, value)
        if kind != column.kind:
            raise self._error(
                node,
                f"{column.label} is {column.kind}, {value!r} is {kind}: "
                f"compare it with {column.kind}, such as {_EXAMPLES[column.kind]}",
            )
        return value

    def _microseconds(self, node: ast.expr, value: str | int | float) -> int:
        try:
            return microseconds(value)
        except ValueError:
            hint = "give seconds since 1970 or ISO 8601, such as 2024-05-31"
            raise self._error(node, f"{value!r} is no time: {hint}") from None

    def _in(self, left: ast.expr, right: ast.expr) -> pl.Expr:
        if isinstance(right, ast.List | ast.Tuple):
            column = self._column(left)
            if column.kind == EMPTY:
                return column.expr.cast(pl.Boolean)
            self._check_order(left, column, ast.Eq())
            values = [self._fitted(node, self._constant(node), column) for node in right.elts]
            return _known(column.expr, _among(column, values))
        column = self._column(right)
        if column.kind == EMPTY:
            return column.expr.cast(pl.Boolean)
        if column.kind != TEXTS:
            hint = f'contains({column.label}, "red")' if column.kind == TEXT else f"{column.label} in [...]"
            raise self._error(right, f"{column.label} is {column.kind}, not a list: write {hint}")
        value = self._constant(left)
        if not isinstance(value, str):
            raise self._error(left, f'{column.label} is a list of texts, {value!r} is not text: write such as "red"')
        return _known(column.expr, column.expr.list.contains(pl.lit(value)).fill_null(False))

    def _text_call(self, node: ast.Call, name: str) -> pl.Expr:
        first, second = self._arguments(node, 2)
        column, part = self._column(first), self._constant(second)
        if column.kind == EMPTY:
            return column.expr.cast(pl.Boolean)
        if column.kind != TEXT:
            hint = f'write "red" in {column.label}' if column.kind == TEXTS else f"compare {column.label} with =="
            raise self._error(first, f"{name} looks into text, {column.label} is {column.kind}: {hint}")
        if not isinstance(part, str):
            raise self._error(second, f'{name} looks for text, {part!r} is not: write such as "red"')
        lowered, looked_for = column.expr.str.to_lowercase(), pl.lit(part).str.to_lowercase()
        if name == "contains":
            return lowered.str.contains(looked_for, literal=True)
        return lowered.str.starts_with(looked_for)

    def _arguments(self, node: ast.Call, count: int) -> Sequence[ast.expr]:
        assert isinstance(node.func, ast.Name)
        if len(node.args) != count or node.keywords:
            given = len(node.args) + len(node.keywords)
            raise self._error(node, f"{node.func.id} takes {count} arguments, not {given}: {_USES[node.func.id]}")
        return node.args

    def _column(self, node: ast.expr) -> _Column:
        operand = self._operand(node)
        if not isinstance(operand, _Column):
            raise self._error(node, f"{operand!r} is a constant: name an attribute here")
        return operand

    def _constant(self, node: ast.expr) -> Constant:
        operand = self._operand(node)
        if isinstance(operand, _Column):
            raise self._error(node, f'{operand.label} is an attribute: write a constant here, such as 10 or "red"')
        return operand

    def _operand(self, node: ast.expr) -> _Column | Constant:
        """An attribute or a constant; raises for anything else."""
        match node:
            case ast.Constant(value=bool() | str() as value):
                return value
            case ast.Constant(value=int() | float() as value):
                return self._number(node, value)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as value)):
                value = self._number(node, value)
                return -value if isinstance(sign, ast.USub) else value
            case ast.Constant(value=None):
                raise self._error(node, "None cannot be compared: use is_missing(...)")
            case ast.Name(id="true" | "false" as name) if name not in self._columns:
                return name == "true"
            case ast.Name(id=name):
                return self._named(node, name)
            case ast.Call(func=ast.Name(id="attribute")):
                named = self._arguments(node, 1)[0]
                if not isinstance(named, ast.Constant) or not isinstance(named.value, str):
                    raise self._error(node, f"attribute takes a name in quotes: {_USES['attribute']}")
                return self._named(node, named.value)
            case ast.Call(func=ast.Name(id=name)) if name not in _FUNCTIONS:
                raise self._error(node, f"there is no function {name}{did_you_mean(name, list(_FUNCTIONS))}")
        raise self._error(node, f"this does not belong here; {_HINT}")

    def _number(self, node: ast.expr, value: int | float) -> int | float:
        if isinstance(value, bool):
            raise self._error(node, f"{value} has no sign: write true or false")
        if not abs(value) < 2**63 and not (isinstance(value, float) and math.isfinite(value)):
            raise self._error(node, "this number is too large: write one below 9223372036854775808")
        return value

    def _named(self, node: ast.expr, name: str) -> _Column:
        dtype = self._columns.get(name)
        if dtype is None:
            raise self._error(node, f"there is no attribute {name}{did_you_mean(name, list(self._columns))}")
        kind = kind_of(dtype)
        if kind is None:
            raise self._error(node, f"attribute {name} has type {dtype}, which filters cannot read: leave it out")
        return _Column(name, kind, comparable(pl.col(name), dtype, kind))


_USES = {
    "attribute": 'attribute("unit price") < 10',
    "contains": 'contains(title, "red")',
    "is_missing": "is_missing(price)",
    "starts_with": 'starts_with(title, "red")',
}


def _sign(a: pl.Expr, sign: str, b: pl.Expr) -> pl.Expr:
    return {
        "==": partial(a.eq, b),
        "!=": partial(a.ne, b),
        "<": partial(a.lt, b),
        "<=": partial(a.le, b),
        ">": partial(a.gt, b),
        ">=": partial(a.ge, b),
    }[sign]()


def _among(column: _Column, values: list[Constant]) -> pl.Expr:
    types = {TEXT: pl.String, BOOLEAN: pl.Boolean, TIME: pl.Int64}
    if column.kind == NUMBER:
        floats = pl.Series([float(v) for v in values], dtype=pl.Float64)
        return column.expr.cast(pl.Float64).is_in(floats.implode())
    return column.expr.is_in(pl.Series(values, dtype=types[column.kind]).implode())


def _known(column: pl.Expr, truth: pl.Expr) -> pl.Expr:
    """``truth`` where there is a value; null where it is missing."""
    return pl.when(column.is_not_null()).then(truth)
