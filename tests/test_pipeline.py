"""The pipeline on a small shop whose answers are known."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import pytest
import torch

import shop
from tesserec.config import Field, component
from tesserec.data.append import append_catalog, append_events
from tesserec.data.catalog import read_catalog
from tesserec.data.interactions import read_events
from tesserec.data.splits import split
from tesserec.errors import DataError, RecipeError, ResourceError, VersionMismatchError
from tesserec.pipeline import (
    extended_content,
    first_items,
    fit,
    holdout_of,
    judge_holdout,
    quantizer_of,
    read_data,
    restored,
    serving_retriever,
    update,
)
from tesserec.recipe import DataConfig, Recipe, parse_recipe
from tesserec.retrievers.popularity import Popularity
from tesserec.types import Catalog, ComponentState, Estimate, FitContext, Interactions
from tesserec.work import Work

SASREC = {
    "class": "tesserec.retrievers.sasrec:SASRec",
    "model": {"width": 8, "num_layers": 1, "num_heads": 1},
    "training": {"epochs": 2},
}


def bare(**changes: Any) -> Recipe:
    """A recipe without codes, which is fitted in a moment."""
    table = shop.table(**changes)
    return parse_recipe({name: part for name, part in table.items() if name not in ("embedder", "semantic_ids")})


def later(days: range = range(6, 7)) -> tuple[Interactions, Catalog]:
    """The shop's log and catalog with further baskets, and one new lamp that ``u00`` bought."""
    contents = shop.contents()
    lamp = pl.DataFrame({"item_id": ["i99"], "title": ["kitchen red lamp"], "price": [9.0]})
    sale = {"user_id": "u00", "item_id": "i99", "timestamp": shop.START_S + 75 * shop.DAY_S, "kind": "purchase"}
    catalog = append_catalog(contents.catalog, read_catalog(lamp))
    new = read_events(pl.concat([shop.events(days), pl.DataFrame([sale])]), items=catalog.items)
    old = dataclasses.replace(contents.interactions, items=contents.catalog.items)
    return append_events(old, new), catalog


def test_a_fit_judges_the_retriever_and_its_baselines_on_the_same_questions() -> None:
    contents = shop.contents()
    assert list(contents.reports) == ["cooccurrence", "popularity"]
    own, baseline = contents.reports.values()
    assert own.protocol == baseline.protocol
    assert (own.label, baseline.label) == ("Cooccurrence", "Popularity")
    assert own.protocol["split"] == "global_time.test"
    assert own.protocol["refit"] is False
    assert list(own.metrics)[:2] == ["recall5", "recall10"]
    assert own.metrics["recall10"].mean == 1.0, "the next basket is always among the six things of the room"
    assert own.metrics["ndcg10"].mean > baseline.metrics["ndcg10"].mean + 0.3
    assert set(own.costs) == {"train_s", "fit_s", "peak_rss_bytes", "parameters", "retrieve_s_per_1000"}
    assert own.costs["train_s"] == own.costs["fit_s"] > 0
    assert own.costs["peak_rss_bytes"] > 1e7
    assert baseline.costs["parameters"] == 24
    assert contents.records["cooccurrence"].training_log == []
    assert not contents.records["popularity"].equal_training_time


def test_the_holdout_state_has_seen_train_only_and_the_serving_state_everything() -> None:
    contents = fit(bare(retriever={"class": shop.POPULARITY, "window_days": None}, baselines={}), *shop.data())
    parts, holdout = holdout_of(contents)
    counted = [contents.holdout.tensors["score"].floor().long(), contents.serving.tensors["score"].floor().long()]
    assert torch.equal(counted[0], parts.train.positives().item_counts())
    assert torch.equal(counted[1], contents.interactions.positives().item_counts())
    assert len(parts.train) < len(contents.interactions)
    assert len(holdout) == len(parts.test)


