"""A suite: which methods are compared on which data sets by which protocols, as TOML.

    methods = "methods"        folder of method files, seen from the suite's own; this is the default
    [datasets.beauty]          the keys of a recipe's [data], and t1, t2, exclude_history, shuffle_ties
    [[grid]]                   any number: the product of datasets, protocols, methods, seeds and refit

A method file, ``methods/NAME.toml``, is a recipe without data and split: adding a method is adding a file.

    base = "NAME"              another method, of which this file says only what differs; not its views and search
    [embedder] [semantic_ids] [retriever]  [fit] num_threads           as in a recipe
    [views.NAME]               reported too, from the same fitted state: settings of the retriever that are replaced
    [refit.retriever]          what differs in the fit on train + validation, which goes on from the plain fit;
                               [refit.fit] likewise
    [tuned.DATASET.retriever]  what differs for a data set, or for one protocol of it: [tuned."DATASET.PROTOCOL"…];
                               either may be a pattern, [tuned."*.last_out"…]; a later table has the last word, and
                               [refit] over all of them
    [search]                   what ``benchmarks.accuracy.tune`` may vary

Tables are merged key by key, but a table with another ``class`` replaces the one below it altogether.
"""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from tesserec.config import Field, build, component, did_you_mean, load_toml
from tesserec.data.splits import SplitConfig
from tesserec.errors import RecipeError
from tesserec.recipe import DataConfig, Recipe, located, parse_recipe
from tesserec.types import HasTrainingLog

__all__ = ["DatasetConfig", "GridConfig", "Protocol", "Run", "Suite", "merged", "read_suite"]

Protocol = Literal["last_out", "global_time", "user_ratio", "cold_items"]
Table = Mapping[str, Any]

RECIPE = ("embedder", "semantic_ids", "retriever", "fit")
"""Tables of a recipe that a method file has."""
NOTES = ("views", "refit", "tuned", "search")
"""What else it has."""
INHERITED = (*RECIPE, "refit", "tuned")
"""What it has from its base."""
FIT = ("num_threads",)
"""What it has to say of ``[fit]``."""
_PROTOCOL_APART = ': a data set and a protocol are one quoted key, [tuned."beauty.last_out".retriever]'
NAME = re.compile(r"[a-z0-9_]+")


@component
class DatasetConfig(DataConfig):
    """A data set of a suite: where its events and items are, and what its splits need to know."""

    t1: int | None = None
    """``global_time``: where validation begins, seconds since 1970; without it, the 80 % quantile."""
    t2: int | None = None
    """``global_time``: where the test begins; without it, the 90 % quantile."""
    exclude_history: bool | None = None
    """Whether answers leave out what the user had; None: where no user of the log has an item twice."""
    shuffle_ties: int | None = None
    """A seed: the order of a user's events of one time is drawn at random before the split."""

    def data(self) -> dict[str, Any]:
        """The settings that are a recipe's, as ``[data]``."""
        own = {one.name: getattr(self, one.name) for one in dataclasses.fields(DataConfig)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in own.items()}

    def split(self, protocol: str) -> dict[str, Any]:
        """``[split]`` of a recipe, by ``protocol``."""
        times = {"t1": self.t1, "t2": self.t2} if protocol == "global_time" else {}
        return {"protocol": protocol, "exclude_history": self.exclude_history, **times}


@component
class GridConfig:
    """Runs as a product."""

    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    """Data sets of the suite."""
    protocols: Annotated[tuple[Protocol, ...], Field(min_length=1)]
    """Protocols of ``tesserec.data.protocols``; ``last_out_other_day`` is read off the ranks of ``last_out``."""
    methods: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of method files, without ``.toml``."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    """Seeds of the fits; a method that draws nothing at random runs for the first only."""
    refit: Annotated[tuple[bool, ...], Field(min_length=1)] = (False,)
    """``true`` fits again on train + validation, from the state of the plain run."""


@dataclass(frozen=True)
class Run:
    """One method fitted once on one data set: the unit of work, and of a line of results."""

    dataset: str
    protocol: str
    method: str
    seed: int
    data: DatasetConfig
    """With paths from where the program runs."""
    recipe: Table
    """All tables, with defaults; paths are as the suite has them."""
    views: Mapping[str, Table] = field(default_factory=dict)
    """View → ``[retriever]`` with its settings."""
    plain: "Run | None" = None
    """The run whose state a refit starts from; None for a plain run."""

    @property
    def name(self) -> str:
        """Such as ``beauty.last_out.mosaic.refit.seed1``."""
        return self.named(self.method)

    def named(self, method: str) -> str:
        """The name with a view in place of the method."""
        return _name(f"{self.dataset}.{self.protocol}.{method}", self.seed, self.plain is not None)

    @property
    def tables(self) -> dict[str, Any]:
        """Everything that decides the result, the data itself left out."""
        data = {**self.recipe["data"], "shuffle_ties": self.data.shuffle_ties}
        after = {} if self.plain is None else {"warm_start": self.plain.digest}
        return {**self.recipe, "data": data, "views": self.views, **after}

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that differ when any setting does."""
        return hashlib.sha256(json.dumps(self.tables, sort_keys=True).encode()).hexdigest()[:16]

    def parsed(self, view: str | None = None) -> Recipe:
        """The recipe, with the retriever of a view where one is named."""
        retriever = self.recipe["retriever"] if view is None else self.views[view]
        return parse_recipe({**self.recipe, "retriever": retriever})


