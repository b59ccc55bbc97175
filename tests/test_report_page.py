"""The report page: its numbers are those of the reports, its plots are drawn where the numbers say."""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import shop
from tesserec import report
from tesserec.pipeline import holdout_of
from tesserec.recommender import Recommender
from tesserec.report import interval_plot, page_data, render, runs, training_curves, usage_plot, write_report

LOG = [
    {"epoch": 1, "loss": 4.0, "seconds": 2.0, "validation": 0.1},
    {"epoch": 2, "loss": 2.0, "seconds": 4.0},
    {"epoch": 3, "loss": 3.0, "seconds": 12.0, "validation": 0.3},
]


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    """What the page of the shop shows, not to be changed."""
    return page_data(Recommender(shop.contents()))


class Page(HTMLParser):
    """The text of each element that has an id or a ``data-metric``, and everything that is loaded from elsewhere."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: dict[str, str] = {}
        self.cells: dict[tuple[str, str], str] = {}
        self.text = ""
        self.external: list[str] = []
        self._open: Any = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.external += [v for k, v in found.items() if k in ("src", "href") and v and not v.startswith("#")]
        if "data-metric" in found:
            self._open = (found["data-method"], found["data-metric"])
        elif tag == "script":
            self._open = found.get("id", "code")
        elif tag == "small":
            self._open = None

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "td"):
            self._open = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if isinstance(self._open, tuple):
            self.cells[self._open] = self.cells.get(self._open, "") + data
        elif self._open is not None:
            self.scripts[self._open] = self.scripts.get(self._open, "") + data


def test_the_page_shows_the_numbers_that_it_carries(data: dict[str, Any], tmp_path: Path) -> None:
    write_report(Recommender(shop.contents()), tmp_path / "new" / "r.html")
    page = Page((tmp_path / "new" / "r.html").read_text())
    assert json.loads(page.scripts["data"]) == json.loads(json.dumps(data))
    assert set(page.cells) == {(m, k) for m in ("cooccurrence", "popularity") for k in ("recall10", "ndcg10")}
    for (method, metric), text in page.cells.items():
        assert float(text) == pytest.approx(data["reports"][method]["metrics"][metric]["mean"], abs=5e-5)
    assert page.external == []
    assert not re.search(r"https?://(?!www\.w3\.org)", page.scripts["code"]), "nothing is fetched"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["r.html"]


def test_what_the_page_carries(data: dict[str, Any]) -> None:
    contents = shop.contents()
    assert data["reports"] == {name: one.to_dict() for name, one in contents.reports.items()}
    assert data["protocol"] == data["reports"]["cooccurrence"]["protocol"]
    assert (data["system"]["users"], data["system"]["items"], data["system"]["events"]) == (49, 24, 577)
    assert data["system"]["targets"] == 576
    assert data["system"]["first"] == shop.START_S
    assert data["system"]["last"] == shop.START_S + 59 * shop.DAY_S
    assert data["system"]["codebook_sizes"] == list(contents.content.semantic_ids.codebook_sizes)
    assert set(data["differences"]) == {"recall5", "recall10", "ndcg5", "ndcg10"}
    assert data["differences"]["ndcg10"]["popularity"]["second"] == "Popularity"
    assert data["split"]["test"]["requests"] == 33
    assert data["codes"]["num_items"] == 24
    assert len(data["codes"]["levels"]) == 2


def test_items_of_the_page(data: dict[str, Any]) -> None:
    items, contents = data["items"], shop.contents()
    assert items["total"] == 24
    assert items["ids"] == [f"i{i:02}" for i in range(24)]
    assert items["titles"][7] == "garden red lamp large"
    assert items["codes"] == contents.content.semantic_ids.codes_NL.tolist()
    assert items["events"][0] == 25, "24 purchases and a return"
    assert items["events"][1] == 24
    lists = contents.reports["cooccurrence"].items_BK[:, :10].tolist()
    assert items["recommended"][3] == sum(3 in one for one in lists)
    near = Recommender(contents).similar_items(["i05"], 6)["similar_item_id"].to_list()
    assert [items["ids"][i] for i in items["neighbours"][5]] == near


def test_users_of_the_page(data: dict[str, Any]) -> None:
    _, holdout = holdout_of(shop.contents())
    users = data["users"]
    assert len(users) == 24
    rows = [row for row in range(33) if any(user["id"] == f"u{int(holdout.requests.user_B[row]):02}" for user in users)]
    assert len(rows) == 24
    assert [user["id"] for user in users] == [f"u{int(holdout.requests.user_B[row]):02}" for row in rows]
    user, row = users[3], rows[3]
    assert user["num_events"] == len(user["history"]) == 10
    assert [event[0] for event in user["history"]] == holdout.requests.history.take(
        holdout.relevant.offsets.new_tensor([row])
    ).items.tolist()
    assert user["history"][0][2] is True
    assert user["time"] == int(holdout.requests.time_B[row])
    assert user["targets"] == holdout.relevant[row].tolist()
    assert user["lists"]["popularity"] == shop.contents().reports["popularity"].items_BK[row, :10].tolist()


def test_a_large_catalog_shows_popular_items_and_those_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MAX_ITEMS", 2)
    monkeypatch.setattr(report, "NUM_USERS", 1)
    monkeypatch.setattr(report, "NUM_EVENTS", 3)
    data = page_data(Recommender(shop.contents()))
    items, (user,) = data["items"], data["users"]
    assert 2 < len(items["ids"]) < items["total"] == 24
    assert "i00" in items["ids"], "the most popular one"
    assert len(user["history"]) == 3
    assert user["num_events"] == 10
    shown = [i for i, _, _ in user["history"]] + user["targets"] + [i for one in user["lists"].values() for i in one]
    assert min(shown) >= 0
    assert all(0 <= i < len(items["ids"]) for near in items["neighbours"] for i in near)
    assert f"the {len(items['ids'])} most popular of 24 items" in render(data)


def _with_test(data: dict[str, Any], low: float, high: float) -> str:
    changed = copy.deepcopy(data)
    changed["differences"]["ndcg10"]["popularity"].update(low=low, high=high, difference=(low + high) / 2)
    return re.sub(
        r"\s+", " ", re.sub(r"<[^>]+>", "", render(changed).partition("<header>")[2].partition("</header>")[0])
    )


def test_the_verdict_is_honest(data: dict[str, Any]) -> None:
    above, below, open_ = (_with_test(data, *bounds) for bounds in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.2)))
    assert "the difference of +0.1500 has a paired 95 % interval above zero, [0.1000, 0.2000]" in above
    assert "It does not beat Popularity" in below
    assert "Against Popularity (0.0000) this is undecided" in open_
    alone = copy.deepcopy(data)
    del alone["reports"]["popularity"], alone["training"]["popularity"]
    alone["differences"]["ndcg10"] = {}
    assert "No baseline was fitted, so nothing says how good that is" in re.sub(r"\s+", " ", render(alone))


def test_titles_cannot_break_out(data: dict[str, Any]) -> None:
    changed = copy.deepcopy(data)
    changed["items"]["titles"][0] = "</script><script>alert(1)</script>"
    changed["reports"]["popularity"]["label"] = "<b>bold</b>"
    html = render(changed)
    assert "alert(1)" in html
    assert "</script><script>alert" not in html
    assert "<b>bold" not in html
    assert json.loads(Page(html).scripts["data"])["items"]["titles"][0] == "</script><script>alert(1)</script>"


def test_a_system_without_codes_or_times_has_a_page() -> None:
    recipe = {
        "retriever": {"class": shop.POPULARITY},
        "split": {"protocol": "last_out"},
        "data": {"columns": {"order": "place"}},
    }
    events = shop.events().rename({"timestamp": "place"})
    data = page_data(Recommender.fit(events, recipe=recipe))
    assert (data["codes"], data["items"]["codes"], data["system"]["first"]) == (None, None, None)
    html = render(data)
    assert "This system has no Semantic IDs" in html
    assert "first to last event" not in html


def test_equal_training_time_and_curves_are_shown(data: dict[str, Any]) -> None:
    changed = copy.deepcopy(data)
    changed["training"]["cooccurrence"]["training_log"] = LOG
    changed["training"]["popularity"] = {"training_log": LOG[:2], "equal_training_time": True}
    text = re.sub(r"\s+", " ", Page(render(changed)).text)
    assert "† stopped after the 12 s of training steps that Cooccurrence took." in text
    assert "Popularity †" in text
    assert "with validation" in text
    assert "Cooccurrence: validation" in text
    assert "Popularity: loss" in text
    assert "Popularity: validation" not in text, "one point is no curve"
    assert "†" not in Page(render(data)).text


def test_where_curves_are_drawn(data: dict[str, Any]) -> None:
    changed = copy.deepcopy(data)
    changed["training"]["cooccurrence"]["training_log"] = LOG
    loss, validation = training_curves(changed, "cooccurrence")
    assert loss == {
        "label": "Cooccurrence",
        "what": "loss",
        "path": "40.0,15.0 90.0,100.0 290.0,57.5",
        "low": 2.0,
        "high": 4.0,
        "seconds": 12.0,
    }
    assert validation["path"] == "40.0,100.0 290.0,15.0"
    assert training_curves(data, "cooccurrence") == []


def test_where_intervals_are_drawn() -> None:
    def of(mean: float, low: float, high: float) -> dict[str, Any]:
        return {"label": f"at {mean}", "metrics": {"ndcg10": {"mean": mean, "low": low, "high": high}}}

    plot = interval_plot({"reports": {"a": of(0.1, 0.05, 0.15), "b": of(0.3, 0.25, 0.38)}}, "ndcg10")
    assert [(row["method"], row["label"], row["y"]) for row in plot["rows"]] == [
        ("b", "at 0.3", 18),
        ("a", "at 0.1", 48),
    ]
    assert (plot["bottom"], plot["metric"]) == (78, "ndcg10")
    assert [(tick["x"], tick["text"]) for tick in plot["ticks"]] == [
        (150, "0"),
        (212.5, "0.1"),
        (275, "0.2"),
        (337.5, "0.3"),
        (400, "0.4"),
    ]
    assert {k: v for k, v in plot["rows"][1].items() if k in ("x", "low", "high")} == {
        "x": 212.5,
        "low": 181.2,
        "high": 243.8,
    }
    assert (plot["rows"][1]["mean_value"], plot["rows"][1]["high_value"]) == (0.1, 0.15)


@pytest.mark.parametrize(
    ("largest", "step"),
    [(0.0, 0.0000005), (0.29, 0.1), (0.9, 0.2), (1.0, 0.2), (0.012, 0.005), (0.06, 0.02), (5.0, 1.0)],
)
def test_ticks(largest: float, step: float) -> None:
    if largest:
        assert report._tick_step(largest) == pytest.approx(step)
    assert report._tick_step(largest) > 0


def test_where_the_use_of_codes_is_drawn() -> None:
    assert usage_plot([1, 4, 0]) == {
        "points": "0,80 0.00,4.0 100.00,4.0 100.00,61.0 200.00,61.0 200.00,80.0 300.00,80.0 300,80",
        "most": 4,
    }
    dead = usage_plot([0, 2, 0, 2, *[0] * 99_996])
    assert dead == {"points": "0,80 0.00,4.0 0.01,4.0 0.01,80.0 300.00,80.0 300,80", "most": 2}
    assert runs([0, 2, 0.5, 2, 0]) == [(2, 0, 2), (0.5, 2, 3), (0, 3, 5)]


def test_days_and_costs() -> None:
    assert report._day(None) == report._day(-1) == "unknown"
    assert report._day(shop.START_S) == "2020-09-13"
    costs = {"train_s": 12.345, "parameters": 1234.0, "peak_rss_bytes": 1536 * 2**20, "retrieve_s_per_1000": 99.999}
    shown = [report._cost(costs, name) for name in (*costs, "other")]
    assert shown == ["12.35", "1,234", "1,536 MiB", "100.00", "–"]
    assert report._cost({"train_s": 1234.5}, "train_s") == "1,234"


def test_added_items_are_on_the_page() -> None:
    recommender = Recommender(shop.contents())
    recommender.add_items(pl.DataFrame({"item_id": ["i99"], "title": ["kitchen red lamp"]}))
    data = page_data(recommender)
    assert (data["items"]["ids"][24], data["items"]["events"][24], data["items"]["recommended"][24]) == ("i99", 0, 0)
    assert data["codes"]["num_items"] == 24
    assert data["system"]["table_revision"] == 1
