"""Producers with a spool: they die, their disk is full, and what lies there is not what they wrote."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tests.fault.cast import until
from tests.fault.scenario import Scale, Scenario
from tests.fault.scenarios.damage import fill, mount_small_disk
from tests.fault.syncs import promises, replies, tracing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.fault.cast import Server
    from tests.fault.link import Link
    from tests.fault.stage import Stage

SPOOL_DISK_BYTES: Final = 2 << 20  # a spool of some hundred batches, so that it is soon full
_NOBODY: Final = 1  # a port on which nothing listens


def _producer_killed(stage: Stage, scale: Scale) -> None:
    """Kill producers whose events are promised as soon as they are in the spool, also while the log is away."""
    server = stage.serve()
    link = stage.link(server)
    stage.start_actor()
    stage.await_serving(noted=False)
    for number in (1, 2, 3):
        stage.start_spooling_producer(number, url=link.url, every_ms=2, chunk=40, promise="spool")
    for turn in scale.turns(stage, 20, 200):
        number = stage.random.randrange(1, 4)
        cut_off = turn % 4 == 3
        if cut_off:
            _take_away(link)  # what is promised now is in the spool alone
            stage.await_accepted(number, 40)
        else:
            stage.await_entries(stage.random.randrange(1, 40))
        stage.producers[number].kill()
        stage.faults += 1
        if cut_off:
            _bring_back(link, server)
        stage.start_producer(number)


def _take_away(link: Link) -> None:
    """Let a link break what it has, and every connection anew, as when a server is down."""
    link.port = _NOBODY
    link.cut()


def _bring_back(link: Link, server: Server) -> None:
    link.port = server.port


def _damaged(stage: Stage, scale: Scale) -> None:
    """Flip, tear or shorten a spool whose owner is dead, and which holds what nobody else has."""
    server = stage.serve()
    link = stage.link(server)
    stage.start_actor()
    stage.await_serving(noted=False)
    stage.start_spooling_producer(1, url=link.url, promise="spool")
    damages = (_flip, _tear, _shorten_log)
    for turn in scale.turns(stage, 3, 60):
        stage.await_entries(10)
        _take_away(link)
        stage.await_accepted(1, 600)
        stage.producers[1].kill()
        _bring_back(link, server)
        known = _said(stage, 1, "spool_damaged")
        damages[turn % len(damages)](stage)
        stage.faults += 1
        stage.start_producer(1)
        _await_more(stage, {1: known}, "spool_damaged")


def _said(stage: Stage, number: int, action: str) -> int:
    return stage.producers[number].actions().count(action)


def _await_more(stage: Stage, known: Mapping[int, int], action: str) -> None:
    """Wait until one of some producers has said something more often than is known."""
    until(
        lambda: any(_said(stage, number, action) > times for number, times in known.items()),
        f"a producer that says {action!r}",
    )


def _largest(stage: Stage, pattern: str) -> Path:
    """Return the largest file of the spool of a pattern."""
    return max(stage.spool.glob(pattern), key=lambda path: path.stat().st_size)


def _flip(stage: Stage) -> None:
    """Change a byte in the middle of every page that holds batches."""
    wal = _largest(stage, "*.spool-wal")
    content = bytearray(wal.read_bytes())
    content[len(content) // 2] ^= 0x10
    wal.write_bytes(content)


def _tear(stage: Stage) -> None:
    """Leave half of the write-ahead log."""
    wal = _largest(stage, "*.spool-wal")
    with wal.open("r+b") as file:
        file.truncate(wal.stat().st_size // 2)


def _shorten_log(stage: Stage) -> None:
    """Take the last thousand bytes away."""
    wal = _largest(stage, "*.spool-wal")
    with wal.open("r+b") as file:
        file.truncate(wal.stat().st_size - 1_000)


def _disk_full(stage: Stage, scale: Scale) -> None:
    """Fill the disk under the spool, and make room again: recording waits, and nothing is dropped."""
    server = stage.serve()
    link = stage.link(server)
    disk = mount_small_disk(stage, "spool", SPOOL_DISK_BYTES)
    stage.start_actor()
    stage.await_serving(noted=False)
    for number in (1, 2):
        stage.start_spooling_producer(number, url=link.url, every_ms=1, promise="spool")
    ballast = disk / "ballast"
    for turn in scale.turns(stage, 3, 30):
        stage.await_accepted(1, 100)
        if turn % 2:
            _take_away(link)  # the spools themselves fill what is left
        known = {number: _said(stage, number, "spool_failed") for number in (1, 2)}
        fill(ballast)
        _await_more(stage, known, "spool_failed")
        stage.faults += 1
        ballast.unlink()
        _bring_back(link, server)
        freed = time.monotonic()
        stage.await_serving(since=freed)
        stage.await_accepted(1, 100)


def _synced(stage: Stage, scale: Scale) -> None:
    """Look at the very calls of a producer and of the server: what they promise has been synced before."""
    del scale
    stage.serve(under=tracing(stage.directory / "server.trace"))
    stage.start_actor()
    stage.await_serving(noted=False)
    stage.start_spooling_producer(1, promise="spool", under=tracing(stage.directory / "producer.trace"))
    stage.await_accepted(1, 1_000)
    for who, found in (
        ("the producer", promises(stage.directory / "producer.trace")),
        ("the server", replies(stage.directory / "server.trace")),
    ):
        made, synced = found
        stage.notes.append(f"{who} promised {made} times, {synced} times what was on the disk")
        if not made or synced < made:
            stage.broken.append(f"I1: {who} promised {made} times, but only {synced} times what was on the disk")


SCENARIOS: Final = [
    Scenario(
        name="producer killed, spool",
        injects="kill -9 of producers, some while the log is away",
        play=_producer_killed,
        logs=frozenset({"spool_adopted"}),
    ),
    Scenario(
        name="damaged spool",
        injects="spools flipped, torn and shortened",
        play=_damaged,
        loss_said_by="spool_damaged",
    ),
    Scenario(name="spool disk full", injects="a full disk under the spool", play=_disk_full),
    Scenario(name="synced", injects="nothing: strace looks whether promises are on the disk", play=_synced),
]
