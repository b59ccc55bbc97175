"""Semantic IDs without a retriever: what is known of their codes, and whose content is another."""

import dataclasses

import polars as pl
import pytest
import torch

import shop
from tesserec.bundle import Content
from tesserec.errors import DataError
from tesserec.semantic_ids.diagnostics import code_vectors
from tesserec.semantic_ids.table import content_codes
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


def quantizer(class_name, **settings):
    return {"class": f"tesserec.semantic_ids.{class_name}", **settings}


@pytest.mark.parametrize("class_name", ["rq_kmeans:ResidualKMeans", "balanced_kmeans:BalancedResidualKMeans"])
def test_code_vectors_are_those_of_the_codebooks_and_a_shift(class_name):
    made = fit_sids(shop.recipe(semantic_ids=quantizer(class_name, num_levels=2, codebook_size=4)), *shop.data())
    found = made.code_vectors()
    assert [of for of, _ in found] == ["codebook", "codebook"]
    for level, (_, vectors_CD) in enumerate(found):
        codebook_CD = made.content.codebooks.tensors[f"codebook_{level}"].double()
        assert torch.allclose(vectors_CD - vectors_CD[0], codebook_CD - codebook_CD[0], atol=1e-6)


def test_code_vectors_are_what_any_quantizer_decodes_codes_to():
    fsq = quantizer("fsq:FSQ", grid_sizes=(3, 4), hidden_sizes=(8,), training={"num_steps": 2})
    made = fit_sids(shop.recipe(semantic_ids=fsq), *shop.data())
    codes_NL = content_codes(made.semantic_ids)
    first, second = codes_NL.mode(0).values.tolist()
    (_, first_CD), (_, second_CD) = made.code_vectors()
    assert [of for of, _ in made.code_vectors()] == ["codebook", "codebook"]
    assert first_CD.tolist() == made.quantizer.decode(torch.tensor([[c, second] for c in range(3)])).tolist()
    assert second_CD.tolist() == made.quantizer.decode(torch.tensor([[first, c] for c in range(4)])).tolist()


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


def test_items_that_are_known_already_stay_and_are_told_of():
    made = fit_sids(shop.recipe(), *shop.data())
    titles = ["another title", "kitchen red lamp"]
    frame = pl.DataFrame({"item_id": ["i07", "z"], "title": titles, "text": titles})
    later = Catalog(Vocabulary.of(["i07", "z"]), frame)
    with pytest.warns(UserWarning, match="1 of the 2 items given are known already: their text and codes stay; fit"):
        grown = extend_sids(made, later)
    assert grown.catalog.titles[7] == made.catalog.titles[7]
    assert torch.equal(grown.semantic_ids.codes_NL[:24], made.semantic_ids.codes_NL)


def test_later_items_have_no_events():
    made = fit_sids(shop.recipe(), *shop.data())
    later = Catalog(
        Vocabulary.of(["z"]),
        pl.DataFrame({"item_id": ["z"], "text": ["kitchen red lamp"], "title": ["kitchen red lamp"]}),
    )
    grown = extend_sids(dataclasses.replace(made, interactions=None), later)
    assert (len(grown.semantic_ids), grown.events_N) == (25, None)
    assert extend_sids(made, later).events_N.tolist() == [*made.events_N.tolist(), 0]