def test_judging_again_gives_the_same_report() -> None:
    contents = shop.contents()
    again = judge_holdout(contents)
    assert again.to_dict() == contents.reports["cooccurrence"].to_dict()
    assert again.items_BK is not None
    assert contents.reports["cooccurrence"].items_BK is not None
    assert torch.equal(again.items_BK, contents.reports["cooccurrence"].items_BK)


def test_without_refit_the_judged_state_serves() -> None:
    contents = fit(bare(fit={"refit": False}), *shop.data())
    assert contents.serving is contents.holdout


def test_refitted_figures_are_named_so() -> None:
    recipe = bare(retriever={"class": shop.POPULARITY, "window_days": None}, baselines={}, evaluation={"refit": True})
    contents = fit(recipe, *shop.data())
    parts, _ = holdout_of(contents)
    assert contents.reports["popularity"].protocol["refit"] is True
    counted = contents.holdout.tensors["score"].floor().long()
    assert torch.equal(counted, parts.refit.positives().item_counts())
    assert judge_holdout(contents).to_dict() == contents.reports["popularity"].to_dict()


def test_some_of_the_questions() -> None:
    contents = fit(bare(evaluation={"num_requests": 10, "ks": [3]}), *shop.data())
    parts, holdout = holdout_of(contents)
    assert contents.reports["cooccurrence"].num_requests == len(holdout) == 10
    users = holdout.requests.user_B
    assert users is not None
    assert parts.test.requests.user_B is not None
    assert bool((users.diff() > 0).all()), "they keep their order"
    assert torch.isin(users, parts.test.requests.user_B).all()
    assert users.tolist() != parts.test.requests.user_B[:10].tolist()
    assert {name.strip("0123456789") for name in contents.reports["cooccurrence"].metrics} >= {"recall", "ndcg"}
    assert "ndcg3" in contents.reports["cooccurrence"].metrics
    everything = fit(bare(evaluation={"num_requests": 33}), *shop.data())
    assert everything.reports["cooccurrence"].num_requests == len(parts.test) == 33


def test_baselines_train_as_long_as_the_retriever() -> None:
    recipe = bare(
        retriever=SASREC,
        baselines={"other": {**SASREC, "training": {"epochs": 1000}}, "popularity": {"class": shop.POPULARITY}},
        fit={"equal_training_time": True, "refit": False},
    )
    contents = fit(recipe, *shop.data())
    records = contents.records
    assert len(records["sasrec"].training_log) == 2
    assert records["sasrec"].training_s is not None
    assert records["other"].training_s is not None
    assert records["other"].training_s >= records["sasrec"].training_s
    assert len(records["other"].training_log) < 900
    assert [name for name in records if records[name].equal_training_time] == ["other"]
    assert [report.label for report in contents.reports.values()] == ["SASRec", "SASRec (other)", "Popularity"]
    assert contents.reports["sasrec"].costs["train_s"] == records["sasrec"].training_s
    assert contents.reports["sasrec"].costs["fit_s"] > contents.reports["sasrec"].costs["train_s"]


@component
class Careful(Popularity):
    """Popularity that says beforehand what it needs."""

    rate: Annotated[float, Field(gt=0)] = 2.0
    """Seconds an event."""

    def estimate(self, train: Interactions, catalog: Catalog, context: FitContext) -> Estimate:
        """Of a machine that counts slowly."""
        return Estimate(self.rate * len(train), 3 * 2**30)


def test_estimates_are_told_before_the_fit() -> None:
    recipe = dataclasses.replace(bare(fit={"refit": False}, baselines={}), retriever=Careful())
    told: list[str] = []
    fit(recipe, *shop.data(), tell=told.append)
    number = len(split(shop.data()[0]).train)
    assert told == [f"fitting careful on {number:,} events: about {2 * number:,} s and 3.0 GiB of memory"]


