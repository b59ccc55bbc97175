"""A recipe: one TOML file that says which data, which split and which component at each stage.

    seed = 0
    [data]          source or events/items, columns, positive_kinds, k-core            optional with --events
    [split]         protocol and its settings                                          optional
    [embedder]      class = "tesserec.embedders…"                                      optional
    [semantic_ids]  class = "tesserec.semantic_ids…", collisions                       needs [embedder]
    [retriever]     class = "tesserec.retrievers…"                                     required
    [baselines.x]   class = "tesserec.retrievers…", any number of them                 optional
    [fit]           refit, equal_training_time, device                                 optional
    [evaluation]    ks                                                                 optional

Every other key of a table is a setting of the class it names. What is not given takes the default of its class, and a
key that does not exist is an error that names the nearest one.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from tesserec.config import Field, build, build_component, component, described, did_you_mean, load_toml, settings_of
from tesserec.data.splits import SplitConfig
from tesserec.errors import RecipeError
from tesserec.semantic_ids.codes_file import CodesFile
from tesserec.semantic_ids.table import Collisions
from tesserec.types import Catalog, Embedder, Quantizer, Retriever

__all__ = [
    "DataConfig",
    "EvaluationConfig",
    "FitConfig",
    "Recipe",
    "default_recipe",
    "located",
    "parse_recipe",
    "read_recipe",
]

Data = TypeVar("Data", bound="DataConfig")

SECTIONS = ("seed", "data", "split", "embedder", "semantic_ids", "retriever", "baselines", "fit", "evaluation")


@component
class DataConfig:
    """Where events and items come from; either ``source`` or ``events``."""

    source: str | None = None
    """A data set by name: a module of ``tesserec.data.sources``, ``"online_retail"`` for one."""
    name: str | None = None
    """Which of the source's data sets, where it has several."""
    folder: Path | None = None
    """A local copy of the source; None downloads it (Online Retail comes with the package)."""
    events: Path | None = None
    """File of events: Parquet, CSV, TSV, JSON lines or ``.inter``."""
    items: Path | None = None
    """File of items, in the same formats (or ``.item``); without one only the ids of the events are known."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our column name → the name in the events file, where the two differ and no alias is known."""
    item_columns: dict[str, str] = field(default_factory=dict)
    """The same for the items file."""
    positive_kinds: tuple[str, ...] = ()
    """Kinds of events that may be targets; all where this is empty."""
    unknown_items: Literal["error", "drop"] = "error"
    """What to do with events of items that the items file does not hold."""
    min_user_events: Annotated[int, Field(ge=1)] = 1
    """k-core: users with fewer events are dropped."""
    min_item_events: Annotated[int, Field(ge=1)] = 1
    """k-core: items with fewer events are dropped."""

    def __post_init__(self) -> None:
        if self.source is not None and self.events is not None:
            raise RecipeError(
                f"gives both source = {self.source!r} and events = {str(self.events)!r}: keep one of them"
            )


@component
class FitConfig:
    """How components are fitted."""

    refit: bool = True
    """After the evaluation, fit again on all events (starting from the first fit) for serving."""
    equal_training_time: bool = False
    """Give each baseline that trains step by step as many seconds as the retriever took."""
    device: str = "cpu"
    """Torch device; only ``"cpu"`` is supported yet."""
    num_threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of torch while fitting and judging; None: its own choice. Fewer are faster where others use the cores."""


@component
class EvaluationConfig:
    """What is measured on the withheld events."""

    ks: tuple[Annotated[int, Field(ge=1)], ...] = (5, 10)
    """Cut-offs of the metrics."""
    refit: bool = False
    """Judge methods that were fitted again on train and validation, instead of on train alone."""
    num_requests: Annotated[int, Field(ge=1)] | None = None
    """Judge this many requests, drawn with the seed; None judges all."""


@dataclass(frozen=True)
class Recipe:
    """A whole system as settings: components not yet fitted, and how to fit and judge them."""

    retriever: Retriever
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    embedder: Embedder | None = None
    quantizer: Quantizer | CodesFile | None = None
    collisions: Collisions = "digit"
    baselines: Mapping[str, Retriever] = field(default_factory=dict)
    fit: FitConfig = field(default_factory=FitConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def name(self) -> str:
        """What the retriever is called in tables and file names: its class in lower case."""
        return type(self.retriever).__name__.lower()

    def table(self) -> dict[str, Any]:
        """Plain tables, ready for JSON, from which ``parse_recipe`` makes the same recipe."""
        out: dict[str, Any] = {"seed": self.seed, "data": settings_of(self.data), "split": settings_of(self.split)}
        if self.embedder is not None:
            out["embedder"] = described(self.embedder)
        if self.quantizer is not None:
            out["semantic_ids"] = {**described(self.quantizer), "collisions": self.collisions}
        out["retriever"] = described(self.retriever)
        out["baselines"] = {name: described(baseline) for name, baseline in self.baselines.items()}
        return {**out, "fit": settings_of(self.fit), "evaluation": settings_of(self.evaluation)}

    def digest(self) -> str:
        """Sixteen hexadecimal digits that differ when any setting does."""
        return hashlib.sha256(json.dumps(self.table(), sort_keys=True).encode()).hexdigest()[:16]


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file; relative paths of its data are seen from the file's folder."""
    recipe = parse_recipe(load_toml(path))
    return dataclasses.replace(recipe, data=located(recipe.data, path.parent))


