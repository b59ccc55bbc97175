"""Servers that the tests of a run share."""

import pytest
from tests.serving.servers import PostgresServer, RedisServer


@pytest.fixture(scope="session")
def shared_postgres():
    """A PostgreSQL; a test that stops it starts it again."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def shared_redis():
    """A Redis that nobody stops."""
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()
