"""``Recommender``: the user's own ids in and out."""

import dataclasses
from pathlib import Path

import polars as pl
import pytest
import torch

import shop
from tesserec.bundle import Bundle
from tesserec.errors import BundleError, DataError, RecipeError, UnknownIdError
from tesserec.recipe import parse_recipe
from tesserec.recommender import NO_HISTORY, Recommender, work_folder_of

SASREC = {
    "class": "tesserec.retrievers.sasrec:SASRec",
    "model": {"width": 8, "num_layers": 1, "num_heads": 1},
    "training": {"epochs": 1},
}
COUNTING = {"seed": 3, "data": {"positive_kinds": ["purchase"]}, "retriever": {"class": shop.COOCCURRENCE}}


@pytest.fixture(scope="module")
def recommender() -> Recommender:
    """The shop, not to be changed."""
    return Recommender(shop.contents())


def test_lists_of_users(recommender: Recommender) -> None:
    found = recommender.recommend(["u05", "u02"], k=4)
    assert found.columns == ["user_id", "item_id", "score", "rank", "note"]
    assert found["user_id"].to_list() == ["u05"] * 4 + ["u02"] * 4
    assert found["rank"].to_list() == [1, 2, 3, 4, 1, 2, 3, 4]
    assert set(found["item_id"][:4]) <= {f"i{6 + t:02}" for t in range(6)}, "things of the garden"
    assert found["note"].null_count() == 8
    scores = found["score"].to_list()
    assert scores[:4] == sorted(scores[:4], reverse=True)
    assert found.schema["score"] == pl.Float32
    assert recommender.recommend(["u05"], k=4).rows() == found[:4].rows()


def test_lists_after_histories(recommender: Recommender) -> None:
    found = recommender.recommend(histories=[["i00", "i01"], ["i12", "i13"]], k=2)
    assert found["user_id"].to_list() == [0, 0, 1, 1], "histories are numbered"
    assert found["item_id"].to_list() == ["i02", "i03", "i14", "i15"], "the next basket"


def test_somebody_without_history_gets_what_is_popular_and_is_told(recommender: Recommender) -> None:
    recent = shop.events().filter(
        pl.col("timestamp") > pl.col("timestamp").max() - 14 * shop.DAY_S, pl.col("kind") == "purchase"
    )
    most = recent["item_id"].value_counts().sort("count", "item_id", descending=[True, False])
    found = recommender.recommend(["u99", "u00"], k=3)
    assert found["note"].to_list() == [NO_HISTORY] * 3 + [None] * 3, "who only returned something is new"
    assert found["item_id"][:3].to_list() == most["item_id"][:3].to_list()
    assert recommender.recommend(histories=[[]], k=1)["note"].to_list() == [NO_HISTORY]


def test_filters(recommender: Recommender) -> None:
    best = recommender.recommend(["u00"], k=6)["item_id"].to_list()
    assert recommender.exclude_history is False, "customers of this shop buy things again"
    without = recommender.recommend(["u00"], k=30, exclude_history=True)["item_id"].to_list()
    assert not set(without) & {f"i{t:02}" for t in range(6)}
    assert len(without) == 18
    excluded = recommender.recommend(["u00", "u04"], k=5, exclude=best[:1])
    assert excluded["item_id"].to_list() == best[1:] * 2
    only = recommender.recommend(["u00"], k=30, available=[best[2], best[4]])["item_id"].to_list()
    assert only == [best[2], best[4]]
    catalog = dataclasses.replace(shop.contents().catalog, available_N=torch.arange(24) != int(best[2][1:]))
    limited = Recommender(dataclasses.replace(shop.contents(), catalog=catalog))
    assert limited.recommend(["u00"], k=2, available=best[2:5])["item_id"].to_list() == best[3:5]


def test_repeats_are_left_out_where_nobody_buys_again() -> None:
    once = Recommender.fit(shop.events(range(3)), shop.items(), recipe=COUNTING)
    assert once.exclude_history is True
    assert not set(once.recommend(["u00"], k=30)["item_id"]) & {f"i{t:02}" for t in range(6)}
    assert len(once.recommend(["u00"], k=30, exclude_history=False)) == 24
    told = Recommender.fit(
        shop.events(range(3)), shop.items(), recipe={**COUNTING, "split": {"exclude_history": False}}
    )
    assert told.exclude_history is False


