"""The commands about Semantic IDs, run as their users run them."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from typer.testing import CliRunner, Result

import shop
from tesserec.bundle import publish
from tesserec.cli import app
from tesserec.pipeline import fit as fit_system
from tesserec.recipe import default_recipe, parse_recipe
from tesserec.semantic_ids import churn, diagnose, expand
from tesserec.sids import open_sids
from tesserec.sids_page import page_data

RECIPE = """
seed = 3
[data]
events = "events.csv"
items = "items.csv"
positive_kinds = ["purchase"]
[embedder]
class = "tesserec.embedders.tfidf_svd:TfidfSVD"
num_features = 8
[semantic_ids]
class = "tesserec.semantic_ids.rq_kmeans:ResidualKMeans"
num_levels = 2
codebook_size = 4
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with events, items, a recipe without a retriever, the shop's bundle, and its Semantic IDs."""
    folder = tmp_path_factory.mktemp("sids")
    shop.events().write_csv(folder / "events.csv")
    shop.items().write_csv(folder / "items.csv")
    (folder / "r.toml").write_text(RECIPE)
    publish(folder / "shop", shop.contents())
    assert run("fit", folder / "r.toml", "--out", folder / "sids").exit_code == 0
    codes = shop.contents().content.semantic_ids.codes_NL.tolist()
    rows = [{"item_id": f"i{i:02}", "by": by, "codes": own[:2]} for i, own in enumerate(codes) for by in ("me", "you")]
    pl.DataFrame(rows).with_row_index("n").with_columns(
        codes=pl.when(pl.col("by") == "you").then(pl.col("codes").list.reverse()).otherwise("codes")
    ).write_parquet(folder / "anyone.parquet")
    return folder


