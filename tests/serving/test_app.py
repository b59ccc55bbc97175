"""The HTTP API over a whole service: what each route does, and how what goes wrong is answered."""

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.serving.bundles import damage
from tests.serving.served_shop import bundle
from tests.serving.services import CONFIG, served

import shop
from tesserec.bundle import Bundle, publish, save_manifest
from tesserec.errors import ServiceError, StoreError
from tesserec.pipeline import fit
from tesserec.serving.app import create_app
from tesserec.serving.engine import EngineConfig
from tesserec.serving.service import Service
from tesserec.serving.versions import Versions

LINES = {"Content-Type": "application/x-ndjson"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, TestClient]]:
    with served(tmp_path_factory.mktemp("service")) as both:
        yield both


@pytest.fixture(scope="module")
def client(running: tuple[Service, TestClient]) -> TestClient:
    return running[1]


def good(response: Any) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def bad(response: Any, status: int, detail: str) -> None:
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    problem = response.json()
    assert detail in problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]


def test_recommendations_of_a_user_by_both_routes(client: TestClient) -> None:
    asked = {"k": 3, "filter": "price > 2", "exclude_history": True, "diversity": 0.2}
    first = good(client.get("/api/recommend/u05", params=asked))
    second = good(client.post("/api/recommend", json={"user_id": "u05", **asked}))
    assert [item["item_id"] for item in first["items"]] == [item["item_id"] for item in second["items"]]
    assert len(first["items"]) == 3
    assert first["response_id"] != second["response_id"]
    together = good(client.post("/api/recommend/batch", json={"requests": [{"user_id": "u05", **asked}, {"k": 1}]}))
    assert [len(one["items"]) for one in together["responses"]] == [3, 1]
    assert together["responses"][0]["items"] == first["items"]


def test_requests_that_cannot_be_followed(client: TestClient) -> None:
    bad(client.get("/api/recommend/u05?k=0"), 422, "query.k: Input should be greater than or equal to 1")
    bad(client.get("/api/recommend/u05?kk=1"), 422, "query.kk: Extra inputs are not permitted")
    bad(client.get("/api/recommend/u05", params={"filter": "prize < 1"}), 422, "did you mean price?")
    bad(
        client.post("/api/recommend", json={"k": 5, "boosts": [{"when": "oops(", "weight": 1}]}),
        422,
        "was never closed",
    )
    bad(
        client.post("/api/recommend/batch", json={"requests": [{}, {"filter": "prize < 1"}]}),
        422,
        "did you mean price?",
    )
    for wrong in ({"k": "5"}, {"k": 5.5}, {"k": True}, {"explain": 1}, {"explain": "true"}, {"diversity": "0.5"}):
        (name,) = wrong
        bad(
            client.post("/api/recommend", json={"user_id": "u05", **wrong}),
            422,
            f"body.{name}: Input should be a valid",
        )
    assert len(good(client.post("/api/recommend", json={"user_id": "u05", "k": 5.0, "diversity": 0}))["items"]) == 5
    bad(client.post("/api/recommend", json={"k": [1] * 9, "a": 1, "b": 2, "c": 3, "d": 4, "e": 5}), 422, "and 1 more")
    bad(client.get("/api/items/nothing/similar"), 404, "there is no item 'nothing'")
    bad(client.get("/api/nothing"), 404, "/openapi.json has those there are")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "body: Field required"),
        (b"{", "not JSON: Expecting property name enclosed in double quotes, at character 1"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"diversity":1e999}', "finite number"),
        (b'"\xff"', "not UTF-8"),
        (b'{"user_id":"\\ud800"}', "body.user_id"),
        (b"null", "body: "),
    ],
)
def test_bodies_that_are_no_json_or_mean(client: TestClient, body: bytes, why: str) -> None:
    response = client.post("/api/recommend", content=body, headers={"Content-Type": "application/json"})
    bad(response, response.status_code, why)
    assert response.status_code in (400, 422)


