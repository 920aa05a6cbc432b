"""The manager against an oracle that keeps every request and computes every answer anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.manager.conftest import Clock
from token_actor.core.manager import TokenManager

LIMIT = 1000
HISTORY = 4


@dataclass
class Oracle:
    """Keep (time, input, output, cache read, cache write, id) of every request that counts."""

    started_s: float
    requests: list[tuple[float, int, int, int, int, str | None]] = field(default_factory=list)

    def update(self, now_s, counts, message_id):
        if message_id and any(message_id == request[5] for request in self.requests):
            return False
        self.requests.append((now_s, *counts, message_id))
        return True

    def used(self, upto=None):
        return sum(request[1] + request[2] for request in self.requests[:upto])

    def window(self, seconds, now_s):
        return sum(sum(request[1:5]) for request in self.requests if request[0] >= now_s - seconds)

    def trend(self):
        totals = [sum(request[1:5]) for request in self.requests][-6:]
        if len(totals) < 6:
            return "stable"
        older, newer = sum(totals[:3]), sum(totals[3:])
        return "increasing" if newer * 10 > older * 12 else "decreasing" if newer * 10 < older * 8 else "stable"


COUNTS = st.tuples(*[st.integers(0, 300)] * 4)
UPDATES = st.tuples(st.just("update"), COUNTS, st.sampled_from([None, "", "a", "b", "c", "d"]))
WAITS = st.tuples(st.just("wait"), st.integers(0, 90))
RESETS = st.just(("reset",))


@given(st.lists(st.one_of(UPDATES, UPDATES, UPDATES, WAITS, RESETS), max_size=60))
def test_the_manager_answers_what_an_oracle_answers(steps: list[Any]):
    clock = Clock()
    manager = TokenManager(LIMIT, HISTORY, clock=clock, warn=lambda *_: None, engine_failed=lambda _: None)
    oracle = Oracle(clock.now_s)
    for step in steps:
        if step[0] == "wait":
            clock.advance(step[1])
        elif step[0] == "reset":
            manager.reset()
            oracle = Oracle(clock.now_s)
        else:
            _, counts, message_id = step
            counted = oracle.update(clock.now_s, counts, message_id)
            assert manager.update_tokens(counts[0], counts[1], counts[2], counts[3], message_id) is counted
        assert_same_answers(manager, oracle, clock.now_s)


def assert_same_answers(manager, oracle, now_s):
    used, requests = oracle.used(), len(oracle.requests)
    figures = manager.get_analytics()
    assert figures["total_requests"] == requests
    assert figures["total_tokens"] == used
    assert figures["total_tokens_with_cache"] == sum(sum(request[1:5]) for request in oracle.requests)
    assert figures["context_usage_pct"] == figures["peak_usage_pct"] == round(used / LIMIT * 100, 2)
    assert figures["current_history_size"] == min(requests, HISTORY)
    assert figures["uptime_seconds"] == now_s - oracle.started_s
    assert figures["trend"] == oracle.trend()
    assert manager.predict_overflow(100) == (used + 100 > LIMIT, pytest.approx((used + 100) / LIMIT * 100))
    for seconds in (1, 60, 3600):
        inside = oracle.window(seconds, now_s)
        assert manager.check_rate_limit(seconds, inside + 1) is True
        assert inside <= 1 or manager.check_rate_limit(seconds, inside - 1) is False
    history = manager.get_usage_history(HISTORY + 1)
    assert [entry["timestamp"] for entry in history] == [request[0] for request in oracle.requests[: -HISTORY - 1 : -1]]
    for back, entry in enumerate(history):
        upto = requests - back
        assert entry["cumulative_input"] + entry["cumulative_output"] == oracle.used(upto)
        assert entry["total_tokens"] == sum(oracle.requests[upto - 1][1:5])
