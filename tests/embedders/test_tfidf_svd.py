"""TF-IDF and SVD against scikit-learn's TF-IDF rows."""

import polars as pl
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from tesserec.embedders import TfidfSVD
from tesserec.errors import DataError, NotFittedError
from tesserec.types import Catalog, Embedder, Vocabulary

TEXTS = ["red wooden heart", "blue wooden heart", "red lunch box", "", "lunch box size 8", "lunch box size 9", "!?"]


def catalog(texts):
    return Catalog(Vocabulary.of(list(range(len(texts)))), pl.DataFrame({"text": texts}))


@pytest.mark.parametrize(("words", "characters"), [(1, 0), (2, 0), (1, 4)])
def test_at_full_rank_cosines_are_those_of_the_tfidf_rows(words, characters):
    embeddings = TfidfSVD(word_ngrams=words, char_ngrams=characters).embed(catalog(TEXTS))
    rows = TfidfVectorizer(ngram_range=(1, words), token_pattern=r"\w+", sublinear_tf=True).fit_transform(TEXTS)
    expected = (rows @ rows.T).toarray()
    if characters:
        more = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4), sublinear_tf=True).fit_transform(TEXTS)
        expected = (expected + (more @ more.T).toarray()) / 2  # both blocks are of unit length
    kept = [0, 1, 2, 4, 5]
    vectors = embeddings.vectors_ND[kept]
    assert torch.allclose((vectors @ vectors.T).double(), torch.tensor(expected)[kept][:, kept], atol=1e-5)
    assert embeddings.source == "TfidfSVD"


def test_items_without_a_word_are_zero_and_missing():
    embeddings = TfidfSVD(num_features=3).embed(catalog(TEXTS))
    assert embeddings.missing_N.tolist() == [False, False, False, True, False, False, True]
    lengths = embeddings.vectors_ND.norm(dim=1)
    assert torch.allclose(lengths, torch.tensor([1.0, 1, 1, 0, 1, 1, 0]))
    assert embeddings.vectors_ND.shape == (7, 3)


def test_few_texts_give_few_features():
    assert TfidfSVD().embed(catalog(TEXTS)).vectors_ND.shape == (7, 5)
    assert TfidfSVD().embed(catalog(["one", "one", ""])).vectors_ND.tolist() == [[1], [1], [0]]


def test_words_of_one_letter_count_and_terms_are_limited():
    found = TfidfSVD().embed(catalog(["size 8", "size 9"])).vectors_ND
    assert float(found[0] @ found[1]) < 0.9
    assert TfidfSVD(max_terms=1, word_ngrams=1).embed(catalog(["a b", "b", "a b c b"])).vectors_ND.shape == (3, 1)


@pytest.mark.parametrize("characters", [1, 2, 3])
def test_shortest_run_of_characters(characters):
    model = TfidfSVD(char_ngrams=characters)
    model.embed(catalog(["abc"]))
    assert {len(term) for term in model._fitted().terms[1]} == {characters}


def test_the_same_seed_gives_the_same_vectors():
    one, two = (TfidfSVD(num_features=2).embed(catalog(TEXTS)).vectors_ND for _ in range(2))
    assert torch.equal(one, two)


def test_later_items_get_the_vectors_they_would_have_had():
    model = TfidfSVD(num_features=4, char_ngrams=3)
    first = model.embed(catalog(TEXTS))
    again = model.embed_new(catalog(TEXTS))
    assert torch.allclose(again.vectors_ND, first.vectors_ND, atol=1e-5)
    assert again.missing_N.tolist() == first.missing_N.tolist()
    restored = TfidfSVD(num_features=4, char_ngrams=3)
    restored.restore(model.state())
    later = restored.embed_new(catalog(["zzz qqq", "red wooden heart"]))
    assert later.missing_N.tolist() == [True, False]
    assert torch.allclose(later.vectors_ND[1], first.vectors_ND[0], atol=1e-5)
    assert isinstance(model, Embedder)


def test_refuses_a_catalog_without_words_and_use_before_the_fit():
    message = "none of the 2 items has text: give the catalog a column text or title, or use CooccurrenceSVD"
    with pytest.raises(DataError, match=message):
        TfidfSVD().embed(catalog(["", "..."]))
    for call in (TfidfSVD().state, lambda: TfidfSVD().embed_new(catalog(TEXTS))):
        with pytest.raises(NotFittedError, match="TfidfSVD knows no terms yet: call embed or restore first"):
            call()
