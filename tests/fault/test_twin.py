"""Jumps of the server's clock on the in-memory twin, where every step of both actors is taken by hand."""

from __future__ import annotations

import pytest

from tests.actor.conftest import LEASE_MS, Stage
from tests.fault.planted import planted
from token_actor.transport.memory import MemoryServer

T0_MS = 1_700_000_000_000
JUMPS_MS = (LEASE_MS + 1, 60_000, -120_000, 86_400_000, -86_400_000)


def leaders_through_jumps():
    """Return who leads after each jump, while the one who led before it works on."""
    now_ms = [T0_MS]
    stage = Stage(MemoryServer(clock_ms=lambda: now_ms[0]), "twin")
    one, other = stage.player("one", lease_ms=LEASE_MS), stage.player("other", lease_ms=LEASE_MS)
    one.step(3)
    other.step(3)
    found = []
    for jump_ms in JUMPS_MS:
        now_ms[0] += jump_ms
        other.look()  # he sees it first
        one.look()
        other.look()
        stage.event(agent="a")
        one.step(2)
        found.append([name for name, player in (("one", one), ("other", other)) if player.epoch])
    stage.close()
    return found


def test_no_jump_of_the_servers_clock_makes_a_second_leader():
    assert leaders_through_jumps() == [["one"]] * len(JUMPS_MS)


@pytest.mark.parametrize("bug", ["TTL-only lease"])
def test_a_lease_that_is_but_a_time_to_live_is_caught(bug):
    with planted(bug):
        found = leaders_through_jumps()
    assert ["one", "other"] in found
