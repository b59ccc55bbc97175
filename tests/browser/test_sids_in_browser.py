"""The page of Semantic IDs in a real browser: of a small shop, and of Amazon Beauty where its files are.

TESSEREC_TEST_DATA=DATA python -m pytest tests/browser/test_sids_in_browser.py
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shop
from tesserec.sids import fit_sids
from tesserec.sids_page import write_sids_page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: install it to test the page"),
]


BEAUTY = """
[data]
events = "{folder}/interactions.parquet"
items = "{folder}/items.parquet"
columns = {{ order = "pos" }}

[split]
protocol = "last_out"

[embedder]
class = "tesserec.embedders.tfidf_svd:TfidfSVD"

[semantic_ids]
class = "tesserec.semantic_ids.rq_kmeans:ResidualKMeans"

[retriever]
class = "tesserec.retrievers.popularity:Popularity"
"""


def write_shop(path: Path) -> None:
    """The page of 24 items."""
    write_sids_page(dataclasses.replace(fit_sids(shop.recipe(), *shop.data()), name="shop"), path)


def write_beauty(path: Path) -> None:
    """The page of 12,101 items, by the commands that a user gives."""
    if "TESSEREC_TEST_DATA" not in os.environ:
        pytest.skip("Amazon Beauty does not come with the package: name its folder's folder, TESSEREC_TEST_DATA=DATA")
    recipe, sids = path.with_name("beauty.toml"), path.with_name("codes")
    recipe.write_text(BEAUTY.format(folder=Path(os.environ["TESSEREC_TEST_DATA"]).absolute() / "amazon2014-beauty"))
    for arguments in (["fit", recipe, "--out", sids], ["report", sids, "--out", path]):
        subprocess.run([sys.executable, "-m", "tesserec", "sids", *map(str, arguments)], check=True)


@pytest.fixture(scope="module", params=[write_shop, write_beauty])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator["sync_api.Page"]:
    """The page of a system's codes, opened; any error of its script and any request fails the test."""
    path = tmp_path_factory.mktemp("sids") / "sids.html"
    request.param(path)
    errors: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900}, reduced_motion="reduce")
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: None if request.url.startswith("file:") else errors.append(request.url))
        page.goto(path.as_uri())
        yield page
        browser.close()
    assert errors == []


@pytest.fixture
def data(page: "sync_api.Page") -> Any:
    """The JSON of the page."""
    return json.loads(page.locator("#data").text_content() or "")


def opened(page: "sync_api.Page") -> "sync_api.Locator":
    """The first branch that holds an item, opened; the browser tells the page a moment after a click that it is."""
    branch = page.locator("#tree > details").first
    while True:
        if branch.get_attribute("open") is None:
            branch.locator("> summary").click()
        branch.locator(".item, details").first.wait_for()
        if branch.locator(".item").count():
            return branch
        branch = branch.locator("details").first


def neighbours(data: Any, item: int) -> list[int]:
    """What the panel must show: most first codes in common, then most events."""
    levels, codes, events = data["system"]["num_levels"], data["items"]["codes"], data["items"]["events"]

    def shared(other: int) -> int:
        pairs = zip(codes[item][:levels], codes[other][:levels], strict=True)
        return next((depth for depth, (a, b) in enumerate(pairs) if a != b), levels)

    near = [other for other in range(len(codes)) if other != item and shared(other)]
    return sorted(near, key=lambda other: (-shared(other), -events[other], other))[:8]


def test_figures_equal_the_json(page: "sync_api.Page", data: Any) -> None:
    for i, level in enumerate(data["codes"]["levels"]):
        shown = page.locator(f'[data-figure="codes.levels.{i}.perplexity"]').inner_text()
        assert shown == f"{level['perplexity']:,.1f}"
    assert page.locator('[data-figure="codes.num_items"]').first.inner_text() == f"{len(data['items']['codes']):,}"


def test_a_tile_for_each_first_code_opens_its_branch(page: "sync_api.Page", data: Any) -> None:
    tiles = page.locator("#tiles g")
    assert tiles.count() == len(data["groups"])
    areas = page.locator("#tiles .frame").evaluate_all(
        "frames => frames.map(f => [f.parentNode.dataset.prefix, f.width.baseVal.value * f.height.baseVal.value])"
    )
    items = {group["code"]: group["items"] for group in data["groups"]}
    total = sum(area for _, area in areas)
    num_items = len(data["items"]["codes"])
    assert all(area / total == pytest.approx(items[int(code)] / num_items, abs=0.01) for code, area in areas)
    code = data["groups"][1]["code"]
    page.locator(f'#tiles g[data-prefix="{code}"]').click()
    branch = page.locator(f'#tree > details[data-prefix="{code}"]')
    assert branch.get_attribute("open") is not None
    branch.locator(".item, details").first.wait_for()
    assert page.evaluate("document.activeElement.parentNode.dataset.prefix") == str(code)


def test_an_item_is_followed_to_its_neighbours_by_prefix(page: "sync_api.Page", data: Any) -> None:
    item = opened(page).locator(".item").first
    number = int(item.get_attribute("data-item") or "")
    item.click()
    panel = page.locator("#panel")
    panel.locator("h3", has_text=data["items"]["titles"][number]).wait_for()
    assert [int(code) for code in panel.locator(".path > span").all_inner_texts()] == data["items"]["codes"][number]
    assert f"{data['items']['events'][number]} events" in panel.inner_text()
    assert item.get_attribute("aria-current") == "true"
    shown = panel.locator(".item").evaluate_all("buttons => buttons.map(b => Number(b.dataset.item))")
    assert shown == neighbours(data, number)
    marked = page.locator(".map.first circle.on")
    assert marked.get_attribute("data-code") == str(data["items"]["codes"][number][0])
    panel.locator(".item").first.click()
    panel.locator("h3", has_text=data["items"]["titles"][shown[0]]).wait_for()
    assert page.url.endswith(f"#item={shown[0]}")


def test_it_is_used_from_the_keyboard(page: "sync_api.Page", data: Any) -> None:
    branch = page.locator("#tree > details:not([open])").first
    prefix = branch.get_attribute("data-prefix")
    branch = page.locator(f'#tree > details[data-prefix="{prefix}"]')
    branch.locator("> summary").focus()
    page.keyboard.press("Enter")
    branch.locator(".item, details").first.wait_for()
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.tagName") == "SUMMARY":
        page.keyboard.press("Enter")
        page.wait_for_function("document.activeElement.parentNode.children.length > 1")
        page.keyboard.press("Tab")
    number = int(page.evaluate("document.activeElement.dataset.item"))
    page.keyboard.press("Enter")
    page.locator("#panel h3", has_text=data["items"]["titles"][number]).wait_for()


def test_an_item_is_found_by_its_title(page: "sync_api.Page", data: Any) -> None:
    title = "nursery tin box" if "nursery tin box" in data["items"]["titles"] else data["items"]["titles"][100]
    page.locator("#search").fill(title.upper())
    found = page.locator("#found .item").all_inner_texts()
    assert title in found
    assert all(title.lower() in other.lower() for other in found)
    page.locator("#search").fill("")
    assert page.locator("#tree").is_visible()


def test_it_is_readable_on_a_phone(page: "sync_api.Page") -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_function("document.querySelector('#tiles svg').clientWidth <= 390")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1200, "height": 900})
    page.wait_for_function("document.querySelector('#tiles svg').clientWidth > 390")