def test_what_a_path_takes_instead(client: TestClient) -> None:
    response = client.request("DELETE", "/api/events")
    bad(response, 405, "DELETE is not what this path takes: POST")
    assert response.headers["allow"] == "POST"
    assert set(client.request("POST", "/api/items/i01").headers["allow"].split(", ")) == {
        "GET",
        "PUT",
        "PATCH",
        "DELETE",
    }


def test_an_item_through_its_life(client: TestClient) -> None:
    path = "/api/items/new%2F1"
    bad(client.get(path), 404, "there is no item 'new/1'")
    made = good(client.put(path, json={"attributes": {"title": "kitchen red lamp huge", "price": 3.5}}))
    assert (made["item_id"], made["cold"], made["available"]) == ("new/1", True, True)
    assert made["codes"] is not None
    assert good(client.get("/api/search", params={"q": "huge"}))["items"][0]["item_id"] == "new/1"
    assert good(client.get(f"{path}/similar", params={"k": 2}))["item_id"] == "new/1"
    changed = good(client.patch(path, json={"attributes": {"price": None, "colour": "red"}}))
    assert changed["attributes"] == {"title": "kitchen red lamp huge", "colour": "red"}
    assert changed["table_revision"] > made["table_revision"]
    assert good(client.put(f"{path}/availability", json={"available": False}))["available"] is False
    assert good(client.get("/api/search", params={"q": "huge"}))["items"] == []
    gone = good(client.delete(path))
    bad(client.get(path), 404, "there is no item")
    assert good(client.delete(path)) == gone
    bad(client.patch(path, json={"available": True}), 404, "put it as a whole")
    bad(client.delete("/api/items/never"), 404, "there is no item 'never'")


def test_items_in_a_batch_and_what_does_not_fit(client: TestClient) -> None:
    items = [{"item_id": 7001, "attributes": {"title": "a"}}, {"item_id": "7001", "attributes": {"title": "b"}}]
    kept = good(client.post("/api/items", json={"items": items}))
    assert kept["items"] == 1
    assert good(client.get("/api/items/7001"))["attributes"]["title"] == "b"
    bad(client.put("/api/items/7001", json={"attributes": {"price": "dear"}}), 409, "price")
    bad(client.patch("/api/items/7001", json={"attributes": {"price": "dear"}}), 409, "price")
    bad(client.post("/api/items", json={"items": [{"item_id": "x", "attributes": {"price": "dear"}}]}), 409, "price")
    bad(client.put("/api/items/7001", json={"attributes": {"a b": 1}}), 422, "attributes")
    bad(client.put("/api/items/7001", json={"attributes": {"a": 2**70, "b": "\x00"}}), 422, "attributes.b")


def test_an_item_that_the_codes_have_no_room_for_holds_up_nobody(client: TestClient) -> None:
    same = {"attributes": {"title": "garden oak shelf wide"}}
    # four last codes of sixteen digits each: those that are next best take what the best one has no room for
    answers = [client.put(f"/api/items/twin{n}", json=same) for n in range(66)]
    room = [one.status_code for one in answers].index(409)
    assert 40 < room <= 64
    bad(answers[room], 409, "the model's codes have no room for it")
    assert good(client.put("/api/items/i23/availability", json={"available": False}))["available"] is False
    good(client.delete("/api/items/twin0"))
    bad(client.get("/api/items/twin65"), 404, "there is no item")


def test_events_are_kept_once_and_seen_at_once(client: TestClient) -> None:
    event = {"event_id": "e-1", "user_id": "newcomer", "item_id": "i00"}
    assert good(client.post("/api/events", json=event)) == {"accepted": 1, "duplicates": 0}
    batch = {"events": [event, {**event, "event_id": 2, "item_id": "i02", "kind": "view", "time": 5.0}]}
    assert good(client.post("/api/events", json=batch)) == {"accepted": 1, "duplicates": 1}
    user = good(client.get("/api/users/newcomer"))
    assert (user["num_events"], [one["item_id"] for one in user["history"]]) == (2, ["i00", "i02"])
    assert len(good(client.get("/api/users/newcomer?limit=1"))["history"]) == 1
    assert "newcomer" in good(client.get("/api/users?prefix=new"))["users"]
    assert good(client.get("/api/recommend/newcomer"))["rung"] == "cooccurrence"
    bad(client.post("/api/events", json={"events": []}), 422, "at least 1 item")
    bad(client.post("/api/events", json=[event]), 422, "body")
    bad(client.post("/api/events", json={**event, "kind": "Buy"}), 422, "kind")


