"""Log time follows the leader, whichever clock jumps, and no number changes by it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.actor.conftest import Stage
from token_actor.core.logtime import CLOCKS_AGREE_MS
from token_actor.transport.memory import MemoryServer

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
SECOND_MS = 1_000


class Fleet:
    """A leader and a server with clocks of their own, and a producer that reports one call of a token a second."""

    def __init__(self, namespace: str) -> None:
        self.server_off_ms = 0
        self.stage = Stage(MemoryServer(clock_ms=lambda: self.true_ms + self.server_off_ms), namespace)
        self.leader = self.stage.player("a")
        self.script = self.leader.script
        self._began_ms = self.script.now_ms
        self.recorded = 0
        self.pass_seconds(3)

    @property
    def true_ms(self) -> int:
        return self._began_ms + self.script.ticks_ms

    def pass_seconds(self, count: int, *, silent: bool = False) -> None:
        """Let time pass, a second for each turn."""
        for _ in range(count):
            if not silent:
                self.stage.batch(input_tokens=1, session="s")
                self.recorded += 1
            self.leader.step(after_ms=SECOND_MS)
        self.leader.step(2)

    @property
    def off_ms(self) -> int:
        """By how much log time differs from the true time."""
        return self.leader.actor._follower.ledger.log_ms - self.true_ms

    def ask(self, kind: str, **arguments: Any) -> dict[str, Any]:
        """Ask the leader."""
        self.stage.ask(kind, **arguments)
        self.leader.step(2)
        result = self.stage.answers()[-1].result
        assert result is not None
        return dict(result)

    def window(self, seconds: int) -> int:
        """Return the tokens of the last seconds."""
        return int(self.ask("window", window_ms=seconds * SECOND_MS, selector={"session": "s"})["tokens"])


@pytest.fixture
def fleet(namespace: str) -> Fleet:
    return Fleet(namespace)


JUMPS_MS = [-2 * DAY_MS, -HOUR_MS, -20_000, 20_000, HOUR_MS, 400 * DAY_MS]


@pytest.mark.parametrize("jump_ms", JUMPS_MS)
def test_log_time_follows_the_leader_when_the_clock_of_the_server_jumps(fleet, jump_ms):
    fleet.server_off_ms = jump_ms
    for _ in range(10):
        fleet.pass_seconds(4)
        assert abs(fleet.off_ms) <= CLOCKS_AGREE_MS + 2 * SECOND_MS


@pytest.mark.parametrize("jump_ms", JUMPS_MS)
def test_every_call_is_counted_once_whatever_the_clock_of_the_server_does(fleet, jump_ms):
    fleet.server_off_ms = jump_ms
    fleet.pass_seconds(20)
    fleet.server_off_ms = 0
    fleet.pass_seconds(20)
    assert fleet.ask("analytics")["requests"] == fleet.recorded
    assert fleet.ask("analytics", group_by=["session"])["groups"][0]["requests"] == fleet.recorded
    assert fleet.ask("books")["differences"] == []
    assert fleet.stage.dead() == []


@pytest.mark.parametrize("jump_ms", JUMPS_MS)
def test_a_window_goes_on_when_the_clock_of_the_server_jumps(fleet, jump_ms):
    fleet.pass_seconds(60)
    fleet.server_off_ms = jump_ms
    fleet.pass_seconds(60)
    slack = (CLOCKS_AGREE_MS + 2 * SECOND_MS) // SECOND_MS
    assert abs(fleet.window(30) - 30) <= slack
    fleet.pass_seconds(60, silent=True)
    assert fleet.window(30) == 0


@pytest.mark.parametrize("jump_ms", [-HOUR_MS, HOUR_MS])
def test_a_jump_of_its_own_clock_moves_no_log_time(fleet, jump_ms):
    fleet.script.now_ms += jump_ms
    fleet.pass_seconds(20)
    assert abs(fleet.off_ms) <= 2 * SECOND_MS
    assert not any(fields[0] == b"t" for _, fields in fleet.stage.connection.range(fleet.stage.keys.log, count=1000))
