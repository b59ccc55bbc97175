"""Judging recommendations: metrics at item level, intervals, paired tests, slices and reports."""

from tesserec.evaluation.evaluate import PairedTest, compare, evaluate, judge_lists, over_seeds
from tesserec.evaluation.intervals import Estimate
from tesserec.evaluation.judge import judge
from tesserec.evaluation.report import Report, Slice
from tesserec.evaluation.tables import metrics_table, slices_table

__all__ = [
    "Estimate",
    "PairedTest",
    "Report",
    "Slice",
    "compare",
    "evaluate",
    "judge",
    "judge_lists",
    "metrics_table",
    "over_seeds",
    "slices_table",
]
