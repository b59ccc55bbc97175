"""Recipes: every table, every default, and messages that name the nearest word."""

import re
import tomllib
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import shop
from tesserec.data.catalog import catalog_of, read_catalog
from tesserec.data.interactions import read_events
from tesserec.data.splits import SplitConfig
from tesserec.embedders.cooccurrence_svd import CooccurrenceSVD
from tesserec.embedders.tfidf_svd import TfidfSVD
from tesserec.errors import RecipeError
from tesserec.nn.sid_features import SIDKeys
from tesserec.recipe import (
    DataConfig,
    EvaluationConfig,
    FitConfig,
    Recipe,
    default_recipe,
    parse_recipe,
    read_recipe,
)
from tesserec.retrievers.cooccurrence import Cooccurrence
from tesserec.retrievers.popularity import Popularity
from tesserec.semantic_ids.codes_file import CodesFile
from tesserec.semantic_ids.rq_kmeans import ResidualKMeans

RECIPES = Path(__file__).parent.parent / "recipes"


def test_a_full_recipe() -> None:
    recipe = parse_recipe(
        {
            "seed": 7,
            "data": {"source": "online_retail", "min_user_events": 2},
            "split": {"protocol": "last_out"},
            "embedder": {"class": "tesserec.embedders.tfidf_svd:TfidfSVD", "num_features": 8},
            "semantic_ids": {
                "class": "tesserec.semantic_ids.rq_kmeans:ResidualKMeans",
                "num_levels": 2,
                "collisions": "bucket",
            },
            "retriever": {"class": shop.COOCCURRENCE, "window": 3},
            "baselines": {"week": {"class": shop.POPULARITY, "window_days": 7}},
            "fit": {"refit": False, "equal_training_time": True, "device": "cuda"},
            "evaluation": {"ks": [1, 20], "refit": True, "num_requests": 50},
        }
    )
    assert recipe == Recipe(
        retriever=Cooccurrence(window=3),
        seed=7,
        data=DataConfig(source="online_retail", min_user_events=2),
        split=SplitConfig(protocol="last_out"),
        embedder=TfidfSVD(num_features=8),
        quantizer=ResidualKMeans(num_levels=2),
        collisions="bucket",
        baselines={"week": Popularity(window_days=7)},
        fit=FitConfig(refit=False, equal_training_time=True, device="cuda"),
        evaluation=EvaluationConfig(ks=(1, 20), refit=True, num_requests=50),
    )
    assert recipe.name == "cooccurrence"
    assert parse_recipe(recipe.table()) == recipe
    assert parse_recipe(recipe.table()).digest() == recipe.digest()


def test_defaults() -> None:
    recipe = parse_recipe({"retriever": {"class": shop.POPULARITY}})
    assert recipe == Recipe(Popularity())
    assert (recipe.seed, recipe.embedder, recipe.quantizer, recipe.collisions) == (0, None, None, "digit")
    assert recipe.fit == FitConfig(refit=True, equal_training_time=False, device="cpu")
    assert recipe.evaluation == EvaluationConfig(ks=(5, 10), refit=False, num_requests=None)
    assert recipe.data == DataConfig(None, None, None, None, None, {}, {}, (), "error", 1, 1)
    assert parse_recipe(recipe.table()) == recipe


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"split": {"protocol": "last_out"}}, {"baselines": {}}, {"evaluation": {"ks": [10]}}]
)
def test_the_digest_differs_with_any_setting(change: dict[str, Any]) -> None:
    assert shop.recipe(**change).digest() != shop.recipe().digest()
    assert re.fullmatch(r"[0-9a-f]{16}", shop.recipe().digest())


CODES = {"class": "tesserec.semantic_ids.codes_file:CodesFile", "path": "codes.csv"}


def test_codes_of_ones_own_need_no_embedder() -> None:
    recipe = parse_recipe({"retriever": {"class": shop.POPULARITY}, "semantic_ids": CODES})
    assert recipe.quantizer == CodesFile(Path("codes.csv"))
    assert parse_recipe(recipe.table()) == recipe


