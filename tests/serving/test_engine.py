import asyncio
import dataclasses
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.engines import Opened, opened, play
from tests.serving.served_shop import bundle

from tesserec.errors import DataError, StoreError, UnknownIdError
from tesserec.recommender import NO_HISTORY, Recommender
from tesserec.serving.batcher import Fault
from tesserec.serving.engine import LATE_HISTORY, EngineConfig, Overloaded
from tesserec.serving.impression_log import KEEP_S
from tesserec.serving.ladder import LadderConfig
from tesserec.serving.records import Event, Item
from tesserec.serving.rungs import RUNGS
from tesserec.serving.schemas import Boost, RecommendRequest

DAY_S = 86_400.0


def bought(user: str, *items: str, kind: str = "purchase") -> list[Event]:
    now = time.time()
    return [Event(f"{user}-{now}-{n}", user, item, kind, now + n) for n, item in enumerate(items)]


def ids(response) -> list[str]:
    return [item.item_id for item in response.items]


def test_answers_are_those_of_the_recommender() -> None:
    users = ["u00", "u05", "u47", "u99"]
    wanted = Recommender.load(bundle("mosaic")).recommend(users, k=6)

    async def scene(shop: Opened) -> None:
        found = await asyncio.gather(*(shop.engine.recommend(RecommendRequest(user_id=u, k=6)) for u in users))
        together = await asyncio.to_thread(
            shop.engine.recommend_many, [RecommendRequest(user_id=user, k=6) for user in users]
        )
        for responses in (found, together):
            assert [item for one in responses for item in ids(one)] == wanted["item_id"].to_list()
            scores = [item.score for one in responses for item in one.items]
            assert scores == pytest.approx(wanted["score"].to_list(), abs=1e-5)
            assert [one.rung for one in responses] == ["generative"] * 3 + ["popularity"]
            assert [NO_HISTORY in one.notes for one in responses] == [False] * 3 + [True]

    play(scene)


def test_a_response_says_what_it_is() -> None:
    async def scene(shop: Opened) -> None:
        response = await shop.engine.recommend(RecommendRequest(user_id="u00", k=3, scenario="cart"))
        version = shop.deployment.serving.live.version
        assert (response.model_version, response.arm, response.table_revision) == (version, "live", 0)
        assert response.codebook_version is not None
        assert [item.rank for item in response.items] == [1, 2, 3]
        assert all(item.title for item in response.items)
        assert set(response.stages_ms) == {"filter", "history", "queue", "model", "slate", "total"}
        assert response.stages_ms["total"] >= response.stages_ms["model"] > 0
        assert response.notes == []
        await asyncio.sleep(2 * KEEP_S)  # a list is logged some time after its reply
        await asyncio.to_thread(shop.store.check)
        logged = shop.store.impressions_of("u00", 0)
        assert [one.response_id for one in logged] == [response.response_id]
        assert list(logged[0].items) == ids(response)
        assert (logged[0].scenario, logged[0].rung, logged[0].propensities) == ("cart", "generative", None)
        await shop.engine.recommend(RecommendRequest(user_id="u00", k=3), shown=False)
        await asyncio.sleep(2 * KEEP_S)  # a list is logged some time after its reply
        await asyncio.to_thread(shop.store.check)
        assert shop.store.impressions_of("u00", 0) == logged

    play(scene)


def test_what_is_unknown_is_named() -> None:
    async def scene(shop: Opened) -> None:
        await shop.engine.add_events(bought("new", "i00", kind="view"))
        response = await shop.engine.recommend(RecommendRequest(user_id="new", history=["i01", "nothing"], k=30))
        assert any("1 item of the history is not known and ignored: nothing" in note for note in response.notes)
        assert any("events of kinds that the model does not read: view" in note for note in response.notes)
        assert any("24 items: no more are allowed" in note for note in response.notes)
        assert response.rung == "generative"

    play(scene)