def test_explanations(recommender: Recommender) -> None:
    found = recommender.recommend(["u99", "u01"], k=1, explain=True)
    assert found.columns == ["user_id", "item_id", "score", "rank", "note", "title"]
    assert found["title"][1] == shop.items().filter(item_id=found["item_id"][1])["title"][0]


def test_wrong_questions(recommender: Recommender) -> None:
    with pytest.raises(UnknownIdError, match="unknown user 'nobody': the 49 known ones look like u00"):
        recommender.recommend(["nobody"])
    with pytest.raises(UnknownIdError, match="unknown item 'i77'"):
        recommender.recommend(histories=[["i00", "i77"]])
    for arguments in ({}, {"users": ["u00"], "histories": [["i00"]]}):
        with pytest.raises(DataError, match="give either users or histories: one of them, not both"):
            recommender.recommend(**arguments)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="k = 0: ask for at least one item"):
        recommender.recommend(["u00"], k=0)


def test_nobody_is_answered_with_nothing(recommender: Recommender) -> None:
    found = recommender.recommend([])
    assert (len(found), found.columns) == (0, ["user_id", "item_id", "score", "rank", "note"])


def test_many_users_in_batches(recommender: Recommender) -> None:
    seen: list[tuple[str, float, float]] = []
    frames = list(
        recommender.recommend_all(
            k=2, batch_size=20, progress=lambda task, done, total, note="": seen.append((task, done, total))
        )
    )
    assert [frame["user_id"].n_unique() for frame in frames] == [20, 20, 9]
    assert seen == [("recommend", 20, 49), ("recommend", 40, 49), ("recommend", 49, 49)]
    together = pl.concat(frames)
    users = together["user_id"].unique(maintain_order=True).to_list()
    assert together.rows() == recommender.recommend(users, k=2).rows()
    few = pl.concat(recommender.recommend_all(["u03", "u01"], k=1, exclude=["i23"], exclude_history=False))
    assert few["user_id"].to_list() == ["u03", "u01"]
    assert few["item_id"][0] != "i23"


def test_similar_items(recommender: Recommender) -> None:
    found = recommender.similar_items(["i06", "i00"], k=2)
    assert found.columns == ["item_id", "similar_item_id", "score", "rank"]
    assert found["item_id"].to_list() == ["i06", "i06", "i00", "i00"]
    vectors_ND = shop.contents().content.embeddings.vectors_ND
    cosine_N = torch.nn.functional.cosine_similarity(vectors_ND[6:7], vectors_ND)
    cosine_N[6] = -1
    assert found["similar_item_id"][0] == f"i{int(cosine_N.argmax()):02}"
    assert found["score"][0] == pytest.approx(float(cosine_N.max()), abs=1e-5)
    assert len(recommender.similar_items(["i00"], k=100)) == 23, "all but itself"


def test_similar_items_without_vectors_follow_the_retriever() -> None:
    counting = Recommender.fit(shop.events(), shop.items(), recipe=COUNTING)
    assert counting.similar_items(["i00"], k=2)["similar_item_id"].to_list() == ["i01", "i02"]


def test_history_of(recommender: Recommender) -> None:
    assert recommender.history_of("u01") == ["i06", "i07", "i08", "i09", "i10", "i11"] * 2
    assert recommender.history_of("u99") == ["i00"]
    with pytest.raises(UnknownIdError, match="unknown user"):
        recommender.history_of("u77")


def test_a_saved_system_answers_alike(recommender: Recommender, tmp_path: Path) -> None:
    recommender.save(tmp_path / "b")
    loaded = Recommender.load(tmp_path / "b")
    asked = ["u00", "u01", "u99"]
    assert loaded.recommend(asked).equals(recommender.recommend(asked))
    with pytest.raises(BundleError, match="is not a bundle"):
        Recommender.load(tmp_path)


