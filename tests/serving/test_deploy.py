"""The container file, the systemd unit and the settings beside them, as far as can be checked without running them."""

import itertools
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from typer.testing import CliRunner

from tesserec import cli
from tesserec.serving import routes_system
from tesserec.serving.config import read_service_config

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="no systemd-analyze on the PATH: install systemd")


def instructions() -> list[tuple[str, str]]:
    """The instructions of the container file, continued lines joined."""
    lines = (DEPLOY / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    parts = [line.split(None, 1) for line in lines if line.strip() and not line.startswith("#")]
    return [(name, " ".join(rest.split())) for name, rest in parts]


def unit() -> dict[str, list[str]]:
    """Each key of the unit with its values."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "tesserec.service").read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_the_container_copies_what_there_is() -> None:
    for name, rest in instructions():
        if name == "COPY" and not rest.startswith("--from"):
            for source in shlex.split(rest)[:-1]:
                assert (ROOT / source).exists(), source


def test_the_last_stage_takes_only_the_environment_and_is_not_root() -> None:
    found = instructions()
    stages = [i for i, (name, _) in enumerate(found) if name == "FROM"]
    assert len(stages) == 2
    last = dict(found[stages[1] :])
    assert "pip install" not in " ".join(rest for _, rest in found[stages[1] :])
    assert int(last["USER"]) > 0
    copied = [rest for name, rest in found[stages[1] :] if name == "COPY"]
    assert copied == ["--from=build /opt/tesserec /opt/tesserec", "deploy/service.toml /etc/tesserec/service.toml"]


def test_the_extras_that_it_installs_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (asked,) = (m[1] for _, rest in instructions() if (m := re.search(r'"\.\[(.*)\]"', rest)))
    assert set(asked.split(",")) <= set(project["optional-dependencies"])


def test_its_health_check_is_python_that_asks_the_route_of_readiness() -> None:
    rest = dict(instructions())["HEALTHCHECK"]
    command = json.loads(rest[rest.index("CMD ") + 4 :])
    compile(command[2], "healthcheck", "exec")
    config = read_service_config(DEPLOY / "service.toml")
    assert f"http://127.0.0.1:{config.server.port}/api/health/ready" in command[2]


def test_the_settings_are_read_by_the_service() -> None:
    config = read_service_config(DEPLOY / "service.toml")
    assert config.server.host == "0.0.0.0"
    (stop_s,) = unit()["TimeoutStopSec"]
    assert float(stop_s) > config.server.drain_s + config.server.shutdown_s


def test_the_commands_are_those_of_the_command_line() -> None:
    container = json.loads(dict(instructions())["CMD"])
    (started,) = unit()["ExecStart"]
    notes = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    (key,) = re.findall(r"tesserec (service key create .*)$", notes, re.M)
    for words in (container, shlex.split(started)[1:], shlex.split(key)):
        options = {word for word in words if word.startswith("--")}
        names = list(itertools.takewhile(lambda word: word.isalpha() and len(word) > 1, words))
        shown = CliRunner().invoke(cli.app, [*names[:3], "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
        assert shown.exit_code == 0, shown.output
        assert options <= set(re.findall(r"--[a-z]+", shown.output))
        assert options


def test_prometheus_is_sent_where_the_service_listens() -> None:
    text = (DEPLOY / "prometheus.yml").read_text(encoding="utf-8")
    assert f'["localhost:{read_service_config(DEPLOY / "service.toml").server.port}"]' in text
    (path,) = re.findall(r"metrics_path: (\S+)", text)
    assert path in {route.path for route in routes_system.router.routes if isinstance(route, APIRoute)}


@needs_systemd
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "tesserec.service").read_text(encoding="utf-8")
    path = tmp_path / "tesserec.service"
    path.write_text(text.replace("/opt/tesserec/bin/tesserec", "/bin/true"), encoding="utf-8")
    done = subprocess.run([str(ANALYZE), "verify", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_the_unit_lets_the_service_do_little(tmp_path: Path) -> None:
    path = shutil.copy(DEPLOY / "tesserec.service", tmp_path)
    command = [str(ANALYZE), "security", "--offline=true", "--no-pager", "--threshold=20", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-200:]
