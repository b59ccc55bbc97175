"""Settings: validated components, strict TOML, and messages that name the nearest key."""

import dataclasses
import re
import sys
import types
from pathlib import Path
from typing import Annotated, Any

import pytest

from tesserec.config import (
    Field,
    build,
    build_component,
    component,
    described,
    did_you_mean,
    fresh,
    import_class,
    load_toml,
    settings_of,
)
from tesserec.embedders import Concatenate, CooccurrenceSVD, TfidfSVD
from tesserec.errors import RecipeError
from tesserec.retrievers.cooccurrence import Cooccurrence
from tesserec.retrievers.popularity import Popularity
from tesserec.testing.data import chain
from tesserec.types import FitContext


@component
class Inner:
    """A nested component."""

    rate: Annotated[float, Field(gt=0, le=1)] = 0.5


@component
class Outer:
    """A component with one setting of each sort."""

    num_layers: Annotated[int, Field(ge=1)]
    rates: tuple[float, ...] = (0.1, 0.2)
    folder: Path | None = None
    inner: Inner = dataclasses.field(default_factory=Inner)
    maybe: Inner | None = None
    parts: tuple[Inner, ...] = ()
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    anything: Any = None

    def __post_init__(self) -> None:
        if self.num_layers > 8:
            raise RecipeError("num_layers above 8 do not train: use at most 8")
        self.fitted = 1


@component
class Shape:
    """A component with more than one setting."""

    width: int = 8
    depth: int = 1


@component
class Shaped:
    """A component that wants another shape than most."""

    shape: Shape = dataclasses.field(default_factory=lambda: Shape(depth=9))
    other: Shape | None = None
    either: Inner | Shape = dataclasses.field(default_factory=lambda: Shape(depth=7))


@component
class Holder:
    """A component whose part has a part of its own."""

    shaped: Shaped = dataclasses.field(default_factory=lambda: Shaped(Shape(2, 3)))


@pytest.fixture(autouse=True)
def _in_tesserec(monkeypatch: pytest.MonkeyPatch) -> None:
    """The components above under a ``tesserec.`` path, the only ones that a recipe may name."""
    module = types.ModuleType("tesserec.stage")
    for cls in (Inner, Outer):
        monkeypatch.setattr(cls, "__module__", "tesserec.stage")
        setattr(module, cls.__name__, cls)
    module.Plain = type("Plain", (), {})  # type: ignore[attr-defined]
    module.helper = 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tesserec.stage", module)


INNER = "tesserec.stage:Inner"


def test_build_fills_nested_tables_and_components() -> None:
    table = {
        "num_layers": 2,
        "rates": [1, 2],
        "folder": "a/b",
        "inner": {"rate": 1},
        "maybe": {"class": INNER, "rate": 0.25},
        "parts": [{"class": INNER}, {"class": INNER, "rate": 0.75}],
        "columns": {"user_id": "customer"},
    }
    built = build(Outer, table, "retriever")
    assert built == Outer(
        2, (1.0, 2.0), Path("a/b"), Inner(1.0), Inner(0.25), (Inner(0.5), Inner(0.75)), {"user_id": "customer"}
    )
    assert built.fitted == 1


def test_a_nested_table_starts_from_what_its_field_is_by_default() -> None:
    built = build(Shaped, {"shape": {"width": 4}, "other": {"width": 4}, "either": {"width": 4}}, "retriever")
    assert built == Shaped(Shape(4, 9), Shape(4, 1), Shape(4, 7))
    assert build(Holder, {"shaped": {"shape": {"width": 5}}}, "retriever") == Holder(Shaped(Shape(5, 3)))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"num_laers": 2}, "retriever.num_laers is not a setting of Outer; did you mean num_layers?"),
        (
            {"zzz": 2},
            "retriever.zzz is not a setting of Outer; "
            "known: anything, columns, folder, inner, maybe, num_layers, parts, rates",
        ),
        ({}, "retriever.num_layers is not given: it has no default"),
        ({"num_layers": 0}, "retriever.num_layers = 0: Input should be greater than or equal to 1"),
        ({"num_layers": 9}, "retriever: num_layers above 8 do not train: use at most 8"),
        ({"num_layers": 1, "rates": [1, "x"]}, "retriever.rates.1 = 'x': Input should be a valid number"),
        (
            {"num_layers": 1, "inner": {"rates": 1}},
            "retriever.inner.rates is not a setting of Inner; did you mean rate?",
        ),
        ({"num_layers": 1, "maybe": {"rate": 0}}, "retriever.maybe.rate = 0: Input should be greater than 0"),
        (
            {"num_layers": 1, "parts": [{"class": INNER}, {"class": INNER, "rat": 1}]},
            "retriever.parts[1].rat is not a setting of Inner; did you mean rate?",
        ),
    ],
)
def test_build_names_what_is_wrong(table: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=f"^{re.escape(message)}"):
        build(Outer, table, "retriever")


