"""The pipeline: the only place where the stages meet.

    read data ► split (checked for leaks) ► embed ► Semantic IDs ► fit on train (validation for choices) ► judge on test
                                                             ► each baseline likewise ► fit on everything, for serving

The result holds two fitted states of the retriever. The *holdout* state has seen the training events only: published
figures judge it, and ``judge_holdout`` computes the same ones again. The *serving* state has seen everything and
answers. ``update`` brings a system up to date with later events: they first judge the state that had not seen them.
"""

import dataclasses
import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tesserec.bundle import (
    Content,
    Contents,
    MethodRecord,
    data_digest,
    load_content,
    load_report,
    load_state,
    save_content,
    save_report,
    save_state,
)
from tesserec.config import did_you_mean, fresh
from tesserec.data import sources
from tesserec.data.catalog import align_catalog, catalog_of, read_catalog
from tesserec.data.interactions import k_core, read_events
from tesserec.data.splits import Split, split
from tesserec.data.tables import Source
from tesserec.errors import RecipeError
from tesserec.evaluation.evaluate import evaluate
from tesserec.evaluation.report import Report
from tesserec.recipe import DataConfig, Recipe, parse_recipe
from tesserec.semantic_ids.build import fit_semantic_ids
from tesserec.semantic_ids.codes_file import CodesFile
from tesserec.semantic_ids.expansion import expand
from tesserec.semantic_ids.table import add_items
from tesserec.training.measure import Measured, memory_kept
from tesserec.types import (
    Catalog,
    ComponentState,
    Embedder,
    Estimates,
    FitContext,
    HasTrainingLog,
    Holdout,
    Interactions,
    ItemEmbeddings,
    Progress,
    Quantizer,
    Retriever,
    SideInformation,
    TakesNewItems,
    Vocabulary,
    as_numpy,
    silent,
)
from tesserec.work import Work

__all__ = [
    "embedded",
    "extended_content",
    "fit",
    "fit_context",
    "holdout_of",
    "holdout_retriever",
    "judge_holdout",
    "make_content",
    "quantizer_of",
    "read_data",
    "restored",
    "serving_context",
    "serving_retriever",
    "stamped",
    "tokenized",
    "training_block",
    "update",
]

Tell = Callable[[str], None]
"""Told, one line at a time, what a person should know about a stage."""

_NUM_ITEMS = "tesserec.num_items"


def quiet(line: str) -> None:
    """A ``Tell`` that says nothing."""


def read_data(
    config: DataConfig, events: Source | None = None, items: Source | None = None
) -> tuple[Interactions, Catalog]:
    """The events and items that a recipe names, after its k-core filter; ``events`` and ``items`` replace its files.

    Raises ``RecipeError`` where no events are named, and whatever reading them raises.
    """
    events = config.events if events is None else events
    items = config.items if items is None else items
    if events is not None:
        interactions, catalog = _read_tables(config, events, items)
    elif config.source is not None:
        interactions, catalog = _load_source(config, config.source)
    else:
        raise RecipeError("no data is named: add source or events to [data] of the recipe, or give --events FILE")
    if config.min_user_events == 1 and config.min_item_events == 1:
        return interactions, catalog
    interactions = k_core(interactions, config.min_user_events, config.min_item_events)
    return interactions, align_catalog(catalog, interactions.items)


def _load_source(config: DataConfig, source: str) -> tuple[Interactions, Catalog]:
    known = [module.name for module in pkgutil.iter_modules(sources.__path__) if module.name != "files"]
    if source not in known:
        raise RecipeError(f"data.source = {source!r} is not a source{did_you_mean(source, known)}")
    load = importlib.import_module(f"tesserec.data.sources.{source}").load
    loaded: tuple[Interactions, Catalog] = load(config.name or source.replace("_", "-"), config.folder)
    return loaded


def _read_tables(config: DataConfig, events: Source, items: Source | None) -> tuple[Interactions, Catalog]:
    catalog = None if items is None else read_catalog(items, columns=config.item_columns)
    interactions = read_events(
        events,
        columns=config.columns,
        positive_kinds=config.positive_kinds,
        items=None if catalog is None else catalog.items,
        unknown_items=config.unknown_items,
    )
    return interactions, catalog_of(interactions) if catalog is None else catalog


