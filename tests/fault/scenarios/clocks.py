"""Clocks that jump, of either side. The twin's is in ``test_twin.py``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.fault.cast import FAKETIMES
from tests.fault.scenario import CannotRunError, Scale, Scenario

if TYPE_CHECKING:
    from tests.fault.stage import Stage

# Seconds off, one after the other: less and more than a lease, a minute, a leap of log time; there and back.
JUMPS_S: Final = (60, 0, -60, 0, 7_200, 7_200 + 86_400, -3_600, 0)


class FakeClock:
    """Be the clock of a process, which is off by what a file says."""

    def __init__(self, file: Path) -> None:
        """Start with the right time. Raises ``CannotRunError`` without libfaketime."""
        library = next((path for path in FAKETIMES if Path(path).exists()), None)
        if library is None:
            raise CannotRunError("libfaketime is not installed")
        self._file = file
        self.env = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.jump(0)

    def jump(self, off_s: int) -> None:
        """Be off by so many seconds from now on."""
        whole = self._file.with_suffix(".new")
        whole.write_text(f"{off_s:+d}s")
        whole.replace(self._file)


def _jump(stage: Stage, scale: Scale, clock: FakeClock) -> None:
    """Let a clock jump under a leader, beside whom another actor stands by: he goes on to lead."""
    leader = stage.await_serving(noted=False)
    stage.start_actor("standby", lease_ms=2_000)
    for number in (1, 2):
        stage.start_producer(number)
    for turn in scale.turns(stage, len(JUMPS_S), 4 * len(JUMPS_S)):
        stage.await_entries(100)
        clock.jump(JUMPS_S[turn % len(JUMPS_S)])
        jumped = time.monotonic()
        stage.faults += 1
        stage.await_accepted(1, 200)
        holder = stage.await_serving(since=jumped)
        if holder != leader:
            stage.broken.append(f"I7: {holder} leads, because a clock has jumped; {leader} was well")
            leader = holder
    clock.jump(0)


def _server(stage: Stage, scale: Scale) -> None:
    clock = FakeClock(stage.directory / "clock")
    server = stage.new_server("server")
    server.env = clock.env
    stage.server = server.start()
    seconds = int(server.command("TIME")[0])
    clock.jump(1_000)
    if int(server.command("TIME")[0]) < seconds + 900:
        raise CannotRunError("libfaketime does not reach the server's clock")
    clock.jump(0)
    stage.start_actor(lease_ms=2_000)
    _jump(stage, scale, clock)


def _leader(stage: Stage, scale: Scale) -> None:
    clock = FakeClock(stage.directory / "clock")
    stage.serve()
    stage.start_actor(alone_with=clock.env, lease_ms=2_000)
    _jump(stage, scale, clock)


SCENARIOS: Final = [
    Scenario(
        name="server's clock",
        injects="jumps of the server's clock, forth and back",
        play=_server,
        logs=frozenset({"clock"}),
    ),
    Scenario(name="leader's clock", injects="jumps of the leader's clock, forth and back", play=_leader),
]