def test_everything_of_a_user_goes(running: tuple[Service, TestClient]) -> None:
    service, client = running
    good(client.get("/api/recommend/u07"))
    for _ in range(500):  # nobody waits for lists to be logged
        exported = good(client.get("/api/users/u07/export"))
        if exported["impressions"]:
            break
        time.sleep(0.01)
    assert len(exported["events"]) == 12
    assert exported["impressions"][0]["scenario"] == "default"
    assert good(client.delete("/api/users/u07"))["removed"] >= 13
    bad(client.get("/api/users/u07"), 404, "nothing is known of 'u07'")
    bad(client.get("/api/users/u07/export"), 404, "nothing is known of 'u07'")
    assert good(client.delete("/api/users/u07"))["removed"] == 0
    assert service.shop("default").eraser.wait(60)


def test_a_session_becomes_part_of_a_user(client: TestClient) -> None:
    events = [{"event_id": f"s{n}", "user_id": "session:abc", "item_id": f"i0{n}", "time": n} for n in range(3)]
    good(client.post("/api/events", json={"events": events}))
    session = good(client.get("/api/sessions/abc"))
    assert (session["user_id"], [one["item_id"] for one in session["history"]]) == (
        "session:abc",
        ["i02", "i01", "i00"],
    )
    assert good(client.post("/api/sessions/abc/merge", json={"user_id": "ann"})) == {"user_id": "ann", "moved": 3}
    assert [one["time"] for one in good(client.get("/api/users/ann"))["history"]] == [2, 1, 0]
    bad(client.get("/api/sessions/abc"), 404, "nothing is known")
    bad(client.post("/api/sessions/abc/merge", json={"user_id": "ann"}), 404, "nothing is known of 'session:abc'")


def test_an_import_is_kept_once_and_goes_on(client: TestClient) -> None:
    lines = [json.dumps({"user_id": f"m{n % 3}", "item_id": "i01", "time": n}) for n in range(2500)]
    broken = "\n".join([*lines[:2100], '{"user_id": "m"}', *lines[2100:]])
    bad(client.post("/api/import/past", content=broken, headers=LINES), 422, "line 2101: item_id: Field required")
    whole = good(client.post("/api/import/past", content="\n\n".join(lines), headers=LINES))
    assert whole["lines"] == 2500
    assert sum(good(client.get(f"/api/users/m{n}"))["num_events"] for n in range(3)) >= 2500
    assert good(client.post("/api/import/past", content="\n".join(lines), headers=LINES))["accepted"] == 0
    bad(client.post("/api/import/past", content="", headers=LINES), 422, "the body has no event")
    bad(client.post("/api/import/past", content="no event", headers=LINES), 422, "line 1: ")
    bad(client.post("/api/import/empty", content="\n\n", headers=LINES), 422, "the body has no event")
    bad(client.post("/api/import/a b", content="{}", headers=LINES), 422, "name")
    bad(client.post("/api/import/long", content="x" * 200_000, headers=LINES), 422, "more than 65,536 bytes")


