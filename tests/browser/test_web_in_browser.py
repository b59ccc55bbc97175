"""The service's own page in a real browser, over a real service with two versions in memory."""

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from tests.serving.connected import Running, service_at
from tests.serving.served_shop import bundle

from tesserec.serving.client import Client
from tesserec.serving.schemas import RecommendRequest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: install it to test the page"),
]
EVIL = "<img src=x onerror=document.title='broken'>"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with service_at(tmp_path_factory.mktemp("web") / "home", bundle("sasrec"), bundle("mosaic")) as running:
        yield running


@pytest.fixture(scope="module")
def client(service: Running) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "sync_api.Browser", service: Running) -> Iterator["sync_api.Page"]:
    """A new window; any error of a script, breach of the policy, and request to somebody else fails the test."""
    errors: list[str] = []
    page = browser.new_page(base_url=service.url, viewport={"width": 1200, "height": 900}, reduced_motion="reduce")
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on(
        "request",
        lambda request: None if request.url.startswith((service.url, "data:")) else errors.append(request.url),
    )
    yield page
    page.close()
    assert errors == []


def titles(page: "sync_api.Page") -> list[str]:
    """Of the list that is shown."""
    return page.locator("ol.slate h3").all_inner_texts()


def first_found(page: "sync_api.Page", title: str) -> None:
    """Wait until what was typed last is what is found."""
    page.wait_for_function("t => document.querySelector('#found button > span')?.innerText === t", arg=title)


def wanted(client: Client, **fields: Any) -> list[str | None]:
    """What the API answers to the same."""
    return [item.title for item in client.ask(RecommendRequest(**fields)).items]


def test_a_user_is_found_by_the_beginning_of_an_id(page: "sync_api.Page", client: Client) -> None:
    page.goto("/")
    page.get_by_label("User").press_sequentially("u1")
    page.wait_for_function("() => document.querySelector('#users option')?.value === 'u10'")
    options = page.locator("#users option").evaluate_all("options => options.map(o => o.value)")
    assert options == client.users("u1", 20)
    page.get_by_label("User").press_sequentially("9")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="10 items for u19").wait_for()
    assert titles(page) == wanted(client, user_id="u19")
    assert "user=u19" in page.url
    answered = page.locator("#answer").inner_text()
    model = client.recommend("u19").model_version
    assert model in answered
    for fact in ("rung", "arm", "table revision", "model", "total", "slate", "history"):
        assert fact in answered


def test_a_history_is_put_together_from_the_keyboard(page: "sync_api.Page", client: Client) -> None:
    page.goto("/")
    page.get_by_label("Find an item").focus()
    page.keyboard.type("office oak shelf")
    first_found(page, "office oak shelf")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Remove office oak shelf", exact=True).wait_for()
    assert page.evaluate("document.activeElement.id") == "find", "the next item can be typed at once"
    assert titles(page) == wanted(client, history=["i14"])
    page.keyboard.type("office tin")
    first_found(page, "office tin box")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Remove office tin box", exact=True).wait_for()
    assert page.url.endswith("?history=i14&history=i16")
    assert titles(page) == wanted(client, history=["i14", "i16"])
    page.get_by_role("button", name="Remove office oak shelf", exact=True).press("Enter")
    page.get_by_role("button", name="Remove office oak shelf", exact=True).wait_for(state="detached")
    assert titles(page) == wanted(client, history=["i16"])
    page.reload()
    assert titles(page) == wanted(client, history=["i16"])


def test_options_are_those_of_the_api(page: "sync_api.Page", client: Client) -> None:
    page.goto("/?user=u05")
    page.get_by_label("How many").fill("4")
    page.get_by_label("Filter").fill("price <= 2")
    page.get_by_label("Diversity").fill("0.5")
    page.get_by_role("button", name="Recommend").click()
    page.get_by_role("heading", name="4 items for u05").wait_for()
    assert titles(page) == wanted(client, user_id="u05", k=4, filter="price <= 2", diversity=0.5)
    page.get_by_label("Filter").fill("")
    page.get_by_label("Words that").fill("garden lamp")
    page.get_by_role("button", name="Recommend").click()
    page.wait_for_url(re.compile("query=garden"))
    assert titles(page) == wanted(client, user_id="u05", k=4, query="garden lamp", diversity=0.5)


def test_reasons_are_those_of_the_api(page: "sync_api.Page", client: Client) -> None:
    page.goto("/?user=u05")
    assert page.locator("ol.slate details").count() == 0
    page.get_by_label("Say why").check()
    page.get_by_role("button", name="Recommend").press("Enter")
    page.locator("ol.slate details").first.wait_for()
    best = client.ask(RecommendRequest(user_id="u05", explain=True)).items[0].explanation
    assert best is not None
    first = page.locator("ol.slate > li").first
    reasons = sorted((moved for moved in best.history if moved.change > 0), key=lambda moved: -moved.change)[:3]
    shown = first.locator("p.why span").all_inner_texts()
    assert shown == [f"{moved.title} {moved.change:+.3f}" for moved in reasons]
    assert reasons
    assert not first.locator("dl.why").is_visible()
    first.locator("summary").press("Enter")
    told = first.locator("dl.why").inner_text()
    for step in best.path:
        assert str(step.code) in told
    assert all(source in told for source in best.sources)