def test_new_items_are_answered_at_once_and_kept(tmp_path: Path) -> None:
    recommender = Recommender(shop.contents())
    new = pl.DataFrame({"item_id": ["i98", "i99"], "title": ["kitchen red lamp", "garden oak shelf"]})
    added = recommender.add_items(new)
    before = shop.contents().content.semantic_ids
    assert added["item_id"].to_list() == ["i98", "i99"]
    assert added["codes"].to_list()[0][:2] == before.codes_NL[0, :2].tolist()
    assert recommender.similar_items(["i98"], k=1)["similar_item_id"].to_list() == ["i00"]
    assert len(recommender.recommend(["u00"], k=30)) == 26
    assert len(recommender.recommend(["u99"], k=30)) == 26
    assert recommender.recommend(histories=[["i98", "i00"]], k=30)["item_id"].n_unique() == 26
    recommender.save(tmp_path / "b")
    manifest = Bundle.open(tmp_path / "b").manifest
    assert (manifest.num_items, manifest.num_fitted_items, manifest.table_revision) == (26, 24, 1)
    assert manifest.codebook_version == before.codebook_version
    loaded = Recommender.load(tmp_path / "b")
    assert loaded.recommend(["u00"], k=30).equals(recommender.recommend(["u00"], k=30))
    loaded.add_items(pl.DataFrame({"item_id": ["i97"], "title": ["office tin box"]}))
    assert loaded.contents.num_fitted_items == 24
    assert loaded.contents.content.semantic_ids.table_revision == 2
    with pytest.raises(DataError, match="2 of 3 items are known already, 'i00' for one: leave them out"):
        loaded.add_items(pl.DataFrame({"item_id": ["i00", "i97", "i96"], "title": ["a", "b", "c"]}))


def test_new_items_of_a_system_that_counts() -> None:
    counting = Recommender.fit(shop.events(), shop.items(), recipe=COUNTING)
    added = counting.add_items(pl.DataFrame({"item_id": ["i99"], "title": ["x"]}))
    assert added.columns == ["item_id"]


def test_a_retriever_of_fixed_items_refuses_new_ones() -> None:
    fixed = Recommender.fit(shop.events(), shop.items(), recipe={**COUNTING, "retriever": SASREC})
    with pytest.raises(RecipeError, match="SASRec answers only with items of its fit: fit again with the new items"):
        fixed.add_items(pl.DataFrame({"item_id": ["i99"], "title": ["x"]}))


def test_a_fit_with_a_place_writes_a_bundle_and_finds_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    place = tmp_path / "runs" / "b"
    fitted = Recommender.fit(shop.events(), shop.items(), recipe=COUNTING, out=place, tell=told.append)
    assert told[0].startswith("fitting cooccurrence on 4")
    assert not work_folder_of(place).exists()
    assert work_folder_of(place) == tmp_path / "runs" / "b.work"
    told.clear()
    again = Recommender.fit(shop.events(), shop.items(), recipe=COUNTING, out=str(place), tell=told.append)
    assert told == [f"{place} holds this recipe fitted on this data already"]
    assert again.recommend(["u00"]).equals(fitted.recommend(["u00"]))
    renamed = shop.items().with_columns(title=pl.lit("another"))
    for change in (
        {"again": True},
        {"recipe": {**COUNTING, "seed": 4}},
        {"events": shop.events(range(5))},
        {"items": renamed},
    ):
        told.clear()
        arguments = {"events": shop.events(), "items": shop.items(), "recipe": COUNTING, **change}
        Recommender.fit(**arguments, out=place, tell=told.append)  # type: ignore[arg-type]
        assert told[0].startswith("fitting")
    (place / "users.parquet").write_bytes(b"")
    told.clear()
    Recommender.fit(shop.events(), shop.items(), recipe=COUNTING, out=place, tell=told.append)
    assert told[0].startswith(f"fitting again: {place / 'users.parquet'} is damaged")
    monkeypatch.setattr("tesserec.recommender.CODE_VERSION", "99")
    told.clear()
    Recommender.fit(shop.events(), shop.items(), recipe=COUNTING, out=place, tell=told.append)
    assert told[0].startswith("fitting cooccurrence")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    with pytest.raises(BundleError, match="photos exists and is not a bundle"):
        Recommender.fit(shop.events(), recipe=COUNTING, out=tmp_path / "photos")