def test_namespaces_do_not_see_each_other(tmp_path: Path) -> None:
    with served(tmp_path) as (service, client):
        keys = {name: {"X-API-Key": service.keys.create(name, ["admin"], [name])[1]} for name in ("default", "toys")}
        for name, key in keys.items():
            good(client.put("/api/items/own", json={"attributes": {"title": f"only {name}"}}, headers=key))
            event = {"event_id": "same", "user_id": f"of-{name}", "item_id": "own"}
            assert good(client.post("/api/events", json=event, headers=key))["accepted"] == 1
        for name, other in (("default", "toys"), ("toys", "default")):
            key = keys[name]
            assert good(client.get("/api/items/own", headers=key))["attributes"]["title"] == f"only {name}"
            bad(client.get(f"/api/users/of-{other}", headers=key), 404, "nothing is known")
            assert good(client.get("/api/users?prefix=of-", headers=key))["users"] == [f"of-{name}"]
            found = good(client.get("/api/search?q=only", headers=key))["items"]
            assert [one["title"] for one in found] == [f"only {name}"]
            for path in ("/api/items/own", "/api/admin/versions", f"/api/users/of-{other}/export", "/api/admin/audit"):
                bad(client.get(path, headers={**key, "X-Namespace": other}), 403, "does not open the namespace")
            assert {one["name"] for one in good(client.get("/api/admin/keys", headers=key))["keys"]} == {name}
            theirs = next(one.key_id for one in service.keys.all() if one.name == other)
            bad(client.delete(f"/api/admin/keys/{theirs}", headers=key), 404, "there is no key")
            given = {"name": "x", "scopes": ["read"], "namespaces": [other]}
            bad(
                client.post("/api/admin/keys", json=given, headers=key),
                403,
                "would open namespaces that yours does not",
            )
            bad(client.post("/api/admin/drain", headers=key), 403, "draining is of the whole service")
        everything = {"X-API-Key": service.keys.create("all", ["read"])[1]}
        bad(
            client.get("/api/items/own", headers={**everything, "X-Namespace": "books"}),
            404,
            "there is no namespace 'books'",
        )
        assert (
            good(client.get("/api/items/own", headers={**everything, "X-Namespace": "toys"}))["attributes"]["title"]
            == "only toys"
        )


def test_versions_are_published_and_rolled_back(tmp_path: Path) -> None:
    with served(tmp_path) as (service, client):
        versions = service.shop("default").versions
        first = versions.ids()[0]
        other = publish_another(tmp_path, versions)
        listed = good(client.get("/api/admin/versions"))
        assert {one["version"]: one["roles"] for one in listed["versions"]} == {first: ["live"], other: []}
        assert good(client.post("/api/admin/publish", json={"version": other, "force": True}))["live"] == other
        assert good(client.get("/api/recommend/u01"))["model_version"] == other
        assert good(client.post("/api/admin/rollback"))["live"] == first
        canary = good(client.put("/api/admin/canary", json={"version": other, "share": 1.0}))
        assert (canary["canary"], canary["share"]) == (other, 1.0)
        answer = good(client.get("/api/recommend/u01"))
        assert (answer["arm"], answer["model_version"]) == ("canary", other)
        assert good(client.delete("/api/admin/canary"))["canary"] is None
        bad(client.put("/api/admin/canary", json={"version": first}), 409, "is live already")
        absent = "20200101-000000-00000000"
        bad(client.post("/api/admin/publish", json={"version": absent}), 404, "there is no version")
        bad(client.put("/api/admin/canary", json={"version": absent}), 404, "there is no version")
        bad(client.post("/api/admin/publish", json={"version": "../../b"}), 422, "body.version")
        actions = [one["action"] for one in good(client.get("/api/admin/audit"))["entries"]]
        assert actions[:5] == ["canary", "end canary", "canary", "rollback", "publish by force"]


def test_the_gate_is_asked_before_a_version_goes_live(tmp_path: Path) -> None:
    with served(tmp_path) as (service, client):
        worse = service.shop("default").versions.add(bundle("popular"))
        bad(client.post("/api/admin/publish", json={"version": worse}), 409, "is not published: ")
        assert good(client.get("/api/admin/audit"))["entries"][0]["action"] == "publish refused"
        good(client.delete("/api/users/u03"))
        assert good(client.post("/api/admin/publish", json={"version": worse, "force": True}))["live"] == worse
        latest = good(client.get("/api/admin/audit"))["entries"][0]
        assert (latest["action"], latest["detail"]["version"]) == ("publish by force", worse)
        versions = service.shop("default").versions
        assert "u03" not in versions.check(worse).interactions.users.ids.to_pylist()