def test_a_run_that_failed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    small = {"class": "tesserec.retrievers.ease:EASE", "max_memory_bytes": 1}
    recipe = shop.recipe(baselines={"ease": small})
    told: list[str] = []
    with pytest.raises(ResourceError, match="max_memory_bytes = 1"):
        fit(recipe, *shop.data(), work_folder=tmp_path / "w", tell=told.append)
    assert [line.split(" on ")[0] for line in told] == ["fitting cooccurrence", "fitting ease"]
    kept = {path.relative_to(tmp_path / "w").as_posix() for path in (tmp_path / "w").rglob("*") if path.is_file()}
    assert {"content/semantic_ids.parquet", "methods/cooccurrence/report.json", "key.json"} <= kept
    told.clear()
    with pytest.raises(ResourceError, match="max_memory_bytes = 1"):
        fit(recipe, *shop.data(), work_folder=tmp_path / "w", tell=told.append)
    assert told[0] == f"continuing the run that was stopped, from {tmp_path / 'w'}"
    assert [line.split(" on ")[0] for line in told[1:]] == ["fitting ease"]


def test_a_resumed_run_gives_what_a_whole_one_gives(tmp_path: Path) -> None:
    """All that was kept is read back: content, judged methods and the serving state."""
    contents = shop.contents()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Work, "remove", lambda self: None)
        fit(shop.recipe(), *shop.data(), work_folder=tmp_path / "w")
    told: list[str] = []
    again = fit(shop.recipe(), *shop.data(), work_folder=tmp_path / "w", tell=told.append)
    assert [line.split(" ")[0] for line in told] == ["continuing", "fitting"], "the last says that it fits for serving"
    assert again.content.semantic_ids is not None
    assert contents.content.semantic_ids is not None
    assert torch.equal(again.content.semantic_ids.codes_NL, contents.content.semantic_ids.codes_NL)
    assert again.serving.tensors.keys() == contents.serving.tensors.keys()
    assert all(torch.equal(again.serving.tensors[name], one) for name, one in contents.serving.tensors.items())
    assert again.reports["popularity"].metrics == contents.reports["popularity"].metrics
    assert not (tmp_path / "w").exists()


def test_progress_is_reported() -> None:
    seen: dict[str, tuple[float, float]] = {}

    def progress(task: str, done: float, total: float, note: str = "") -> None:
        seen[task] = (done, total)

    fit(shop.recipe(fit={"refit": False}), *shop.data(), progress=progress)
    assert seen["embed"] == (1, 1)
    assert seen["evaluate"] == (33, 33)
    assert seen["residual k-means"] == (2, 2)


def test_reading_data(tmp_path: Path) -> None:
    shop.events().write_csv(tmp_path / "e.csv")
    shop.items().write_csv(tmp_path / "i.csv")
    interactions, catalog = read_data(DataConfig(events=tmp_path / "e.csv", items=tmp_path / "i.csv"))
    assert (len(interactions), len(catalog)) == (577, 24)
    assert catalog.titles[7] == "garden red lamp large"
    _, bare_catalog = read_data(DataConfig(events=tmp_path / "e.csv"))
    assert bare_catalog.frame.columns == ["item_id"]
    extra = pl.concat([shop.events(), shop.events()[:1].with_columns(item_id=pl.lit("i77"))])
    with pytest.warns(UserWarning, match="1 of 578 events dropped"):
        dropped, _ = read_data(DataConfig(unknown_items="drop"), extra, shop.items())
    assert len(dropped) == 577
    renamed = shop.events().rename({"user_id": "who"})
    assert len(read_data(DataConfig(columns={"user_id": "who"}), renamed)[0]) == 577