def fit(
    recipe: Recipe,
    interactions: Interactions,
    catalog: Catalog,
    *,
    work_folder: Path | None = None,
    progress: Progress = silent,
    tell: Tell = quiet,
) -> Contents:
    """Everything from data to a judged system; what is finished is kept in ``work_folder`` until all is.

    A run that was stopped goes on where it stopped when it is called again with the same arguments. Raises
    ``TrainingInterrupted`` at Ctrl-C, ``LeakError`` where training events know of test answers, and whatever the
    stages raise.
    """
    _check_device(recipe.fit.device)
    with training_block(recipe.fit.num_threads):
        return _fit(recipe, interactions, catalog, work_folder, progress, tell)


def _fit(  # noqa: PLR0917  # the arguments of ``fit``
    recipe: Recipe,
    interactions: Interactions,
    catalog: Catalog,
    work_folder: Path | None,
    progress: Progress,
    tell: Tell,
) -> Contents:
    work = Work(work_folder, f"{recipe.digest()}-{data_digest(interactions, catalog)}")
    if work.resumed:
        tell(f"continuing the run that was stopped, from {work_folder}")
    parts = split(interactions, recipe.split)
    content = work.stage(
        "content",
        partial(make_content, recipe, catalog, parts.train, progress),
        lambda place, made: save_content(place, made, catalog.items),
        lambda place: load_content(place, catalog.items),
    )
    context = fit_context(recipe, content, progress, parts.validation)
    run = _Run(recipe, parts, catalog, context, work, tell)
    judged = _judge_all(run, {recipe.name: recipe.retriever, **recipe.baselines})
    serving = judged[recipe.name].state
    if recipe.fit.refit:
        serving = _served(run, interactions, serving)
    work.remove()
    return _contents(run, interactions, content, serving, judged)


def update(
    contents: Contents,
    interactions: Interactions,
    catalog: Catalog,
    *,
    work_folder: Path | None = None,
    progress: Progress = silent,
    tell: Tell = quiet,
) -> Contents:
    """The system with later events: a nightly run.

    ``interactions`` and ``catalog`` hold what ``contents`` held, and more at the end of each user and of the items
    (``tesserec.data.append``). The events since then are the test of the state that served until now, whose figures
    are published; baselines that count are judged on the same, and the state is fitted on from where it was. Codes
    of new items come from the frozen codebooks.
    """
    recipe = parse_recipe(contents.recipe)
    recipe = _nightly(recipe, contents)
    _check_device(recipe.fit.device)
    work = Work(work_folder, f"{recipe.digest()}-{data_digest(interactions, catalog)}")
    parts = split(interactions, recipe.split)
    content = extended_content(recipe, contents.content, catalog)
    run = _Run(recipe, parts, catalog, fit_context(recipe, content, progress), work, tell)
    with training_block(recipe.fit.num_threads):
        judged = {recipe.name: _judge_served(run, contents), **_judge_all(run, recipe.baselines)}
        serving = _served(run, interactions, contents.serving)
    work.remove()
    return _contents(run, interactions, content, serving, judged)


def _nightly(recipe: Recipe, contents: Contents) -> Recipe:
    """The recipe, asking what came after the events of ``contents``; only baselines that count are fitted again."""
    times = as_numpy(contents.interactions.positives().time_E)
    since = int(contents.interactions.time_E.max()) + 1
    config = dataclasses.replace(
        recipe.split, protocol="global_time", t1=int(np.quantile(times, 0.9, method="higher")), t2=since
    )
    counting = {name: one for name, one in recipe.baselines.items() if not contents.records[name].training_log}
    evaluation = dataclasses.replace(recipe.evaluation, refit=True)
    return dataclasses.replace(recipe, split=config, baselines=counting, evaluation=evaluation)


def extended_content(recipe: Recipe, content: Content, catalog: Catalog) -> Content:
    """Vectors and codes for a catalog with new items at its end; those of the items before stay as they are."""
    known = _num_known(content, len(catalog))
    if known == len(catalog):
        return content
    later = Catalog(Vocabulary(catalog.items.ids[known:]), catalog.frame[known:])
    vectors = embeddings = None
    if recipe.embedder is not None and content.embeddings is not None and content.embedder is not None:
        vectors = _embedded_later(recipe.embedder, content.embedder, later)
        embeddings = _joined(content.embeddings, vectors)
    semantic_ids = content.semantic_ids
    if isinstance(recipe.quantizer, CodesFile) and semantic_ids is not None:
        semantic_ids = add_items(semantic_ids, recipe.quantizer.read(later.items)[0])
    elif isinstance(recipe.quantizer, Quantizer) and semantic_ids is not None:
        quantizer = quantizer_of(recipe, content)
        assert vectors is not None, "a quantizer has an embedder"
        assert quantizer is not None, "codes come with their codebooks"
        semantic_ids = expand(semantic_ids, quantizer, vectors.vectors_ND)
    return dataclasses.replace(content, embeddings=embeddings, semantic_ids=semantic_ids)


