"""Judging recommendations: metrics at item level, intervals, paired tests, slices and reports."""

from tesserec.evaluation.evaluate import PairedTest, compare, evaluate, judge_lists, over_seeds
from tesserec.evaluation.intervals import Estimate
from tesserec.evaluation.report import Report, Slice

__all__ = ["Estimate", "PairedTest", "Report", "Slice", "compare", "evaluate", "judge_lists", "over_seeds"]
