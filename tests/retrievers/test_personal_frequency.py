from tesserec.retrievers.personal_frequency import PersonalFrequency
from tesserec.testing.retriever_contract import RetrieverContract


class TestPersonalFrequencyContract(RetrieverContract):
    make = PersonalFrequency
