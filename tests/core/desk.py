"""One limit and its reservations without a ledger around them: a hundred thousand operations take seconds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from token_actor.core.admission import Admission
from token_actor.core.limit_table import LimitTable
from token_actor.core.limits import Estimate, Limit
from token_actor.core.reservations import Reservations
from token_actor.core.usage import DIMENSIONS, SEPARATOR, Event

AGENTS = ("a", "b")


class Series:
    """The two series there are, as the ledger's table shows them."""

    def __init__(self) -> None:
        self.names = [[agent if dimension == "agent" else "" for dimension in DIMENSIONS] for agent in AGENTS]
        self.keys = [SEPARATOR.join(each) for each in self.names]

    def __len__(self) -> int:
        return len(self.keys)


class Desk:
    """Do what commands and usage do; agents are numbers, times are ms."""

    def __init__(self, limit: Limit, now_ms: int) -> None:
        self.limits = LimitTable()
        self.reservations = Reservations(self.limits)
        self.admission = Admission(self.reservations)
        self.series: Any = Series()
        self.now_ms = now_ms
        self.put(limit)

    def at(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.admission.advance(now_ms)

    def put(self, limit: Limit) -> None:
        self.limits.put(limit, self.now_ms)

    def reserve(self, name: str, agent: int, cost: int, ttl_ms: int) -> dict[str, Any]:
        estimate = Estimate(self.series.keys[agent], cost)
        standings = self.reservations.standings(self.series.names[agent], estimate, self.now_ms)
        return self.reservations.reserve(name, standings, self.now_ms, ttl_ms)

    def use(self, agent: int, amount: int) -> None:
        counts = np.array([[amount], [0], [0], [0], [0]])
        columns: Any = SimpleNamespace(
            counts=counts, cost=np.zeros(1, dtype=np.int64), entry=np.zeros(1, dtype=np.int64)
        )
        self.admission.count(self.series, columns, np.array([agent]), np.array([self.now_ms]), None)

    def settle(self, name: str, agent: int, amount: int | None) -> dict[str, Any]:
        """Settle with what was used; ``None`` says nothing of it."""
        event = None if amount is None else Event(self.series.keys[agent], amount)
        if amount is not None:
            self.use(agent, amount)
        counted = {"counted": amount is not None, "reason": None}
        return self.reservations.settle(name, self.series.names[agent], event, self.now_ms, counted)

    def release(self, name: str) -> dict[str, Any]:
        return self.reservations.release(name, self.now_ms)

    def extend(self, name: str, ttl_ms: int) -> dict[str, Any]:
        return self.reservations.extend(name, self.now_ms, ttl_ms)
