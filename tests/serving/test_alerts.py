"""The alerts for Prometheus ask only for what a scrape of a running service has, and the run-book explains each."""

import dataclasses
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.serving.services import CONFIG, served

from tesserec.serving.config import GuardConfig
from tesserec.serving.rates import RateConfig

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "deploy" / "alerts.yml"
PROMTOOL = shutil.which("promtool")
BY_PROMETHEUS = {"job", "instance"}
FEW = GuardConfig(rates=RateConfig(per_key=None, per_address="4/hour"))


def rules() -> dict[str, str]:
    """Name → expression."""
    text = FILE.read_text(encoding="utf-8")
    return dict(re.findall(r"- alert: (\w+)\n\s+expr: (.+)\n", text))


def missing(expression: str, labels: dict[str, set[str]]) -> list[str]:
    """Metrics and labels of an expression that a scrape does not have."""
    found = re.findall(r"\b((?:tesserec|process)_\w+|up)(\{[^}]*\})?", expression)
    wrong = [name for name, _ in found if name not in labels]
    for name, matchers in found:
        asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) - BY_PROMETHEUS
        wrong += [f"{label} of {name}" for label in sorted(asked - labels.get(name, set()))]
    every = set().union(*(labels.get(name, set()) for name, _ in found))
    groups = re.findall(r"(?:by|on) \(([^)]*)\)", expression)
    grouped = {label.strip() for group in groups for label in group.split(",") if label.strip()}
    return wrong + sorted(grouped - every)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Metric → its labels, of a service that recommended, took an event and refused."""
    with served(tmp_path_factory.mktemp("alerts"), dataclasses.replace(CONFIG, guards=FEW)) as (_, client):
        assert client.get("/api/recommend/u01").status_code == 200
        event = {"event_id": "e1", "user_id": "u01", "item_id": "i01"}
        assert client.post("/api/events", json={"events": [event]}).status_code == 200
        text = client.get("/metrics").text
        assert [client.get("/api/recommend/u01").status_code for _ in range(9)][-1] == 429
        refused = client.app.observer.registry.collect()
    labels: dict[str, set[str]] = defaultdict(set, up=set())
    for family in (*text_string_to_metric_families(text), *refused):
        for sample in family.samples:
            labels[sample.name].update(sample.labels)
    return labels


def test_every_metric_and_label_is_in_a_scrape(scraped: dict[str, set[str]]) -> None:
    found = {name: missing(expression, scraped) for name, expression in rules().items()}
    assert len(found) >= 10
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("tesserec_store == 0", ["tesserec_store"]),
        ('rate(tesserec_events_total{result="accepted"}[5m]) == 0', ["result of tesserec_events_total"]),
        ("sum by (shop) (tesserec_store_up) == 0", ["shop"]),
    ],
)
def test_what_is_missing_is_named(scraped: dict[str, set[str]], expression: str, wrong: list[str]) -> None:
    assert missing(expression, scraped) == wrong


def test_the_run_book_explains_each() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert [name for name in rules() if f"`{name}`" not in text] == []


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool on the PATH: install prometheus")
def test_prometheus_takes_the_rules() -> None:
    done = subprocess.run([str(PROMTOOL), "check", "rules", str(FILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