def test_the_next_request_knows_an_event() -> None:
    async def scene(shop: Opened) -> None:
        before = await shop.engine.recommend(RecommendRequest(user_id="u77", k=3))
        assert before.rung == "popularity"
        events = bought("u77", "i12", "i13")
        assert await shop.engine.add_events(events) == (2, 0)
        assert await shop.engine.add_events(events) == (0, 2), "sent twice, kept once"
        after = await shop.engine.recommend(RecommendRequest(user_id="u77", k=3, exclude_history=True))
        assert after.rung == "generative"
        assert not {"i12", "i13"} & set(ids(after))
        inline = await shop.engine.recommend(RecommendRequest(history=["i12", "i13"], k=3, exclude_history=True))
        assert set(ids(inline)) == set(ids(after))

    play(scene)


def test_filters_exclusions_and_words() -> None:
    async def scene(shop: Opened) -> None:
        ask = shop.engine.recommend
        cheap = await ask(RecommendRequest(user_id="u00", k=24, filter="price < 3", exclude=["i00", "unknown"]))
        assert set(ids(cheap)) == {f"i{n:02}" for n in range(24) if n % 6 < 2} - {"i00"}
        lamps = await ask(RecommendRequest(user_id="u00", k=24, query="lamp", filter="price < 2"))
        assert set(ids(lamps)) == {"i00", "i06", "i12", "i18"}
        with pytest.raises(DataError, match="pricee"):
            await ask(RecommendRequest(user_id="u00", filter="pricee < 3"))

    play(scene)


def test_lists_that_wait_to_be_kept_are_kept_at_the_end() -> None:
    async def scene(shop: Opened) -> None:
        response = await shop.engine.recommend(RecommendRequest(user_id="u00", k=3))
        await asyncio.sleep(0)  # it is noted after the reply
        shop.engine.close()
        await asyncio.to_thread(shop.store.check)
        assert [one.response_id for one in shop.store.impressions_of("u00", 0)] == [response.response_id]

    play(scene)


def test_rules() -> None:
    async def scene(shop: Opened) -> None:
        ask = shop.engine.recommend
        plain = await ask(RecommendRequest(user_id="u00", k=4))
        last = (await ask(RecommendRequest(user_id="u00", k=24))).items[-1]
        boosted = await ask(
            RecommendRequest(user_id="u00", k=4, boosts=[Boost(when=f'item_id == "{last.item_id}"', weight=100)])
        )
        assert ids(boosted) == [last.item_id, *ids(plain)[:3]]
        drawn = await ask(RecommendRequest(user_id="u00", k=4, sample=1.0))
        assert all(0 < (item.propensity or 0) <= 1 for item in drawn.items)
        await asyncio.sleep(2 * KEEP_S)  # a list is logged some time after its reply
        await asyncio.to_thread(shop.store.check)
        logged = shop.store.impressions_of("u00", 0)[-1]
        assert logged.propensities == tuple(item.propensity for item in drawn.items)
        with pytest.raises(DataError, match="leave one of them out"):
            await ask(RecommendRequest(user_id="u00", sample=1.0, diversity=0.5))

    play(scene)


def test_explanations_hold_when_asked_again() -> None:
    async def scene(shop: Opened) -> None:
        history = ["i00", "i01", "i07"]
        asked = RecommendRequest(history=history, k=3, exclude=["i02"], explain=True)
        response = await shop.engine.recommend(asked)
        (together,) = await asyncio.to_thread(shop.engine.recommend_many, [asked])
        assert "explain" in response.stages_ms
        assert response.removed is not None
        assert [one.rule for one in response.removed if one.item_id == "i02"] in ([], ["exclude"])
        first = response.items[0]
        assert first.explanation is not None
        assert together.items[0].explanation == first.explanation
        moved = first.explanation.history[0]
        left = [item for item in history if item != moved.item_id]
        without = await shop.engine.recommend(RecommendRequest(history=left, k=24))
        again = next(item for item in without.items if item.item_id == first.item_id)
        assert first.score - again.score == pytest.approx(moved.change, abs=1e-4)

    play(scene)


