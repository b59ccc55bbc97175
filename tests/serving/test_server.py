"""``tesserec serve`` as a process of its own, and the commands beside it."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.serving.served_shop import bundle
from typer.testing import CliRunner

from tesserec.bundle import Bundle
from tesserec.cli import app
from tesserec.serving.bundle_events import bundle_events
from tesserec.serving.open_store import open_store
from tesserec.serving.service import Service

SETTINGS = """
[server]
port = 0
{more}
[ladder]
deadline_ms = 10000
"""


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def ask(url: str, path: str, key: str | None = None, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data)
    request.add_header("Content-Type", "application/json")
    if key is not None:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@contextmanager
def process(home: Path, *options: object, more: str = "") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A ready ``tesserec serve`` and its address."""
    (home.parent / "service.toml").write_text(SETTINGS.format(more=more))
    command = [sys.executable, "-m", "tesserec", "serve", str(bundle("counted")), "--home", str(home)]
    command += ["--config", str(home.parent / "service.toml"), *map(str, options)]
    serving = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        yield serving, _ready(serving)
    finally:
        serving.kill()
        serving.communicate()


def handles_on_sockets(pid: int) -> Counter[str]:
    """How many file descriptors of a process each of its sockets has."""
    found = Counter[str]()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed in between
            found[os.readlink(descriptor)] += 1
    return Counter({link: number for link, number in found.items() if link.startswith("socket:")})


def _ready(serving: subprocess.Popen[str]) -> str:
    assert serving.stderr is not None
    said = []
    for line in serving.stderr:
        said.append(line)
        if line.startswith("{") and (entry := json.loads(line))["message"] == "ready":
            return str(entry["url"])
    raise AssertionError("".join(said))


def test_a_process_serves_and_ends_in_order(tmp_path: Path) -> None:
    home = tmp_path / "home"
    made = run("service", "key", "create", "shop", "--home", home, "--scope", "read", "--scope", "write")
    key = made.stdout.strip()
    event = {"event_id": "1", "user_id": "ann", "item_id": "i00"}
    with process(home, "--fault", "cooccurrence=fails", more="drain_s = 0.5") as (serving, url):
        assert max(handles_on_sockets(serving.pid).values()) == 16, "clients who connect at once are let in at once"
        assert ask(url, "/api/recommend/ann")[0] == 401
        assert ask(url, "/api/events", key, event) == (200, {"accepted": 1, "duplicates": 0})
        assert ask(url, "/api/recommend/ann", key)[1]["rung"] == "segment_popularity"
        serving.send_signal(signal.SIGTERM)
        statuses = []
        while not statuses or statuses[-1] == 200:
            statuses.append(ask(url, "/api/health/ready")[0])
        assert statuses[-1] == 503
        assert ask(url, "/api/recommend/ann", key)[0] == 200
        assert serving.wait(30) == 0
    with process(home) as (serving, url):
        assert ask(url, "/api/events", key, event) == (200, {"accepted": 0, "duplicates": 1})
        assert ask(url, "/api/recommend/ann", key)[1]["rung"] == "cooccurrence"
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(30) == 0


def test_keys_beyond_loopback(tmp_path: Path) -> None:
    refused = run("serve", bundle("counted"), "--home", tmp_path / "home", "--host", "0.0.0.0", "--port", 0)
    assert refused.exit_code == 2
    assert "tesserec service key create NAME" in refused.stderr


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tesserec.serving.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    refused = run("serve", bundle("counted"), "--home", tmp_path / "home")
    assert (refused.exit_code, "uvicorn is not installed: pip install 'tesserec[serve]'" in refused.stderr) == (2, True)
    assert not (tmp_path / "home").exists()


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = run("serve", bundle("counted"), "--home", tmp_path / "home", "--port", port)
    assert refused.exit_code == 2
    assert f"cannot listen at 127.0.0.1, port {port}" in refused.stderr


def test_keys_on_the_command_line(tmp_path: Path) -> None:
    made = json.loads(run("service", "key", "create", "a", "--home", tmp_path, "--namespace", "toys", "--json").stdout)
    assert (made["scopes"], made["namespaces"]) == (["read", "write", "admin"], ["toys"])
    assert run("service", "key", "revoke", made["key_id"], "--home", tmp_path).stdout.strip() == made["key_id"]
    listed = json.loads(run("service", "key", "list", "--home", tmp_path, "--json").stdout)
    assert [(one["name"], one["revoked"] is None) for one in listed] == [("a", False)]
    assert "digest" not in listed[0]
    assert "toys" in run("service", "key", "list", "--home", tmp_path).stdout
    assert "was not there and is now" in run("service", "key", "create", "a", "--home", tmp_path / "new").stderr
    wrong = run("service", "key", "create", "a", "--home", tmp_path, "--scope", "raed")
    assert (wrong.exit_code, "did you mean read?" in wrong.stderr) == (2, True)


