"""Settings of the service: defaults, a file, and what is wrong in one."""

from pathlib import Path

import pytest

from tesserec.errors import RecipeError, ServiceError
from tesserec.serving.config import ServiceConfig, read_service_config

EXAMPLE = """
namespaces = ["default", "toys"]
store = "postgresql://localhost/shop"
[server]
port = 9000
[guards.access]
auth = "always"
hosts = ["shop.internal"]
[guards.rates]
per_key = "100/second"
[guards.admission]
recommend = 12
[guards.body]
max_bytes = 4096
"""


def test_defaults() -> None:
    config = read_service_config(None)
    assert config == ServiceConfig()
    assert (config.server.host, config.server.port, config.namespaces, config.store) == (
        "127.0.0.1", 8000, ("default",), None
    )  # fmt: skip


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "service.toml"
    path.write_text(EXAMPLE)
    config = read_service_config(path)
    assert config.namespaces == ("default", "toys")
    assert (config.server.port, config.guards.access.auth, config.guards.access.hosts) == (
        9000,
        "always",
        ("shop.internal",),
    )
    assert (config.guards.rates.per_key, config.guards.rates.per_address) == ("100/second", "2000/second")
    assert (config.guards.admission.recommend, config.guards.body.max_bytes) == (12, 4096)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sever]\nport = 1", "service.sever is not a setting of ServiceConfig; did you mean server?"),
        ("[server]\nprot = 1", "service.server.prot is not a setting of ServerConfig; did you mean port?"),
        ("[server]\nport = 70000", r"service.server.port = 70000: Input should be less than or equal to 65535"),
        ('[guards.rates]\nper_key = "fast"', "service.guards.rates.per_key: 'fast' is not a rate"),
        ('namespaces = ["../x"]', r"service.namespaces.0 = '../x'"),
        ("namespaces = []", "at least 1 item"),
        ("namespaces = 3 3", "is not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "service.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_service_config(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"no settings at .*give a TOML file"):
        read_service_config(tmp_path / "none.toml")
