"""The three servers that the contract runs on."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import fakeredis
import pytest
import redis

from tests.contract.subjects import FAKEREDIS, MEMORY, VALKEY, Subject
from token_actor.transport.memory import MemoryServer
from token_actor.transport.redis import RedisConnector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from token_actor.embedded import EmbeddedServer
    from token_actor.transport.ports import Connection, Connector
    from token_actor.transport.redis import RedisConnection


def _connector(name: str, request: pytest.FixtureRequest) -> Connector:
    if name == MEMORY:
        return MemoryServer()
    if name == FAKEREDIS:
        factory = partial(fakeredis.FakeRedisConnection, server=fakeredis.FakeServer())
        return RedisConnector("redis://fakeredis/0", connection_factory=factory)
    return RedisConnector(request.getfixturevalue("server_url"))


@pytest.fixture(params=[MEMORY, FAKEREDIS, VALKEY])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Each server in turn; ``@pytest.mark.unfaithful(fakeredis="why")`` leaves one out, and says why."""
    marker = request.node.get_closest_marker("unfaithful")
    if marker is not None and request.param in marker.kwargs:
        pytest.skip(f"{request.param} {marker.kwargs[request.param]}")
    subject = Subject(request.param, _connector(request.param, request))
    yield subject
    for connection in subject.opened:
        connection.close()


@pytest.fixture
def connection(subject: Subject) -> Connection:
    """One connection to the server under test."""
    return subject.connect()


@pytest.fixture
def key(namespace: str) -> Callable[[str], bytes]:
    """Name a key of this test."""
    return lambda name: f"{{{namespace}:0}}:{name}".encode()


@pytest.fixture
def open_connection() -> Iterator[Callable[..., RedisConnection]]:
    """Open connections that close with the test."""
    opened = []

    def open_one(url: str, **settings: Any) -> RedisConnection:
        opened.append(RedisConnector(url, **settings).connect())
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


@pytest.fixture
def direct(open_connection: Callable[..., RedisConnection], server_url: str) -> RedisConnection:
    """A connection that nothing disturbs."""
    return open_connection(server_url)


@pytest.fixture
def admin(server: EmbeddedServer) -> Iterator[redis.Redis]:
    """Somebody who may make users."""
    with redis.Redis(port=server.port) as client:
        yield client


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of this directory."""
    config.addinivalue_line("markers", "unfaithful(**reasons): servers that do not keep to this, and in what")
