"""The page of a service over HTTP: policy, files, what a script is not needed for, and what is not logged."""

import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx2
import pytest
from tests.serving.connected import Running, service_at
from tests.serving.served_shop import bundle

import tesserec

PAGES = (
    "/",
    "/?user=u05&explain=1",
    "/?history=i01&find=lamp",
    "/browse",
    "/search?q=lamp",
    "/compare?user=u05",
    "/status",
)
FILES = Path(tesserec.__file__).parent / "templates" / "web"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with service_at(tmp_path_factory.mktemp("web") / "home", bundle("counted"), bundle("mosaic")) as running:
        yield running


@pytest.fixture(scope="module")
def http(service: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=service.url, timeout=60) as client:
        yield client


class Outside(HTMLParser):
    """What a page would run or load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.loaded: list[str] = []
        self._tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.inline += [f"{tag} {name}" for name, _ in attrs if name == "style" or name.startswith("on")]
        wanted = {"script": "src", "link": "href", "img": "src"}.get(tag)
        self.loaded += [value or "" for name, value in attrs if name == wanted]

    def handle_data(self, data: str) -> None:
        if self._tag in ("script", "style") and data.strip():
            self.inline.append(f"{self._tag}: {data}")

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""


@pytest.mark.parametrize("page", PAGES)
def test_pages_run_and_load_nothing_but_files_of_the_service(http: httpx2.Client, page: str) -> None:
    reply = http.get(page)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    found = Outside(reply.text)
    assert found.inline == []
    assert [one for one in found.loaded if not one.startswith(("/web/", "data:"))] == []
    policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert "unsafe" not in reply.headers["content-security-policy"]
    assert reply.headers["referrer-policy"] == "no-referrer", "addresses have ids of users in them"
    assert reply.headers["cache-control"] == "no-store"


def test_files_come_with_their_licence(http: httpx2.Client) -> None:
    assert http.get("/web/htmx.min.js").content == (FILES / "htmx.min.js").read_bytes()
    assert http.get("/web/htmx.min.js").headers["content-type"].startswith("text/javascript")
    assert "Permission to use, copy, modify" in http.get("/web/htmx.LICENSE").text
    style = http.get("/web/style.css")
    assert style.headers["content-type"].startswith("text/css")
    assert "--accent" in style.text
    assert ".skip" in style.text
    reply = http.get("/web/page.html")
    assert (reply.status_code, "there is no file 'page.html'" in reply.text) == (404, True)


def test_adding_and_taking_out_lead_to_the_page_of_what_is_left(http: httpx2.Client) -> None:
    reply = http.get("/?user=u05&history=i01&add=i02&find=oak&k=10&explain=1")
    assert (reply.status_code, reply.headers["location"]) == (303, "/?user=u05&history=i01&history=i02&explain=1")
    reply = http.get("/?history=i01&history=i02&remove=0&k=3", headers={"HX-Request": "true"})
    assert (reply.status_code, reply.headers["hx-push-url"]) == (200, "/?k=3&history=i02")
    assert http.get("/?history=i01&remove=7").headers["location"] == "/?history=i01"


def test_a_part_of_a_page_has_no_strip(http: httpx2.Client) -> None:
    assert 'id="mosaic"' in http.get("/").text
    assert 'id="mosaic"' not in http.get("/", headers={"HX-Request": "true"}).text


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("/?user=u05&filter=prize+%3C+3", "there is no attribute prize"),
        ("/?user=u05&k=many", "k: Input should be a valid integer"),
        ("/?user=u05&diversity=2", "diversity: Input should be less than or equal to 1"),
        ("/browse?prefix=99", "code 99 of level 1 does not exist"),
        ("/browse?prefix=x", "expected codes joined by dots"),
        ("/compare?user=u05&left=v1", "version 'v1' is not in memory"),
    ],
)
def test_what_is_wrong_is_said_on_the_page(http: httpx2.Client, page: str, said: str) -> None:
    alert = re.search(r'role="alert">(.*?)</p>', http.get(page).text, re.S)
    assert alert is not None
    assert said in alert[1].replace("&#39;", "'")


def test_what_is_looked_at_here_was_shown_to_nobody(http: httpx2.Client, service: Running) -> None:
    shop = service.service.shop("default")
    before = shop.store.counts()["impressions"]
    http.get("/?user=u07")
    http.get("/compare?user=u07")
    http.post("/api/recommend", json={"user_id": "u07"}).raise_for_status()
    while shop.store.counts()["impressions"] == before:
        time.sleep(0.01)
    assert shop.store.counts()["impressions"] == before + 1


def test_a_drained_service_says_so(http: httpx2.Client, service: Running) -> None:
    assert "<b>Ready</b>" in http.get("/status").text
    service.service.draining = True
    try:
        text = http.get("/status").text
    finally:
        service.service.draining = False
    assert "<b>Not ready</b>" in text
    assert "draining: no new traffic, please" in text


def test_user_ids_are_options_and_no_html(http: httpx2.Client) -> None:
    http.post("/api/events", json={"event_id": "x1", "user_id": 'zoe"><b>', "item_id": "i01"}).raise_for_status()
    assert http.get("/web/users?user=zoe").text == '<option value="zoe&#34;&gt;&lt;b&gt;"></option>'
    assert "<b>" not in Outside(http.get("/?user=zoe%22%3E%3Cb%3E").text).inline
    assert 'value="zoe&#34;&gt;&lt;b&gt;"' in http.get("/?user=zoe%22%3E%3Cb%3E").text


def test_pages_are_no_part_of_the_api(http: httpx2.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert "/api/search" in paths
    assert not {"/", "/browse", "/search", "/compare", "/status", "/web/{name}"} & set(paths)
