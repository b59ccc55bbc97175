"""The report page in a real browser."""

import json
import shutil
from collections.abc import Iterator

import pytest

import shop
from tesserec.recommender import Recommender
from tesserec.report import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: install it to test the report page"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator["sync_api.Page"]:
    """The shop's report, opened; any error of its script fails the test."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(Recommender(shop.contents()), path)
    errors: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: None if request.url.startswith("file:") else errors.append(request.url))
        page.goto(path.as_uri())
        yield page
        browser.close()
    assert errors == []


def test_a_metric_equals_the_json(page: "sync_api.Page") -> None:
    data = json.loads(page.locator("#data").text_content() or "")
    for method in ("cooccurrence", "popularity"):
        shown = page.locator(f'td[data-method="{method}"][data-metric="ndcg10"]').inner_text().split()[0]
        assert shown == f"{data['reports'][method]['metrics']['ndcg10']['mean']:.4f}"


def test_a_branch_opens_and_an_item_is_followed_to_its_neighbour_and_user(page: "sync_api.Page") -> None:
    data = json.loads(page.locator("#data").text_content() or "")
    tree = page.locator("#tree")
    branch = tree.locator("> details").first
    assert branch.locator(".item").count() == 0, "what is closed is not built"
    prefix = branch.get_attribute("data-prefix")
    opened = branch
    while True:  # the browser tells the page a moment after the click that a branch was opened
        opened.locator("> summary").click()
        opened.locator(".item, details").first.wait_for()
        if opened.locator(".item").count():
            break
        opened = opened.locator("details").first
    item = opened.locator(".item").first
    number = int(item.get_attribute("data-item") or "")
    assert str(data["items"]["codes"][number][0]) == prefix
    item.click()
    panel = page.locator("#panel")
    assert panel.locator("h3").first.inner_text() == data["items"]["titles"][number]
    assert [int(code) for code in panel.locator(".path > span").all_inner_texts()] == data["items"]["codes"][number]
    assert f"{data['items']['events'][number]} events" in panel.inner_text()
    assert item.get_attribute("aria-current") == "true"
    neighbour = panel.locator(".item").first
    neighbour.click()
    expected = data["items"]["titles"][data["items"]["neighbours"][number][0]]
    assert panel.locator("h3").first.inner_text() == expected
    assert page.url.endswith(f"#item={data['items']['neighbours'][number][0]}")


def test_it_is_used_from_the_keyboard(page: "sync_api.Page") -> None:
    page.locator("#tree > details > summary").nth(1).focus()
    page.keyboard.press("Enter")
    assert page.locator("#tree > details").nth(1).get_attribute("open") is not None
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.tagName") in ("BUTTON", "SUMMARY")


def test_an_item_is_found_by_its_title(page: "sync_api.Page") -> None:
    page.locator("#search").fill("NURSERY tin")
    assert page.locator("#found .item").all_inner_texts() == ["nursery tin box", "nursery tin box round"]
    assert not page.locator("#tree").is_visible()
    page.locator("#search").fill("")
    assert page.locator("#tree").is_visible()


def test_lists_of_users_mark_what_came_next(page: "sync_api.Page") -> None:
    data = json.loads(page.locator("#data").text_content() or "")
    for row, user in enumerate(data["users"][:3]):
        page.locator("#who").select_option(str(row))
        for method in ("cooccurrence", "popularity"):
            page.locator("#how").select_option(method)
            hits = [item for item in user["lists"][method] if item in user["targets"]]
            assert page.locator("#proposed > li").count() == len(user["lists"][method])
            assert page.locator("#proposed > li.hit").count() == len(hits)
            assert (
                page.locator("#score").inner_text().startswith(f"{len(hits)} of {len(user['lists'][method])} proposed")
            )
        assert page.locator("#past .item").count() == len(user["history"])


def test_it_is_readable_on_a_phone(page: "sync_api.Page") -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1200, "height": 900})
