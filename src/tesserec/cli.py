"""The command line: ``tesserec doctor | fit | evaluate | recommend | compare | report | bench | split | sids | serve``.

Results go to standard output (``--json`` makes them JSON), progress and messages to standard error. What a caller can
do something about is one line, ``error: …``, and exit code 2; a training stopped by Ctrl-C is exit code 130 and goes on
when the same command is given again. Commands import what they need when they run, so that ``--help`` is quick.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from tesserec.errors import DataError, RecipeError, TesserecError, TrainingInterrupted
from tesserec.files import check_file, completed
from tesserec.serving_cli import serve, service_app
from tesserec.sids_cli import sids_app
from tesserec.terminal import JsonOption, StandardError, bars, out, print_json, say

if TYPE_CHECKING:
    import polars as pl

    from tesserec.bundle import Contents
    from tesserec.evaluation.evaluate import PairedTest
    from tesserec.evaluation.report import Report
    from tesserec.recipe import Recipe
    from tesserec.recommender import Recommender

__all__ = ["app", "main"]

STOPPED = 130
"""Exit code after Ctrl-C, as shells have it."""


class Commands(TyperGroup):
    """Turns errors that a caller can do something about into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except TrainingInterrupted as error:
            say(f"stopped: {error}")
            ctx.exit(STOPPED)
        except TesserecError as error:
            say(f"error: {error}")
            ctx.exit(2)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From an interaction log and a catalog to a generative recommender: trained, honestly evaluated, served.",
)
split_app = typer.Typer(no_args_is_help=True, help="Splits as files, so that anyone's output can be judged on them.")
app.add_typer(split_app, name="split")
app.add_typer(sids_app, name="sids")
app.add_typer(service_app, name="service")
app.command()(serve)

BundleArgument = Annotated[Path, typer.Argument(help="Folder that `tesserec fit` wrote.")]


def main() -> None:
    """Entry point of the ``tesserec`` script."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[StandardError()])
    logging.captureWarnings(True)
    warnings.formatwarning = _warning_line
    app()


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Show what this machine has, what is missing and how to get it."""
    from tesserec.doctor import examine

    checks = examine()
    if as_json:
        print_json([dataclasses.asdict(check) for check in checks])
        return
    table = Table(show_header=False, box=None)
    signs = {"ok": "[green]✓[/]", "optional": "[dim]–[/]", "low": "[yellow]![/]"}
    for check in checks:
        table.add_row(signs[check.state], escape(check.name), check.found, f"[dim]{escape(check.remedy)}[/]")
    out().print(table)


