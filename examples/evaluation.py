"""Evaluation: two methods on the same withheld purchases, with intervals and a paired test."""

from rich.console import Console

from tesserec.data import SplitConfig, split
from tesserec.data.sources import online_retail
from tesserec.evaluation import compare, evaluate, metrics_table
from tesserec.retrievers.personal_frequency import PersonalFrequency
from tesserec.retrievers.popularity import Popularity
from tesserec.types import FitContext

interactions, catalog = online_retail.load()
parts = split(interactions, SplitConfig(protocol="global_time"))

reports = []
for retriever in (Popularity(), PersonalFrequency()):
    retriever.fit(parts.train, catalog, FitContext(seed=0))
    reports.append(evaluate(retriever, parts.test, train=parts.train, split="global_time test"))
console = Console()
console.print(metrics_table(reports, ["ndcg10", "recall10", "mrr10"]))
console.print(compare(reports[1], reports[0], "ndcg10"))
