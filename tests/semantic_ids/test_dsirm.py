"""DSIRM: the loss by hand, and a quiet factor by which queries ask."""

import polars as pl
import pytest
import torch
import torch.nn.functional as F
from tests.semantic_ids import two_factors
from tests.semantic_ids.two_factors import randn

from tesserec.config import build_component
from tesserec.data.interactions import read_events
from tesserec.errors import DataError
from tesserec.pipeline import make_content
from tesserec.recipe import parse_recipe
from tesserec.semantic_ids import RQVAE, QueryBridge, RQVAETraining
from tesserec.semantic_ids.composition import LossSetup, QuantizerLoss
from tesserec.semantic_ids.dsirm import title_queries
from tesserec.semantic_ids.rq_network import Network
from tesserec.types import Catalog, ItemEmbeddings, SideInformation, Vocabulary, silent

QUICK = RQVAETraining(num_steps=20, batch_size=64)


def quick(*losses, training=QUICK):
    return RQVAE(num_levels=2, codebook_size=8, hidden_sizes=(32,), num_latents=8, training=training, losses=losses)


def asked():
    """Sixteen queries a quiet group: the group, without any loud factor; ten items answer each."""
    group = torch.arange(64) % two_factors.NUM_QUIET
    vectors = F.pad(0.7 * torch.eye(two_factors.NUM_QUIET)[group], (4, 0)) + 0.05 * randn(64, 8, seed=4)
    pairs = []
    for query in range(64):
        own = (two_factors.quiet() == group[query]).nonzero().squeeze(1)
        pairs += [[query, int(item)] for item in own[torch.arange(10) * 5 % len(own)]]
    return SideInformation(tables={"query_vectors": vectors, "query_items": torch.tensor(pairs)})


def separation(quantizer, features):
    network = quantizer._fitted()
    vectors = F.normalize(network.quantize(network.latents(features)).total(), dim=1)
    alike = two_factors.quiet()[:, None] == two_factors.quiet()
    cosines = vectors @ vectors.T
    return float(cosines[alike].mean() - cosines[~alike].mean())


def test_finds_the_quiet_factor_by_which_queries_ask():
    features, found = two_factors.features(), []
    training = RQVAETraining(num_steps=200, batch_size=128, learning_rate=1e-2, revive_every=20)
    for losses in ((), (QueryBridge(weight=1.0, temperature=0.3),)):
        quantizer = quick(*losses, training=training)
        quantizer.fit(features, asked())
        found.append(separation(quantizer, features))
    assert found[0] < 0.2
    assert found[1] > 0.6


def setup(features, **tables):
    return LossSetup(features, 4, (4,), SideInformation(tables=tables), torch.Generator().manual_seed(0))


def test_the_loss_by_hand():
    features, queries = randn(3, 3), randn(2, 3, seed=1)
    network = Network(3, (), 4, (4,))
    with torch.no_grad():
        network.codebooks[0].copy_(randn(4, 4, seed=2))
    made = setup(features, query_vectors=queries, query_items=torch.tensor([[0, 2], [1, 0], [1, 7]]))  # 7 is no row
    module = QueryBridge(weight=0.2, temperature=0.5, batch_size=5, query_weight=0.3).module(made)
    _, record = network.loss(features, 0.25, torch.arange(3))
    drawn = torch.randint(2, (5,), generator=torch.Generator().manual_seed(0))
    assert len(drawn.unique()) == 2
    # the two pairs differ in both query and item, so each has those of the other pair as negatives
    asking = network.quantize(network.latents(queries))
    q = F.normalize(asking.total(), dim=1)
    z = F.normalize(network.quantize(network.latents(features)).total(), dim=1)[[2, 0]]
    total = torch.zeros(())
    for i in range(5):
        kept = [j for j in range(5) if j == i or drawn[j] != drawn[i]]
        forth = torch.stack([q[drawn[i]] @ z[drawn[j]] / 0.5 for j in kept]).log_softmax(0)[kept.index(i)]
        back = torch.stack([z[drawn[i]] @ q[drawn[j]] / 0.5 for j in kept]).log_softmax(0)[kept.index(i)]
        total -= (forth + back) / 2
    wrong = (network.decoded(asking.total()) - network.inputs(queries)).square().sum(1)
    queries_own = wrong + 1.25 * asking.latent_errors[0]  # and both sides of the quantization, the encoder's at .25
    # in a sum with the items' loss, the term counts .2 for each of three features: the queries' own loss then counts .3
    expected = total / 5 + 0.3 * queries_own[drawn].mean() / (0.2 * 3)
    assert module(record).item() == pytest.approx(expected.item(), abs=1e-5)


