"""The commands ``tesserec sids fit | report | diff | browse``: Semantic IDs without a retriever.

A PLACE is a bundle, a folder of ``tesserec sids fit``, or a file of codes of any origin (``tesserec.semantic_ids.
codes_file`` says which); ``FILE:column=value`` are the rows of a file of several tokenizers' codes.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from tesserec.errors import DataError, RecipeError
from tesserec.files import check_file, completed
from tesserec.terminal import JsonOption, bars, out, print_json, say

if TYPE_CHECKING:
    from tesserec.recipe import Recipe
    from tesserec.semantic_ids.moves import Moves
    from tesserec.semantic_ids.report import SemanticIdReport
    from tesserec.sids import Sids

__all__ = ["sids_app"]

sids_app = typer.Typer(no_args_is_help=True, help="Semantic IDs: make them, look at them, compare them.")

_PLACE = "A bundle, a folder of `tesserec sids fit`, or a file of codes (FILE:column=value for some of its rows)."
_RECIPE = escape("TOML file with [data], [embedder], [semantic_ids]; without one, what `tesserec fit` has without one.")
_PAGE = "HTML file to write; sids.html where neither this nor --json is given."
Place = Annotated[str, typer.Argument(help=_PLACE)]
ItemsOption = Annotated[Path | None, typer.Option(help="File of items, for their titles.")]
EventsOption = Annotated[Path | None, typer.Option(help="File of events, for what is popular.")]
DigitOption = Annotated[
    bool, typer.Option("--digit", help="The last code of a file of your own is a collision digit, not content.")
]


@sids_app.command("fit")
def fit(
    recipe: Annotated[Path | None, typer.Argument(help=_RECIPE)] = None,
    *,
    place: Annotated[Path, typer.Option("--out", help="Folder, or a .parquet file for the table alone.")],
    events: Annotated[Path | None, typer.Option(help="File of events, instead of the recipe's.")] = None,
    items: Annotated[Path | None, typer.Option(help="File of items, instead of the recipe's.")] = None,
    since: Annotated[Path | None, typer.Option("--from", help="Folder to add the items of --items to.")] = None,
    like: Annotated[str | None, typer.Option(help="Earlier Semantic IDs, whose codes most items are to keep.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the Semantic IDs of a recipe, without a retriever, and say what they are like."""
    from tesserec.data.catalog import read_catalog
    from tesserec.sids import check_place, extend_sids, open_sids, with_labels_of, write

    if since is not None and (items is None or any(one is not None for one in (recipe, events, seed, like))):
        raise RecipeError(
            "--from FOLDER needs --items FILE, the new items, and takes neither a RECIPE nor --events, --seed or --like"
        )
    check_place(place)
    old = None if like is None else open_sids(like)
    if since is not None and items is not None:
        made = extend_sids(open_sids(since), read_catalog(items))
    else:
        made = _fitted(recipe, seed, events, items)
    if old is not None:
        made, kept = with_labels_of(made, old)
        now, before = (
            ", ".join(f"{1 - share:.1%}" for share in churn.prefixes) for churn in (kept.churn, kept.churn_unmatched)
        )
        say(f"items that keep their first codes, at each depth: {now} (without --like {before})")
    write(place, made)
    _print_diagnosis(made, as_json)
    say(f"Semantic IDs: {place}" + (" (the table alone)" if place.suffix == ".parquet" else ""))