@dataclass(frozen=True)
class Suite:
    """A suite as read; method files are read when a run of theirs is wanted."""

    path: Path
    folder: Path
    """Of the method files."""
    datasets: Mapping[str, DatasetConfig]
    data: Path
    """What the paths of data sets are seen from."""
    grids: Sequence[GridConfig]

    def runs(self, only: Sequence[str] = ()) -> list[Run]:
        """The runs whose names match one of the globs (all, where there is none); a refit follows its plain run.

        Raises ``RecipeError`` for settings that cannot be, of these runs and their methods, or where nothing matches.
        """
        found: dict[str, Run] = {}
        for grid in self.grids:
            for dataset, protocol, method in itertools.product(grid.datasets, grid.protocols, grid.methods):
                start = f"{dataset}.{protocol}.{method}"
                choices = itertools.product(grid.seeds, sorted(set(grid.refit)))
                wanted = [(seed, refit) for seed, refit in choices if _matches(_name(start, seed, refit), only)]
                drawn = bool(wanted) and self.draws(method)
                for seed, refit in wanted:
                    if drawn or seed == grid.seeds[0]:
                        run = self.run(dataset, protocol, method, seed=seed, refit=refit)
                        found.setdefault(run.name, run)
        for glob in only or ("*",):
            if not any(fnmatchcase(name, glob) for name in found):
                raise RecipeError(f"{self.path} has no run {glob}{self._nearest(glob)}")
        _check_views(found.values())
        return list(found.values())

    def _nearest(self, glob: str) -> str:
        """The end of the error for a name that matches nothing."""
        first = self.grids[0]
        methods = sorted({name for grid in self.grids for name in grid.methods})
        for method in methods:
            for view in self.method(method).get("views", {}):
                if f".{view}." in f"{glob}.":
                    return f": {view} is reported with {method}, so name that"
        start = f"{first.datasets[0]}.{first.protocols[0]}.{first.methods[0]}"
        return f": names are like {_name(start, first.seeds[0], first.refit[0])}; --list shows them all"

    def run(self, dataset: str, protocol: str, method: str, *, seed: int = 0, refit: bool = False) -> Run:
        """One run, whether a grid has it or not; raises ``RecipeError`` for what does not exist or is out of range."""
        _check_known([dataset], list(self.datasets), "dataset", "a data set of this suite")
        with _within(self.folder / f"{method}.toml"):
            table, config = self.method(method), self.datasets[dataset]
            tables: dict[str, Any] = {name: table[name] for name in RECIPE if name in table}
            for key, tuned in table.get("tuned", {}).items():
                if fnmatchcase(f"{dataset}.{protocol}", key if "." in key else f"{key}.*"):
                    tables = merged(tables, tuned)
            common = {"seed": seed, "data": config.data(), "split": config.split(protocol)}
            run = Run(dataset, protocol, method, seed, located(config, self.data), {**tables, **common})
            plain = _completed(run, table.get("views", {}))
            if not refit:
                return plain
            again = {**merged(tables, table.get("refit", {})), **common, "evaluation": {"refit": True}}
            return _completed(dataclasses.replace(run, recipe=again, plain=plain), table.get("views", {}))

    def method(self, name: str) -> dict[str, Any]:
        """The tables of a method file; raises ``RecipeError`` for tables that it cannot have."""
        table = load_toml(self.folder / f"{name}.toml")
        _check_keys(table, ("base", *RECIPE, *NOTES))
        if "base" in table:
            base = load_toml(self.folder / f"{table.pop('base')}.toml")
            if "base" in base:
                raise RecipeError(f"base is a method that has a base itself, {base['base']!r}: name that one")
            table = merged({key: base[key] for key in INHERITED if key in base}, table)
        _check_keys(_part(table, "fit"), FIT, "fit.")
        _check_keys(_part(table, "refit"), ("retriever", "fit"), "refit.")
        _check_keys(table.get("refit", {}).get("fit", {}), FIT, "refit.fit.")
        for key, tuned in _part(table, "tuned").items():
            _check_table(tuned, f"tuned.{key}")
            _check_keys(tuned, RECIPE, f"tuned.{key}.", _PROTOCOL_APART if {*tuned} & {*get_args(Protocol)} else "")
            _check_keys(tuned.get("fit", {}), FIT, f"tuned.{key}.fit.")
            protocol = key.partition(".")[2]
            if protocol and not any(fnmatchcase(known, protocol) for known in get_args(Protocol)):
                raise RecipeError(f"tuned.{key}: no protocol {protocol}{did_you_mean(protocol, [*get_args(Protocol)])}")
        for view in _part(table, "views"):
            _check_table(table["views"][view], f"views.{view}")
            if not NAME.fullmatch(view) or (self.folder / f"{view}.toml").exists():
                raise RecipeError(f"[views.{view}] needs another name: lower-case letters, digits and _, of no method")
        return table

    def draws(self, method: str) -> bool:
        """Whether the method's fit draws anything at random, so that seeds matter."""
        with _within(self.folder / f"{method}.toml"):
            table = self.method(method)
            tables = {name: table[name] for name in RECIPE if name in table}
            return isinstance(parse_recipe(tables).retriever, HasTrainingLog)


