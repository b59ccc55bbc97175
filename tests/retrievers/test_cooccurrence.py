from tesserec.retrievers.cooccurrence import Cooccurrence
from tesserec.testing.retriever_contract import RetrieverContract


class TestCooccurrenceContract(RetrieverContract):
    make = Cooccurrence