def test_what_was_shown_moves_down_until_the_user_takes_it() -> None:
    async def scene(shop: Opened) -> None:
        rotating = RecommendRequest(user_id="u00", k=3, rotate=100)
        first, second = await shop.engine.recommend(rotating), await shop.engine.recommend(rotating)
        assert not set(ids(first)) & set(ids(second)), "three others"
        plain = await shop.engine.recommend(RecommendRequest(user_id="u00", k=24))
        await shop.engine.add_events(
            [dataclasses.replace(event, time=event.time + DAY_S) for event in bought("u00", *ids(plain)[:1])]
        )
        third = await shop.engine.recommend(RecommendRequest(user_id="u00", k=24, rotate=100))
        assert third.items[0].item_id == ids(plain)[0]

    play(scene)


def test_new_items_are_live_at_once_and_have_their_share() -> None:
    async def scene(shop: Opened) -> None:
        engine = shop.engine
        revision = await engine.put_items([Item("n1", {"title": "kitchen red lamp", "price": 1.5})])
        response = await engine.recommend(RecommendRequest(user_id="u00", k=25))
        assert response.table_revision == revision == 1
        assert [item.item_id for item in response.items if item.cold] == ["n1"]
        few = await engine.recommend(RecommendRequest(user_id="u01", k=4, cold_share=0.25))
        assert [item.item_id for item in few.items if item.cold] == ["n1"]
        none = await engine.recommend(RecommendRequest(user_id="u00", k=25, cold_share=0))
        assert not [item for item in none.items if item.cold]
        told = await engine.recommend(RecommendRequest(user_id="u00", k=25, cold_share=0, explain=True))
        assert [one.rule for one in told.removed or () if one.item_id == "n1"] == ["cold_share"]
        assert ids(await engine.search("red lamp", 30))[:1] != []
        assert "n1" in ids(await engine.search("red lamp", 30))
        assert (await engine.similar("n1", 2)).items[0].item_id == "i00"

    play(scene)


def test_changes_of_items() -> None:
    async def scene(shop: Opened) -> None:
        engine = shop.engine
        ask = RecommendRequest(user_id="u00", k=30, filter="price < 3")
        best = ids(await engine.recommend(ask))[0]
        assert await engine.patch_item(best, {"price": 9.0}) == 1
        assert best not in ids(await engine.recommend(ask))
        assert await engine.patch_item(best, {"price": 1.0}, available=False) == 2
        assert best not in ids(await engine.recommend(ask))
        assert await engine.patch_item(best, {}, available=True) == 3
        assert best in ids(await engine.recommend(ask))
        assert await engine.delete_item(best) == 4
        assert best not in ids(await engine.recommend(ask))
        assert best not in ids(await engine.search("lamp", 30))
        for act in (engine.delete_item(best), engine.patch_item(best, {}), engine.similar(best), engine.similar("x")):
            with pytest.raises(UnknownIdError, match="there is no item"):
                await act
        with pytest.raises(DataError, match="price"):
            await engine.put_items([Item("n1", {"price": "cheap"})])
        await engine.put_items([Item(best, {"title": "kitchen red lamp", "price": 1.0})])
        assert best in ids(await engine.recommend(ask)), "put anew"

    play(scene)


def test_patches_of_one_item_at_the_same_time_all_count() -> None:
    async def scene(shop: Opened) -> None:
        names = [f"a{n}" for n in range(8)]
        await asyncio.gather(*(shop.engine.patch_item("i00", {name: 1.0}) for name in names))
        _, snapshot = shop.deployment.serving.live.model.snapshot
        assert set(names) <= set(snapshot.attributes(0))

    play(scene)


@pytest.mark.parametrize("rung", RUNGS)
def test_each_rung_answers_when_those_above_break(rung: str) -> None:
    async def scene(shop: Opened) -> None:
        above = RUNGS[: RUNGS.index(rung)]
        shop.faults.update(dict.fromkeys(above, Fault(fails=True)))
        response = await shop.engine.recommend(RecommendRequest(user_id="u00", k=4, filter="price < 5"))
        assert response.rung == rung
        assert len(response.items) == 4
        assert response.notes == [f"{one} did not answer: failed" for one in above]

    play(scene)


