"""``Deployment``: models that take each other's place while requests go on."""

import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serving.bundles import damage, shop_bundle
from tests.serving.serving_process import until

from tesserec.errors import BundleError, ServiceError
from tesserec.recommender import Recommender
from tesserec.serving.deployment import CANARY, LIVE, Deployment, DeploymentConfig
from tesserec.serving.versions import Versions

SOON = DeploymentConfig(poll_s=0.02)
LONG_S = 60.0
"""Longer than anything here takes on a busy machine."""


def load(folder: Path, version: str) -> Recommender:
    """What the tests deploy."""
    return Recommender.load(folder)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four bundles, the oldest first; not to be changed."""
    folder = tmp_path_factory.mktemp("bundles")
    return [shop_bundle(folder / f"b{day}", day) for day in (1, 2, 3, 4)]


@pytest.fixture
def versions(tmp_path: Path, bundles: list[Path]) -> Versions:
    """A namespace with the first bundle live."""
    versions = Versions(tmp_path / "shop")
    versions.publish(bundles[0])
    return versions


@pytest.fixture
def deployment(versions: Versions) -> Iterator[Deployment[Recommender]]:
    """``versions``, deployed."""
    deployment = Deployment(versions, load, config=SOON)
    deployment.start()
    yield deployment
    deployment.close()


def sequence(versions: Versions) -> int:
    """Of what ``live.json`` says now."""
    pointer = versions.pointer()
    assert pointer is not None
    return pointer.sequence


def test_publish_and_rollback(versions: Versions, deployment: Deployment[Recommender], bundles: list[Path]) -> None:
    (first,) = versions.ids()
    before = deployment.current()
    assert before.version == first
    assert len(before.model.recommend(["u00"], k=3)) == 3
    second = versions.publish(bundles[1])
    assert deployment.wait(sequence(versions), LONG_S)
    assert deployment.current().version == second
    assert deployment.resident() == [first, second]
    versions.rollback()
    assert deployment.wait(sequence(versions), LONG_S)
    assert deployment.current().model is before.model, "it was kept"
    assert deployment.notes == []
    assert not deployment.wait(sequence(versions) + 1, 0.05), "nobody published that"


def test_who_answers_is_told_once_a_change(versions: Versions, bundles: list[Path]) -> None:
    told: list[tuple[str, str | None]] = []
    deployment = Deployment(versions, load, config=SOON, changed=lambda serving: told.append(serving.versions))
    deployment.start()
    (first,) = versions.ids()
    second = versions.publish(bundles[1])
    assert until(lambda: deployment.serving.live.version == second)
    versions.canary(first, 0.5)
    assert until(lambda: deployment.serving.canary is not None)
    assert deployment.wait(sequence(versions), LONG_S)
    deployment.close()
    assert told == [(first, None), (second, None), (second, first)]


def test_a_version_in_memory_can_be_asked_for(
    versions: Versions, deployment: Deployment[Recommender], bundles: list[Path]
) -> None:
    (first,) = versions.ids()
    second = versions.publish(bundles[1])
    assert until(lambda: deployment.serving.live.version == second)
    assert deployment.loaded(second).model is deployment.current().model
    assert deployment.loaded(first).version == first
    with pytest.raises(ServiceError, match=f"version 'x' is not in memory: there are {first}, {second}"):
        deployment.loaded("x")


def test_who_is_neither_live_nor_previous_is_dropped(
    versions: Versions, deployment: Deployment[Recommender], bundles: list[Path]
) -> None:
    model = weakref.ref(deployment.current().model)
    for number, bundle in enumerate(bundles[1:]):
        assert (model() is None) == (number > 1)
        versions.publish(bundle)
        assert deployment.wait(sequence(versions), LONG_S)
    assert deployment.resident() == versions.ids()[-2:]


def test_commands_of_another_process_take_effect(
    versions: Versions, deployment: Deployment[Recommender], bundles: list[Path]
) -> None:
    program = "import sys; from pathlib import Path; from tesserec.serving.versions import Versions\n"
    program += "print(Versions(Path(sys.argv[1])).publish(Path(sys.argv[2])))"
    command = [sys.executable, "-c", program, str(versions.folder), str(bundles[1])]
    version = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert until(lambda: deployment.current().version == version)


def test_a_canary_answers_its_share_of_users_and_always_the_same_ones(
    versions: Versions, deployment: Deployment[Recommender], bundles: list[Path]
) -> None:
    users = [f"u{number}" for number in range(2000)]
    assert {deployment.arm_of(user) for user in users} == {LIVE}
    assert deployment.current(CANARY).version == deployment.current(LIVE).version
    canary = versions.add(bundles[1])
    arms = []
    for share in (0.2, 0.4):
        versions.canary(canary, share)
        assert deployment.wait(sequence(versions), LONG_S)
        arms.append({user for user in users if deployment.arm_of(user) == CANARY})
        assert len(arms[-1]) / len(users) == pytest.approx(share, abs=0.04)
        assert deployment.arm_of(None) == LIVE
        assert deployment.current(CANARY).version == canary
    assert arms[0] < arms[1], "who has it keeps it"
    versions.canary(None)
    assert deployment.wait(sequence(versions), LONG_S)
    assert deployment.current(CANARY).version == deployment.current(LIVE).version != canary
    assert canary not in deployment.resident()


def test_a_damaged_version_changes_nothing(
    versions: Versions, deployment: Deployment[Recommender], bundles: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    before = deployment.current()
    version = versions.add(bundles[1])
    versions.go_live(version)
    damage(versions.path(version) / "model.safetensors")
    # It may have been loaded before the damage; a service that starts now has not.
    late = Deployment(versions, load, config=SOON)
    late.start()
    try:
        assert late.current().version == before.version
        notes = late.notes
        assert f"version {version} cannot be loaded" in notes[0]
        assert "model.safetensors is damaged" in notes[0]
        assert notes[1] == f"version {before.version} answers in place of {version}"
        assert f"version {version} cannot be loaded" in caplog.text
        versions.add(bundles[1])
        versions.canary(None)
        versions.rollback()
        versions.rollback()
        assert late.wait(sequence(versions), LONG_S)
        assert late.current().version == version, "restored, and asked for again"
        assert late.notes == []
    finally:
        late.close()


def test_nothing_to_start_with(tmp_path: Path, versions: Versions, bundles: list[Path]) -> None:
    with pytest.raises(ServiceError, match=r"nothing is published in .*: publish a bundle first"):
        Deployment(Versions(tmp_path / "empty"), load).start()
    with pytest.raises(ServiceError, match="no version is loaded yet: start the deployment first"):
        Deployment(versions, load).current()
    (first,) = versions.ids()
    second = versions.publish(bundles[1])
    damage(versions.path(first) / "users.parquet")
    damage(versions.path(second) / "events.parquet")
    with pytest.raises(
        ServiceError, match=r"no version can be loaded: .*events\.parquet is dam.*users\.parquet is dam"
    ):
        Deployment(versions, load).start()


def test_a_damaged_pointer_changes_nothing(versions: Versions, deployment: Deployment[Recommender]) -> None:
    file = versions.folder / "live.json"
    whole = file.read_text()
    file.write_text("{")
    assert until(lambda: bool(deployment.notes))
    assert "what is live cannot be read, nothing changes" in deployment.notes[0]
    assert deployment.current().version == versions.ids()[0]
    file.write_text(whole)
    assert until(lambda: not deployment.notes)


def test_a_load_is_of_low_priority_and_warm_before_it_answers(versions: Versions, bundles: list[Path]) -> None:
    seen: list[tuple[str, int, str]] = []
    ready = threading.Event()
    first = versions.ids()[0]

    def warm(model: Recommender) -> None:
        answering = deployment.current().version if seen else "nobody"
        seen.append(
            (threading.current_thread().name, os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), answering)
        )
        if len(seen) > 1:
            assert ready.wait(LONG_S)

    deployment = Deployment(versions, load, warm=warm, config=DeploymentConfig(poll_s=0.02, niceness=5))
    deployment.start()
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    second = versions.publish(bundles[1])
    assert until(lambda: len(seen) == 2)
    assert deployment.loading == second
    assert deployment.current().version == first, "not before it is warm"
    versions.rollback()
    assert until(lambda: deployment.current().version == first and sequence(versions) == 3)
    assert deployment.wait(3, LONG_S), "a rollback does not wait for a load"
    ready.set()
    assert until(lambda: second in deployment.resident())
    deployment.close()
    assert deployment.current().version == first
    assert deployment.loading is None
    assert seen[0][1:] == (usual, "nobody")
    assert seen[1] == ("loader_0", min(usual + 5, 19), first)


def test_a_model_that_fails_its_warm_up_does_not_answer(versions: Versions, bundles: list[Path]) -> None:
    (first,) = versions.ids()
    cold: list[str] = []

    def warm(model: Recommender) -> None:
        cold.append("")
        if len(cold) > 1:
            raise BundleError("it answers nothing")

    deployment = Deployment(versions, load, warm=warm, config=SOON)
    deployment.start()
    second = versions.publish(bundles[1])
    assert deployment.wait(sequence(versions), LONG_S)
    deployment.close()
    assert deployment.current().version == first
    assert deployment.notes[0] == f"version {second} cannot be loaded, it does not answer: it answers nothing"


def test_requests_go_on_while_versions_change(
    versions: Versions, deployment: Deployment[Recommender], bundles: list[Path]
) -> None:
    versions.publish(bundles[1])
    stop, failures, answers = threading.Event(), [], []

    def ask() -> None:
        while not stop.is_set():
            serving = deployment.serving
            arm = serving.arm_of("u05")
            try:
                answers.append((serving.of(arm).version, len(serving.of(arm).model.recommend(["u05"], k=2))))
            except Exception as error:  # any failed request counts
                failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    for _ in range(10):
        versions.rollback()
        assert deployment.wait(sequence(versions), LONG_S)
        seen = len(answers)
        assert until(lambda seen=seen: len(answers) > seen + 1)  # type: ignore[misc]
    stop.set()
    thread.join()
    assert failures == []
    assert {version for version, _ in answers} == set(versions.ids())
    assert {length for _, length in answers} == {2}
