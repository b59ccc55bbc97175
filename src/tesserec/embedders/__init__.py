"""Embedders: from catalog text, events or files to a vector for each item."""
