from tesserec.retrievers.popularity import Popularity
from tesserec.testing.retriever_contract import RetrieverContract


class TestPopularityContract(RetrieverContract):
    make = Popularity
