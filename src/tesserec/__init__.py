"""tesserec: from an interaction log and a catalog to a generative recommender."""

__version__ = "0.1.0.dev0"
