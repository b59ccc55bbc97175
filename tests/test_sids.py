"""Semantic IDs without a retriever: what is known of their codes, and whose content is another."""

import dataclasses

import polars as pl
import pytest
import torch

import shop
from tesserec.bundle import Content
from tesserec.errors import DataError
from tesserec.semantic_ids.diagnostics import code_vectors
from tesserec.sids import Sids, content_changes, extend_sids, fit_sids
from tesserec.types import Catalog, ComponentState, ItemEmbeddings, SemanticIds, Vocabulary

VECTORS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
TABLE = SemanticIds(torch.tensor([[0, 0], [1, 0], [0, 1]]), (2, 2), "v")


def sids(ids, vectors_ND=None, embedder=None, **columns):
    items = Vocabulary.of(list(ids))
    frame = pl.DataFrame({"item_id": list(ids), **columns})
    vectors = None if vectors_ND is None else ItemEmbeddings(vectors_ND, "test")
    state = None if embedder is None else ComponentState({"w": torch.tensor([embedder])})
    return Sids("test", TABLE, Catalog(items, frame), content=Content(vectors, TABLE, state))


def test_code_vectors_are_those_of_the_codebooks():
    made = fit_sids(shop.recipe(), *shop.data())
    found = made.code_vectors()
    assert [of for of, _ in found] == ["codebook", "codebook"]
    for level, (_, vectors_CD) in enumerate(found):
        assert torch.equal(vectors_CD, made.content.codebooks.tensors[f"codebook_{level}"].double())


def test_code_vectors_are_means_where_there_are_no_codebooks():
    found = sids("abc", VECTORS).code_vectors()
    assert [of for of, _ in found] == ["items", "items"]
    assert found[0][1].tolist() == [[1.5, 0], [0, 1]]
    assert torch.equal(found[1][1], code_vectors(TABLE.codes_NL[:, 1], VECTORS, 2))
    assert sids("abc").code_vectors() == []


def test_texts_say_whose_content_is_another():
    old = sids(["a", "b", "c"], title=["red", "blue", "green"])
    new = sids(["d", "c", "a"], title=["red", "green", "pink"])
    assert content_changes(old, new).tolist() == [False, False, True]


def test_vectors_of_one_embedder_say_it_where_there_is_no_text():
    old = sids(["a", "b", "c"], VECTORS, embedder=1.0)
    new = sids(["c", "b", "d"], torch.tensor([[2.0, 0.0], [0.5, 1.0], [0.0, 0.0]]), embedder=1.0)
    assert content_changes(old, new).tolist() == [False, True, False]
    assert content_changes(old, sids(["c", "b", "d"], VECTORS, embedder=2.0)) is None
    assert content_changes(old, sids(["c", "b", "d"], VECTORS)) is None


def test_a_mere_table_cannot_grow():
    later = Catalog(Vocabulary.of(["z"]), pl.DataFrame({"item_id": ["z"]}))
    with pytest.raises(DataError, match="test is a mere table: new items need what `tesserec sids fit` writes"):
        extend_sids(sids("abc"), later)


def test_later_items_have_no_events():
    made = fit_sids(shop.recipe(), *shop.data())
    later = Catalog(Vocabulary.of(["z"]), pl.DataFrame({"item_id": ["z"], "text": ["red lamp"], "title": ["red lamp"]}))
    grown = extend_sids(dataclasses.replace(made, interactions=None), later)
    assert (len(grown.semantic_ids), grown.events_N) == (25, None)
    assert extend_sids(made, later).events_N.tolist() == [*made.events_N.tolist(), 0]
