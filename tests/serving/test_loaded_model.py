import dataclasses
import threading
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.serving.served_shop import bundle, model, stored_events

import shop
from tesserec.data.catalog import read_catalog
from tesserec.data.requests import history_requests
from tesserec.decoding.top_k import allowed_items
from tesserec.errors import BundleError, DataError
from tesserec.recommender import Recommender
from tesserec.retrievers.mosaic import Mosaic
from tesserec.serving.loaded_model import LoadedModel
from tesserec.serving.pasts import Question, requests_of
from tesserec.serving.rungs import RUNGS
from tesserec.types import PAD, Catalog, Filters, Ragged

USERS = ["u00", "u05", "u10", "u47", "u99"]


def new_items(*titles: str) -> Catalog:
    return read_catalog(pl.DataFrame({"item_id": [f"new{n}" for n in range(len(titles))], "title": titles}))


@pytest.mark.parametrize(
    ("name", "rungs"),
    [
        ("mosaic", RUNGS),
        ("sasrec", ("generative", "cooccurrence", "segment_popularity", "popularity")),
        ("counted", ("cooccurrence", "segment_popularity", "popularity")),
        ("popular", ("popularity",)),
    ],
)
def test_rungs(name: str, rungs: tuple[str, ...]) -> None:
    assert model(name).rungs == rungs
    missing = next((rung for rung in RUNGS if rung not in rungs), None)
    if missing is not None:
        with pytest.raises(DataError, match=f"this model has no rung '{missing}': it has "):
            model(name).answer(missing, history_requests([[0]]), 1)


@pytest.mark.parametrize("name", ["mosaic", "sasrec", "counted", "popular"])
@pytest.mark.parametrize("exclude_history", [True, False])
def test_the_top_rung_answers_as_the_recommender_does(name: str, exclude_history: bool) -> None:
    recommender, served = Recommender.load(bundle(name)), model(name)
    wanted = recommender.recommend(USERS, k=8, exclude_history=exclude_history)
    log = recommender.contents.interactions
    available_N = torch.ones(24, dtype=torch.bool)
    pasts = [served.read(stored_events(log, user), (), user) for user in USERS]
    questions = [Question(past, 8, available_N, exclude_history=exclude_history) for past in pasts]
    found = served.answer(served.rungs[0], requests_of(questions), 8)
    ids = served.catalog.items.to_ids(found.items_BK.flatten())
    assert ids == wanted["item_id"].to_list()
    assert found.scores_BK.flatten().tolist() == pytest.approx(wanted["score"].to_list(), abs=1e-6)
    assert [past.is_empty for past in pasts] == [False] * 4 + [True], "u99 only returned something"


def test_the_dense_rung_shares_the_network() -> None:
    answers = model().answers
    top, dense = answers["generative"], answers["dense"]
    assert isinstance(top, Mosaic)
    assert isinstance(dense, Mosaic)
    assert dense._network is top._network
    assert dense.cooccurrence is top.cooccurrence is answers["cooccurrence"]
    assert (top.answer, dense.answer) == ("fused", "dense")


@given(
    st.sampled_from(RUNGS),
    st.lists(st.lists(st.integers(0, 23), max_size=5), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=24, max_size=24),
    st.lists(st.integers(0, 23), max_size=6),
    st.booleans(),
)
def test_only_what_is_allowed_and_as_much_as_is(rung, histories, available, excluded, exclude_history) -> None:
    served = model()
    mask_N = torch.tensor(available)
    pasts = [served.read([], [f"i{item:02}" for item in history]) for history in histories]
    questions = [Question(past, 6, mask_N, tuple(excluded), exclude_history) for past in pasts]
    requests = requests_of(questions)
    found = served.answer(rung, requests, 6)
    allowed_BN = allowed_items(requests, 24)
    for items, allowed_N in zip(found.items_BK, allowed_BN, strict=True):
        chosen = items[items != PAD].tolist()
        assert all(allowed_N[chosen])
        assert len(set(chosen)) == len(chosen) == min(6, int(allowed_N.sum()))


@pytest.mark.parametrize("name", ["mosaic", "sasrec", "counted", "popular"])
def test_new_items(name: str) -> None:
    before = model(name)
    after = before.with_items(new_items("kitchen red lamp", "garden tin box"))
    assert len(before.catalog) == 24
    assert (len(after.catalog), after.num_fitted, after.rungs) == (26, 24, before.rungs)
    assert after.codebook_version == before.codebook_version
    assert after.index["new1"] == 25
    available_N = torch.ones(26, dtype=torch.bool)
    for rung in after.rungs:
        past = after.read([], ["i00", "new0"])
        found = after.answer(rung, requests_of([Question(past, 26, available_N, (25,))]), 26)
        answered = set(found.items_BK[0].tolist()) - {PAD}
        whole = rung != "generative" or name != "sasrec"
        assert answered == set(range(25 if whole else 24)), f"{rung}: SASRec answers with items of its fit only"
        listed = dataclasses.replace(history_requests([[0]]), filters=Filters(allowed=Ragged.of([[3, 24]])))
        answered = set(after.answer(rung, listed, 26).items_BK[0].tolist()) - {PAD}
        assert answered == ({3, 24} if whole else {3}), rung
    more = after.with_items(read_catalog(pl.DataFrame({"item_id": ["z"], "title": ["tin box"]})))
    assert more.catalog.items.ids.to_pylist()[-3:] == ["new0", "new1", "z"]
    assert more.with_items(new_items("kitchen red lamp")) is more, "nothing is new"