RETRIEVER = {"retriever": {"class": shop.POPULARITY}}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"retreiver": {}}, "[retreiver] is not a table of a recipe; did you mean retriever?"),
        ({"zzz": 1}, "[zzz] is not a table of a recipe; known: baselines, data, embedder,"),
        ({}, "the recipe has no [retriever]: add one, such as class ="),
        ({"retriever": 3}, "retriever = 3: expected a table, [retriever]"),
        ({"retriever": {"window_days": 3}}, '[retriever] has no class: add class = "tesserec.<stage>'),
        (
            {"retriever": {"class": shop.POPULARITY, "window_dys": 3}},
            "retriever.window_dys is not a setting of Popularity; did you mean window_days?",
        ),
        (
            {"retriever": {"class": "tesserec.retrievers.popularity:Populatity"}},
            'retriever.class = "tesserec.retrievers.popularity:Populatity": tesserec.retrievers.popularity has no '
            "Populatity; did you mean Popularity?",
        ),
        (
            {"retriever": {"class": "tesserec.embedders.tfidf_svd:TfidfSVD"}},
            'retriever.class = "tesserec.embedders.tfidf_svd:TfidfSVD" cannot be used here: it is not a Retriever',
        ),
        ({**RETRIEVER, "embedder": {"class": shop.POPULARITY}}, "cannot be used here: it is not a Embedder"),
        (
            {**RETRIEVER, "semantic_ids": {"class": shop.POPULARITY}},
            f'semantic_ids.class = "{shop.POPULARITY}" cannot be used here: it is not a Quantizer',
        ),
        (
            {**RETRIEVER, "semantic_ids": {"class": "tesserec.semantic_ids.rq_kmeans:ResidualKMeans"}},
            "[semantic_ids] needs vectors to quantize: add an [embedder]",
        ),
        (
            {**RETRIEVER, "semantic_ids": {**CODES, "collisions": "none"}},
            'semantic_ids.collisions = \'none\': expected "digit" or "bucket"',
        ),
        ({**RETRIEVER, "seed": -1}, "seed = -1: expected an integer of 0 or more"),
        ({**RETRIEVER, "seed": "a"}, "seed = 'a': expected an integer of 0 or more"),
        ({**RETRIEVER, "seed": True}, "seed = True: expected an integer of 0 or more"),
        ({**RETRIEVER, "data": {"evnts": "a"}}, "data.evnts is not a setting of DataConfig; did you mean events?"),
        (
            {**RETRIEVER, "data": {"source": "yelp", "events": "a.csv"}},
            "data: gives both source = 'yelp' and events = 'a.csv': keep one of them",
        ),
        ({**RETRIEVER, "split": {"protocol": "random"}}, "split.protocol = 'random': Input should be 'global_time',"),
        ({**RETRIEVER, "split": {"t1": 5}}, "split: t1 = 5 and t2 = None: give both"),
        ({**RETRIEVER, "fit": {"device": 3}}, "fit.device = 3: Input should be a valid string"),
        ({**RETRIEVER, "evaluation": {"ks": [0]}}, "evaluation.ks.0 = 0: Input should be greater than or equal to 1"),
        ({**RETRIEVER, "baselines": {"a": 1}}, "baselines.a = 1: expected a table, [baselines.a]"),
        (
            {**RETRIEVER, "baselines": {"popularity": {"class": shop.POPULARITY}}},
            "[baselines.popularity] needs another name: lower-case letters, digits and _, not popularity",
        ),
        (
            {**RETRIEVER, "baselines": {"../a": {"class": shop.POPULARITY}}},
            "[baselines.../a] needs another name: lower-case letters, digits and _",
        ),
    ],
)
def test_what_is_wrong_is_named(table: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        parse_recipe(table)


def test_paths_are_seen_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(f'[data]\nevents = "e.csv"\nitems = "/abs/i.csv"\n[retriever]\nclass = "{shop.POPULARITY}"\n')
    recipe = read_recipe(path)
    assert (recipe.data.events, recipe.data.items, recipe.data.folder) == (
        tmp_path / "e.csv",
        Path("/abs/i.csv"),
        None,
    )


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_recipes_that_come_with_the_project(path: Path) -> None:
    recipe = read_recipe(path)
    assert parse_recipe(recipe.table()) == recipe
    assert len(path.read_text().splitlines()) <= 40


def test_the_default_recipe_reads_text_where_there_is_some() -> None:
    catalog = read_catalog(shop.items())
    recipe = default_recipe(catalog)
    assert (recipe.name, type(recipe.embedder), type(recipe.quantizer)) == ("mosaic", TfidfSVD, ResidualKMeans)
    assert list(recipe.baselines) == ["popularity", "personal_frequency", "cooccurrence"]
    bare = catalog_of(read_events(shop.events()))
    assert type(default_recipe(bare).embedder) is CooccurrenceSVD
    blank = read_catalog(pl.DataFrame({"item_id": ["a"], "title": [" "]}))
    assert type(default_recipe(blank).embedder) is CooccurrenceSVD


def test_the_composed_recipe_of_the_readme_is_one():
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    (text,) = [block for block in blocks if "[[semantic_ids.losses]]" in block]
    recipe = parse_recipe(tomllib.loads(text) | {"embedder": {"class": "tesserec.embedders.tfidf_svd:TfidfSVD"}})
    assert recipe.retriever.keys == SIDKeys("prefixes")
    assert [loss.weight for loss in recipe.quantizer.losses] == [0.5]
