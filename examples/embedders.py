"""Embedders: item vectors from text and from what is bought together, and the nearest neighbours in each."""

from tesserec.data.sources import online_retail
from tesserec.embedders import CooccurrenceSVD, TfidfSVD

interactions, catalog = online_retail.load()
holder = catalog.titles.index("RED HANGING HEART T-LIGHT HOLDER")

for embedder in (TfidfSVD(num_features=64), CooccurrenceSVD(num_features=64)):
    vectors_ND = embedder.embed(catalog, interactions).vectors_ND
    nearest = (vectors_ND @ vectors_ND[holder]).topk(4).indices[1:].tolist()
    print(type(embedder).__name__, tuple(vectors_ND.shape), *(f"\n    {catalog.titles[i]}" for i in nearest))