def run(*arguments: object) -> Result:
    """The result of ``tesserec sids``; an unexpected error is raised."""
    result = CliRunner().invoke(app, ["sids", *(str(argument) for argument in arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def answer(*arguments: object) -> Any:
    """The JSON that a command prints."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(*arguments: object) -> str:
    """The one line of a command that cannot be done."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_fit_makes_the_codes_that_a_whole_fit_makes(place: Path) -> None:
    made, whole = open_sids(place / "sids"), shop.contents().content
    assert torch.equal(made.semantic_ids.codes_NL, whole.semantic_ids.codes_NL)
    assert made.semantic_ids.codebook_version == whole.semantic_ids.codebook_version
    assert made.catalog.titles == shop.contents().catalog.titles
    assert len(made.interactions) == 577
    assert torch.equal(made.quantizer.encode(made.content.embeddings.vectors_ND), made.semantic_ids.codes_NL[:, :2])


def test_fit_says_what_the_codes_are_like(place: Path, tmp_path: Path) -> None:
    found = answer("fit", place / "r.toml", "--out", tmp_path / "s", "--seed", 3)
    opened = open_sids(tmp_path / "s")
    expected = diagnose(opened.semantic_ids, opened.interactions, opened.content.embeddings, opened.quantizer)
    assert found == json.loads(expected.to_json())
    shown = run("fit", place / "r.toml", "--out", tmp_path / "s")
    assert f"{found['levels'][1]['perplexity']:.1f}" in shown.stdout
    assert f"24 items, {100 * found['shared_items_share']:.1f} % share their codes with another" in shown.stdout
    assert shown.stderr == f"Semantic IDs: {tmp_path / 's'}\n"
    other = answer("fit", place / "r.toml", "--out", tmp_path / "t", "--seed", 4)
    assert open_sids(tmp_path / "t").recipe["seed"] == 4
    assert other["num_items"] == 24


def test_the_commands_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[1]
    section = (root / "README.md").read_text(encoding="utf-8").partition("## Look at Semantic IDs\n")[2]
    lines = section.split("```")[1].strip().splitlines()
    (tmp_path / "recipes").symlink_to(root / "recipes")
    (tmp_path / "new.csv").write_text("item_id,title\n999999,RED CANDLE\n")
    monkeypatch.chdir(tmp_path)
    for line in lines:
        command = re.split(r"\s{2,}", line)[0]
        result = run(*command.removeprefix("tesserec sids ").split())
        assert result.exit_code == 0, f"{command}: {result.stderr}"
    assert len(lines) == 7
    assert len(open_sids("later").semantic_ids) == len(open_sids("sids").semantic_ids) + 1


def test_fit_without_a_recipe_takes_the_one_of_a_whole_fit(place: Path, tmp_path: Path) -> None:
    shop.events().filter(kind="purchase").drop("kind").write_csv(tmp_path / "e.csv")
    arguments = ("fit", "--events", tmp_path / "e.csv", "--items", place / "items.csv")
    assert run(*arguments, "--out", tmp_path / "s").exit_code == 0
    made = open_sids(tmp_path / "s")
    assert made.recipe == default_recipe(made.catalog).table()
    assert run(*arguments, "--seed", 7, "--out", tmp_path / "t").exit_code == 0
    assert open_sids(tmp_path / "t").recipe == {**made.recipe, "seed": 7}


def test_fit_writes_the_table_alone(place: Path, tmp_path: Path) -> None:
    shown = run("fit", place / "r.toml", "--out", tmp_path / "new" / "t.parquet")
    assert shown.stderr == f"Semantic IDs: {tmp_path / 'new' / 't.parquet'} (the table alone)\n"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["t.parquet"]
    table, whole = open_sids(tmp_path / "new" / "t.parquet"), open_sids(place / "sids")
    assert torch.equal(table.semantic_ids.codes_NL, whole.semantic_ids.codes_NL)
    assert table.semantic_ids.codebook_version == whole.semantic_ids.codebook_version
    assert (table.interactions, table.quantizer, table.code_vectors()) == (None, None, [])


def test_a_new_fit_keeps_the_codes_of_an_earlier_one_where_it_can(place: Path, tmp_path: Path) -> None:
    plain = run("fit", place / "r.toml", "--seed", 5, "--out", tmp_path / "plain")
    assert plain.exit_code == 0
    shown = run("fit", place / "r.toml", "--seed", 5, "--like", place / "sids", "--out", tmp_path / "kept")
    assert shown.exit_code == 0
    told = re.search(r"at each depth: ([\d.]+)%.* \(without --like ([\d.]+)%", shown.stderr)
    assert float(told[1]) > float(told[2])
    old, kept, moved = (open_sids(path) for path in (place / "sids", tmp_path / "kept", tmp_path / "plain"))
    first_N = old.semantic_ids.codes_NL[:, 0]
    share = [(one.semantic_ids.codes_NL[:, 0] == first_N).float().mean() for one in (kept, moved)]
    assert [f"{100 * one:.1f}" for one in share] == [told[1], told[2]]
    assert torch.equal(kept.quantizer.encode(kept.content.embeddings.vectors_ND), kept.semantic_ids.codes_NL[:, :-1])
    vectors = [one.quantizer.decode(one.semantic_ids.codes_NL[:, :-1]) for one in (kept, moved)]
    assert torch.equal(*vectors)


def test_later_items_that_the_codebooks_do_not_describe_are_named(place: Path, tmp_path: Path) -> None:
    pl.DataFrame({"item_id": ["i98", "i99"], "title": ["zzz", "kitchen red lamp"]}).write_csv(tmp_path / "later.csv")
    with pytest.warns(UserWarning, match=r"1 of the 2 new items are foreign to the codebooks.*: 'i98'; fit again when"):
        result = run("fit", "--from", place / "sids", "--items", tmp_path / "later.csv", "--out", tmp_path / "s")
    assert result.exit_code == 0


def test_later_items_are_added_with_the_codebooks_of_the_fit(place: Path, tmp_path: Path) -> None:
    later = pl.DataFrame({"item_id": ["i07", "i99"], "title": ["another title", "kitchen red lamp"]})
    later.write_csv(tmp_path / "later.csv")
    with pytest.warns(UserWarning, match="1 of the 2 items given are known already"):
        result = run("fit", "--from", place / "sids", "--items", tmp_path / "later.csv", "--out", tmp_path / "s")
    assert result.exit_code == 0
    before, after = open_sids(place / "sids"), open_sids(tmp_path / "s")
    assert after.catalog.items.ids.to_pylist() == [*before.catalog.items.ids.to_pylist(), "i99"]
    expected = expand(before.semantic_ids, before.quantizer, after.content.embeddings.vectors_ND[24:])
    assert torch.equal(after.semantic_ids.codes_NL, expected.codes_NL)
    assert after.semantic_ids.table_revision == 1
    assert after.events_N.tolist() == [*before.events_N.tolist(), 0]
    found = answer("diff", place / "sids", tmp_path / "s")
    assert {reason: n for reason, n in found["reasons"].items() if n} == {"new": 1}
    assert (found["same_codebooks"], found["churn"]["whole"]) == (True, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit"], "no events are named, which Semantic IDs of text need too: items of the same codes are numbered by"),
        (["fit", "--items", "items.csv"], "Give --events FILE, or a RECIPE with source or events in [data]; for later"),
        (["fit", "eventless.toml", "--items", "items.csv"], "no events are named, which Semantic IDs of text need too"),
        (["fit", "r.toml", "--from", "sids", "--items", "items.csv"], "and takes neither a RECIPE nor --events, --"),
        (["fit", "--from", "sids"], "--from FOLDER needs --items FILE, the new items, and takes neither a RECIPE nor"),
        (["fit", "--from", "sids", "--items", "items.csv"], "all 24 items given are among the 24 known"),
        (["fit", "--from", "anyone.parquet:by=me", "--items", "items.csv"], "anyone (me) is a mere table: new items"),
        (["fit", "none.toml"], "the recipe has no [semantic_ids], which is what is to be fitted: add one, such as"),
        (["fit", "q.toml"], "no recipe at q.toml: give the path of a TOML file"),
        (["fit", "wrong.toml"], "semantic_ids.num_level is not a setting of ResidualKMeans; did you mean num_levels?"),
    ],
)
def test_fits_that_cannot_be(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(place)
    (place / "none.toml").write_text(RECIPE.partition("[semantic_ids]")[0])
    (place / "eventless.toml").write_text(RECIPE.replace('events = "events.csv"', ""))
    (place / "wrong.toml").write_text(RECIPE.replace("num_levels", "num_level"))
    assert message in refused(*arguments, "--out", tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_the_advice_of_a_refusal_is_what_a_recipe_takes(tmp_path: Path) -> None:
    shop.events().rename({"user_id": "who"}).write_csv(tmp_path / "events.csv")
    shop.items().rename({"item_id": "what"}).head(20).write_csv(tmp_path / "items.csv")
    settings = ""
    for advised, taken in (
        ('item_columns.item_id = "..." under [data] in a recipe', 'item_columns.item_id = "what"'),
        ('columns.user_id = "..." under [data] in a recipe', 'columns.user_id = "who"'),
        ('unknown_items = "drop" (under [data] in a recipe)', 'unknown_items = "drop"'),
    ):
        (tmp_path / "r.toml").write_text(RECIPE.replace("[data]", f"[data]{settings}"))
        assert advised in refused("fit", tmp_path / "r.toml", "--out", tmp_path / "s")
        settings += f"\n{taken}"
    (tmp_path / "r.toml").write_text(RECIPE.replace("[data]", f"[data]{settings}"))
    with pytest.warns(UserWarning, match="their items are not in the catalog"):
        assert answer("fit", tmp_path / "r.toml", "--out", tmp_path / "s")["num_items"] == 20


def test_nothing_else_is_written_over(place: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    (tmp_path / "t.parquet").mkdir()
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        message = refused("fit", place / "r.toml", "--out", tmp_path / name)
        assert message == f"{tmp_path / name} exists and is no folder of `tesserec sids fit`: choose another place"
    assert "is no folder of `tesserec sids fit`" in refused("fit", place / "r.toml", "--out", place / "shop")
    assert "t.parquet is a folder: choose another place" in refused(
        "fit", place / "r.toml", "--out", tmp_path / "t.parquet"
    )


def test_places_that_cannot_be_written_are_refused_before_the_work(place: Path, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("mine")
    below = tmp_path / "items.csv" / "x"
    message = f"{below} cannot be written, as {tmp_path / 'items.csv'} is not a folder: choose another place"
    for arguments in (("fit", "none.toml"), ("report", "nothing"), ("diff", "nothing", "nothing")):
        ending = ".csv" if arguments[0] == "diff" else ""
        assert refused(*arguments, "--out", f"{below}{ending}") == message.replace(str(below), f"{below}{ending}")
    for one in ("/proc/x8", "/proc/x8/t.parquet"):
        assert f"{one} cannot be written, as nothing can be made in /proc (" in refused("fit", "q.toml", "--out", one)


def test_report_of_everything_that_holds_codes(place: Path, tmp_path: Path) -> None:
    for name in ("sids", "shop", "anyone.parquet:by=me"):
        result = run("report", place / name, "--out", tmp_path / "p" / "r.html")
        assert result.stderr == f"report: {tmp_path / 'p' / 'r.html'}\n"
        assert (tmp_path / "p" / "r.html").read_text().startswith("<!doctype html>")
    arguments = ("--items", place / "items.csv", "--events", place / "events.csv", "--digit")
    assert run("report", place / "anyone.parquet:by=me", *arguments, "--out", tmp_path / "r.html").exit_code == 0
    html = (tmp_path / "r.html").read_text()
    assert "garden red lamp large" in html
    assert "Semantic IDs of anyone (me)" in html


def test_report_prints_its_diagnostics(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = answer("report", place / "sids")
    assert list(tmp_path.iterdir()) == [], "a page is written only where it is asked for"
    data = page_data(open_sids(place / "sids"))
    assert found == {**data["codes"], "overlap": data["overlap"], "popularity": data["popularity"]}
    assert found["levels"][1]["perplexity"] > 1
    assert answer("report", place / "sids", "--out", "both.html") == found
    assert run("report", place / "anyone.parquet:by=me").stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.html", "sids.html"]
    plain = answer("report", place / "anyone.parquet:by=me")
    assert (plain["num_items"], plain["overlap"], plain["popularity"]) == (24, None, None)


def test_vectors_are_added_to_codes_of_a_file(place: Path, tmp_path: Path) -> None:
    vectors = shop.contents().content.embeddings.vectors_ND
    ids = [f"i{i:02}" for i in range(24)]
    pl.DataFrame({"item_id": ids, "vector": vectors.tolist()}).write_parquet(tmp_path / "v.parquet")
    opened = open_sids(f"{place / 'anyone.parquet'}:by=me", vectors=tmp_path / "v.parquet")
    assert torch.allclose(opened.content.embeddings.vectors_ND, vectors, atol=1e-6)
    arguments = ("--vectors", tmp_path / "v.parquet", "--out", tmp_path / "r.html")
    assert run("report", place / "anyone.parquet:by=me", *arguments).exit_code == 0
    assert 'id="codebooks"' in (tmp_path / "r.html").read_text()
    assert "has the vectors that its codes were made from" in refused("report", place / "sids", *arguments)


def test_places_that_hold_no_codes(place: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "codes.parquet").write_bytes(b"no parquet")
    pl.DataFrame({"item_id": [1], "codes": [[3]]}).write_parquet(tmp_path / "one.parquet")
    for arguments, message in (
        ((tmp_path / "nothing",), "there is nothing at"),
        ((tmp_path / "empty",), "is neither a bundle nor what `tesserec sids fit` writes"),
        ((tmp_path / "codes.parquet",), "codes.parquet is not readable as Parquet"),
        ((tmp_path / "one.parquet", "--digit"), "has one code an item, which cannot be a collision digit"),
        ((place / "sids", "--digit"), "is a folder, which knows its digit and its rows: leave out --digit"),
        ((f"{place / 'shop'}:by=me",), "is a folder, which knows its digit and its rows"),
        ((place / "sids" / "semantic_ids.parquet", "--digit"), "knows its digit and has one row an item"),
        ((place / "anyone.parquet",), "has 48 rows of 24 items, item 'i00' for one is in several"),
        ((place / "anyone.parquet:by=him",), "has no row with by = 'him'; known: me, you"),
        ((place / "items.csv",), "expected item_id and either codes or code_0, code_1"),
        ((place / "sids", "--items", place / "nothing.csv"), "no file at"),
        ((tmp_path / "one.parquet", "--items", place / "items.csv"), "the catalog lacks 1 of 1 items"),
    ):
        assert message in refused("report", *arguments, "--out", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
    is_folder = f"{tmp_path / 'empty'} is a folder: give the file to write, such as one in this folder"
    assert refused("report", place / "nothing", "--out", tmp_path / "empty") == is_folder


def test_a_damaged_folder_is_named(place: Path, tmp_path: Path) -> None:
    run("fit", place / "r.toml", "--out", tmp_path / "s")
    (tmp_path / "s" / "codebooks.safetensors").write_bytes(b"broken")
    assert f"{tmp_path / 's'} is damaged (" in refused("browse", tmp_path / "s")
    assert run("fit", place / "r.toml", "--out", tmp_path / "s").exit_code == 0, "a folder of ours is replaced"
    (tmp_path / "s" / "catalog.parquet").unlink()
    assert f"{tmp_path / 's'} is damaged (" in refused("browse", tmp_path / "s")


def test_codebooks_of_another_table_are_refused(place: Path, tmp_path: Path) -> None:
    run("fit", place / "r.toml", "--out", tmp_path / "s")
    run("fit", place / "r.toml", "--out", tmp_path / "t", "--seed", 5)
    shutil.copy(tmp_path / "t" / "codebooks.safetensors", tmp_path / "s")
    version = open_sids(tmp_path / "t").semantic_ids.codebook_version
    message = refused("report", tmp_path / "s", "--out", tmp_path / "r.html")
    assert message.startswith(f"{tmp_path / 's'}: semantic_ids.parquet has codebook version ")
    assert f"codebooks.safetensors makes {version}: put the codebooks of this table there, or run" in message


def test_a_bundle_without_codes_has_none(tmp_path: Path) -> None:
    recipe = parse_recipe({"retriever": {"class": shop.POPULARITY}})
    publish(tmp_path / "plain", fit_system(recipe, *shop.data()))
    assert "is a bundle without Semantic IDs: give one whose recipe has [semantic_ids]" in refused(
        "browse", tmp_path / "plain"
    )


def test_diff_of_two_fits(place: Path, tmp_path: Path) -> None:
    assert run("fit", place / "r.toml", "--out", tmp_path / "s", "--seed", 5).exit_code == 0
    old, new = open_sids(place / "sids"), open_sids(tmp_path / "s")
    expected = churn(old.semantic_ids, new.semantic_ids)
    found = answer("diff", place / "sids", tmp_path / "s", "--show", 2, "--out", tmp_path / "moved.csv")
    assert found["churn"]["prefixes"] == list(expected.prefixes)
    assert found["churn"]["whole"] == expected.whole > 0
    assert found["same_codebooks"] is False
    assert found["old"]["codebook_version"] == old.semantic_ids.codebook_version
    assert len(found["items"]) == 2
    moved = pl.read_csv(tmp_path / "moved.csv")
    assert len(moved) == sum(found["reasons"].values()) == round(24 * expected.whole)
    row = moved.row(0, named=True)
    index = old.catalog.items.find([row["item_id"]]).item()
    assert row["old_codes"] == "-".join(map(str, old.semantic_ids.codes_NL[index].tolist()))
    assert row["new_codes"] == "-".join(map(str, new.semantic_ids.codes_NL[index].tolist()))
    assert row["title"] == old.catalog.titles[index]
    result = run("diff", place / "sids", tmp_path / "s", "--show", 1, "--out", tmp_path / "deep" / "moved.parquet")
    assert f"{100 * expected.prefixes[-1]:.1f} % have other codes" in result.stdout
    assert "The codebook versions are not the same" in result.stdout
    assert row["title"] in result.stdout
    assert f"and {len(moved) - 1} more: --show {len(moved)}, or --out FILE" in result.stdout
    assert f"{len(moved)} moved, new and gone items: {tmp_path / 'deep' / 'moved.parquet'}" in result.stderr
    assert pl.read_parquet(tmp_path / "deep" / "moved.parquet")["old_codes"].dtype == pl.List(pl.Int64)


def test_diff_tells_changed_texts_from_changed_codebooks(place: Path, tmp_path: Path) -> None:
    codes = {f"i{i:02}": [i % 2] for i in range(24)}
    (tmp_path / "old.json").write_text(json.dumps(codes))
    (tmp_path / "new.json").write_text(json.dumps({**codes, "i03": [0], "i04": [1]}))
    unknown = answer("diff", tmp_path / "old.json", tmp_path / "new.json")
    assert {reason: n for reason, n in unknown["reasons"].items() if n} == {"changed": 2}
    assert (unknown["same_codebooks"], unknown["old"]["codebook_version"]) == (None, None)
    told = run("diff", tmp_path / "old.json", tmp_path / "new.json").stdout
    assert "old: old, 24 items, no codebooks known, table revision 0" in told
    assert "The codebook versions are not the same" not in told
    titled = answer("diff", tmp_path / "old.json", tmp_path / "new.json", "--items", place / "items.csv")
    assert [one["title"] for one in titled["items"]] == ["kitchen oak shelf wide", "kitchen tin box"]
    shown = run("diff", tmp_path / "old.json", tmp_path / "old.json").stdout
    assert "Of 24 items in both, 0.0 % have other codes" in shown
    assert "title" not in shown
    words = {"kitchen red": "garden tin", "kitchen oak": "nursery round", "kitchen tin": "office wide"}
    changed = shop.items().with_columns(title=pl.col("title").str.replace_many(words))
    changed.write_csv(tmp_path / "items.csv")
    arguments = ("fit", place / "r.toml", "--items", tmp_path / "items.csv", "--out", tmp_path / "s")
    assert run(*arguments).exit_code == 0
    found = answer("diff", place / "sids", tmp_path / "s", "--show", 24)
    moved = {one["item_id"] for one in found["items"] if one["reason"] == "content"}
    assert moved  # which of them, rounding decides
    assert moved <= {f"i{number:02}" for number in range(6)}


def test_codes_that_a_recipe_reads_have_no_codebooks(place: Path, tmp_path: Path) -> None:
    for by in ("me", "you"):
        own = (
            f'class = "tesserec.semantic_ids.codes_file:CodesFile"\npath = "{place}/anyone.parquet"\nwhere.by = "{by}"'
        )
        (place / f"{by}.toml").write_text(RECIPE.partition("[embedder]")[0] + "[semantic_ids]\n" + own)
        assert run("fit", place / f"{by}.toml", "--out", tmp_path / by).exit_code == 0
    found = answer("diff", tmp_path / "me", tmp_path / "you")
    assert found["same_codebooks"] is None
    assert found["reasons"]["changed"] > 0


def test_the_digit_of_a_file_beside_a_folder(place: Path, tmp_path: Path) -> None:
    table = open_sids(place / "sids").semantic_ids
    codes = {f"i{i:02}": own for i, own in enumerate(table.codes_NL.tolist())}
    (tmp_path / "own.json").write_text(json.dumps({**codes, "i03": [3, 3, 0]}))
    assert codes["i03"][:2] != [3, 3]
    for one in (place / "sids", place / "shop", place / "sids" / "semantic_ids.parquet"):
        for pair in ((one, tmp_path / "own.json"), (tmp_path / "own.json", one)):
            assert [row["item_id"] for row in answer("diff", *pair, "--digit")["items"]] == ["i03"]
    answered = answer("diff", place / "sids", tmp_path / "own.json", "--new-digit")
    assert (answered["compared_levels"], [row["item_id"] for row in answered["items"]]) == (2, ["i03"])
    alone = f"--old-digit is about a file of codes, and {place / 'sids'} is none: leave it out"
    assert refused("diff", place / "sids", tmp_path / "own.json", "--old-digit") == alone
    neither = f"--digit is about files of codes, and neither {place / 'sids'} nor {place / 'shop'} is one: leave it out"
    assert refused("diff", place / "sids", place / "shop", "--digit") == neither


def test_diff_of_tables_of_other_depth(place: Path, tmp_path: Path) -> None:
    four = {f"i{i:02}": [i % 3, i % 2, 0, i % 4] for i in range(24)}
    digits = {item: [*codes, number] for number, (item, codes) in enumerate(four.items())}
    (tmp_path / "four.json").write_text(json.dumps(four))
    (tmp_path / "five.json").write_text(json.dumps({**digits, "i07": [2, 1, 0, 3, 7]}))
    pair = ("diff", tmp_path / "four.json", tmp_path / "five.json")
    for options, levels, note in (
        (
            (),
            [4, 5, 4],
            "The old table has 4 codes an item, the new one 5 (without a collision digit): the first 4 are",
        ),
        (("--digit",), [3, 4, 3], "The old table has 3 codes an item, the new one 4 (without a collision digit): the"),
        (("--old-digit",), [3, 5, 3], "The old table has 3 codes an item, the new one 5"),
        (("--new-digit",), [4, 4, 4], None),
    ):
        found = answer(*pair, *options)
        assert [found["old"]["num_levels"], found["new"]["num_levels"], found["compared_levels"]] == levels
        assert [row["item_id"] for row in found["items"]] == ["i07"]
        shown = run(*pair, *options).stdout
        assert note in shown if note else "The old table has" not in shown
    assert refused(*pair[:2], place / "sids", "--new-digit").startswith("--new-digit is about a file of codes, and")


def test_diffs_that_cannot_be(place: Path, tmp_path: Path) -> None:
    (tmp_path / "m.csv").mkdir()
    (tmp_path / "other.json").write_text(json.dumps({"x": [1, 2]}))
    for arguments, message in (
        ((place / "sids", tmp_path / "other.json"), "no item in common"),
        ((place / "anyone.parquet:by=me", place / "anyone.parquet:by=you", "--out", "m.xlsx"), ".csv or .parquet file"),
        ((place / "sids", tmp_path / "nothing"), "there is nothing at"),
        ((place / "nothing", place / "sids", "--out", tmp_path / "m.csv"), "m.csv is a folder: give the file to write"),
    ):
        assert message in refused("diff", *arguments)


def test_browse_goes_from_all_codes_to_items(place: Path) -> None:
    sids = open_sids(place / "sids")
    table = sids.semantic_ids
    found = answer("browse", place / "sids")
    assert (found["codes"], found["num_items"]) == ([], 24)
    assert found["num_rows"] == len(found["rows"]) == len(table.codes_NL[:, 0].unique())
    first = found["rows"][0]
    members = table.items_of(first["codes"])
    assert first["num_items"] == len(members)
    assert first["events"] == int(sids.events_N[members].sum())
    assert set(first["titles"]) <= {sids.catalog.titles[i] for i in members.tolist()}
    assert first["words"]
    below = answer("browse", place / "sids", str(first["codes"][0]))
    assert sum(row["num_items"] for row in below["rows"]) == first["num_items"]
    codes = below["rows"][0]["codes"]
    leaf = answer("browse", place / "sids", f"{codes[0]}, {codes[1]}")
    assert {row["item_id"] for row in leaf["rows"]} == set(sids.catalog.items.to_ids(table.items_of(codes)))
    whole = leaf["rows"][0]["codes"]
    assert [row["codes"] for row in answer("browse", place / "sids", "-".join(map(str, whole)))["rows"]] == [whole]
    shown = run("browse", place / "sids", "--show", 1).stdout
    assert "all codes: 24 items" in shown
    assert f"and {found['num_rows'] - 1} more: --show {found['num_rows']}" in shown
    assert str(first["num_items"]) in shown
    leaf_shown = run("browse", place / "sids", f"{codes[0]}-{codes[1]}").stdout
    assert leaf["rows"][0]["title"] in leaf_shown


def test_browse_shows_what_is_near_an_item(place: Path, tmp_path: Path) -> None:
    sids = open_sids(place / "sids")
    found = answer("browse", place / "sids", "--item", "i07")
    assert (found["item_id"], found["title"], found["events"]) == ("i07", "garden red lamp large", 24)
    assert found["codes"] == sids.semantic_ids.codes_NL[7].tolist()
    assert [step["num_items"] for step in found["path"]] == [
        len(sids.semantic_ids.items_of(found["codes"][:depth])) for depth in (1, 2)
    ]
    shared = [row["codes_in_common"] for row in found["rows"]]
    assert shared == sorted(shared, reverse=True)
    assert len(shared) == found["path"][0]["num_items"] - 1
    shown = run("browse", place / "sids", "--item", "i07").stdout
    assert "garden red lamp large (item i07): " in shown
    assert found["rows"][0]["title"] in shown
    (tmp_path / "apart.json").write_text(json.dumps({"a": [0], "b": [1]}))
    assert "no other item shares its first code" in run("browse", tmp_path / "apart.json", "--item", "a").stdout
    assert answer("browse", tmp_path / "apart.json")["rows"][0] == {
        "codes": [0],
        "num_items": 1,
        "words": [],
        "titles": ["a"],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x-1"], "the prefix 'x-1' is not first codes of items: expected integers, as in 12-7"),
        (["12--105"], "the prefix '12--105' is not first codes of items: expected integers, as in 12-7"),
        (["--", "-5"], "the prefix '-5' is not first codes of items: expected integers, as in 12-7"),
        (["0-"], "the prefix '0-' is not first codes of items: expected integers, as in 12-7"),
        (["9"], "code 9 of level 1 does not exist: expected 0 to 3"),
        (["0-0-0-0"], "the prefix 0-0-0-0 has 4 codes, an item 3: give fewer"),
        (["--item", "i77"], "unknown item 'i77': the 24 known ones look like i00"),
        (["0", "--item", "i07"], "give either a PREFIX or --item ID"),
    ],
)
def test_what_cannot_be_browsed(place: Path, arguments: list[str], message: str) -> None:
    assert refused("browse", place / "sids", *arguments) == message