def located(data: Data, folder: Path) -> Data:
    """The settings with relative paths seen from ``folder``."""
    paths = {name: getattr(data, name) for name in ("folder", "events", "items")}
    absolute: dict[str, Any] = {n: folder / p for n, p in paths.items() if p is not None}
    return dataclasses.replace(data, **absolute)


def parse_recipe(table: Mapping[str, Any]) -> Recipe:
    """The recipe in TOML tables; raises ``RecipeError`` for what does not exist or is out of range."""
    for key in table:
        if key not in SECTIONS:
            raise RecipeError(f"[{key}] is not a table of a recipe{did_you_mean(key, list(SECTIONS))}")
    if "retriever" not in table:
        raise RecipeError('the recipe has no [retriever]: add one, such as class = "tesserec.retrievers.mosaic:Mosaic"')
    quantizer, collisions = _semantic_ids(table)
    return Recipe(
        retriever=_retriever(_section(table, "retriever"), "retriever"),
        seed=_seed(table),
        data=build(DataConfig, _section(table, "data"), "data"),
        split=build(SplitConfig, _section(table, "split"), "split"),
        embedder=_built(_section(table, "embedder"), "embedder", Embedder) if "embedder" in table else None,
        quantizer=quantizer,
        collisions=collisions,
        baselines=_baselines(table),
        fit=build(FitConfig, _section(table, "fit"), "fit"),
        evaluation=build(EvaluationConfig, _section(table, "evaluation"), "evaluation"),
    )


def default_recipe(catalog: Catalog) -> Recipe:
    """What is fitted when no recipe is given: Mosaic over text where items have some, else over co-occurrence."""
    text = any(text.strip() for text in catalog.texts)
    embedder = "tfidf_svd:TfidfSVD" if text else "cooccurrence_svd:CooccurrenceSVD"
    counting = ("popularity:Popularity", "personal_frequency:PersonalFrequency", "cooccurrence:Cooccurrence")
    return parse_recipe(
        {
            "embedder": {"class": f"tesserec.embedders.{embedder}"},
            "semantic_ids": {"class": "tesserec.semantic_ids.rq_kmeans:ResidualKMeans"},
            "retriever": {"class": "tesserec.retrievers.mosaic:Mosaic"},
            "baselines": {c.partition(":")[0]: {"class": f"tesserec.retrievers.{c}"} for c in counting},
        }
    )


def _section(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = table.get(key, {})
    if not isinstance(part, Mapping):
        raise RecipeError(f"{key} = {part!r}: expected a table, [{key}]")
    return part


def _seed(table: Mapping[str, Any]) -> int:
    seed = table.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise RecipeError(f"seed = {seed!r}: expected an integer of 0 or more")
    return seed


def _semantic_ids(table: Mapping[str, Any]) -> tuple[Quantizer | CodesFile | None, Collisions]:
    if "semantic_ids" not in table:
        return None, "digit"
    settings = dict(_section(table, "semantic_ids"))
    collisions = settings.pop("collisions", "digit")
    if collisions not in get_args(Collisions):
        raise RecipeError(f'semantic_ids.collisions = {collisions!r}: expected "digit" or "bucket"')
    made = _built(settings, "semantic_ids", Quantizer | CodesFile)
    if not isinstance(made, CodesFile) and "embedder" not in table:
        raise RecipeError("[semantic_ids] needs vectors to quantize: add an [embedder]")
    return made, collisions


def _baselines(table: Mapping[str, Any]) -> dict[str, Retriever]:
    tables = _section(table, "baselines")
    own = str(_section(table, "retriever").get("class", "")).partition(":")[2].lower()
    for name in tables:
        if not re.fullmatch(r"[a-z0-9_]+", name) or name == own:
            raise RecipeError(f"[baselines.{name}] needs another name: lower-case letters, digits and _, not {own}")
    return {name: _retriever(part, f"baselines.{name}") for name, part in tables.items()}


def _retriever(table: Any, where: str) -> Retriever:
    if not isinstance(table, Mapping):
        raise RecipeError(f"{where} = {table!r}: expected a table, [{where}]")
    retriever: Retriever = _built(table, where, Retriever)
    return retriever


def _built(table: Mapping[str, Any], where: str, protocol: Any) -> Any:
    made = build_component(table, where)
    if not isinstance(made, protocol):
        name = getattr(protocol, "__name__", "Quantizer")
        raise RecipeError(f'{where}.class = "{table["class"]}" cannot be used here: it is not a {name}')
    return made