def quantizer_of(recipe: Recipe, content: Content) -> Quantizer | None:
    """The fitted quantizer of the content that ``recipe`` made; None where there are no codebooks."""
    if content.codebooks is None:
        return None
    assert isinstance(recipe.quantizer, Quantizer), "codes of the user's own have no codebooks"
    quantizer = fresh(recipe.quantizer)
    quantizer.restore(content.codebooks)
    return quantizer


def restored(prototype: Retriever, state: ComponentState, catalog: Catalog, context: FitContext) -> Retriever:
    """A fitted retriever from its state; items that the catalog has beyond those of its fit are added, where it can.

    A retriever that cannot take them answers with the items of its fit.
    """
    fitted = int(state.metadata[_NUM_ITEMS])
    retriever = fresh(prototype)
    retriever.restore(state, first_items(catalog, fitted), _first_of_context(context, fitted))
    if fitted < len(catalog) and isinstance(retriever, TakesNewItems):
        retriever.add_items(catalog, context)
    return retriever


def serving_context(contents: Contents) -> FitContext:
    """What the serving retriever is restored with: vectors and codes of all items."""
    context = fit_context(parse_recipe(contents.recipe), contents.content, silent)
    return dataclasses.replace(context, derived_folder=contents.derived_folder)


def serving_retriever(contents: Contents) -> Retriever:
    """The retriever that answers, ready to."""
    prototype = parse_recipe(contents.recipe).retriever
    return restored(prototype, contents.serving, contents.catalog, serving_context(contents))


def holdout_of(contents: Contents) -> tuple[Split, Holdout]:
    """The split of the fit, and those of its test questions that were judged."""
    recipe = parse_recipe(contents.recipe)
    parts = split(contents.interactions, recipe.split)
    return parts, _judged_part(recipe, parts)


def holdout_retriever(contents: Contents) -> Retriever:
    """The retriever that saw the training events only, ready to answer with the items that it was fitted with."""
    recipe = parse_recipe(contents.recipe)
    catalog = first_items(contents.catalog, len(contents.interactions.items))
    context = _first_of_context(fit_context(recipe, contents.content, silent), len(catalog))
    return restored(recipe.retriever, contents.holdout, catalog, context)


def judge_holdout(contents: Contents, progress: Progress = silent) -> Report:
    """The published report again, from the holdout state: the same figures, with the published costs."""
    recipe = parse_recipe(contents.recipe)
    parts = split(contents.interactions, recipe.split)
    catalog = first_items(contents.catalog, len(contents.interactions.items))
    context = _first_of_context(fit_context(recipe, contents.content, progress), len(catalog))
    run = _Run(recipe, parts, catalog, context, Work(None, ""), quiet)
    report = _report(run, recipe.name, restored(recipe.retriever, contents.holdout, catalog, context), {})
    return dataclasses.replace(report, costs=contents.reports[contents.method].costs)


def first_items(catalog: Catalog, number: int) -> Catalog:
    """The catalog without the items after the first ``number``."""
    if number == len(catalog):
        return catalog
    available_N = None if catalog.available_N is None else catalog.available_N[:number]
    return Catalog(Vocabulary(catalog.items.ids[:number]), catalog.frame[:number], available_N)


@dataclass(frozen=True)
class _Run:
    """What is the same for every method of one run."""

    recipe: Recipe
    parts: Split
    catalog: Catalog
    context: FitContext
    work: Work
    tell: Tell


@dataclass(frozen=True)
class _Judged:
    state: ComponentState
    record: MethodRecord
    report: Report


def make_content(recipe: Recipe, catalog: Catalog, train: Interactions, progress: Progress) -> Content:
    """Vectors and codes of the items, as the recipe says; what learns from events learns from ``train``."""
    return tokenized(recipe, embedded(recipe, catalog, train, progress), catalog, train, progress)


def embedded(recipe: Recipe, catalog: Catalog, train: Interactions, progress: Progress) -> Content:
    """The vectors alone; nothing where the recipe names no embedder."""
    if recipe.embedder is None:
        return Content()
    progress("embed", 0, 1)
    embedder = fresh(recipe.embedder)
    embeddings = embedder.embed(catalog, train)
    progress("embed", 1, 1, f"{embeddings.vectors_ND.shape[1]} features")
    return Content(embeddings, embedder=embedder.state())


