"""Statements on a slate, checked by asking again."""

import copy
import dataclasses
import functools

import pytest
import torch
from tests.serving.served_shop import model as loaded
from tests.serving.served_shop import stored_events

import shop
from tesserec.data.requests import history_requests
from tesserec.decoding.beam_search import beam_search
from tesserec.nn.transformer import TransformerConfig
from tesserec.retrievers.fusion import NUM_GROUPS
from tesserec.retrievers.mosaic import PRIOR, Mosaic
from tesserec.retrievers.tiger import TIGER
from tesserec.serving.explain import MAX_NAMED, _without_each, code_paths, explanations, removed_items
from tesserec.serving.pasts import Question, requests_of
from tesserec.serving.schemas import RecommendRequest
from tesserec.serving.slate import arrange
from tesserec.serving.snapshot import CatalogSnapshot
from tesserec.testing.data import catalog_of_size, chain
from tesserec.testing.data import requests_of as asked_after
from tesserec.training.loop import TrainingConfig
from tesserec.types import PAD, FitContext, Ragged, SemanticIds

NUM_ITEMS = 24
ALL = torch.ones(NUM_ITEMS, dtype=torch.bool)
RUNGS = [
    ("mosaic", "generative"),
    ("mosaic", "dense"),
    ("mosaic", "cooccurrence"),
    ("mosaic", "segment_popularity"),
    ("mosaic", "popularity"),
    ("sasrec", "generative"),
    ("counted", "cooccurrence"),
]


@functools.cache
def model(name="mosaic"):
    """The shop's model; Mosaic with all sources, since this shop is so simple that the fitted weights hear only one."""
    found = loaded(name)
    if name != "mosaic":
        return found
    head = copy.copy(found.answers["generative"])
    head._weights_GS = torch.tensor(PRIOR).expand(NUM_GROUPS, -1)
    return dataclasses.replace(found, answers={**found.answers, "generative": head, "dense": head.answering("dense")})


def snapshot_of(name):
    return CatalogSnapshot.of(model(name).catalog, model(name).num_fitted)


def events_of(user):
    return stored_events(shop.data()[0], user)


def ask(name, events, then=(), **filters):
    """Requests as the engine makes them of stored events."""
    past = model(name).read(events, then)
    return requests_of([Question(past, NUM_ITEMS, filters.pop("available_N", ALL), **filters)])


def scores_of(name, rung, requests):
    found = model(name).answer(rung, requests, NUM_ITEMS)
    return {i: s for i, s in zip(found.items_BK[0].tolist(), found.scores_BK[0].tolist(), strict=True) if i != PAD}


def slate_of(name, rung, requests, **rules):
    asked = RecommendRequest.model_validate(rules)
    found = model(name).answer(rung, requests, NUM_ITEMS)
    given = {"shown": {}, "content": model(name).content, "generator": torch.Generator().manual_seed(1)}
    return asked, arrange(found, snapshot_of(name), asked, **given)


def removed(name, rung, requests, asked, slate, snapshot):
    gone = removed_items(model(name), rung, requests, asked=asked, slate=slate, snapshot=snapshot)
    return [(one.item_id, one.rule) for one in gone]


def explained(name, rung, requests, **rules):
    slate = slate_of(name, rung, requests, **rules)[1]
    return slate, explanations(model(name), rung, requests, slate=slate, snapshot=snapshot_of(name))


# History.


@pytest.mark.parametrize(("name", "rung"), RUNGS)
@pytest.mark.parametrize("exclude_history", [False, True])
def test_asking_without_a_thing_changes_the_score_as_stated(name, rung, exclude_history):
    """Asked as anybody asks, all items allowed: not with the slate as the allow-list."""
    events, then = events_of("u05"), ("i03", "i11")
    slate, reasons = explained(name, rung, ask(name, events, then, exclude_history=exclude_history), k=5)
    things = {event.item_id for event in events} | set(then)
    full = scores_of(name, rung, ask(name, events, then))
    assert len(slate.items) == 5
    num_stated = 0
    for placed, reason in zip(slate.items, reasons, strict=True):
        assert placed.score == pytest.approx(full[placed.item], abs=1e-6)
        stated = {moved.item_id: moved.change for moved in reason.history}
        assert set(stated) <= things
        num_stated += len(stated)
        for thing in things:
            left = [event for event in events if event.item_id != thing]
            without = scores_of(name, rung, ask(name, left, [item for item in then if item != thing]))
            assert full[placed.item] - without[placed.item] == pytest.approx(stated.get(thing, 0), abs=1e-4)
    assert num_stated or rung == "popularity"