def test_the_k_core_takes_the_catalog_along() -> None:
    rare = pl.concat([shop.events(), shop.events()[:1].with_columns(item_id=pl.lit("i24"))])
    items = pl.concat([shop.items(), pl.DataFrame({"item_id": ["i24"], "title": ["rare"], "price": [1.0]})])
    config = DataConfig(positive_kinds=("purchase",), min_user_events=2)
    interactions, catalog = read_data(config, rare, items)
    assert len(interactions.users) == 48, "who only returned something is gone"
    assert len(catalog) == len(interactions.items) == 25
    interactions, catalog = read_data(dataclasses.replace(config, min_user_events=1, min_item_events=2), rare, items)
    assert len(catalog) == len(interactions.items) == 24
    assert catalog.titles[0] == "kitchen red lamp"


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (DataConfig(), RecipeError, "no data is named: add source or events to [data] of the recipe, or give --events"),
        (
            DataConfig(source="online_retial"),
            RecipeError,
            "data.source = 'online_retial' is not a source; did you mean online_retail?",
        ),
        (DataConfig(source="files"), RecipeError, "data.source = 'files' is not a source"),
        (DataConfig(source="online_retail", name="x"), DataError, "online_retail has no data set 'x': choose one of"),
    ],
)
def test_data_that_is_not_there(config: DataConfig, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        read_data(config)


def test_a_source_by_name() -> None:
    interactions, catalog = read_data(DataConfig(source="online_retail"))
    assert (len(interactions), len(catalog)) == (393_627, 3_775)
    assert interactions.positive_kinds == ("purchase",)


def test_an_update_judges_the_old_state_on_what_is_new_and_then_learns_it() -> None:
    contents, (interactions, catalog) = shop.contents(), later()
    told: list[str] = []
    updated = update(contents, interactions, catalog, tell=told.append)
    last = int(contents.interactions.time_E.max())
    parts, holdout = holdout_of(updated)
    assert (parts.report.t2, parts.train.users.ids) == (last + 1, interactions.users.ids)
    assert parts.report.t1 is not None
    assert parts.report.t1 <= last
    assert torch.equal(parts.refit.time_E, contents.interactions.time_E)
    assert len(holdout) == 48, "each customer came back"
    own = updated.reports["cooccurrence"]
    assert own.protocol["refit"] is True
    assert own.metrics["recall10"].mean > 0.9
    assert own.costs["train_s"] == contents.reports["cooccurrence"].costs["train_s"]
    assert judge_holdout(updated).to_dict() == own.to_dict()
    assert len(updated.interactions) == 577 + 97
    assert updated.catalog.titles[24] == "kitchen red lamp"
    assert [line.split(" ")[1] for line in told] == ["popularity", "cooccurrence"]
    assert updated.recipe["split"]["t2"] == last + 1
    assert updated.holdout is contents.serving
    after = serving_retriever(updated)
    assert after.retrieve(holdout.requests, 3).items_BK.shape == (48, 3)
    assert updated.content.semantic_ids is not None
    assert len(updated.content.semantic_ids) == 25


def test_an_update_leaves_out_baselines_that_train() -> None:
    trained = dataclasses.replace(shop.contents().records["popularity"], training_log=[{"seconds": 1.0}])
    contents = dataclasses.replace(shop.contents(), records={**shop.contents().records, "popularity": trained})
    assert list(update(contents, *later()).reports) == ["cooccurrence"]


def test_new_items_take_codes_from_the_frozen_codebooks() -> None:
    contents = shop.contents()
    _, catalog = later()
    extended = extended_content(shop.recipe(), contents.content, catalog)
    before, after = contents.content.semantic_ids, extended.semantic_ids
    assert before is not None
    assert after is not None
    assert torch.equal(after.codes_NL[:24], before.codes_NL)
    assert after.codes_NL[24, :2].tolist() == before.codes_NL[0, :2].tolist(), "the same text has the same codes"
    assert after.codes_NL[24, 2] != before.codes_NL[0, 2], "and another digit"
    assert (after.codebook_version, after.table_revision) == (before.codebook_version, before.table_revision + 1)
    assert extended.embeddings is not None
    assert torch.allclose(extended.embeddings.vectors_ND[24], extended.embeddings.vectors_ND[0], atol=1e-5)
    assert extended.embeddings.missing_N is not None
    assert extended.embeddings.missing_N.shape == (25,)
    assert extended_content(shop.recipe(), contents.content, contents.catalog) is contents.content


def test_the_quantizer_of_a_content_makes_its_codes() -> None:
    content = shop.contents().content
    quantizer = quantizer_of(shop.recipe(), content)
    assert quantizer is not None
    assert content.embeddings is not None
    assert content.semantic_ids is not None
    codes_NL = content.semantic_ids.codes_NL
    assert torch.equal(quantizer.encode(content.embeddings.vectors_ND), codes_NL[:, :2])
    assert quantizer_of(shop.recipe(), dataclasses.replace(content, codebooks=None)) is None


def test_new_items_are_not_coded_by_another_codebook() -> None:
    contents = shop.contents()
    codebooks = contents.content.codebooks
    assert codebooks is not None
    other = ComponentState({name: tensor + 1 for name, tensor in codebooks.tensors.items()}, codebooks.metadata)
    with pytest.raises(VersionMismatchError, match="expand with the quantizer that made the table"):
        extended_content(shop.recipe(), dataclasses.replace(contents.content, codebooks=other), later()[1])


def test_new_items_take_codes_of_ones_own(tmp_path: Path) -> None:
    codes = pl.DataFrame({"item_id": [f"i{i:02}" for i in [*range(24), 99]], "code_0": [i % 3 for i in range(25)]})
    codes.write_csv(tmp_path / "codes.csv")
    own = {"class": "tesserec.semantic_ids.codes_file:CodesFile", "path": str(tmp_path / "codes.csv")}
    recipe = dataclasses.replace(shop.recipe(semantic_ids=own, baselines={}), embedder=None)
    contents = fit(recipe, *shop.data())
    assert contents.content.codebooks is None
    assert contents.content.embeddings is None
    extended = extended_content(recipe, contents.content, later()[1])
    assert extended.semantic_ids is not None
    assert extended.semantic_ids.codes_NL[:, 0].tolist() == codes["code_0"].to_list()


def test_new_items_reach_a_retriever_that_can_take_them() -> None:
    contents = shop.contents()
    _, catalog = later()
    content = extended_content(shop.recipe(), contents.content, catalog)
    extended = dataclasses.replace(contents, catalog=catalog, content=content)
    questions = holdout_of(contents)[1].requests
    found = serving_retriever(extended).retrieve(questions, 25).items_BK
    assert bool((found.sort(1).values == torch.arange(25)).all()), "the last of 25 items is the new one"
    contents = fit(bare(retriever=SASREC, baselines={}, fit={"refit": False}), *shop.data())
    fixed = restored(shop.recipe(retriever=SASREC).retriever, contents.serving, catalog, FitContext())
    assert int(fixed.retrieve(questions, 25).items_BK.max()) == 23, "it answers with the items of its fit"


def test_the_first_items_of_a_catalog() -> None:
    catalog = dataclasses.replace(shop.contents().catalog, available_N=torch.arange(24) > 1)
    assert first_items(catalog, 24) is catalog
    part = first_items(catalog, 3)
    assert part.items.ids.to_pylist() == ["i00", "i01", "i02"]
    assert part.titles[2] == "kitchen oak shelf"
    assert part.available_N is not None
    assert part.available_N.tolist() == [False, False, True]


def test_another_device_than_the_processor_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"fit.device = 'cuda' is not supported yet: leave it out, or say .cpu."):
        fit(shop.recipe(fit={"device": "cuda"}), *shop.data())


def test_threads_are_the_recipes_while_fitting_and_the_callers_after() -> None:
    seen: list[int] = []
    before = torch.get_num_threads()
    recipe = shop.recipe(fit={"num_threads": before + 1, "refit": False})
    fit(recipe, *shop.data(), tell=lambda line: seen.append(torch.get_num_threads()))
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before