def _embedded_later(prototype: Embedder, state: ComponentState, catalog: Catalog) -> ItemEmbeddings:
    embedder = fresh(prototype)
    embedder.restore(state)
    return embedder.embed_new(catalog)


def tokenized(recipe: Recipe, content: Content, catalog: Catalog, train: Interactions, progress: Progress) -> Content:
    """``content`` with the codes of its vectors; as it is where the recipe names no quantizer."""
    if recipe.quantizer is None:
        return content
    source = fresh(recipe.quantizer)
    positives = train.positives()
    side = SideInformation(
        seed=recipe.seed, device=recipe.fit.device, progress=progress, train=positives, catalog=catalog
    )
    if recipe.embedder is not None and content.embedder is not None:
        side = dataclasses.replace(side, embed=partial(_embedded_later, recipe.embedder, content.embedder))
    counts_N = positives.item_counts()
    semantic_ids = fit_semantic_ids(
        source, catalog, content.embeddings, side, collisions=recipe.collisions, popularity_N=counts_N
    )
    codebooks = None if isinstance(source, CodesFile) else source.state()
    return dataclasses.replace(content, semantic_ids=semantic_ids, codebooks=codebooks)


def _judge_all(run: _Run, methods: Mapping[str, Retriever]) -> dict[str, _Judged]:
    """Each method, fitted on train and judged on test; the retriever comes before its baselines."""
    judged: dict[str, _Judged] = {}
    for name, prototype in methods.items():
        deadline_s = None
        if run.recipe.fit.equal_training_time and run.recipe.name in judged:
            deadline_s = judged[run.recipe.name].record.training_s
        context = dataclasses.replace(run.context, deadline_s=deadline_s, checkpoint_folder=run.work.checkpoints(name))
        make = partial(_judge, run, name, prototype, context)
        judged[name] = run.work.stage(f"methods/{name}", make, _save_judged, _load_judged)
    return judged


def _judge(run: _Run, name: str, prototype: Retriever, context: FitContext) -> _Judged:
    retriever, train = fresh(prototype), run.parts.train
    run.tell(f"fitting {name} on {len(train):,} events{_expected(retriever, train, run.catalog, context)}")
    with Measured() as cost:
        retriever.fit(train, run.catalog, context)
        if run.recipe.evaluation.refit:
            again = dataclasses.replace(context, validation=None, warm_start=retriever.state(), checkpoint_folder=None)
            retriever = fresh(prototype)
            retriever.fit(run.parts.refit, run.catalog, again)
    state = stamped(retriever.state(), run.catalog)
    log = retriever.training_log if isinstance(retriever, HasTrainingLog) else []
    record = MethodRecord(list(log), context.deadline_s is not None and bool(log))
    costs = {
        "train_s": cost.seconds if record.training_s is None else record.training_s,
        "fit_s": cost.seconds,
        "peak_rss_bytes": float(cost.peak_rss_bytes),
        "parameters": float(sum(tensor.numel() for tensor in state.tensors.values())),
    }
    report = _report(run, name, retriever, costs)
    return _Judged(state, record, report)


def _judge_served(run: _Run, contents: Contents) -> _Judged:
    """The state that served until now, judged on what came since."""
    retriever = restored(run.recipe.retriever, contents.serving, run.catalog, run.context)
    costs = contents.reports[contents.method].costs
    report = _report(run, contents.method, retriever, costs)
    return _Judged(contents.serving, contents.records[contents.method], report)


def _report(run: _Run, name: str, retriever: Retriever, costs: Mapping[str, float]) -> Report:
    kind, refit = type(retriever).__name__, run.recipe.evaluation.refit
    return evaluate(
        retriever,
        _judged_part(run.recipe, run.parts),
        train=run.parts.refit if refit else run.parts.train,
        catalog=run.catalog,
        ks=run.recipe.evaluation.ks,
        label=kind if name.replace("_", "") == kind.lower() else f"{kind} ({name})",
        split=f"{run.parts.name}.test",
        refit=refit,
        seed=run.recipe.seed,
        costs=costs,
        progress=run.context.progress,
    )


def _served(run: _Run, interactions: Interactions, start: ComponentState) -> ComponentState:
    """The state that answers: fitted on all events, from ``start``."""
    name = run.recipe.name
    run.tell(f"fitting {name} again on all {len(interactions):,} events, for serving")
    context = dataclasses.replace(
        run.context, validation=None, warm_start=start, checkpoint_folder=run.work.checkpoints("serving")
    )

    def make() -> ComponentState:
        retriever = fresh(run.recipe.retriever)
        retriever.fit(interactions, run.catalog, context)
        return stamped(retriever.state(), run.catalog)

    return run.work.state("serving", make)