def test_the_largest_changes_come_first_with_titles():
    reasons = explained("mosaic", "generative", ask("mosaic", events_of("u05")), k=3)[1]
    titles = dict(zip(shop.items()["item_id"], shop.items()["title"], strict=True))
    for reason in reasons:
        sizes = [abs(moved.change) for moved in reason.history]
        assert sizes == sorted(sizes, reverse=True)
        assert len(sizes) == 6, "twelve purchases of six things"
        assert all(moved.title == titles[moved.item_id] for moved in reason.history)


def test_the_last_things_of_a_long_history_are_named_once():
    history = [*range(40), 39, 5]
    named, variants = _without_each(history_requests([history]), [3, 4])
    assert named == [5, 39, 38, *range(37, 10, -1)]
    assert len(named) == MAX_NAMED
    assert variants.filters.allowed is not None
    assert [variants.filters.allowed[row].tolist() for row in (0, 30)] == [[3, 4]] * 2
    rows = [variants.history.as_ragged()[row].tolist() for row in range(MAX_NAMED + 1)]
    assert rows == [history, *([item for item in history if item != gone] for gone in named)]


@pytest.mark.parametrize(("events", "then"), [((), ("i07",)), ((), ("i07", "i07")), ("u99", ("i07",)), ("u99", ())])
def test_nothing_is_said_of_what_alone_is_there(events, then):
    """u99 returned i00, which is no reason to recommend anything; without i07 nothing is left to answer from."""
    requests = ask("mosaic", events_of(events) if events else [], then)
    slate, reasons = explained("mosaic", "generative", requests, k=3)
    named = {moved.item_id for reason in reasons for moved in reason.history}
    assert named == ({"i00"} if events and then else set())
    assert len(reasons) == len(slate.items) == 3


def test_an_empty_slate_needs_no_reasons():
    nothing = torch.zeros(NUM_ITEMS, dtype=torch.bool)
    assert explained("mosaic", "generative", ask("mosaic", events_of("u05"), available_N=nothing))[1] == []


# Path and sources.


def test_levels_add_up_to_what_the_generative_head_says():
    requests = ask("mosaic", events_of("u10"))
    slate, reasons = explained("mosaic", "generative", requests, k=NUM_ITEMS)
    head = model().answers["generative"]
    assert isinstance(head, Mosaic)
    alone = head.answering("generative").retrieve(requests, NUM_ITEMS)
    expected = dict(zip(alone.items_BK[0].tolist(), alone.scores_BK[0].tolist(), strict=True))
    first = {}
    for placed, reason in zip(slate.items, reasons, strict=True):
        levels = [step.log_probability for step in reason.path]
        assert None not in levels
        assert sum(levels) == pytest.approx(expected[placed.item], abs=1e-4)
        assert tuple(step.code for step in reason.path) == model().codes_of(placed.item)
        first[reason.path[0].code] = levels[0]
    assert torch.tensor(list(first.values())).exp().sum() == pytest.approx(1, abs=1e-5), "a distribution over codes"


