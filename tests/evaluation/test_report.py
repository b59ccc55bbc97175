"""Reports on disk and side by side."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.table import Table

from tesserec.errors import DataError
from tesserec.evaluation import Estimate, Report, Slice, metrics_table, slices_table

REPORT = Report(
    label="Möbius",
    protocol={"split": "global_time.test", "refit": False, "seen_items": "removed", "num_requests": 3},
    metrics={"recall10": Estimate(0.5, 0.25, 0.75), "ndcg10": Estimate(0.4, 0.3, math.nan)},
    slices={"items:cold": Slice(2, {"ndcg10": Estimate(math.nan, math.nan, math.nan)})},
    aggregates={"gini10": Estimate(0.9, 0.8, 0.95)},
    costs={"train_s": 12.5, "parameters": 1234567.0, "peak_rss_bytes": 3 * 2**30},
    notes={"requests_without_list": 1},
    values={"recall10": torch.tensor([0.0, 1.0, math.nan]), "ndcg10": torch.tensor([0.1, 0.2, 0.3])},
    items_BK=torch.tensor([[1, 2], [3, -1], [4, 5]], dtype=torch.int32),
)


def test_json_and_back() -> None:
    text = REPORT.to_json()
    assert "NaN" not in text
    assert "Möbius" in text
    plain = json.loads(text)
    assert plain["format"] == 1
    assert plain["metrics"]["ndcg10"] == {"mean": 0.4, "low": 0.3, "high": None}
    assert plain["slices"]["items:cold"] == {
        "num_requests": 2,
        "metrics": {"ndcg10": {"mean": None, "low": None, "high": None}},
    }
    back = Report.from_json(text)
    assert back.to_json() == text
    assert math.isnan(back.metrics["ndcg10"].high)
    assert back.metrics["recall10"] == Estimate(0.5, 0.25, 0.75)
    assert (back.label, back.num_requests, back.notes) == ("Möbius", 3, {"requests_without_list": 1})
    assert (back.aggregates, back.costs) == (REPORT.aggregates, REPORT.costs)


def test_values_travel_beside_the_json(tmp_path: Path) -> None:
    path = tmp_path / "values.parquet"
    REPORT.write_values(path)
    back = Report.from_json(REPORT.to_json()).with_values(path)
    assert list(back.values) == ["recall10", "ndcg10"]
    torch.testing.assert_close(back.values_of("recall10"), REPORT.values["recall10"], equal_nan=True)
    assert back.values_of("recall10").dtype == torch.float32
    assert back.items_BK is not None
    assert back.items_BK.dtype == torch.int32
    assert back.items_BK.tolist() == [[1, 2], [3, -1], [4, 5]]
    replace(REPORT, items_BK=None).write_values(path)
    assert REPORT.with_values(path).items_BK is None


def test_values_of_another_report_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "values.parquet"
    replace(REPORT, values={"recall10": torch.zeros(2)}, items_BK=None).write_values(path)
    with pytest.raises(DataError, match=r'values.parquet has 2 rows, report "Möbius" 3 requests: give the table that'):
        REPORT.with_values(path)


def test_values_that_are_not_there() -> None:
    with pytest.raises(DataError, match='report "Möbius" has no per-request values: read its Parquet table too'):
        replace(REPORT, values={}).values_of("ndcg10")
    with pytest.raises(DataError, match=r'report "Möbius" has no metric ndgc10; did you mean ndcg10\?'):
        REPORT.values_of("ndgc10")
    with pytest.raises(DataError, match="has no metric xyz; known: recall10, ndcg10"):
        REPORT.values_of("xyz")


def test_what_is_no_report() -> None:
    with pytest.raises(DataError, match=r"not a report: the text is not JSON \(Expecting .*\); give the file that"):
        Report.from_json("figures")
    with pytest.raises(DataError, match=r"not a report of format 1 \(found 2\): evaluate again with this version"):
        Report.from_json('{"format": 2}')
    with pytest.raises(DataError, match=r"not a report of format 1 \(found None\)"):
        Report.from_json("[1]")


OTHER = replace(
    REPORT,
    label="other",
    metrics={"recall10": Estimate(0.6, 0.5, 0.7), "ndcg10": Estimate(math.nan, math.nan, math.nan)},
    slices={"items:cold": Slice(3, {"ndcg10": Estimate(0.1, 0.0, 0.2)}), "history:0": Slice(1, REPORT.metrics)},
    costs={"retrieve_s_per_1000": 0.5},
)


def cells(table: Table) -> list[list[object]]:
    columns = [[column.header, *column.cells] for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def test_metrics_table() -> None:
    table = metrics_table([REPORT, OTHER])
    assert table.title == "global_time.test: 3 requests, seen items removed"
    assert cells(table) == [
        ["", "recall10", "ndcg10", "gini10", "train s", "s / 1,000 requests", "parameters", "peak MiB"],
        [
            "Möbius",
            r"0.5000 \[0.2500, 0.7500]",
            r"[bold]0.4000 \[0.3000, nan][/bold]",
            r"0.9000 \[0.8000, 0.9500]",
            "12.50",
            "–",
            "1,234,567",
            "3,072",
        ],
        ["other", r"[bold]0.6000 \[0.5000, 0.7000][/bold]", "–", r"0.9000 \[0.8000, 0.9500]", "–", "0.50", "–", "–"],
    ]
    assert [column.justify for column in table.columns] == ["left", *["right"] * 7]
    console = Console(width=200, no_color=True)
    with console.capture() as shown:
        console.print(table)
    assert "0.6000 [0.5000, 0.7000]" in shown.get()


def test_metrics_table_of_chosen_metrics_and_of_a_refit() -> None:
    refitted = replace(REPORT, protocol={**REPORT.protocol, "refit": True}, costs={})
    table = metrics_table([refitted], ["ndcg10"])
    assert table.title == "global_time.test, refit: 3 requests, seen items removed"
    assert cells(table)[0] == ["", "ndcg10"]


def test_slices_table() -> None:
    table = slices_table([REPORT, OTHER])
    assert table.title == "ndcg10 by slice"
    assert [column.justify for column in table.columns] == ["left", "right", "right", "right"]
    assert cells(table) == [
        ["slice", "requests", "Möbius", "other"],
        ["items:cold", "2 / 3", "–", r"[bold]0.1000 \[0.0000, 0.2000][/bold]"],
        ["history:0", "1", "–", r"[bold]0.4000 \[0.3000, nan][/bold]"],
    ]
    assert cells(slices_table([OTHER], "recall10"))[1] == ["items:cold", "3", "–"]


def test_what_no_table_shows() -> None:
    with pytest.raises(DataError, match="there is no report to show: give at least one"):
        metrics_table([])
    with pytest.raises(DataError, match="there is no report to show"):
        slices_table([])
    with pytest.raises(DataError, match=r"no report has the metric mrr10: look at the names in report\.metrics"):
        metrics_table([REPORT], ["mrr10"])
    with pytest.raises(DataError, match="no report has slices of mrr10: slices are taken of recall and ndcg"):
        slices_table([REPORT], "mrr10")
    with pytest.raises(DataError, match="no report has slices of ndcg10"):
        slices_table([replace(REPORT, slices={})])
