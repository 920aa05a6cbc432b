"""What all tests share: one real server for the whole session, and a namespace of its own for each test."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from token_actor.embedded import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Iterator

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """One embedded server for all tests. Nobody flushes it, stops it or changes its settings."""
    with EmbeddedServer() as embedded:
        yield embedded


@pytest.fixture(scope="session")
def server_url(server: EmbeddedServer) -> str:
    """The address of the session's server."""
    return server.url


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test of this session uses."""
    return f"test{next(_numbers)}"
