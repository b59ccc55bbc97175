"""Settings: dataclasses whose fields are the hyper-parameters, and strict TOML that fills them.

A component is a class whose constructor fields are its hyper-parameters; ``@component`` checks their types and ranges
when it is built. A recipe names the class by its dotted path, ``class = "tesserec.retrievers.ease:EASE"``: there is no
registry, and a key that does not exist is an error that names the nearest one that does.
"""

import dataclasses
import difflib
import importlib
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import pydantic
import pydantic.dataclasses
import pydantic_core

from tesserec.errors import RecipeError

__all__ = [
    "Field",
    "build",
    "build_component",
    "component",
    "described",
    "did_you_mean",
    "fresh",
    "import_class",
    "load_toml",
    "settings_of",
]

T = TypeVar("T")

Field = pydantic.Field


@dataclass_transform(field_specifiers=(dataclasses.field, pydantic.Field))
def component(cls: type[T]) -> type[T]:
    """Make ``cls`` a dataclass whose fields are validated hyper-parameters; others are refused.

    Annotate ranges with ``Annotated[float, Field(gt=0)]``. Fitted state is set in ``fit`` and is not a field.
    """
    settings = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    return typing.cast(type[T], pydantic.dataclasses.dataclass(config=settings)(cls))


def load_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; a syntax error names the file, line and column."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"no recipe at {path}: give the path of a TOML file, such as recipes/mosaic.toml") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from None


def import_class(dotted: str, where: str = "class") -> type[Any]:
    """The class at ``package.module:Name``; only ``tesserec.`` paths are accepted."""
    module_name, separator, name = dotted.partition(":")
    if not separator or not module_name.startswith("tesserec."):
        raise RecipeError(f'{where} = "{dotted}" is not a class path: expected "tesserec.<stage>.<module>:<Class>"')
    try:
        return typing.cast(type[Any], getattr(importlib.import_module(module_name), name))
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise RecipeError(f'{where} = "{dotted}" needs the package {error.name}: install it first') from None
        raise RecipeError(f'{where} = "{dotted}": there is no module {module_name}') from None
    except AttributeError:
        public = [n for n in dir(importlib.import_module(module_name)) if n[:1].isupper()]
        raise RecipeError(f'{where} = "{dotted}": {module_name} has no {name}{did_you_mean(name, public)}') from None


def build(cls: type[T], table: Mapping[str, Any], where: str, default: T | None = None) -> T:
    """An instance of ``cls`` from a TOML table; ``where`` is the table's dotted name, for messages.

    A sub-table changes what it names of a nested dataclass, from what that is by default; a sub-table with a ``class``
    key builds the component it names. What the table leaves out is as in ``default``, if there is one. Raises
    ``RecipeError`` for unknown keys (with the nearest known one) and values of the wrong type or range.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]  # components are dataclasses
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {} if default is None else {name: getattr(default, name) for name in fields}
    for key, value in table.items():
        if key not in fields:
            raise RecipeError(f"{where}.{key} is not a setting of {cls.__name__}{did_you_mean(key, list(fields))}")
        below = _default(cls, key) if default is None else getattr(default, key)
        values[key] = _value(hints[key], value, f"{where}.{key}", below)
    try:
        return cls(**values)
    except pydantic.ValidationError as error:
        raise RecipeError(_explained(error, where)) from None


def build_component(table: Mapping[str, Any], where: str) -> Any:
    """The component that a table's ``class`` names, built from the table's other keys.

    Raises ``RecipeError`` where there is no ``class``, or where it names something else than a component.
    """
    if "class" not in table:
        raise RecipeError(f'[{where}] has no class: add class = "tesserec.<stage>.<module>:<Class>"')
    cls = import_class(str(table["class"]), f"{where}.class")
    if not dataclasses.is_dataclass(cls):
        raise RecipeError(f'{where}.class = "{table["class"]}" is not a component: name a class made with @component')
    return build(cls, {key: value for key, value in table.items() if key != "class"}, where)


def _explained(error: pydantic.ValidationError, where: str) -> str:
    first = error.errors()[0]
    name = ".".join([where, *(str(part) for part in first["loc"])])
    if first["type"] == "missing":
        return f"{name} is not given: it has no default"
    if first["type"] == "value_error":
        return f"{name}: {first['msg'].removeprefix('Value error, ')}"
    return f"{name} = {first['input']!r}: {first['msg']}"


def _default(cls: type[Any], name: str) -> Any:
    """What a setting of a component is where nothing is said; None where it has to be given."""
    value = cls.__pydantic_fields__[name].get_default(call_default_factory=True)
    return None if value is pydantic_core.PydanticUndefined else value


def _value(hint: Any, value: Any, where: str, default: Any) -> Any:
    if not isinstance(value, Mapping):
        if isinstance(value, list) and value and all(isinstance(v, Mapping) and "class" in v for v in value):
            return tuple(build_component(v, f"{where}[{i}]") for i, v in enumerate(value))
        return value
    if "class" in value:
        return build_component(value, where)
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    nested = [o for o in options if dataclasses.is_dataclass(o) and isinstance(o, type)]
    if not nested:
        return dict(value)
    cls = next((option for option in nested if type(default) is option), nested[0])
    return build(cls, value, where, default if type(default) is cls else None)


def settings_of(component: Any) -> dict[str, Any]:
    """The inverse of ``build``: plain tables with ``class`` keys, ready for JSON; ``None`` values are left out."""
    out: dict[str, Any] = {}
    for field in dataclasses.fields(component):
        value = getattr(component, field.name, None) if field.init else None
        if value is None:
            continue
        out[field.name] = _plain(value)
    return out


def described(component: Any) -> dict[str, Any]:
    """``settings_of`` with the component's own ``class`` path."""
    cls = type(component)
    return {"class": f"{cls.__module__}:{cls.__qualname__}", **settings_of(component)}


def fresh(prototype: T) -> T:
    """An unfitted component with the settings of ``prototype``; the components in it are unfitted too."""
    parts = {field.name: getattr(prototype, field.name) for field in dataclasses.fields(prototype) if field.init}  # type: ignore[arg-type]  # components are dataclasses
    return dataclasses.replace(prototype, **{name: _unfitted(part) for name, part in parts.items()})  # type: ignore[type-var]


def _unfitted(part: Any) -> Any:
    if isinstance(part, tuple):
        return tuple(_unfitted(one) for one in part)
    return fresh(part) if dataclasses.is_dataclass(part) and not isinstance(part, type) else part


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return described(value)
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value


def did_you_mean(word: str, known: list[str]) -> str:
    """The end of an error message: the nearest known word, or all of them where none is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(known)) or 'none'}"
