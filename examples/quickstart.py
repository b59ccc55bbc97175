"""A year of purchases in a gift shop, which comes with the package, to recommendations."""

from tesserec import Recommender

shop = Recommender.fit(
    recipe={
        "data": {"source": "online_retail"},
        "embedder": {"class": "tesserec.embedders.tfidf_svd:TfidfSVD"},
        "semantic_ids": {"class": "tesserec.semantic_ids.rq_kmeans:ResidualKMeans"},
        "retriever": {"class": "tesserec.retrievers.mosaic:Mosaic"},
    },
)

customer = shop.recommend(users=[17841], k=5)
newcomer = shop.recommend(histories=[["22423", "85123A"]], k=5)
similar = shop.similar_items(["22423"], k=5)
for frame in (customer, newcomer, similar):
    print(frame)
