"""Retrievers: fit two on the same purchases and ask them what a history leads to."""

from tesserec.data import history_requests
from tesserec.data.sources import online_retail
from tesserec.retrievers.cooccurrence import Cooccurrence
from tesserec.retrievers.popularity import Popularity
from tesserec.types import FitContext

interactions, catalog = online_retail.load()
basket = [catalog.titles.index(title) for title in ("PINK REGENCY TEACUP AND SAUCER", "REGENCY CAKESTAND 3 TIER")]
requests = history_requests([basket], exclude_history=True)

for retriever in (Popularity(), Cooccurrence()):
    retriever.fit(interactions, catalog, FitContext(seed=0))
    candidates = retriever.retrieve(requests, k=5)
    print(type(retriever).__name__)
    for item, score in zip(candidates.items_BK[0].tolist(), candidates.scores_BK[0].tolist(), strict=True):
        print(f"    {score:8.4f}  {catalog.titles[item]}")
