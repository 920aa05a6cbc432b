"""What the scenarios share: one warm process to fork from, and one table at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fault.cast import ForkServer
from tests.fault.scenario import Outcome, table

if TYPE_CHECKING:
    from collections.abc import Iterator

_OUTCOMES = pytest.StashKey[list[Outcome]]()


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    """The warm process."""
    with ForkServer() as server:
        yield server


@pytest.fixture(scope="session")
def outcomes(request) -> list[Outcome]:
    """What every scenario came to, for the table."""
    return request.config.stash.setdefault(_OUTCOMES, [])


def pytest_terminal_summary(terminalreporter, config):
    """Print the table of all scenarios that ran."""
    found = config.stash.get(_OUTCOMES, [])
    if found:
        terminalreporter.section("faults injected into real processes")
        terminalreporter.write_line(table(found))