def test_a_slow_store_does_not_make_answers_late() -> None:
    async def scene(shop: Opened) -> None:
        stuck, real = threading.Event(), shop.engine.histories.of
        shop.engine.histories.of = lambda user, limit: stuck.wait(30) and real(user, limit)  # type: ignore[method-assign]
        try:
            response = await shop.engine.recommend(
                RecommendRequest(user_id="u00", k=4, filter="price < 3", deadline_ms=500)
            )
        finally:
            stuck.set()
        assert LATE_HISTORY in response.notes
        assert response.rung == "popularity"
        assert all(int(item.item_id[1:]) % 6 < 2 for item in response.items), "filters hold whatever fails"

    play(scene)


def test_a_store_that_cannot_be_read_costs_the_history_only() -> None:
    async def scene(shop: Opened) -> None:
        def broken(user: str, limit: int) -> list[Event]:
            raise StoreError("the disk is gone")

        shop.engine.histories.of = broken  # type: ignore[method-assign]
        response = await shop.engine.recommend(RecommendRequest(user_id="u00", history=["i00"], k=4))
        assert LATE_HISTORY in response.notes
        assert response.rung == "generative", "the request brought a history of its own"

    play(scene)


def test_too_many_requests_are_refused_and_the_rest_answered() -> None:
    async def scene(shop: Opened) -> None:
        shop.faults["generative"] = Fault(delay_s=0.2)
        asking = [asyncio.create_task(shop.engine.recommend(RecommendRequest(user_id="u00"))) for _ in range(7)]
        found = await asyncio.gather(*asking, return_exceptions=True)
        refused = [one for one in found if isinstance(one, Overloaded)]
        assert len(refused) == 3
        assert str(refused[0]) == "4 requests are worked on already: ask again later"
        assert shop.engine.in_flight == 0
        with pytest.raises(Overloaded, match="4 requests are worked on already"):
            raise refused[0]

    play(scene, config=EngineConfig(max_in_flight=4))


def test_work_for_who_went_away_is_dropped() -> None:
    async def scene(shop: Opened) -> None:
        shop.faults["generative"] = Fault(delay_s=0.3)
        asking = [asyncio.create_task(shop.engine.recommend(RecommendRequest(user_id="u00"))) for _ in range(5)]
        await asyncio.sleep(0.15)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        assert (shop.engine.in_flight, shop.engine.ladder.depth) == (0, 0)

    play(scene)


def test_a_response_never_mixes_snapshots() -> None:
    """Stock changes while requests are answered: each list is legal at the revision it names."""

    async def scene(shop: Opened) -> None:
        gone_at: dict[int, str] = {}
        stop = asyncio.Event()

        async def change() -> None:
            for n in range(12):
                revision = await shop.engine.patch_item(f"i{n:02}", {}, available=False)
                gone_at[revision] = f"i{n:02}"
            stop.set()

        async def ask() -> list:
            found = []
            while not stop.is_set():
                found.append(await shop.engine.recommend(RecommendRequest(user_id="u00", k=24)))
            return found

        *lists, _ = await asyncio.gather(ask(), ask(), ask(), change())
        responses = [response for found in lists for response in found]
        assert len({response.table_revision for response in responses}) > 1
        for response in responses:
            gone = {item for revision, item in gone_at.items() if revision <= response.table_revision}
            assert set(ids(response)) == {f"i{n:02}" for n in range(24)} - gone

    play(scene)