def test_weight_zero_is_plain_bit_for_bit_and_the_state_that_of_an_rq_vae():
    features, states = two_factors.features(), []
    for losses in ((), (QueryBridge(weight=0.0),), (QueryBridge(),), (QueryBridge(),)):
        quantizer = quick(*losses)
        quantizer.fit(features, asked())
        states.append(quantizer.state())
    plain, zero, first, second = (state.tensors for state in states)
    assert all(torch.equal(plain[name], zero[name]) for name in plain)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = quick()
    other.restore(states[3])
    assert torch.equal(other.encode(features), quantizer.encode(features))


def test_a_recipe_names_it():
    loss = {"class": "tesserec.semantic_ids.dsirm:QueryBridge", "weight": 0.2}
    built = build_component({"class": "tesserec.semantic_ids.rq_vae:RQVAE", "losses": [loss]}, "quantizer")
    assert built.losses == (QueryBridge(weight=0.2),)
    assert isinstance(built.losses[0], QuantizerLoss)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"query_vectors": torch.ones(1, 3)}, "QueryBridge reads the tables query_vectors and query_items"),
        ({"query_vectors": torch.ones(1, 2), "query_items": torch.zeros(1, 2)}, "features have 2 columns"),
        ({"query_vectors": torch.full((1, 3), torch.nan), "query_items": torch.zeros(1, 2)}, "hold NaN, infinity"),
        ({"query_vectors": torch.ones(1, 3), "query_items": torch.zeros(4)}, r"shape \(4,\), expected \[pairs, 2\]"),
        ({"query_vectors": torch.ones(1, 3), "query_items": torch.tensor([[1, 0]])}, r"name queries in \[0, 0\]"),
        ({"query_vectors": torch.ones(1, 3), "query_items": torch.tensor([[0, 9]])}, "no item .* answers a query"),
        ({"query_vectors": torch.ones(1, 3), "query_items": torch.zeros(0, 2)}, "no item .* answers a query"),
    ],
)
def test_refuses_tables_that_do_not_fit(tables, message):
    with pytest.raises(DataError, match=message):
        QueryBridge().module(setup(randn(3, 3), **tables))


TITLES = ["Red rose soap", "red ROSE oil", "green tea soap", "green tea oil", "soap", ""]


def embed(catalog):
    """One feature a colour; nothing for texts without one."""
    rows = [[float("red" in text), float("green" in text)] for text in catalog.texts]
    return ItemEmbeddings(torch.tensor(rows), "colours")


def test_queries_are_words_that_a_few_titles_have_in_common():
    catalog = Catalog(Vocabulary.of(range(len(TITLES))), pl.DataFrame({"title": TITLES}))
    tables = title_queries(SideInformation(catalog=catalog, embed=embed))
    assert torch.equal(tables["query_vectors"], torch.tensor([[0.0, 1], [1, 0]]))  # green tea, red rose
    assert tables["query_items"].tolist() == [[0, 2], [0, 3], [1, 0], [1, 1]]
    many = Catalog(Vocabulary.of(range(21)), pl.DataFrame({"title": ["red rose"] * 21}))
    with pytest.raises(DataError, match="no two words are in the titles of 2 to 20 items"):
        title_queries(SideInformation(catalog=many, embed=embed))
    with pytest.raises(DataError, match="queries of titles need catalog and embedder"):
        title_queries(SideInformation(catalog=catalog))


def test_a_pipeline_gives_what_queries_of_titles_need():
    titles = [f"{colour} {thing} {n}" for colour in ("red", "green") for thing in ("soap", "oil") for n in range(4)]
    catalog = Catalog(Vocabulary.of(range(16)), pl.DataFrame({"title": titles}))
    table = {
        "embedder": {"class": "tesserec.embedders.tfidf_svd:TfidfSVD", "num_features": 4},
        "semantic_ids": {
            **{"class": "tesserec.semantic_ids.rq_vae:RQVAE", "num_levels": 2, "codebook_size": 4},
            **{"hidden_sizes": [8], "num_latents": 4, "training": {"num_steps": 3, "batch_size": 8}},
            "losses": [{"class": "tesserec.semantic_ids.dsirm:QueryBridge", "queries": "titles"}],
        },
        "retriever": {"class": "tesserec.retrievers.popularity:Popularity"},
    }
    events = read_events({"user_id": [0] * 16, "item_id": list(range(16)), "timestamp": list(range(16))})
    content = make_content(parse_recipe(table), catalog, events, silent)
    assert content.semantic_ids is not None
    assert len(content.semantic_ids) == 16