def test_recipes_of_any_form(tmp_path: Path) -> None:
    shop.events().write_parquet(tmp_path / "e.parquet")
    path = tmp_path / "r.toml"
    path.write_text(f'[data]\nevents = "e.parquet"\n[retriever]\nclass = "{shop.POPULARITY}"\n')
    for recipe in (path, str(path)):
        assert Recommender.fit(recipe=recipe).contents.method == "popularity"
    assert Recommender.fit(shop.events(), recipe=parse_recipe(COUNTING)).contents.catalog.frame.columns == ["item_id"]


def test_an_update_learns_later_events(tmp_path: Path) -> None:
    place = tmp_path / "b"
    before = Recommender.fit(shop.events(), shop.items(), recipe=COUNTING, out=place)
    more = pl.concat([shop.events(range(7)), shop.events(range(6, 7)).with_columns(user_id=pl.lit("u50"))])
    lamp = pl.DataFrame({"item_id": ["i99"], "title": ["kitchen red lamp"], "price": [9.0]})
    sale = shop.events()[:1].with_columns(pl.lit("i99").alias("item_id"), pl.col("timestamp") + 80 * shop.DAY_S)
    after = before.updated(pl.concat([more, sale]), lamp, out=place)
    assert len(before.history_of("u00")) == 12
    assert after.history_of("u00") == [*before.history_of("u00"), "i00", "i01", "i99"]
    assert len(after.history_of("u50")) == 96
    assert Bundle.open(place).manifest.num_items == 25
    assert after.contents.catalog.titles[-1] == "kitchen red lamp"
    with pytest.raises(DataError, match="is later than the last one known"):
        after.updated(shop.events())
    with pytest.raises(UnknownIdError, match="1 events are of items not in the catalog, the first in row 769: 'i99'"):
        before.updated(pl.concat([more, sale]))


def test_an_update_of_a_system_that_knows_only_ids() -> None:
    before = Recommender.fit(shop.events(), recipe=COUNTING)
    sale = shop.events()[:1].with_columns(pl.lit("i99").alias("item_id"), pl.col("timestamp") + 80 * shop.DAY_S)
    after = before.updated(pl.concat([shop.events(range(6, 7)), sale]))
    assert after.contents.catalog.items.ids.to_pylist()[-1] == "i99"
    assert len(after.recommend(["u00"], k=30)) == 25


def test_without_a_recipe_mosaic_is_fitted_and_takes_new_items() -> None:
    recommender = Recommender.fit(shop.events(), shop.items())
    assert recommender.contents.method == "mosaic"
    assert list(recommender.contents.reports) == ["mosaic", "popularity", "personal_frequency", "cooccurrence"]
    best = recommender.recommend(histories=[["i12", "i13"]], k=4)
    assert set(best["item_id"]) == {"i14", "i15", "i16", "i17"}  # the rest of the room; twenty steps teach no order
    recommender.add_items(pl.DataFrame({"item_id": ["i99"], "title": ["office oak shelf"]}))
    explained = recommender.recommend(histories=[["i12", "i13", "i99"]], k=25, explain=True)
    assert explained["item_id"].n_unique() == 25
    assert {"title", "source", "generative", "dense"} <= set(explained.columns)
    popular = recommender.recommend(histories=[[]], k=1, explain=True)
    assert popular["note"].to_list() == [NO_HISTORY]


def test_newcomers_alone_get_the_columns_of_everybody() -> None:
    tiny = {
        "class": "tesserec.retrievers.mosaic:Mosaic",
        "model": {"width": 8, "num_layers": 1, "num_heads": 1},
        "training": {"epochs": 1},
    }
    mosaic = Recommender.fit(shop.events(), shop.items(), recipe=shop.table(retriever=tiny, fit={"refit": False}))
    known = mosaic.recommend(histories=[["i00"]], k=2, explain=True)
    newcomer = mosaic.recommend(histories=[[]], k=2, explain=True)
    sources = ["generative", "dense", "cooccurrence", "content", "personal", "popularity"]
    assert known.columns[5:] == ["title", "source", *sources]
    assert newcomer.schema == known.schema
    assert newcomer["note"].to_list() == [NO_HISTORY] * 2