def test_a_version_that_cannot_be_loaded_changes_nothing(tmp_path: Path) -> None:
    with served(tmp_path) as (service, client):
        versions = service.shop("default").versions
        (first,) = versions.ids()
        other = publish_another(tmp_path, versions)
        unknown = copy_with_another_retriever(tmp_path, "tesserec.retrievers.nothing:Nothing")
        broken = versions.add(unknown)
        good(client.put("/api/admin/canary", json={"version": other, "share": 0.5}))
        before = versions.pointer()
        assert before is not None
        bad(client.put("/api/admin/canary", json={"version": broken, "share": 1.0}), 409, "what was live before stays")
        bad(client.post("/api/admin/publish", json={"version": broken, "force": True}), 409, "nothing")
        assert versions.pointer() == dataclasses.replace(before, sequence=before.sequence + 4)
        listed = good(client.get("/api/admin/versions"))
        assert (listed["live"], listed["canary"], listed["share"]) == (first, other, 0.5)
        assert good(client.get("/api/recommend/u01"))["items"]


def test_where_the_live_version_was_damaged_a_service_starts_with_the_one_before(tmp_path: Path) -> None:
    with served(tmp_path) as (service, client):
        versions = service.shop("default").versions
        (first,) = versions.ids()
        other = publish_another(tmp_path, versions)
        good(client.post("/api/admin/publish", json={"version": other, "force": True}))
    damage(versions.path(other) / "model.safetensors")
    with served(tmp_path) as (service, client):
        listed = good(client.get("/api/admin/versions"))
        assert listed["live"] == first
        assert "model.safetensors is damaged" in listed["notes"][0]
        assert good(client.get("/api/recommend/u01"))["model_version"] == first


def test_deleted_users_who_are_still_on_disk_are_told(tmp_path: Path) -> None:
    with served(tmp_path) as (service, client):
        versions = service.shop("default").versions
        other = publish_another(tmp_path, versions)
        good(client.delete("/api/users/u03"))
    damage(versions.path(other) / "users.parquet")
    with served(tmp_path) as (service, client):
        eraser = service.shop("default").eraser
        limit = time.monotonic() + 60
        while eraser.failure is None and time.monotonic() < limit:
            time.sleep(0.02)
        (note,) = good(client.get("/api/admin/versions"))["notes"]
        assert note.startswith("deleted users: ")
        assert "users.parquet is damaged" in note
        assert 'tesserec_erasing_users{namespace="default"} 1.0' in client.get("/metrics").text


def copy_with_another_retriever(home: Path, name: str) -> Path:
    folder = home / "unknown"
    shutil.copytree(bundle("counted"), folder)
    manifest = Bundle.open(folder).manifest
    recipe = {**manifest.recipe, "retriever": {"class": name}}
    save_manifest(folder, dataclasses.replace(manifest, recipe=recipe))
    return folder


def publish_another(home: Path, versions: Versions) -> str:
    publish(home / "another", fit(shop.recipe(seed=9), *shop.data()))
    return versions.add(home / "another")


def test_keys_over_http(tmp_path: Path) -> None:
    with served(tmp_path) as (_, client):
        made = good(client.post("/api/admin/keys", json={"name": "ops", "scopes": ["admin"]}))
        key = {"Authorization": f"Bearer {made['key']}"}
        bad(client.get("/api/admin/keys"), 401, "no API key")
        reader = good(client.post("/api/admin/keys", json={"name": "shop", "scopes": ["read"]}, headers=key))
        read = {"X-API-Key": reader["key"]}
        good(client.get("/api/recommend/u01", headers=read))
        bad(client.post("/api/events", json={}, headers=read), 403, "no scope 'write'")
        twice = {"name": "x", "scopes": ["read", "read"]}
        bad(client.post("/api/admin/keys", json=twice, headers=key), 422, "has a value twice: give each once")
        bad(client.delete(f"/api/admin/keys/{made['key_id']}", headers=key), 409, "a key does not revoke itself")
        assert good(client.delete(f"/api/admin/keys/{reader['key_id']}", headers=key))["revoked"] is not None
        bad(client.get("/api/recommend/u01", headers=read), 401, "opens nothing")
        listed = good(client.get("/api/admin/keys", headers=key))["keys"]
        assert [one["name"] for one in listed] == ["ops", "shop"]
        assert "digest" not in json.dumps(listed)
        assert made["key"] not in client.get("/api/admin/audit", headers=key).text


