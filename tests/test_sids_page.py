"""The page of Semantic IDs: its numbers are those of the JSON, its plots are drawn where the numbers say."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import shop
from tesserec import sids_page
from tesserec.bundle import Content
from tesserec.semantic_ids import diagnose, overlap
from tesserec.semantic_ids.codes_file import ORDINARY_CODE
from tesserec.sids import Sids, fit_sids
from tesserec.sids_page import (
    bucket_plot,
    coherence_plot,
    concentration_plot,
    map_plot,
    page_data,
    render,
    write_sids_page,
)
from tesserec.types import Catalog, ItemEmbeddings, SemanticIds


@pytest.fixture(scope="module")
def shop_sids() -> Sids:
    """The shop's Semantic IDs."""
    return dataclasses.replace(fit_sids(shop.recipe(), *shop.data()), name="shop")


@pytest.fixture(scope="module")
def data(shop_sids: Sids) -> dict[str, Any]:
    """What the page of the shop shows, not to be changed."""
    return page_data(shop_sids)


def mere_table(codes: list[list[int]], sizes: tuple[int, ...]) -> Sids:
    """Codes of the shop's first items, of which nothing else is known."""
    _, catalog = shop.data()
    items = dataclasses.replace(catalog.items, ids=catalog.items.ids[: len(codes)])
    return Sids("mere", SemanticIds(torch.tensor(codes), sizes, "v"), Catalog(items, catalog.frame[: len(codes), :1]))


