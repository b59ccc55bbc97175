"""From a year of purchases in a gift shop, which come with the package, to recommendations."""

from tesserec import Recommender

shop = Recommender.fit(
    recipe={
        "data": {"source": "online_retail"},
        "embedder": {"class": "tesserec.embedders.tfidf_svd:TfidfSVD"},
        "semantic_ids": {"class": "tesserec.semantic_ids.rq_kmeans:ResidualKMeans"},
        "retriever": {"class": "tesserec.retrievers.mosaic:Mosaic", "training": {"epochs": 1}},
        "fit": {"refit": False},
    }
)
customer = shop.recommend(users=[17841], k=5, explain=True)
newcomer = shop.recommend(histories=[[1294, 1555]], k=5, exclude_history=True, explain=True)
print("To customer 17841:", *customer["title"], sep="\n    ")
print("After a cake stand and a teacup:", *newcomer["title"], sep="\n    ")

ndcg = shop.contents.reports["mosaic"].metrics["ndcg10"]
print(f"NDCG@10 of withheld purchases: {ndcg.mean:.3f} [{ndcg.low:.3f}, {ndcg.high:.3f}]")