def test_levels_of_a_decoder_with_a_cache():
    codes = SemanticIds(torch.tensor([[item // 4, item % 4] for item in range(12)]), (3, 4), "by hand")
    tiger = TIGER(model=TransformerConfig(16, 1, 2), num_beams=12, training=TrainingConfig(epochs=1))
    tiger.fit(chain(12)[0], catalog_of_size(12), FitContext(semantic_ids=codes))
    requests = asked_after([[[2], [3]]])
    paths_XL = code_paths(tiger.generation(requests), [5, 0, 5, 11])
    read = tiger.generation(requests)
    beams = beam_search(read.step, read.cache, read.trie, num_requests=1, num_beams=12)
    by_leaf = dict(zip(beams.leaves_BM[0].tolist(), beams.log_probs_BM[0].tolist(), strict=True))
    expected = [by_leaf[int(read.trie.leaf_N[item])] for item in (5, 0, 5, 11)]
    assert paths_XL.sum(1).tolist() == pytest.approx(expected, abs=1e-4)
    assert paths_XL.shape == (4, 2)


@pytest.mark.parametrize(("name", "rung"), RUNGS[1:])
def test_without_a_generative_head_there_are_codes_only(name, rung):
    slate, reasons = explained(name, rung, ask(name, events_of("u05")), k=2)
    for placed, reason in zip(slate.items, reasons, strict=True):
        assert tuple(step.code for step in reason.path) == model(name).codes_of(placed.item)
        assert {step.log_probability for step in reason.path} == {None}
        assert reason.sources == {}


def test_without_codes_there_is_no_path():
    counted, snapshot = model("counted"), snapshot_of("counted")
    bare = dataclasses.replace(counted, content=dataclasses.replace(counted.content, semantic_ids=None))
    requests = ask("counted", events_of("u05"))
    slate = slate_of("counted", "cooccurrence", requests, k=2)[1]
    assert [r.path for r in explanations(bare, "cooccurrence", requests, slate=slate, snapshot=snapshot)] == [[], []]


def test_sources_add_up_to_the_score_of_the_model_and_rules_say_the_rest():
    boosts = [{"when": "price < 3", "weight": 0.5}]
    slate, reasons = explained("mosaic", "generative", ask("mosaic", events_of("u05")), k=6, boosts=boosts)
    for placed, reason in zip(slate.items, reasons, strict=True):
        assert len(reason.sources) == 6
        assert sum(value < 0 for value in reason.sources.values()) == 6, "each has a say"
        boosted = placed.item % 6 < 2
        assert reason.rules == (["boosts: price < 3: +0.5"] if boosted else [])
        assert sum(reason.sources.values()) + 0.5 * boosted == pytest.approx(placed.score, abs=1e-4)


# What is not there.


def test_what_rules_took_out_is_named():
    name, rung = "mosaic", "generative"
    best = list(scores_of(name, rung, ask(name, events_of("u05"))))[:6]
    deleted, gone, excluded, sunk, searched, left = best
    snapshot = snapshot_of(name)
    available_N, deleted_N = ALL.clone(), ~ALL
    available_N[[deleted, gone]], deleted_N[deleted] = False, True
    snapshot = dataclasses.replace(snapshot, available_N=available_N, deleted_N=deleted_N)
    asked = RecommendRequest.model_validate({"k": 6, "exclude": [f"i{excluded:02}"], "query": "lamp", "rotate": 100.0})
    legal_N = available_N.clone()
    legal_N[searched] = False
    requests = ask(name, events_of("u05"), available_N=legal_N, excluded=(excluded,))
    found = model(name).answer(rung, requests, NUM_ITEMS)
    given = {"content": model(name).content, "generator": torch.Generator().manual_seed(0)}
    slate = arrange(found, snapshot, asked, shown={f"i{sunk:02}": 1}, **given)
    told = removed(name, rung, requests, asked, slate, snapshot)
    assert told == [
        (f"i{deleted:02}", "deleted"),
        (f"i{gone:02}", "unavailable"),
        (f"i{excluded:02}", "exclude"),
        (f"i{sunk:02}", "rotate"),
        (f"i{searched:02}", "query"),
    ]
    assert left in {placed.item for placed in slate.items}


def test_filters_and_the_history_are_named():
    name, rung = "mosaic", "generative"
    events = events_of("u05")
    snapshot = snapshot_of(name)
    dear = "price > 3"
    requests = ask(name, events, available_N=snapshot.mask(dear), exclude_history=True)
    asked, slate = slate_of(name, rung, requests, k=8, filter=dear)
    had = {event.item_id for event in events}
    best = [f"i{item:02}" for item in list(scores_of(name, rung, ask(name, events)))[:8]]
    shown = {f"i{placed.item:02}" for placed in slate.items}
    told = removed(name, rung, requests, asked, slate, snapshot)
    assert told == [(item, "history" if item in had else "filter") for item in best if item not in shown]
    assert {rule for _, rule in told} == {"history", "filter"}


def test_an_allow_list_and_its_likes_are_named_as_the_query():
    requests = ask("mosaic", events_of("u05"))
    listed = dataclasses.replace(requests, filters=dataclasses.replace(requests.filters, allowed=Ragged.of([[20, 21]])))
    asked, slate = slate_of("mosaic", "generative", listed, k=2, query="box")
    assert {placed.item for placed in slate.items} == {20, 21}
    told = removed("mosaic", "generative", listed, asked, slate, snapshot_of("mosaic"))
    assert [rule for _, rule in told] == ["query", "query"]


def test_what_a_rule_had_lifted_into_the_list_is_named_too():
    requests = ask("mosaic", events_of("u05"))
    order = list(scores_of("mosaic", "generative", requests))
    last = order[-1]
    asked = RecommendRequest.model_validate(
        {"k": 2, "rotate": 90, "boosts": [{"when": f'item_id == "i{last:02}"', "weight": 100}]}
    )
    found = model().answer("generative", requests, NUM_ITEMS)
    given = {"content": model().content, "generator": torch.Generator().manual_seed(0)}
    slate = arrange(found, snapshot_of("mosaic"), asked, shown={f"i{last:02}": 2}, **given)
    told = removed("mosaic", "generative", requests, asked, slate, snapshot_of("mosaic"))
    assert told == [(f"i{last:02}", "rotate")]