class Page(HTMLParser):
    """The text of each figure by its path, of each script, and everything that is loaded from elsewhere."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.figures: list[tuple[str, str]] = []
        self.scripts: dict[str, str] = {}
        self.external: list[str] = []
        self._script = self._figure = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.external += [v for k, v in found.items() if k in ("src", "href") and v and not v.startswith("#")]
        self._figure = found.get("data-figure")
        self._script = found.get("id", "code") if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._figure = self._script = None

    def handle_data(self, data: str) -> None:
        if self._figure is not None:
            self.figures.append((self._figure, data))
        elif self._script is not None:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data


def test_every_number_on_the_page_is_in_its_json(shop_sids: Sids, tmp_path: Path) -> None:
    write_sids_page(shop_sids, tmp_path / "new" / "s.html")
    page = Page((tmp_path / "new" / "s.html").read_text())
    found = json.loads(page.scripts["data"])
    assert found == json.loads(json.dumps(page_data(shop_sids)))
    assert len(page.figures) > 40
    for path, text in page.figures:
        value = found
        for key in path.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        if value is None:
            assert text == "–"
            continue
        shown, digits = text.replace(",", "").removesuffix(" %"), len(text.removesuffix(" %").partition(".")[2])
        scale = 100 if text.endswith("%") else 1
        assert float(shown) == pytest.approx(scale * value, abs=0.51 * 10**-digits), path
    paths = {path for path, _ in page.figures}
    assert {"codes.levels.1.perplexity", "overlap.0.effective_capacity", "codes.coherence.1.neighbours_share"} <= paths
    assert page.external == []
    assert not re.search(r"https?://(?!www\.w3\.org)", page.scripts["code"]), "nothing is fetched"


def test_what_the_page_carries(shop_sids: Sids, data: dict[str, Any]) -> None:
    table = shop_sids.semantic_ids
    expected = diagnose(table, shop_sids.interactions, shop_sids.content.embeddings, shop_sids.quantizer)
    assert data["codes"] == json.loads(expected.to_json())
    assert data["codes"]["explained_share"] is not None
    system = data["system"]
    assert (system["name"], system["items"], system["events"], system["users"]) == ("shop", 24, 577, 49)
    assert (system["num_levels"], system["codebook_sizes"]) == (2, list(table.codebook_sizes))
    assert (system["quantizer"], system["codebook_version"]) == ("ResidualKMeans", table.codebook_version)
    assert set(system["recipe"]) == {"seed", "split", "embedder", "semantic_ids"}
    assert data["items"]["codes"] == table.codes_NL.tolist()
    assert data["items"]["events"] == shop_sids.events_N.tolist()
    assert data["items"]["titles"] == shop_sids.catalog.titles
    for level, found in enumerate(data["overlap"]):
        vectors_CD = shop_sids.content.codebooks.tensors[f"codebook_{level}"]
        usage_C = torch.bincount(table.codes_NL[:, level], minlength=len(vectors_CD))
        assert found == pytest.approx(dataclasses.asdict(overlap(usage_C, vectors_CD.double())))


def test_a_page_of_codes_that_all_decode_alike(tmp_path: Path) -> None:
    hashed = {"class": "tesserec.semantic_ids.hashed:HashedCodes", "num_levels": 2, "codebook_size": 4}
    found = page_data(fit_sids(shop.recipe(semantic_ids=hashed), *shop.data()))
    assert [one["effective_capacity"] for one in found["overlap"]] == [1, 1]
    assert {(point["x"], point["y"]) for one in found["maps"] for point in one["points"]} == {(0, 0)}
    assert render(found).startswith("<!doctype html>")


def test_a_page_of_codes_with_large_numbers_stays_small() -> None:
    codes = [[ORDINARY_CODE, number] for number in range(24)]
    found = page_data(dataclasses.replace(mere_table(codes, (ORDINARY_CODE + 1, 24)), interactions=shop.data()[0]))
    assert len(render(found)) < 10 * ORDINARY_CODE


def test_groups_hold_all_items(data: dict[str, Any]) -> None:
    groups = data["groups"]
    assert sum(group["items"] for group in groups) == 24
    assert sum(group["events"] for group in groups) == 577
    assert [group["items"] for group in groups] == sorted((group["items"] for group in groups), reverse=True)
    for group in groups:
        own = [codes for codes in data["items"]["codes"] if codes[0] == group["code"]]
        assert sum(number for _, number in group["children"]) == len(own) == group["items"]
        assert group["words"]


def test_maps_are_the_main_components(shop_sids: Sids, data: dict[str, Any]) -> None:
    first = data["maps"][0]
    vectors_CD = shop_sids.content.codebooks.tensors["codebook_0"].double()
    used = [point["code"] for point in first["points"]]
    centred_CD = vectors_CD[used] - vectors_CD[used].mean(0)
    variances_K = torch.linalg.eigvalsh(centred_CD.T @ centred_CD).flip(0)
    found = torch.tensor([[point["x"], point["y"]] for point in first["points"]], dtype=torch.float64)
    assert found.square().sum(0).tolist() == pytest.approx(variances_K[:2].tolist(), abs=1e-4)
    assert first["explained"] == pytest.approx((variances_K[:2] / variances_K.sum()).tolist())
    assert first["of"] == "codebook"
    assert [point["items"] for point in first["points"]] == [
        data["codes"]["levels"][0]["items_of_code"][code] for code in used
    ]
    assert sorted(data["system"]["first_codes"]) == used
    one = torch.zeros(1, 3)
    places, explained = sids_page._plane(one)
    assert (places.tolist(), explained) == ([[0, 0]], [0, 0])


def test_popularity_by_hand() -> None:
    levels = [{"num_used": 20, "events_of_code": [0.5, 0.2, *[0.3 / 18] * 18], "items_of_code": [2, 8, *[5] * 18]}]
    (found,) = sids_page._popularity(levels)
    assert found == {
        "codes": 2,
        "events_share": pytest.approx(0.7),
        "items_share": pytest.approx(0.1),
        "largest_share": 0.5,
    }
    assert sids_page._popularity([{"events_of_code": None}]) is None


def test_buckets_by_hand() -> None:
    found = sids_page._buckets({"1": 10, "2": 3, "5": 1, "8": 1, "9": 2})
    assert [(one["low"], one["high"], one["buckets"], one["items"]) for one in found] == [
        (1, 1, 10, 10),
        (2, 2, 3, 6),
        (5, 8, 2, 13),
        (9, 16, 2, 18),
    ]
    assert sum(one["items_share"] for one in found) == pytest.approx(1)
    bars = bucket_plot(found)["bars"]
    assert [bar["height"] for bar in bars] == [66.7, 40, 86.7, 120]
    assert [bar["x"] for bar in bars] == [10, 120, 230, 340]


def test_where_concentration_is_drawn() -> None:
    found = concentration_plot([1, 3], [0.0, 0.5])
    assert found["items"] == "46.0,110.0 168.0,35.0 290.0,10.0"
    assert found["events"] == "46.0,110.0 168.0,10.0 290.0,10.0"
    assert concentration_plot([1, 3], None)["events"] is None
    assert concentration_plot([0, 1, 1, 0], None)["items"] == "46.0,110.0 168.0,10.0 290.0,10.0", "a corner a run"


def test_where_coherence_is_drawn() -> None:
    def at(depth: int, within: float | None) -> dict[str, Any]:
        return {
            "depth": depth,
            "cosine_within": within,
            "cosine_random": 0.2,
            "neighbours_share": None,
            "random_share": None,
        }

    found = coherence_plot([at(1, 0.4), at(2, 0.8), at(3, None)])
    assert set(found) == {"cosine"}
    assert found["cosine"]["points"] == [
        {"depth": 1, "index": 0, "x": 60, "within": 70, "random": 92.5},
        {"depth": 2, "index": 1, "x": 215, "within": 25, "random": 92.5},
    ]


def test_where_codes_are_drawn_and_labels_do_not_cover_each_other() -> None:
    points = [
        {"code": code, "x": x, "y": y, "items": items, "words": words}
        for code, x, y, items, words in (
            (0, 0.0, 0.0, 4, ["red", "lamp", "x"]),
            (1, 0.01, 0.0, 1, ["blue"]),
            (2, 1.0, 1.0, 1, []),
            (3, 1.0, 0.0, 1, ["oak"]),
        )
    ]
    plot = map_plot({"level": 1, "points": points}, [2, 0, 1, 3])
    assert [(dot["cx"], dot["cy"], dot["r"], dot["hue"]) for dot in plot["dots"]] == [
        (50, 436, 18, 90),
        (59.4, 436, 10.5, 180),
        (990, 32, 10.5, 0),
        (990, 436, 10.5, 270),
    ]
    assert [label["text"] for label in plot["labels"]] == ["red lamp", "oak"]
    second = map_plot({"level": 2, "points": points}, [2, 0, 1, 3])
    assert (second["labels"], second["dots"][0]["hue"], second["width"]) == ([], None, 500)


def test_a_mere_table_has_a_page() -> None:
    data = page_data(mere_table([[0], [2], [2]], (3,)))
    assert (data["maps"], data["overlap"], data["popularity"]) == ([], None, None)
    assert data["system"]["first_codes"] == [0, 2]
    assert data["groups"][0] == {
        "code": 2,
        "items": 2,
        "events": None,
        "words": [],
        "titles": ["i01", "i02"],
        "children": [],
    }
    html = render(data)
    assert "This needs vectors or events" in html
    assert "Codes from a table, of which nothing is known but the codes." in html
    assert 'id="codebooks"' not in html


def test_vectors_without_codebooks_have_maps_of_their_items(shop_sids: Sids) -> None:
    content = Content(shop_sids.content.embeddings, shop_sids.semantic_ids)
    data = page_data(dataclasses.replace(shop_sids, content=content, recipe=None))
    assert [one["of"] for one in data["maps"]] == ["items", "items"]
    assert "Without codebooks, a code's vector is the mean of those of its items." in render(data)


def test_codes_with_the_same_vectors_are_one_code_in_effect() -> None:
    table = mere_table([[0], [1], [2], [3]], (4,))
    twins = ItemEmbeddings(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), "twins")
    data = page_data(dataclasses.replace(table, content=Content(twins, table.semantic_ids)))
    assert data["overlap"][0]["used_capacity"] == 4
    assert data["overlap"][0]["effective_capacity"] == pytest.approx(2)


def test_no_bucket_is_shared_or_a_large_catalog_is_cut(monkeypatch: pytest.MonkeyPatch, shop_sids: Sids) -> None:
    assert "No two items have the same codes." in render(page_data(mere_table([[0], [1]], (2,))))
    monkeypatch.setattr(sids_page, "MAX_ITEMS", 5)
    monkeypatch.setattr(sids_page, "MAX_GROUPS", 2)
    data = page_data(shop_sids)
    assert len(data["items"]["ids"]) == 5
    assert len(data["groups"]) == 2
    html = render(data)
    assert "Shown are 5 of 24 items, the most popular ones." in re.sub(r"\s+", " ", html)
    assert "The 2 largest are shown." in html


def test_titles_cannot_break_out(data: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(data))
    changed["items"]["titles"][0] = "</script><script>alert(1)</script>"
    changed["groups"][0]["words"] = ["<b>bold"]
    html = render(changed)
    assert "</script><script>alert" not in html
    assert "<b>bold" not in html