def test_versions_on_the_command_line(tmp_path: Path) -> None:
    first = run("service", "publish", bundle("counted"), "--home", tmp_path, "--force").stdout.strip()
    second = run("service", "publish", bundle("popular"), "--home", tmp_path, "--force").stdout.strip()
    refused = run("service", "publish", bundle("popular"), "--home", tmp_path / "nothing", "--namespace", "../x")
    assert (refused.exit_code, "is no name for a namespace" in refused.stderr) == (2, True)
    rows = json.loads(run("service", "versions", "--home", tmp_path, "--json").stdout)
    assert {row["version"]: row["roles"] for row in rows} == {first: ["previous"], second: ["live"]}
    assert run("service", "rollback", "--home", tmp_path).stdout.strip() == first
    assert run("service", "canary", second, "--home", tmp_path, "--share", 0.1).stdout.split() == [second, "0.1"]
    assert run("service", "canary", "--home", tmp_path).stdout.strip() == "no canary"
    assert first in run("service", "versions", "--home", tmp_path).stdout
    with closing(open_store(None, tmp_path, "default")) as store:
        audit = [(one.action, one.key_id, one.detail["version"]) for one in store.audit(3)]
    by = "command line"
    assert audit == [("end canary", by, None), ("canary", by, second), ("rollback", by, first)]


def test_a_rollback_does_not_need_a_store_that_is_down(tmp_path: Path) -> None:
    first = run("service", "publish", bundle("counted"), "--home", tmp_path, "--force").stdout.strip()
    run("service", "publish", bundle("popular"), "--home", tmp_path, "--force")
    done = run("service", "rollback", "--home", tmp_path, "--store", "postgresql://127.0.0.1:1/none")
    assert (done.exit_code, done.stdout.strip()) == (0, first)
    assert "it is done, but not in the audit log: the events of 'default' are kept in SQLite" in done.stderr


def test_the_nightly_run_on_the_command_line(tmp_path: Path) -> None:
    run("service", "publish", bundle("counted"), "--home", tmp_path, "--force")
    with closing(open_store(None, tmp_path, "default")) as store:
        store.import_events("first", bundle_events(Bundle.open(bundle("counted"))))
    nothing = run("service", "nightly", "--home", tmp_path)
    assert (nothing.exit_code, nothing.stdout.strip()) == (0, "nothing new")
    absent = run("service", "nightly", "--home", tmp_path, "--namespace", "toys")
    assert (absent.exit_code, "nothing is published in" in absent.stderr) == (2, True)


def test_backup_and_restore_on_the_command_line(tmp_path: Path) -> None:
    home, copy = tmp_path / "home", tmp_path / "copy.sqlite"
    run("service", "publish", bundle("counted"), "--home", home, "--force")
    assert run("service", "backup", copy, "--home", home).stdout.strip() == str(copy)
    assert run("service", "restore", copy, "--home", tmp_path / "other").exit_code == 0
    again = run("service", "restore", copy, "--home", tmp_path / "other")
    assert (again.exit_code, "is there already" in again.stderr) == (2, True)
    with Service(home):
        busy = run("service", "restore", copy, "--home", home)
    assert (busy.exit_code, "stop it, then restore" in busy.stderr) == (2, True)


@pytest.mark.parametrize(
    "command",
    [["versions"], ["rollback"], ["canary"], ["backup", "copy.sqlite"], ["key", "list"], ["key", "revoke", "a"]],
)
def test_a_misspelt_home_or_shop_makes_nothing(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "home" / "namespaces" / "toys").mkdir(parents=True)
    absent = run("service", *command, "--home", tmp_path / "hoem")
    assert (absent.exit_code, "there is no folder" in absent.stderr) == (2, True)
    assert [one.name for one in tmp_path.iterdir()] == ["home"]
    if command[0] != "key":
        other = run("service", *command, "--home", tmp_path / "home", "--namespace", "tosy")
        assert (other.exit_code, "there is no shop 'tosy'" in other.stderr, "there are: toys" in other.stderr) == (
            2,
            True,
            True,
        )
        assert [one.name for one in (tmp_path / "home" / "namespaces").iterdir()] == ["toys"]


@pytest.mark.parametrize("fault", ["generative", "popularity=fails", "generative=soon", "oracle=1"])
def test_faults_that_there_are_not(tmp_path: Path, fault: str) -> None:
    refused = run("serve", bundle("counted"), "--home", tmp_path / "home", "--fault", fault)
    assert (refused.exit_code, f"--fault {fault}: expected one of generative" in refused.stderr) == (2, True)
