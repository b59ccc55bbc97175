"""The Grafana dashboard asks only for what a scrape has."""

import copy
import json

import pytest

from tesserec.serving.schemas import RecommendResponse
from tesserec.serving.telemetry import Telemetry
from tools import dashboard


@pytest.fixture(scope="module")
def scrape():
    telemetry = Telemetry()
    telemetry.requested("GET", "/api/search", 200, 0.01)
    telemetry.refused("rate")
    shop = telemetry.namespace("default")
    shop.serving(("m", "c"))
    versions = {"model_version": "m", "codebook_version": "c", "table_revision": 0}
    rest = {"response_id": "r", "user_id": None, "items": [], "rung": "dense", "arm": "live"}
    shop.answered(RecommendResponse(**versions, **rest, stages_ms={"model": 1.0, "total": 2.0}), "default")
    return telemetry.render().decode()


def board():
    return json.loads(dashboard.FILE.read_text(encoding="utf-8"))


def test_the_file_is_what_the_panels_say():
    assert dashboard.FILE.read_text(encoding="utf-8") == dashboard.written(), "run: python -m tools.dashboard"


def test_every_metric_and_label_is_in_a_scrape(scrape):
    assert dashboard.missing(board(), scrape) == []


def test_every_metric_of_the_service_is_on_the_dashboard(scrape):
    names = {line.split()[2] for line in scrape.splitlines() if line.startswith("# TYPE tesserec_")}
    shown = " ".join(dashboard.expressions(board()))
    assert {name for name in names if not name.endswith("_created") and name not in shown} == set()


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("rate(tesserec_answer_total[1m])", "tesserec_answer_total"),
        ('tesserec_items{shop="a"}', "shop of tesserec_items"),
        ("sum by (arm, user) (tesserec_answers_total)", "user of tesserec_answers_total"),
        ("label_values(tesserec_items, rung)", "rung of tesserec_items"),
    ],
)
def test_what_is_missing_is_named(scrape, query, wrong):
    changed = copy.deepcopy(board())
    changed["panels"][1]["targets"][0]["expr"] = query
    assert dashboard.missing(changed, scrape) == [wrong]


def test_panels_do_not_overlap():
    places = [panel["gridPos"] for panel in board()["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells))
    assert all(p["x"] + p["w"] <= 24 for p in places)