@sids_app.command("report")
def report(
    place: Place,
    items: ItemsOption = None,
    events: EventsOption = None,
    *,
    vectors: Annotated[Path | None, typer.Option(help="File of the items' vectors, for codes of a file.")] = None,
    digit: DigitOption = False,
    page: Annotated[Path | None, typer.Option("--out", help=_PAGE)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the diagnostics as JSON.")] = False,
) -> None:
    """Write one HTML page: how codes are used, what they mean, and the tree of items."""
    from tesserec.sids import open_sids
    from tesserec.sids_page import page_data, write_sids_page

    page = Path("sids.html") if page is None and not as_json else page
    if page is not None:
        check_file(page)
    with bars() as progress:
        sids = open_sids(place, items, events, digit=digit, vectors=vectors)
        data = page_data(sids, progress) if page is None else write_sids_page(sids, page, progress)
    if as_json:
        print_json({**data["codes"], "overlap": data["overlap"], "popularity": data["popularity"]})
    if page is not None:
        say(f"report: {page}")


@sids_app.command("diff")
def diff(
    old: Place,
    new: Annotated[str, typer.Argument(help="The later one, likewise.")],
    items: ItemsOption = None,
    *,
    digit: DigitOption = False,
    old_digit: Annotated[bool, typer.Option("--old-digit", help="The same of OLD alone.")] = False,
    new_digit: Annotated[bool, typer.Option("--new-digit", help="The same of NEW alone.")] = False,
    destination: Annotated[Path | None, typer.Option("--out", help=".csv or .parquet file of the moved items.")] = None,
    num_shown: Annotated[int, typer.Option("--show", min=0, help="Moved items to print.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Show how many items have other codes than before, which ones, and why."""
    import polars as pl

    from tesserec.semantic_ids.moves import moves
    from tesserec.sids import content_changes, open_sids

    if destination is not None and destination.suffix not in (".csv", ".parquet"):
        raise DataError(f"--out {destination}: moved items are written to a .csv or .parquet file")
    if destination is not None:
        check_file(destination)
    digits = _digits_of(old, new, digit, {"--old-digit": old_digit, "--new-digit": new_digit})
    first, second = (open_sids(place, digit=has_digit) for place, has_digit in zip((old, new), digits, strict=True))
    found = moves(
        first.semantic_ids,
        second.semantic_ids,
        first.catalog.items,
        second.catalog.items,
        content_changes(first, second),
        has_codebooks=first.has_codebooks and second.has_codebooks,
    )
    titles = pl.Series("title", _titles(found, [second, first], items), dtype=pl.String)
    found = dataclasses.replace(found, frame=found.frame.insert_column(1, titles))
    if destination is not None:
        _write_moved(found, destination)
    if as_json:
        print_json(_difference(found, first, second, num_shown))
    else:
        _print_moves(found, first, second, num_shown)


@sids_app.command("browse")
def browse(
    place: Place,
    prefix: Annotated[str | None, typer.Argument(help="First codes, as in 12-7; all items without them.")] = None,
    items: ItemsOption = None,
    events: EventsOption = None,
    *,
    item: Annotated[str | None, typer.Option(help="An item's id: show its codes and its neighbours.")] = None,
    digit: DigitOption = False,
    num_shown: Annotated[int, typer.Option("--show", min=1, help="Rows to print.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Show what is below a prefix, the items of a whole tuple, or what is near an item."""
    from tesserec.sids import open_sids

    if item is not None and prefix is not None:
        raise DataError("give either a PREFIX or --item ID")
    sids = open_sids(place, items, events, digit=digit)
    found = _around(sids, item) if item is not None else _below(sids, _codes_of(prefix) if prefix else [])
    rows = found["rows"]
    found = {**found, "num_rows": len(rows), "rows": rows[:num_shown]}
    if as_json:
        print_json(found)
    else:
        _print_rows(found)


def _fitted(path: Path | None, seed: int | None, events: Path | None, items: Path | None) -> Sids:
    """The Semantic IDs of a recipe, or of the one that ``tesserec fit`` has without one."""
    from tesserec.pipeline import read_data
    from tesserec.recipe import DataConfig, default_recipe
    from tesserec.sids import fit_sids

    given = None if path is None else _recipe(path)
    config = DataConfig() if given is None else given.data
    if events is None and config.events is None and config.source is None:
        raise RecipeError(
            "no events are named, which Semantic IDs of text need too: items of the same codes are numbered by how "
            "popular they are. Give --events FILE, or a RECIPE with source or events in [data]; for later items of a "
            "fit, --from FOLDER and --items FILE"
        )
    interactions, catalog = read_data(config, events, items)
    recipe = default_recipe(catalog) if given is None else given
    if seed is not None:
        recipe = dataclasses.replace(recipe, seed=seed)
    with bars() as progress:
        return fit_sids(recipe, interactions, catalog, progress)


def _recipe(path: Path) -> Recipe:
    """The recipe of a file, which needs no retriever here."""
    from tesserec.config import load_toml
    from tesserec.recipe import located, parse_recipe

    unused = {"retriever": {"class": "tesserec.retrievers.popularity:Popularity"}}
    recipe = parse_recipe({**unused, **load_toml(path)})
    return dataclasses.replace(recipe, data=located(recipe.data, path.parent))


def _print_diagnosis(sids: Sids, as_json: bool) -> None:
    """What a table is like, level by level."""
    from tesserec.semantic_ids.report import diagnose

    found = diagnose(sids.semantic_ids, sids.interactions, sids.content.embeddings, sids.quantizer)
    if as_json:
        print_json(json.loads(found.to_json()))
        return
    out().print(_levels_table(found))
    explained = "" if found.explained_share is None else f", {100 * found.explained_share:.1f} % of variance explained"
    out().print(
        f"{found.num_items:,} items, {100 * found.shared_items_share:.1f} % share their codes with another{explained}"
    )


def _levels_table(found: SemanticIdReport) -> Table:
    table = Table("level")
    for heading in ("codes", "used", "perplexity", "Gini", "cosine within", "neighbours within"):
        table.add_column(heading, justify="right")
    for level, (use, coherence) in enumerate(zip(found.levels, found.coherence, strict=True), start=1):
        cells = [f"{use.codebook_size:,}", f"{use.num_used:,}", f"{use.perplexity:,.1f}", f"{use.gini:.3f}"]
        cosine, neighbours = coherence.cosine_within, coherence.neighbours_share
        cells.append("–" if cosine is None else f"{cosine:.3f}")
        cells.append("–" if neighbours is None else f"{100 * neighbours:.1f} %")
        table.add_row(str(level), *cells)
    return table


def _titles(found: Moves, sides: Sequence[Sids], items: Path | None) -> list[str | None]:
    """The title of each moved item, from ``items`` or from the first side that knows it."""
    from tesserec.data.catalog import read_catalog

    catalogs = [read_catalog(items)] if items is not None else [side.catalog for side in sides]
    ids = found.frame["item_id"].to_list()
    titles: list[str | None] = [None] * len(ids)
    for catalog in reversed(catalogs):
        for row, place in enumerate(catalog.items.find(ids).tolist()):
            if place >= 0:
                titles[row] = catalog.titles[place]
    return titles


def _digits_of(old: str, new: str, both: bool, alone: Mapping[str, bool]) -> list[bool]:
    """For each side whether the last code of its file is a digit; the options are refused where they say nothing."""
    from tesserec.sids import is_plain

    plain = [is_plain(place) for place in (old, new)]
    if both and not any(plain):
        raise DataError(f"--digit is about files of codes, and neither {old} nor {new} is one: leave it out")
    for place, option, is_file in zip((old, new), alone, plain, strict=True):
        if alone[option] and not is_file:
            raise DataError(f"{option} is about a file of codes, and {place} is none: leave it out")
    return [is_file and (both or own) for is_file, own in zip(plain, alone.values(), strict=True)]


def _difference(found: Moves, old: Sids, new: Sids, num_shown: int) -> dict[str, Any]:
    return {
        "old": _version(old),
        "new": _version(new),
        "compared_levels": len(found.levels),
        "same_codebooks": found.same_codebooks,
        "churn": dataclasses.asdict(found.churn),
        "levels": [dataclasses.asdict(level) for level in found.levels],
        "reasons": found.reasons,
        "items": found.frame.head(num_shown).to_dicts(),
    }


def _version(sids: Sids) -> dict[str, Any]:
    table = sids.semantic_ids
    return {
        "name": sids.name,
        "num_items": len(table),
        "num_levels": table.num_content_levels,
        "codebook_version": table.codebook_version if sids.has_codebooks else None,
        "table_revision": table.table_revision,
    }


def _print_moves(found: Moves, old: Sids, new: Sids, num_shown: int) -> None:
    from tesserec.semantic_ids.moves import REASONS

    for when, one in (("old", old), ("new", new)):
        table = one.semantic_ids
        codebooks = f"codebooks {table.codebook_version}" if one.has_codebooks else "no codebooks known"
        version = f"{codebooks}, table revision {table.table_revision}"
        out().print(f"{when}: {escape(one.name)}, {len(table):,} items, {version}")
    if found.same_codebooks is False:
        out().print("The codebook versions are not the same: a model of the old table cannot use the new one.")
    depths = [one.semantic_ids.num_content_levels for one in (old, new)]
    if depths[0] != depths[1]:
        out().print(
            f"The old table has {depths[0]} codes an item, the new one {depths[1]} (without a collision digit): the "
            f"first {len(found.levels)} are compared."
        )
    out().print(
        f"Of {found.churn.num_items:,} items in both, {100 * found.churn.prefixes[-1]:.1f} % have other codes, "
        f"{100 * found.churn.whole:.1f} % if the digit counts."
    )
    levels = Table("level")
    for heading in ("code changed", "first codes changed", "codes in use", "of these, mean something else"):
        levels.add_column(heading, justify="right")
    for number, (level, prefix) in enumerate(zip(found.levels, found.churn.prefixes, strict=True), start=1):
        shares = [f"{100 * level.changed_share:.1f} %", f"{100 * prefix:.1f} %"]
        levels.add_row(str(number), *shares, f"{level.num_codes:,}", f"{level.num_changed_codes:,}")
    out().print(levels)
    reasons = Table("reason")
    reasons.add_column("items", justify="right")
    reasons.add_column("which means")
    for reason, number in found.reasons.items():
        reasons.add_row(reason, f"{number:,}", f"[dim]{REASONS[reason]}[/]")
    out().print(reasons)
    if not num_shown or not len(found.frame):
        return
    rows = Table("item_id", "title", "reason", "old codes", "new codes")
    for row in found.frame.head(num_shown).iter_rows(named=True):
        codes = [_joined(row[name]) for name in ("old_codes", "new_codes")]
        rows.add_row(escape(str(row["item_id"])), escape(row["title"] or ""), row["reason"], *codes)
    out().print(rows)
    if len(found.frame) > num_shown:
        out().print(f"and {len(found.frame) - num_shown:,} more: --show {len(found.frame)}, or --out FILE")


def _write_moved(found: Moves, destination: Path) -> None:
    """All rows; in CSV the codes are joined with hyphens."""
    import polars as pl

    with completed(destination) as part:
        if destination.suffix == ".parquet":
            found.frame.write_parquet(part)
        else:
            lists = pl.col("old_codes", "new_codes").cast(pl.List(pl.String)).list.join("-")
            found.frame.with_columns(lists).write_csv(part)
    say(f"{len(found.frame):,} moved, new and gone items: {destination}")


def _codes_of(prefix: str) -> list[int]:
    if not re.fullmatch(r"\s*\d+\s*([-,]\s*\d+\s*)*", prefix):
        raise DataError(f"the prefix {prefix!r} is not first codes of items: expected integers, as in 12-7")
    return [int(part) for part in re.split("[-,]", prefix)]


def _below(sids: Sids, codes: list[int]) -> dict[str, Any]:
    """The codes after a prefix, or the items where no more codes of content follow."""
    from tesserec.semantic_ids.browse import branches, members, words_of_groups

    table, titles = sids.semantic_ids, sids.catalog.titles
    there = members(table, codes, sids.events_N).tolist()
    below = branches(table, codes, sids.events_N)
    about = {"codes": codes, "num_items": len(there)}
    if not below:
        return {**about, "rows": [_item_row(sids, one) for one in there]}
    of_branch = {one: number for number, branch in enumerate(below) for one in branch.items}
    words = (
        {}
        if titles == [str(i) for i in sids.catalog.items.ids.to_pylist()]
        else words_of_groups([titles[one] for one in there], [of_branch[one] for one in there])
    )
    rows = [
        {
            "codes": list(branch.codes),
            "num_items": len(branch.items),
            **({} if sids.events_N is None else {"events": int(sids.events_N[branch.items].sum())}),
            "words": words.get(number, []),
            "titles": [titles[one] for one in branch.items[:3]],
        }
        for number, branch in enumerate(below)
    ]
    return {**about, "rows": rows}


def _around(sids: Sids, item: str) -> dict[str, Any]:
    """An item, and those that share its first codes."""
    from tesserec.semantic_ids.browse import members, prefix_neighbours
    from tesserec.semantic_ids.table import content_codes

    index = int(sids.catalog.items.index([item], "item")[0])
    own = content_codes(sids.semantic_ids)[index].tolist()
    path = [
        {"codes": own[:depth], "num_items": len(members(sids.semantic_ids, own[:depth]))}
        for depth in range(1, len(own) + 1)
    ]
    near = prefix_neighbours(sids.semantic_ids, index, len(sids.catalog), sids.events_N)
    rows = [{**_item_row(sids, one), "codes_in_common": depth} for one, depth in near]
    return {**_item_row(sids, index), "path": path, "rows": rows}


def _item_row(sids: Sids, item: int) -> dict[str, Any]:
    counts = {} if sids.events_N is None else {"events": int(sids.events_N[item])}
    return {
        "item_id": sids.catalog.items.ids[item].as_py(),
        "title": sids.catalog.titles[item],
        "codes": sids.semantic_ids.codes_NL[item].tolist(),
        **counts,
    }


def _print_rows(found: dict[str, Any]) -> None:
    """What was found, in a table whose columns are those of its rows."""
    if "path" in found:
        out().print(f"{escape(found['title'])} (item {escape(str(found['item_id']))}): {_joined(found['codes'])}")
        steps = [f"{_joined(step['codes'])} {step['num_items']:,}" for step in found["path"]]
        out().print(f"items with its first codes: {' › '.join(steps)}")
    else:
        out().print(f"{_joined(found['codes']) or 'all codes'}: {found['num_items']:,} items")
    if not found["rows"]:
        out().print("no other item shares its first code")
        return
    table = Table()
    for name, value in found["rows"][0].items():
        table.add_column(name.replace("_", " "), justify="right" if isinstance(value, int) else "left")
    for row in found["rows"]:
        table.add_row(*(_cell(name, value) for name, value in row.items()))
    out().print(table)
    if found["num_rows"] > len(found["rows"]):
        out().print(f"and {found['num_rows'] - len(found['rows']):,} more: --show {found['num_rows']}")


def _cell(name: str, value: Any) -> str:
    if isinstance(value, list):
        return escape(_joined(value) if name == "codes" else (" " if name == "words" else " · ").join(value))
    return f"{value:,}" if isinstance(value, int) and name != "item_id" else escape(str(value))


def _joined(codes: Sequence[int] | None) -> str:
    return "" if codes is None else "-".join(map(str, codes))