def read_suite(path: Path, data: Path | None = None) -> Suite:
    """The suite in a TOML file; paths of its data are seen from ``data``, else from the file's folder.

    Raises ``RecipeError`` for what does not exist or is out of range.
    """
    table = load_toml(path)
    with _within(path):
        _check_keys(table, ("methods", "datasets", "grid"))
        folder = path.parent / table.get("methods", "methods")
        if not folder.is_dir():
            raise RecipeError(f"methods = {str(folder)!r} is not a folder: name that of the method files")
        datasets = {name: _dataset(name, part) for name, part in _part(table, "datasets").items()}
        grids = _grids(table.get("grid", []))
        if not datasets or not grids:
            raise RecipeError("a suite has at least one [datasets.NAME] and one [[grid]]: add what is missing")
        methods = sorted(one.stem for one in folder.glob("*.toml"))
        for i, grid in enumerate(grids):
            _check_known(grid.datasets, list(datasets), f"grid[{i}].datasets", "a data set of this suite")
            _check_known(grid.methods, methods, f"grid[{i}].methods", f"a method file in {folder}")
    return Suite(path, folder, datasets, path.parent if data is None else data, grids)


def merged(below: Table, above: Table) -> dict[str, Any]:
    """The tables of ``below`` with those of ``above`` over them, key by key; another ``class`` replaces a table."""
    if "class" in above and above["class"] != below.get("class"):
        return dict(above)
    both = {key for key in above if isinstance(above[key], Mapping) and isinstance(below.get(key), Mapping)}
    return {**below, **above, **{key: merged(below[key], above[key]) for key in both}}


def _completed(run: Run, views: Mapping[str, Table]) -> Run:
    """The run with all defaults in its recipe and views, which are then known to be possible."""
    given = {**run.recipe, "fit": {"num_threads": 1, **run.recipe.get("fit", {})}}
    recipe = parse_recipe(given)
    complete = {}
    for name, settings in views.items():
        with _within(f"[views.{name}]"):
            view = parse_recipe({**given, "retriever": merged(given["retriever"], settings)})
        complete[name] = view.table()["retriever"]
    return dataclasses.replace(run, recipe=recipe.table(), views=complete)


def _grids(tables: Any) -> list[GridConfig]:
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        raise RecipeError(f"grid = {tables!r}: expected [[grid]], a table that may be repeated")
    return [build(GridConfig, table, f"grid[{i}]") for i, table in enumerate(tables)]


def _dataset(name: str, table: Any) -> DatasetConfig:
    where = f"datasets.{name}"
    _check_table(table, where)
    if not NAME.fullmatch(name):
        raise RecipeError(f"[{where}] needs another name: lower-case letters, digits and _")
    config = build(DatasetConfig, table, where)
    if config.events is None and config.source is None:
        raise RecipeError(f"[{where}] names no data: add events (and items), or source")
    build(SplitConfig, config.split("global_time"), where)
    return config


def _name(start: str, seed: int, refit: bool) -> str:
    return f"{start}{'.refit' if refit else ''}.seed{seed}"


def _matches(name: str, only: Sequence[str]) -> bool:
    return not only or any(fnmatchcase(name, glob) for glob in only)


def _part(table: Table, key: str) -> Table:
    """A table within another, empty where there is none."""
    part: Table = table.get(key, {})
    _check_table(part, key)
    return part


def _check_table(table: Any, where: str) -> None:
    if not isinstance(table, Mapping):
        raise RecipeError(f"{where} = {table!r}: expected a table, [{where}]")


def _check_keys(table: Any, known: Sequence[str], where: str = "", remedy: str = "") -> None:
    _check_table(table, where.removesuffix("."))
    for key in table:
        if key not in known:
            hint = remedy or did_you_mean(key, list(known))
            raise RecipeError(f"{where}{key} is not a table or setting here{hint}")


def _check_known(names: Sequence[str], known: list[str], where: str, what: str) -> None:
    for name in names:
        if name not in known:
            raise RecipeError(f"{where}: {name!r} is not {what}{did_you_mean(name, known)}")


def _check_views(runs: Iterable[Run]) -> None:
    """Two methods cannot both report under one name."""
    owner: dict[str, str] = {}
    for run in runs:
        for view in run.views:
            if owner.setdefault(view, run.method) != run.method:
                raise RecipeError(f"{owner[view]} and {run.method} both have [views.{view}]: rename one of them")


@contextmanager
def _within(where: Path | str) -> Iterator[None]:
    """A block whose errors say in which file they are."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
