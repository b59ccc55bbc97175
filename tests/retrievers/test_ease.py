from tesserec.retrievers.ease import EASE
from tesserec.testing.retriever_contract import RetrieverContract


class TestEASEContract(RetrieverContract):
    make = EASE
