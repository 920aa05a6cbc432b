"""Measure what a snapshot costs the loop: how long its longest step takes, and what the next ones write.

The ledger is as full as it gets: 100,000 series, a whole ring of recent events, every message id. It
goes on counting between the steps, so blocks are copied before they change. Steps are timed with the
writes to a real server in them; the processor time next to it is what is left of them on a machine
that others use too.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from token_actor.actor.manifests import Position, list_manifests
from token_actor.actor.snapshots import SnapshotWriter, load_snapshot
from token_actor.core.columns import Columns, Run
from token_actor.core.ledger import Bounds, Ledger
from token_actor.core.usage import series_key
from token_actor.embedded import EmbeddedServer
from token_actor.service import connector_of
from token_actor.transport.ports import Put
from token_actor.wire.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from token_actor.transport.ports import Connection, Operation, Outcome

SERIES = 100_000
EVENTS = 1_000_000
EVENTS_PER_READ = 4_000
EVENTS_PER_TURN = 500  # that the loop counts between two steps
START_MS = 1_700_000_000_000
_KEYS = Keys("bench")


def reads(*, series: int, per_read: int) -> Iterator[Columns]:
    """Yield reads of events of random series, a thousand a second of log time, each with a message id."""
    rng = np.random.default_rng(1)
    keys = [series_key(None, None, f"user{i % 50}", f"agent{i % 200}", f"session{i}", "p", "m") for i in range(series)]
    count, first = per_read, 0
    while True:
        used, index = np.unique(rng.integers(0, series, count), return_inverse=True)
        at_ms = np.full(count, START_MS + first)
        yield Columns(
            keys=[keys[i] for i in used],
            key_index=index.astype(np.int64),
            counts=rng.integers(0, 1_000, (5, count)),
            cost=rng.integers(0, 1_000, count),
            flags=np.zeros(count, dtype=np.uint8),
            event_ms=at_ms,
            log_ms=at_ms,
            entry=np.arange(count) // 100,
            runs=[Run(b"%016d" % (first // 100 % 500), 0, first // 50_000 * 100, 0, 100)],
            message_ids=np.array([f"msg_{first + i:024d}" for i in range(count)], dtype=np.object_),
        )
        first += count


class Counting:
    """Write to a connection, and count the chunks and their bytes."""

    def __init__(self, connection: Connection) -> None:
        """Count from zero."""
        self.chunks = self.bytes = 0
        self._connection = connection

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - everything else of a connection
        """Leave everything else to the connection."""
        return getattr(self._connection, name)

    def write(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Count what is put, and write."""
        puts = [operation for operation in operations if isinstance(operation, Put)]
        self.chunks += len(puts)
        self.bytes += sum(len(put.value) for put in puts)
        return self._connection.write(operations)


class Step(NamedTuple):
    """Hold the milliseconds of one step: on the clock on the wall, and of the processor."""

    wall_ms: float
    cpu_ms: float


def take(writer: SnapshotWriter, ledger: Ledger, number: int, turns: Iterator[Columns] | None) -> list[Step]:
    """Take a snapshot, with a turn of the loop after each step; return how long every step took."""
    position = Position(offset=b"%d-0" % number, entries=number)
    steps = writer.write(ledger, snapshot_id=b"1-%d" % number, position=position, now_ms=0)
    taken = []
    while True:
        started, cpu_started = time.perf_counter(), time.thread_time()
        done = next(steps, steps) is steps
        taken.append(Step((time.perf_counter() - started) * 1e3, (time.thread_time() - cpu_started) * 1e3))
        if done:
            return taken
        if turns is not None:
            ledger.apply(next(turns))


def measure(scale: float = 1.0) -> dict[str, float]:
    """Return every figure of this file; ``scale`` makes the ledger smaller or larger."""
    series, events = int(SERIES * scale), int(EVENTS * scale)
    ledger = Ledger(Bounds(recent_events_max=events, message_ids_max=events))
    filling = reads(series=series, per_read=EVENTS_PER_READ)
    for _ in range(int(1.2 * events) // EVENTS_PER_READ):
        ledger.apply(next(filling))
    turns = reads(series=series, per_read=EVENTS_PER_TURN)
    with EmbeddedServer() as server:
        connection = connector_of(server.url).connect()
        counting = Counting(connection)
        writer = SnapshotWriter(counting, _KEYS, fenced=connection.write)
        first = take(writer, ledger, 1, turns)
        whole_chunks, whole_bytes = counting.chunks, counting.bytes
        second = take(writer, ledger, 2, turns)
        counting.chunks = counting.bytes = 0
        third = take(writer, ledger, 3, turns)
        changed_chunks, changed_bytes = counting.chunks, counting.bytes
        take(writer, ledger, 4, None)
        take(writer, ledger, 5, None)
        ledger.apply(next(turns))  # one turn is all that happens
        counting.chunks = counting.bytes = 0
        idle = take(writer, ledger, 6, None)
        started = time.perf_counter()
        load_snapshot(connection, _KEYS, list_manifests(connection, _KEYS)[0], None)
        loaded_s = time.perf_counter() - started
        connection.close()
    steps = first + second + third
    longest = max(steps)
    return {
        "snapshot_capture_ms": max(taken[0].wall_ms for taken in (first, second, third)),
        "snapshot_longest_step_ms": longest.wall_ms,
        "snapshot_longest_step_cpu_ms": max(step.cpu_ms for step in steps),
        "snapshot_longest_step_share_of_all": longest.wall_ms / _seconds(first) / 1e3,
        "snapshot_whole_s": _seconds(first),
        "snapshot_whole_chunks": whole_chunks,
        "snapshot_whole_mb": whole_bytes / 1e6,
        "snapshot_changed_s": _seconds(third),
        "snapshot_changed_chunks": changed_chunks,
        "snapshot_changed_mb": changed_bytes / 1e6,
        "snapshot_changed_share_of_bytes": changed_bytes / whole_bytes,
        "snapshot_idle_s": _seconds(idle),
        "snapshot_idle_share_of_bytes": counting.bytes / whole_bytes,
        "snapshot_load_s": loaded_s,
    }


def _seconds(steps: Sequence[Step]) -> float:
    return sum(step.wall_ms for step in steps) / 1e3