def test_draining_and_backups(running: tuple[Service, TestClient]) -> None:
    service, client = running
    assert good(client.get("/api/health/ready")) == {"status": "ready"}
    assert good(client.post("/api/admin/drain")) == {"draining": True}
    bad(client.get("/api/health/ready"), 503, "draining")
    assert good(client.get("/api/health/live")) == {"status": "live"}
    assert len(good(client.get("/api/recommend/u01"))["items"]) == 10
    good(client.post("/api/admin/undrain"))
    good(client.get("/api/health/ready"))
    made = good(client.post("/api/admin/backup"))
    assert (service.home / "backups" / made["name"]).stat().st_size == made["size_bytes"] > 0


def test_metrics(client: TestClient) -> None:
    good(client.get("/api/recommend/u01"))
    page = client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    assert 'tesserec_requests_total{method="GET",route="/api/recommend/{user_id}",status="200"}' in page.text


def test_a_service_that_is_not_started_says_so(tmp_path: Path) -> None:
    with Service(tmp_path, CONFIG) as service, TestClient(create_app(service), base_url="http://localhost") as client:
        bad(client.get("/api/health/ready"), 503, "starting")
        bad(client.get("/api/recommend/u01"), 503, "the service is starting")
        assert good(client.get("/api/health/live"))


def test_too_much_for_the_engine_is_429(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, namespaces=("default",), engine=EngineConfig(max_in_flight=1))
    with served(tmp_path, config) as (_, client):
        response = client.post("/api/recommend/batch", json={"requests": [{"user_id": f"u0{n}"} for n in range(8)]})
        bad(response, 429, "ask again later")
        assert response.headers["retry-after"] == "1"


def test_a_store_that_fails_is_503_and_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(tmp_path) as (service, client):
        store = service.shop("default").store

        def fails(*_: object) -> None:
            raise StoreError("/secret/place is full")

        monkeypatch.setattr(store, "add_events", fails)
        monkeypatch.setattr(store, "check", fails)
        response = client.post("/api/events", json={"event_id": "1", "user_id": "u", "item_id": "i"})
        bad(response, 503, "nothing was acknowledged")
        assert "secret" not in response.text
        bad(client.get("/api/health/ready"), 503, "the store of default does not keep or read")


def test_a_mistake_of_ours_is_500_and_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(tmp_path) as (service, client):

        def fails(*_: object) -> None:
            raise RuntimeError("secret of the inside")

        monkeypatch.setattr(service.shop("default").store, "user", fails)
        response = client.get("/api/users/u01")
        bad(response, 500, "a mistake of the service")
        assert "secret" not in response.text


def test_the_description_is_whole(client: TestClient) -> None:
    described = good(client.get("/openapi.json"))
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            assert operation["operationId"], (method, path)
            assert operation["summary"], (method, path)
            if not path.startswith("/api/health"):
                assert {"401", "403", "404", "422", "429", "503"} <= operation["responses"].keys(), (method, path)
            for status, response in operation["responses"].items():
                if status != "200":
                    assert set(response["content"]) == {"application/problem+json"}, (method, path, status)
    assert "HTTPValidationError" not in described["components"]["schemas"]


def test_one_process_a_home(tmp_path: Path) -> None:
    with Service(tmp_path), pytest.raises(ServiceError, match=r"another service has .*: one process a home"):
        Service(tmp_path).__enter__()
    with (
        Service(tmp_path) as service,
        pytest.raises(ServiceError, match="has no bundle yet: `tesserec service publish"),
    ):
        service.start()