@contextmanager
def training_block(number: int | None) -> Iterator[None]:
    """What every fit runs in: torch uses ``number`` threads (None: as many as before), and freed memory is kept."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        with memory_kept():
            yield
    finally:
        torch.set_num_threads(before)


def _check_device(device: str) -> None:
    if device != "cpu":  # batches and tries are not moved yet, and nothing was ever run on another device
        raise RecipeError(f'fit.device = {device!r} is not supported yet: leave it out, or say "cpu"')


def _judged_part(recipe: Recipe, parts: Split) -> Holdout:
    wanted = recipe.evaluation.num_requests
    if wanted is None or wanted >= len(parts.test):
        return parts.test
    generator = torch.Generator().manual_seed(recipe.seed)
    return parts.test.take(torch.randperm(len(parts.test), generator=generator)[:wanted].sort().values)


def _expected(retriever: Retriever, train: Interactions, catalog: Catalog, context: FitContext) -> str:
    if not isinstance(retriever, Estimates):
        return ""
    expected = retriever.estimate(train, catalog, context)
    return f": about {expected.seconds:,.0f} s and {expected.peak_bytes / 2**30:.1f} GiB of memory"


def fit_context(recipe: Recipe, content: Content, progress: Progress, validation: Holdout | None = None) -> FitContext:
    """What a fit by the recipe may use; an empty validation part is none."""
    return FitContext(
        validation=validation if validation is not None and len(validation) else None,
        embeddings=content.embeddings,
        semantic_ids=content.semantic_ids,
        seed=recipe.seed,
        device=recipe.fit.device,
        progress=progress,
    )


def _first_of_context(context: FitContext, number: int) -> FitContext:
    """The context with vectors and codes of the first ``number`` items only."""
    embeddings, codes = context.embeddings, context.semantic_ids
    if embeddings is not None:
        missing_N = None if embeddings.missing_N is None else embeddings.missing_N[:number]
        embeddings = ItemEmbeddings(embeddings.vectors_ND[:number], embeddings.source, missing_N)
    if codes is not None:
        whole, codes = len(codes) == number, dataclasses.replace(codes, codes_NL=codes.codes_NL[:number])
        context = context if whole else dataclasses.replace(context, derived_folder=None)
    return dataclasses.replace(context, embeddings=embeddings, semantic_ids=codes)


def _joined(first: ItemEmbeddings, second: ItemEmbeddings) -> ItemEmbeddings:
    missing = [
        torch.zeros(len(part.vectors_ND), dtype=torch.bool) if part.missing_N is None else part.missing_N
        for part in (first, second)
    ]
    return ItemEmbeddings(torch.cat([first.vectors_ND, second.vectors_ND]), first.source, torch.cat(missing))


def _num_known(content: Content, otherwise: int) -> int:
    """Items that have vectors or codes."""
    if content.embeddings is not None:
        return len(content.embeddings.vectors_ND)
    return otherwise if content.semantic_ids is None else len(content.semantic_ids)


def stamped(state: ComponentState, catalog: Catalog) -> ComponentState:
    """The state with the number of items it was fitted with, which ``restored`` reads."""
    return ComponentState(state.tensors, {**state.metadata, _NUM_ITEMS: str(len(catalog))})


def _save_judged(place: Path, judged: _Judged) -> None:
    save_state(place / "state.safetensors", judged.state)
    save_report(place / "report.json", judged.report)
    (place / "record.json").write_text(json.dumps(dataclasses.asdict(judged.record)), encoding="utf-8")


def _load_judged(place: Path) -> _Judged:
    record = MethodRecord(**json.loads((place / "record.json").read_text(encoding="utf-8")))
    return _Judged(load_state(place / "state.safetensors"), record, load_report(place / "report.json"))


def _contents(
    run: _Run, interactions: Interactions, content: Content, serving: ComponentState, judged: Mapping[str, _Judged]
) -> Contents:
    return Contents(
        method=run.recipe.name,
        recipe=run.recipe.table(),
        recipe_digest=run.recipe.digest(),
        interactions=interactions,
        catalog=run.catalog,
        serving=serving,
        holdout=judged[run.recipe.name].state,
        reports={name: one.report for name, one in judged.items()},
        records={name: one.record for name, one in judged.items()},
        content=content,
    )
