"""Embedders: from catalog text, events or files to a vector for each item."""

from tesserec.embedders.concatenate import Concatenate
from tesserec.embedders.cooccurrence_svd import CooccurrenceSVD
from tesserec.embedders.retriever_vectors import RetrieverVectors
from tesserec.embedders.sentence_transformer import SentenceTransformer
from tesserec.embedders.tfidf_svd import TfidfSVD
from tesserec.embedders.vectors_file import VectorsFile

__all__ = ["Concatenate", "CooccurrenceSVD", "RetrieverVectors", "SentenceTransformer", "TfidfSVD", "VectorsFile"]