@pytest.mark.parametrize(("field", "value", "said"), [("filter", "prize < 3", "prize"), ("k", "500", "k: Input")])
def test_what_is_wrong_is_said(page: "sync_api.Page", field: str, value: str, said: str) -> None:
    page.goto(f"/?user=u05&{field}={value}")
    assert said in page.get_by_role("alert").inner_text()
    assert page.get_by_label("User").input_value() == "u05"


def test_the_tree_is_followed_to_an_item(page: "sync_api.Page", client: Client) -> None:
    page.goto("/browse")
    assert page.locator("#level-title").inner_text().startswith("24 items in ")
    left = 24
    while page.locator("#level-title", has_text="branch").count():
        counts = [int(text.split()[0]) for text in page.locator(".branches .count").all_inner_texts()]
        assert sum(counts) == left
        left = counts[0]
        page.locator(".branches a").first.click()
        page.wait_for_url(re.compile("prefix="))
        page.locator(f"#level-title >> text=/^{left} item/").wait_for()
    item_id = page.locator(".branches .count").first.inner_text().split()[0]
    codes = client.item(item_id).codes
    assert codes is not None
    prefix = re.search(r"prefix=([\d.]+)", page.url)
    assert prefix is not None
    assert ".".join(str(code) for code in codes).startswith(prefix[1])
    page.locator(".branches a").first.click()
    page.get_by_role("heading", name="items for this history").wait_for()


def test_search_as_you_type(page: "sync_api.Page", client: Client) -> None:
    page.goto("/search")
    page.get_by_label("Words of a title").press_sequentially("nursery tin")
    page.locator("#hits-title", has_text="“nursery tin”").wait_for()
    found = page.locator("#hits .item > span:nth-of-type(1)").all_inner_texts()
    assert found == [item.title for item in client.search("nursery tin", 30).items]


def test_two_versions_side_by_side(page: "sync_api.Page", service: Running) -> None:
    page.goto("/compare?user=u05")
    deployment = service.service.shop("default").deployment
    left, right = (page.locator(".lists > div").nth(i) for i in (0, 1))
    assert left.locator("h3").inner_text() == deployment.current().version
    assert {left.locator("h3").inner_text(), right.locator("h3").inner_text()} == set(deployment.resident())
    lists = [side.locator(".item > span:nth-of-type(1)").all_inner_texts() for side in (left, right)]
    assert (
        page.locator("#both").inner_text()
        == f"{len(set(lists[0]) & set(lists[1]))} of {len(lists[0])} items in both lists"
    )
    for place, title in enumerate(lists[0]):
        note = left.locator(".item .count").nth(place).inner_text()
        moved = lists[1].index(title) - place if title in lists[1] else None
        assert note == (
            "only here" if moved is None else f"{'↑' if moved > 0 else '↓'}{abs(moved)}" if moved else "same place"
        )
    page.locator("#left").select_option(index=1)
    page.get_by_role("button", name="Compare").click()
    page.wait_for_url(re.compile("left="))
    assert page.locator("#both").inner_text().startswith(f"{len(lists[0])} of")


def test_health_is_renewed_while_it_is_open(page: "sync_api.Page", client: Client) -> None:
    page.goto("/status")
    page.get_by_text("Ready", exact=True).wait_for()
    answers = page.locator("#live dd").first
    before = int(answers.inner_text())
    for _ in range(3):
        client.recommend("u03")
    page.wait_for_function("n => Number(document.querySelector('#live dd').innerText) >= n + 3", arg=before)
    counts = dict(zip(*(page.locator(f"#kept + dl {tag}").all_inner_texts() for tag in ("dt", "dd")), strict=True))
    assert (counts["events"], counts["items"]) == ("577", "0")


def test_without_a_script_it_does_the_same(browser: "sync_api.Browser", service: Running, client: Client) -> None:
    context = browser.new_context(base_url=service.url, java_script_enabled=False)
    page = context.new_page()
    page.goto("/")
    page.get_by_label("Find an item").fill("office tin box")
    page.get_by_label("Find an item").press("Enter")
    page.locator("#found button").first.click()
    page.get_by_role("heading", name="items for this history").wait_for()
    assert page.url.endswith("?history=i16")
    assert titles(page) == wanted(client, history=["i16"])
    context.close()


def test_titles_stay_titles(page: "sync_api.Page", client: Client) -> None:
    client.put_item("evil", {"title": f"evil {EVIL}", "price": 1.0})
    for address in ("/search?q=evil", "/?history=evil&find=evil", "/browse"):
        page.goto(address)
        assert page.title().endswith("tesserec")
        assert page.locator("main img").count() == 0
    page.goto("/search?q=evil")
    assert page.locator("#hits .item > span:nth-of-type(1)").inner_text() == f"evil {EVIL}"
    client.delete_item("evil")


@pytest.mark.parametrize(
    "address", ["/?user=u05&explain=1", "/browse", "/search?q=lamp", "/compare?user=u05", "/status"]
)
def test_it_is_readable_on_a_phone_and_by_a_screen_reader(page: "sync_api.Page", address: str) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("h1").count() == 1
    unnamed = page.locator("input:not([type=hidden]), select, button").evaluate_all(
        "all => all.filter(e => !(e.labels?.length || e.innerText.trim() || e.ariaLabel)).map(e => e.outerHTML)"
    )
    assert unnamed == []
    ids = page.locator("[id]").evaluate_all("all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Skip to the content"
    assert page.locator('nav[aria-label="Pages"] [aria-current=page]').count() == 1
