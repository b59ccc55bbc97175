"""Semantic IDs: from item vectors to short tuples of codes, and the table that holds them."""
