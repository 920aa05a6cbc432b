"""A clock that tests move, and managers that run on it."""

from __future__ import annotations

import pytest

from token_actor.core.manager import TokenManager

START_S = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC


class Clock:
    """Stand still until told otherwise."""

    def __init__(self) -> None:
        self.now_s = START_S

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


class RecordingEngine:
    """Remember every update it is told of."""

    def __init__(self) -> None:
        self.seen: list[dict[str, int]] = []

    def record_token_usage(self, **counts: int) -> None:
        self.seen.append(counts)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def warnings():
    """Return the list of warnings given: (usage in per cent, tokens used, limit)."""
    return []


@pytest.fixture
def failures():
    """Return the list of what metrics engines raised."""
    return []


@pytest.fixture
def engine():
    return RecordingEngine()


@pytest.fixture
def make(clock, warnings, failures):
    """Return a function that makes a manager on the test's clock."""

    def made(*args: object, **kwargs: object) -> TokenManager:
        return TokenManager(
            *args,  # type: ignore[arg-type]
            **kwargs,  # type: ignore[arg-type]
            clock=clock,
            warn=lambda *warning: warnings.append(warning),
            engine_failed=failures.append,
        )

    return made


@pytest.fixture
def manager(make):
    """Return a manager whose context window takes 1,000 tokens."""
    return make(1000)