def test_a_component_refuses_infinity_and_unknown_fields() -> None:
    with pytest.raises(ValueError, match="finite number"):
        Inner(rate=float("inf"))
    with pytest.raises(ValueError, match="Unexpected keyword argument"):
        Inner(speed=1)  # type: ignore[call-arg]


def test_build_component() -> None:
    assert build_component({"class": INNER, "rate": 1}, "x") == Inner(1.0)
    with pytest.raises(RecipeError, match=r'^\[x\.y\] has no class: add class = "tesserec\.<stage>'):
        build_component({"rate": 1}, "x.y")
    with pytest.raises(RecipeError, match=r'^x\.class = "tesserec\.stage:Plain" is not a component'):
        build_component({"class": "tesserec.stage:Plain"}, "x")


@pytest.mark.parametrize(
    ("dotted", "message"),
    [
        ("os:system", 'class = "os:system" is not a class path: expected "tesserec.<stage>.<module>:<Class>"'),
        ("tesserec.stage.Inner", 'class = "tesserec.stage.Inner" is not a class path'),
        ("tesserecx.stage:Inner", 'class = "tesserecx.stage:Inner" is not a class path'),
        ("tesserec.nowhere:Inner", 'class = "tesserec.nowhere:Inner": there is no module tesserec.nowhere'),
        ("tesserec.nowhere.deep:X", "there is no module tesserec.nowhere.deep"),
        ("tesserec.stage:Iner", 'class = "tesserec.stage:Iner": tesserec.stage has no Iner; did you mean Inner?'),
        ("tesserec.stage:Qqqqq", "tesserec.stage has no Qqqqq; known: Inner, Outer, Plain"),
    ],
)
def test_import_class_names_what_is_wrong(dotted: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        import_class(dotted)


def test_import_class_names_the_package_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("tesserec.extra")
    package.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "tesserec.extra", package)
    (tmp_path / "needy.py").write_text("import no_such_package_here\n")
    message = 'retriever.class = "tesserec.extra.needy:X" needs the package no_such_package_here: install it first'
    with pytest.raises(RecipeError, match=f"^{re.escape(message)}$"):
        import_class("tesserec.extra.needy:X", "retriever.class")


def test_import_class_finds_it() -> None:
    assert import_class(INNER) is Inner


def test_settings_are_the_inverse_of_build() -> None:
    outer = Outer(3, folder=Path("a"), maybe=Inner(1.0), parts=(Inner(0.25),))
    assert settings_of(outer) == {
        "num_layers": 3,
        "rates": [0.1, 0.2],
        "folder": "a",
        "inner": {"class": INNER, "rate": 0.5},
        "maybe": {"class": INNER, "rate": 1.0},
        "parts": [{"class": INNER, "rate": 0.25}],
        "columns": {},
    }
    assert described(outer) == {"class": "tesserec.stage:Outer", **settings_of(outer)}
    assert build_component(described(outer), "x") == outer


def test_load_toml(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('seed = 3\n[data]\nname = "é"\n', encoding="utf-8")
    assert load_toml(path) == {"seed": 3, "data": {"name": "é"}}
    path.write_text("seed = \n")
    with pytest.raises(RecipeError, match=r"a\.toml is not valid TOML: .*line 1, column 8"):
        load_toml(path)
    with pytest.raises(RecipeError, match=r"no recipe at .*b\.toml: give the path of a TOML file"):
        load_toml(tmp_path / "b.toml")


def test_did_you_mean() -> None:
    assert did_you_mean("sed", ["seed", "data"]) == "; did you mean seed?"
    assert did_you_mean("qqq", ["seed", "data"]) == "; known: data, seed"
    assert did_you_mean("qqq", []) == "; known: none"


def test_fresh_components_and_their_parts_are_not_fitted() -> None:
    fitted = Cooccurrence(window=2, popularity=Popularity(window_days=3))
    fitted.fit(*chain(), FitContext())
    copy = fresh(fitted)
    assert copy == Cooccurrence(window=2, popularity=Popularity(window_days=3))
    assert copy._weights is None
    assert copy.popularity._score_N is None
    both = Concatenate(sources=(TfidfSVD(num_features=3), CooccurrenceSVD()), weights=(1.0, 2.0))
    other = fresh(both)
    assert other == both
    assert all(one is not two for one, two in zip(other.sources, both.sources, strict=True))