def test_a_swap_of_versions_never_mixes() -> None:
    async def scene(shop: Opened) -> None:
        first = shop.deployment.serving.live.version
        await shop.engine.put_items([Item("n1", {"title": "kitchen red lamp"})])
        second = shop.versions.publish(bundle("counted"))
        shop.deployment.refresh()
        found = []
        while not found or found[-1].model_version == first:
            found.append(await shop.engine.recommend(RecommendRequest(user_id="u00", k=25)))
        found.append(await shop.engine.recommend(RecommendRequest(user_id="u00", k=25)))
        assert {(one.model_version, one.rung) for one in found} == {(first, "generative"), (second, "cooccurrence")}
        assert all("n1" in ids(one) for one in found)
        await asyncio.sleep(0)  # they are noted after the replies
        assert len(shop.engine.recent_requests) == len(found)
        await shop.engine.put_items([Item("n2", {"title": "kitchen red lamp"})])
        shop.versions.rollback()
        shop.deployment.refresh()
        while found[-1].model_version == second:
            found.append(await shop.engine.recommend(RecommendRequest(user_id="u00", k=26)))
        assert (found[-1].model_version, found[-1].table_revision) == (first, 2)
        assert {"n1", "n2"} <= set(ids(found[-1])), "what came while it did not answer is there"

    play(scene)


def test_a_deleted_user_is_nobody() -> None:
    async def scene(shop: Opened) -> None:
        await shop.engine.recommend(RecommendRequest(user_id="u00", k=3))
        await asyncio.sleep(0)  # it is noted after the reply
        assert len(shop.engine.recent_requests) == 1
        assert await shop.engine.delete_user("u00") >= 12
        assert len(shop.engine.recent_requests) == 0
        after = await shop.engine.recommend(RecommendRequest(user_id="u00", k=3))
        assert (after.rung, NO_HISTORY in after.notes) == ("popularity", True)

    play(scene)


def test_what_is_imported_is_known_at_once() -> None:
    async def scene(shop: Opened) -> None:
        await shop.engine.recommend(RecommendRequest(user_id="u78"))
        batches = iter([bought("u78", "i00"), bought("u78", "i01")])
        assert await asyncio.to_thread(shop.engine.import_events, "file", batches) == 2
        assert (await shop.engine.recommend(RecommendRequest(user_id="u78"))).rung == "generative"

    play(scene)


def test_every_list_is_legal() -> None:
    with opened() as shop:

        @settings(max_examples=40)
        @given(
            st.sampled_from(["u00", "u07", "u99", None]),
            st.sampled_from([None, "price < 3", 'title == "garden tin box"', "price > 4 or price < 2"]),
            st.lists(st.integers(0, 23), max_size=8),
            st.booleans(),
            st.integers(1, 30),
            st.sampled_from([{}, {"diversity": 0.5}, {"sample": 0.5}, {"cold_share": 0.5}, {"query": "lamp"}]),
        )
        def check(user, text, excluded, exclude_history, k, rules) -> None:
            request = RecommendRequest(
                user_id=user,
                history=["i03", "i04"],
                filter=text,
                exclude=[f"i{n:02}" for n in excluded],
                exclude_history=exclude_history,
                k=k,
                **rules,
            )
            _, snapshot = shop.deployment.serving.live.model.snapshot
            had = {event.item_id for event in shop.store.history(user, 100)} if user else set()
            legal = {f"i{n:02}" for n in range(24) if snapshot.is_legal(f"i{n:02}", text)} - set(request.exclude)
            if exclude_history:
                legal -= had | {"i03", "i04"}
            if "query" in rules:
                legal = {item for item in legal if "lamp" in snapshot.titles[int(item[1:])]}
            (response,) = shop.engine.recommend_many([request])
            found = ids(response)
            assert set(found) <= legal
            assert len(found) == len(set(found)) == min(k, len(legal))

        check()


def test_a_deadline_of_a_millisecond_is_answered() -> None:
    async def scene(shop: Opened) -> None:
        shop.faults["generative"] = Fault(delay_s=5)
        response = await shop.engine.recommend(RecommendRequest(user_id="u00", history=["i00"], deadline_ms=1))
        assert response.rung != "generative"
        assert response.items

    play(scene, ladder=LadderConfig())