@app.command()
def fit(
    recipe: Annotated[Path | None, typer.Argument(help="TOML file; without one, Mosaic with its defaults.")] = None,
    *,
    bundle: Annotated[Path, typer.Option("--out", help="Where the bundle is written.")],
    events: Annotated[Path | None, typer.Option(help="File of events, instead of the recipe's.")] = None,
    items: Annotated[Path | None, typer.Option(help="File of items, instead of the recipe's.")] = None,
    since: Annotated[Path | None, typer.Option("--from", help="Bundle to train on, with --events since then.")] = None,
    page: Annotated[Path | None, typer.Option("--report", help="Also write the HTML report there.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's.")] = None,
    device: Annotated[str | None, typer.Option(help="Torch device, instead of the recipe's; only cpu yet.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Fit even where the same bundle is there already.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fit, judge and write a system; says where the bundle is and how good it is."""
    from tesserec.recommender import Recommender, work_folder_of

    if since is not None and (events is None or recipe is not None):
        raise RecipeError("--from BUNDLE needs --events FILE, the events since then, and takes no recipe: it has one")
    if page is not None:
        check_file(page)
    try:
        with bars() as progress:
            if since is not None and events is not None:
                before = Recommender.load(since)
                fitted = before.updated(events, items, out=bundle, progress=progress, tell=say)
            else:
                chosen = _recipe(recipe, seed, device)
                fitted = Recommender.fit(
                    events, items, recipe=chosen, out=bundle, again=again, progress=progress, tell=say
                )
    except KeyboardInterrupt:
        say(f"stopped: what is finished is in {work_folder_of(bundle)}; the same command goes on from there")
        raise typer.Exit(STOPPED) from None
    _print_reports(fitted.contents, as_json)
    if page is not None:
        _write_page(fitted, page)
    say(f"bundle: {bundle}")


@app.command()
def evaluate(
    bundle: Annotated[Path | None, typer.Argument(help="Folder that `tesserec fit` wrote.")] = None,
    scores: Annotated[Path | None, typer.Option(help="Recommendations of any system, as a table.")] = None,
    split: Annotated[Path | None, typer.Option(help="Folder of `tesserec split export`, to judge them on.")] = None,
    ks: Annotated[list[int] | None, typer.Option("--k", min=1, help="Cut-off for --scores; may be repeated.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge a bundle again on its test events, or anyone's recommendations on an exported split."""
    if bundle is not None and scores is None and split is None:
        from tesserec.bundle import Bundle
        from tesserec.pipeline import judge_holdout

        contents = Bundle.open(bundle).contents()
        with bars() as progress:
            own = judge_holdout(contents, progress)
        reports = {**contents.reports, contents.method: own}
        _print_reports(dataclasses.replace(contents, reports=reports), as_json)
    elif bundle is None and scores is not None and split is not None:
        from tesserec.evaluation.judge import judge

        report = judge(scores, split, ks=tuple(ks or (5, 10)))
        if as_json:
            print_json(report.to_dict())
        else:
            _print_tables([report], f"ndcg{max(ks or (10,))}")
    else:
        raise RecipeError("give either a bundle, or --scores FILE together with --split FOLDER")


@app.command()
def recommend(
    bundle: BundleArgument,
    *,
    user: Annotated[str | None, typer.Option(help="A user of the data.")] = None,
    history: Annotated[str | None, typer.Option(help="Item ids, oldest first: a,b,c. For somebody new.")] = None,
    users: Annotated[str | None, typer.Option(help='A file of users (lines, or a table), or "all".')] = None,
    destination: Annotated[Path | None, typer.Option("--out", help="Parquet file for --users.")] = None,
    k: Annotated[int, typer.Option(min=1, help="Items a list.")] = 10,
    exclude: Annotated[str | None, typer.Option(help="Item ids that must not be recommended: a,b,c.")] = None,
    unseen: Annotated[bool | None, typer.Option("--unseen/--seen", help="Leave out what they had, or not.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show where each item comes from.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the model; all cores without it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Recommend to a user, to somebody with a history, or to many users."""
    from tesserec.recommender import Recommender

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    if [user, history, users].count(None) != 2:
        raise RecipeError("give one of --user U, --history a,b,c and --users FILE|all")
    if (users is None) != (destination is None):
        raise RecipeError("--users FILE|all and --out FILE belong together: a list for many users is a Parquet file")
    if destination is not None and destination.suffix.lower() in (".csv", ".tsv", ".json", ".jsonl"):
        raise DataError(f"--out {destination} would be a Parquet file: name it so, with the ending .parquet")
    if destination is not None:
        check_file(destination)
    recommender = Recommender.load(bundle)
    if users is not None and destination is not None:
        chosen = None if users == "all" else _users_in(Path(users))
        lists = partial(recommender.recommend_all, chosen, k=k, exclude=_ids(exclude or ""), exclude_history=unseen)
        _write_lists(lists, destination, explain)
        return
    found = recommender.recommend(
        None if user is None else [user],
        None if history is None else [_ids(history)],
        k=k,
        exclude=_ids(exclude or ""),
        exclude_history=unseen,
        explain=True,
    )
    past = recommender.history_of(user) if user is not None else _ids(history or "")
    if as_json:
        rows = found.drop("user_id", "note").to_dicts()
        shown = {"history": past[-20:], "history_length": len(past)}
        print_json({"user_id": user, "note": found["note"].first(), **shown, "items": rows})
    else:
        _print_list(recommender, user, past, found, explain)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A bundle, BUNDLE:method for one of its baselines, or a report's JSON.")],
    others: Annotated[list[str], typer.Argument(help="What to compare it with.")],
    metric: Annotated[str, typer.Option(help="A metric of the reports.")] = "ndcg10",
    as_json: JsonOption = False,
) -> None:
    """Test pairwise whether systems differ on the same requests."""
    from tesserec.evaluation.evaluate import compare as paired_test

    own = _report_at(first)
    tests = [paired_test(own, _report_at(other), metric) for other in others]
    if as_json:
        print_json([dataclasses.asdict(test) for test in tests])
    else:
        _print_differences(tests)


@app.command()
def report(
    bundle: BundleArgument,
    page: Annotated[Path | None, typer.Option("--out", help="Default: report.html beside the bundle.")] = None,
) -> None:
    """Write one HTML page: metrics, training, codes, and the lists of real users."""
    from tesserec.recommender import Recommender

    page = page or bundle.parent / "report.html"
    check_file(page)
    _write_page(Recommender.load(bundle), page)


@app.command()
def bench(
    suite: Annotated[Path, typer.Argument(help="TOML file: data sets, protocols, methods, seeds.")],
    *,
    data: Annotated[Path | None, typer.Option(help="What the suite's paths are seen from, instead of itself.")] = None,
    results: Annotated[Path, typer.Option("--out", help="Where lines and ranks are written.")] = Path("runs/ranks"),
    work: Annotated[Path, typer.Option(help="Where fitted states and checkpoints are kept.")] = Path("runs/bench"),
    only: Annotated[list[str] | None, typer.Option(help="Runs to do, such as 'beauty.*.ease.*'; repeatable.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once, each in a process of its own.")] = 1,
    listed: Annotated[bool, typer.Option("--list", help="Only show which runs are done.")] = False,
) -> None:
    """Compare methods on data sets: every run of a suite that is not done yet."""
    from tesserec.bench import carry_out, done_runs
    from tesserec.bench_results import Places, lines_of
    from tesserec.bench_suite import read_suite

    runs = read_suite(suite, data).runs(only or [])
    if listed:
        done = done_runs(runs, results)
        for run in runs:
            typer.echo(f"{'done' if run.name in done else 'to do'}\t{run.name}")
        return
    try:
        failed = carry_out(runs, Places(suite, results, work), jobs, say)
    except KeyboardInterrupt:
        say(f"stopped: checkpoints are in {work}; the same command goes on from there")
        raise typer.Exit(STOPPED) from None
    lines = lines_of(results)
    _print_runs([lines[run.name] for run in runs if run.name in lines and run.name not in failed])
    for name, error in failed.items():
        say(f"failed: {name}: {error}")
    if failed:
        raise typer.Exit(1)


@split_app.command("export")
def split_export(
    source: Annotated[Path, typer.Argument(help="A recipe (its data and split), or a bundle.")],
    folder: Annotated[Path, typer.Argument(help="Where the split is written.")],
) -> None:
    """Write train, validation and test as Parquet files."""
    from tesserec.bundle import Bundle
    from tesserec.data.split_files import export_split
    from tesserec.data.splits import split
    from tesserec.pipeline import read_data
    from tesserec.recipe import parse_recipe, read_recipe

    if source.is_dir():
        opened = Bundle.open(source)
        interactions, config = opened.interactions, parse_recipe(opened.manifest.recipe).split
    else:
        chosen = read_recipe(source)
        (interactions, _), config = read_data(chosen.data), chosen.split
    export_split(split(interactions, config), folder)
    say(f"split: {folder}")


def _recipe(path: Path | None, seed: int | None, device: str | None) -> Recipe | None:
    """The recipe of a file with what the command line says instead."""
    from tesserec.recipe import read_recipe

    if path is None:
        if seed is not None or device is not None:
            raise RecipeError("--seed and --device change a recipe: name one, such as recipes/mosaic.toml")
        return None
    recipe = read_recipe(path)
    if seed is not None:
        recipe = dataclasses.replace(recipe, seed=seed)
    return recipe if device is None else dataclasses.replace(recipe, fit=dataclasses.replace(recipe.fit, device=device))


def _write_lists(lists: Callable[..., Iterator[pl.DataFrame]], destination: Path, explain: bool) -> None:
    """Write the lists of many users, batch by batch; the file appears when it is complete."""
    import pyarrow.parquet as pq

    writer, rows = None, 0
    with bars() as progress, completed(destination) as part:
        try:
            for frame in lists(explain=explain, progress=progress):
                table = frame.to_arrow()
                writer = writer or pq.ParquetWriter(part, table.schema, compression="zstd")
                writer.write_table(table)
                rows += len(frame)
        finally:
            if writer is not None:
                writer.close()
    say(f"{rows:,} recommendations: {destination}")


def _users_in(path: Path) -> list[Any]:
    from tesserec.data.tables import open_table, to_frame

    if path.suffix in ("", ".txt"):
        if not path.is_file():
            raise DataError(f'no file of users at {path}: give one id a line, a table with user_id, or "all"')
        lines = path.read_text(encoding="utf-8").splitlines()
        users: list[Any] = [line.strip() for line in lines if line.strip()]
    else:
        frame = to_frame(open_table(path))
        if "user_id" not in frame.columns:
            raise DataError(f"{path} has the columns {', '.join(frame.columns)}: none is user_id")
        users = frame["user_id"].to_list()
    if not users:
        raise DataError(f"{path} names no users: give at least one")
    return users


def _ids(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _report_at(place: str) -> Report:
    """The report of a bundle, of one of its methods (``BUNDLE:method``), or in a JSON file."""
    from tesserec.bundle import Bundle, load_report
    from tesserec.config import did_you_mean

    folder, _, method = place.partition(":")
    if folder.endswith(".json"):
        if not Path(folder).is_file():
            raise DataError(f"no report at {folder}: give a bundle, or the JSON of a report")
        return load_report(Path(folder))
    bundle = Bundle.open(Path(folder))
    name = method or bundle.manifest.method
    if name not in bundle.reports:
        raise DataError(f"{folder} has no report of {name}{did_you_mean(name, list(bundle.reports))}")
    return bundle.reports[name]


def _write_page(recommender: Recommender, page: Path) -> None:
    from tesserec.report import write_report

    with bars() as progress:
        write_report(recommender, page, progress)
    say(f"report: {page}")


def _print_reports(contents: Contents, as_json: bool) -> None:
    """The retriever beside its baselines, and what the paired tests say."""
    from tesserec.evaluation.evaluate import compare as paired_test

    own = contents.reports[contents.method]
    metric = f"ndcg{max(int(name.removeprefix('ndcg')) for name in own.metrics if name.startswith('ndcg'))}"
    baselines = [report for name, report in contents.reports.items() if name != contents.method]
    tests = [paired_test(own, other, metric) for other in baselines]
    if as_json:
        reports = {name: one.to_dict() for name, one in contents.reports.items()}
        differences = [dataclasses.asdict(test) for test in tests]
        print_json({"method": contents.method, "reports": reports, "differences": differences})
        return
    equal = [name for name, record in contents.records.items() if record.equal_training_time]
    marked = [
        dataclasses.replace(one, label=f"{one.label} †") if name in equal else one
        for name, one in contents.reports.items()
    ]
    _print_tables(marked, metric)
    if equal:
        seconds = contents.records[contents.method].training_s
        out().print(f"† at equal training time: stopped after the {seconds:,.0f} s of training steps of {own.label}")
    if tests:
        _print_differences(tests)


def _print_tables(reports: list[Report], metric: str) -> None:
    from tesserec.evaluation.tables import metrics_table, slices_table

    out().print(metrics_table(reports, [metric.replace("ndcg", "recall"), metric]))
    out().print(slices_table(reports[:1] + sorted(reports[1:], key=lambda one: -one.metrics[metric].mean)[:1], metric))


def _print_runs(lines: Sequence[dict[str, Any]]) -> None:
    """What the runs found, each view of a method in a row of its own."""
    table = Table("run", "method")
    for heading in ("NDCG@10", "Recall@10", "CPU s of the fit"):
        table.add_column(heading, justify="right")
    for line in lines:
        for name, metrics in line["metrics"].items():
            figures = [f"{metrics[metric]:.4f}" for metric in ("ndcg10", "recall10")]
            table.add_row(line["run"], name, *figures, f"{line['train_cpu_s']:,.1f}")
    out().print(table)


def _print_differences(tests: Sequence[PairedTest]) -> None:
    first = tests[0]
    out().print(f"{first.first}: difference in {first.metric} on the same {first.num_requests:,} requests")
    table = Table("against")
    for heading in ("difference", "95 % interval", "p"):
        table.add_column(heading, justify="right")
    for test in tests:
        interval = rf"\[{test.low:+.4f}, {test.high:+.4f}]"
        table.add_row(escape(test.second), f"{test.difference:+.4f}", interval, f"{test.p_value:.4f}")
    out().print(table)


def _print_list(
    recommender: Recommender, user: str | None, past: list[Any], found: pl.DataFrame, explain: bool
) -> None:
    """One list with titles, after the last items of the history."""
    catalog = recommender.contents.catalog
    titles = [catalog.titles[i] for i in catalog.items.index(past[-5:], "item").tolist()]
    who = "somebody new" if user is None else f"user {user}"
    out().print(f"{who}, {len(past)} events" + (f", the last: {escape('; '.join(titles))}" if titles else ""))
    for note in found["note"].drop_nulls()[:1]:
        out().print(f"note: {note}")
    evidence = [name for name in found.columns[6:] if explain]
    table = Table("rank", "item_id", "title", "score", *evidence)
    for row in found.iter_rows(named=True):
        more = [f"{row[name] + 0:.4g}" if isinstance(row[name], float) else str(row[name]) for name in evidence]
        table.add_row(str(row["rank"]), escape(str(row["item_id"])), escape(row["title"]), f"{row['score']:.4g}", *more)
    out().print(table)


def _warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"warning: {message}"
