"""The fleets that the client is tested on: the in-memory twin, and a real server behind a gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.client.harness import Fleet

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["memory", "valkey"])
def fleet(request: pytest.FixtureRequest, namespace: str) -> Iterator[Fleet]:
    """A namespace of one's own on each kind of server, with nothing in it and no actor yet."""
    if request.param == "memory":
        made = Fleet.in_memory(namespace)
    else:
        made = Fleet.on(request.getfixturevalue("server").port, namespace)
    with made as fleet:
        yield fleet


@pytest.fixture
def valkey_fleet(server, namespace: str) -> Iterator[Fleet]:
    """A namespace of one's own on a real server."""
    with Fleet.on(server.port, namespace) as fleet:
        yield fleet


@pytest.fixture
def memory_fleet(namespace: str) -> Iterator[Fleet]:
    """A namespace of one's own in memory."""
    with Fleet.in_memory(namespace) as fleet:
        yield fleet