def test_new_items_have_codes_and_can_be_generated() -> None:
    after = model().with_items(new_items("kitchen red lamp"))
    new, like = after.codes_of(24), model().codes_of(0)
    assert new is not None
    assert like is not None
    assert new[:2] == like[:2], "an item like i00, but for the digit that tells them apart"
    only = torch.arange(25) == 24
    found = after.answer("generative", history_requests([[0, 1]], available_N=only), 3)
    assert found.items_BK.tolist() == [[24, PAD, PAD]]
    assert model("popular").with_items(new_items("x")).codes_of(24) is not None


def test_the_old_model_goes_on_answering_while_a_new_one_is_made() -> None:
    served = model()
    requests = history_requests([[0, 1], [6, 7]])
    wanted = {rung: served.answer(rung, requests, 5) for rung in RUNGS}
    stop, wrong, rounds = threading.Event(), [], [0]

    def ask() -> None:
        while not stop.is_set():
            for rung in RUNGS:
                found = served.answer(rung, requests, 5)
                if not torch.equal(found.items_BK, wanted[rung].items_BK):
                    wrong.append(rung)
            rounds[0] += 1

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        newest = served
        while rounds[0] < 5 and thread.is_alive():
            newest = newest.with_items(
                read_catalog(pl.DataFrame({"item_id": [f"n{len(newest.catalog)}"], "title": ["office tin box"]}))
            )
    finally:
        stop.set()
        thread.join()
    assert rounds[0] >= 5
    assert not wrong
    assert len(newest.catalog) > 24


def test_similar_items() -> None:
    served, everything = model(), torch.ones(24, dtype=torch.bool)
    found = served.similar(0, 3, everything)
    wanted = Recommender.load(bundle("mosaic")).similar_items(["i00"], 3)
    assert [f"i{item:02}" for item, _ in found] == wanted["similar_item_id"].to_list()
    assert [score for _, score in found] == pytest.approx(wanted["score"].to_list(), abs=1e-6)
    few = torch.zeros(24, dtype=torch.bool)
    few[[0, 5]] = True
    assert [item for item, _ in served.similar(0, 3, few)] == [5], "of the mask, and never the item itself"


def test_similar_items_without_vectors(tmp_path: Path) -> None:
    recipe = {"data": {"positive_kinds": ["purchase"]}, "retriever": {"class": shop.COOCCURRENCE}}
    Recommender.fit(shop.events(), shop.items(), recipe=recipe, out=tmp_path / "b")
    served = LoadedModel.load(tmp_path / "b", "v")
    assert served.codebook_version is None
    assert served.codes_of(0) is None
    assert served.rungs == ("cooccurrence", "popularity"), "without codes and domains there are no segments"
    found = [item for item, _ in served.similar(0, 2, torch.ones(24, dtype=torch.bool))]
    assert found == [1, 2], "what follows i00"


def test_ids_that_are_numbers_are_strings_here(tmp_path: Path) -> None:
    events = shop.events().with_columns(pl.col("item_id").str.slice(1).cast(pl.Int64) + 1000)
    items = shop.items().with_columns(pl.col("item_id").str.slice(1).cast(pl.Int64) + 1000)
    Recommender.fit(events, items, recipe=shop.table(), out=tmp_path / "b")
    served = LoadedModel.load(tmp_path / "b", "v")
    assert served.index["1003"] == 3
    assert served.catalog.frame["item_id"][3] == "1003"
    after = served.with_items(new_items("kitchen red lamp"))
    assert after.index["new0"] == 24


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json"):
        LoadedModel.load(tmp_path, "v")


@pytest.mark.parametrize("name", ["mosaic", "popular"])
@given(
    available=st.lists(st.booleans(), min_size=24, max_size=24),
    history=st.lists(st.integers(0, 23), max_size=4),
    excluded=st.lists(st.integers(0, 23), max_size=6),
    k=st.integers(1, 30),
    exclude_history=st.booleans(),
)
def test_popular_items_without_torch_are_those_with_it(name, available, history, excluded, k, exclude_history) -> None:
    served = model(name)
    past = served.read([], [f"i{item:02}" for item in history])
    question = Question(past, k, torch.tensor(available), tuple(excluded), exclude_history)
    wanted = served.answer_all("popularity", [question])[0]
    assert served.popular(question) == wanted


def test_long_catalogs_are_looked_at_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tesserec.serving.loaded_model._CHUNK", 5)
    mask_N = torch.arange(24) % 3 == 0
    question = Question(model().read([], []), 7, mask_N, (3,))
    assert model().popular(question) == model().answer_all("popularity", [question])[0]
