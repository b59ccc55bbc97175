"""From embeddings or from a file to the table."""

import json

import polars as pl
import pytest
import torch
from tests import shop
from tests.semantic_ids.test_composition import Watching

from tesserec.config import fresh
from tesserec.errors import DataError
from tesserec.pipeline import make_content
from tesserec.semantic_ids import (
    RQVAE,
    CodesFile,
    ResidualKMeans,
    RQVAETraining,
    build_semantic_ids,
    fit_semantic_ids,
)
from tesserec.semantic_ids.residual import fingerprint
from tesserec.types import Catalog, ItemEmbeddings, SideInformation, Vocabulary, silent


def catalog(size):
    return Catalog(Vocabulary.of(list(range(size))), pl.DataFrame({"title": [f"t{i}" for i in range(size)]}))


def test_a_quantizer_is_fitted_and_its_codes_become_a_table():
    vectors = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    quantizer = ResidualKMeans(num_levels=2, codebook_size=4)
    popularity = torch.arange(30)
    table = fit_semantic_ids(
        quantizer, catalog(30), ItemEmbeddings(vectors, "x"), SideInformation(seed=3), popularity_N=popularity
    )
    again = ResidualKMeans(num_levels=2, codebook_size=4)
    again.fit(vectors, SideInformation(seed=3))
    expected = build_semantic_ids(
        again.encode(vectors), (4, 4), fingerprint(again.state()), "digit", popularity_N=popularity
    )
    assert torch.equal(table.codes_NL, expected.codes_NL)
    assert table.codebook_version == expected.codebook_version
    assert table.codebook_sizes == (4, 4, 16)


def test_buckets_are_kept_where_asked():
    vectors = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    quantizer = ResidualKMeans(num_levels=2, codebook_size=4)
    table = fit_semantic_ids(
        quantizer, catalog(30), ItemEmbeddings(vectors, "x"), SideInformation(), collisions="bucket"
    )
    assert table.codebook_sizes == (4, 4)


def test_items_without_an_embedding_take_no_part_in_the_fit():
    vectors = torch.tensor([[5.0, 0.0], [0.0, 0.0], [0.0, 5.0], [0.0, 0.0]])
    missing = torch.tensor([False, True, False, True])
    quantizer = ResidualKMeans(num_levels=1, codebook_size=4)
    table = fit_semantic_ids(quantizer, catalog(4), ItemEmbeddings(vectors, "x", missing), SideInformation())
    assert quantizer.codebook_sizes == (2,)
    assert sorted(quantizer.state().tensors["codebook_0"].tolist()) == [[0, 5], [5, 0]]
    assert table.codes_NL[1, 0] == table.codes_NL[3, 0]


def test_embeddings_must_be_there_and_of_the_catalog():
    quantizer = ResidualKMeans()
    with pytest.raises(DataError, match="ResidualKMeans needs item embeddings: name an embedder, or use CodesFile"):
        fit_semantic_ids(quantizer, catalog(2), None, SideInformation())
    vectors = ItemEmbeddings(torch.ones(3, 2), "mine")
    with pytest.raises(DataError, match=r"3 embeddings \(mine\) for 2 items: give one each"):
        fit_semantic_ids(quantizer, catalog(2), vectors, SideInformation())


def test_codes_of_the_users_own_become_a_table(tmp_path):
    path = tmp_path / "codes.json"
    path.write_text(json.dumps({"2": [1, 5], "0": [0, 0], "1": [1, 5]}))
    table = fit_semantic_ids(CodesFile(path=path), catalog(3), None, SideInformation())
    assert table.codes_NL.tolist() == [[0, 0, 0], [1, 5, 0], [1, 5, 1]]
    assert table.codebook_sizes == (2, 6, 16)
    popular = fit_semantic_ids(
        CodesFile(path=path), catalog(3), None, SideInformation(), popularity_N=torch.tensor([0, 1, 2])
    )
    assert popular.codes_NL.tolist() == [[0, 0, 0], [1, 5, 1], [1, 5, 0]]
    kept = fit_semantic_ids(CodesFile(path=path), catalog(3), None, SideInformation(), collisions="bucket")
    assert kept.codes_NL.tolist() == [[0, 0], [1, 5], [1, 5]]
    path.write_text(json.dumps({"2": [1, 5], "0": [0, 1], "1": [1, 5]}))
    other = fit_semantic_ids(CodesFile(path=path), catalog(3), None, SideInformation())
    assert other.codebook_version != table.codebook_version


def test_a_quantizer_is_told_which_items_its_rows_are():
    vectors = torch.tensor([[5.0, 0.0], [0.0, 0.0], [0.0, 5.0], [0.0, 0.0]])
    missing = torch.tensor([False, True, False, True])
    loss = Watching()
    training = RQVAETraining(num_steps=1, batch_size=2)
    quantizer = RQVAE(num_levels=1, codebook_size=2, hidden_sizes=(), num_latents=2, training=training, losses=(loss,))
    fit_semantic_ids(quantizer, catalog(4), ItemEmbeddings(vectors, "x", missing), SideInformation())
    assert loss.setup.items_N.tolist() == [0, 2]


def test_a_recipe_fits_a_quantizer_with_losses_that_read_the_training_events():
    rqvae = {
        "class": "tesserec.semantic_ids.rq_vae:RQVAE",
        "num_levels": 2,
        "codebook_size": 4,
        "hidden_sizes": [8],
        "num_latents": 4,
        "training": {"num_steps": 5, "batch_size": 16},
        "parts": {"assigners": [{"class": f"tesserec.semantic_ids.assigners:{n}"} for n in ("Nearest", "Sinkhorn")]},
        "losses": [
            {"class": "tesserec.semantic_ids.plum:CoOccurrence"},
            {
                "class": "tesserec.semantic_ids.letter:CollaborativeAlignment",
                "source": {"class": "tesserec.embedders.cooccurrence_svd:CooccurrenceSVD", "num_features": 4},
            },
            {"class": "tesserec.semantic_ids.letter:Diversity", "num_clusters": 2},
            {"class": "tesserec.semantic_ids.dos:UserFlow"},
        ],
    }
    recipe = shop.recipe(semantic_ids=rqvae)
    interactions, catalog = shop.data()
    content = make_content(recipe, catalog, interactions, silent)
    assert content.semantic_ids is not None
    assert content.codebooks is not None
    again = fresh(recipe.quantizer)
    again.restore(content.codebooks)
    assert content.embeddings is not None
    assert torch.equal(again.encode(content.embeddings.vectors_ND), content.semantic_ids.codes_NL[:, :2])
