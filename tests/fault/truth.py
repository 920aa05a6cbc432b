"""Ground truth: what each producer tried and what it was promised, in files the system never sees.

Event ``k`` of producer ``p`` is a function of both: what it must come to can be computed for any set
of events, and what came to something else can be named. Files hold ranges, so a million events are a
few thousand records, and sums over them are sums over arrays.

A record is on the disk (fsync) before what it speaks of happens: an *attempt* before ``record()``,
an *acceptance* after ``flush()`` returned.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

BLOCK_EVENTS: Final = 500  # events per session: a block whose sums agree needs no look at its single events
TENANTS, MODELS = 3, 4
ATTEMPT, ACCEPTED = 1, 2  # kinds of record
_RECORD: Final = np.dtype([("kind", "<i8"), ("first", "<i8"), ("last", "<i8"), ("at_ms", "<i8")])
_PRIME: Final = 1_000_003
SUMMED: Final = ("requests", "input_tokens", "output_tokens", "cache_read_tokens", "reasoning_tokens")


class Numbers(NamedTuple):
    """Hold what events are made of; arrays or ints, alike."""

    input_tokens: Any
    output_tokens: Any
    cache_read_tokens: Any
    reasoning_tokens: Any


def numbers(producer: int, k: Any) -> Numbers:
    """Return the tokens of event ``k``: ``k`` itself names it, and a hash makes equal sums improbable."""
    mixed = (k * 48_271 + producer * 7_919) % _PRIME
    return Numbers(k, mixed, k % 97, mixed % 13 % (mixed + 1))


def names(producer: int, k: int) -> dict[str, str]:
    """Return the dimensions of event ``k``."""
    block = k // BLOCK_EVENTS
    return {
        "tenant": f"tenant-{block % TENANTS}",
        "agent": agent_of(producer),
        "session": session_of(k),
        "model": f"model-{k % MODELS}",
    }


def agent_of(producer: int) -> str:
    """Return the agent's name that belongs to one producer alone."""
    return f"agent-{producer}"


def session_of(k: int) -> str:
    """Return the session of event ``k``."""
    return f"block-{k // BLOCK_EVENTS}"


class Journal:
    """Write one producer's file; also used by the process that goes on after a kill."""

    def __init__(self, path: Path) -> None:
        """Open the file, and create it."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def attempts(self, first: int, last: int, at_ms: int) -> None:
        """Note that events ``first`` to ``last`` are about to be recorded, with the timestamp ``at_ms``."""
        self._note(ATTEMPT, first, last, at_ms)

    def accepted(self, first: int, last: int) -> None:
        """Note that the client has promised events ``first`` to ``last``."""
        self._note(ACCEPTED, first, last, 0)

    def _note(self, kind: int, first: int, last: int, at_ms: int) -> None:
        os.write(self._file, np.array([(kind, first, last, at_ms)], dtype=_RECORD).tobytes())
        os.fdatasync(self._file)


@dataclass(slots=True)
class Truth:
    """Hold what one producer's file says: per event number whether it was attempted, accepted, and when.

    Index 0 is unused: events are counted from 1.
    """

    producer: int
    attempted: np.ndarray = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    accepted: np.ndarray = field(default_factory=lambda: np.zeros(1, dtype=bool))
    at_ms: np.ndarray = field(default_factory=lambda: np.zeros(1, dtype=np.int64))

    @property
    def last(self) -> int:
        """Return the highest event number attempted, 0 for none."""
        return len(self.attempted) - 1

    @classmethod
    def read(cls, producer: int, path: Path) -> Truth:
        """Read a producer's file; one that is not there says nothing."""
        data = path.read_bytes() if path.exists() else b""
        records = np.frombuffer(data[: len(data) - len(data) % _RECORD.itemsize], dtype=_RECORD)
        attempts = records[records["kind"] == ATTEMPT]
        last = int(attempts["last"].max()) if len(attempts) else 0
        truth = cls(producer, np.zeros(last + 1, np.int64), np.zeros(last + 1, bool), np.zeros(last + 1, np.int64))
        for kind, first, until, at_ms in records.tolist():
            span = slice(first, until + 1)
            if kind == ATTEMPT:
                truth.attempted[span] += 1
                truth.at_ms[span] = at_ms
            else:
                truth.accepted[span] = True
        return truth


class Sums:
    """Add up what sets of events must come to, by any grouping."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.total: dict[str, int] = dict.fromkeys(SUMMED, 0)
        self.by: dict[str, dict[str, dict[str, int]]] = {"tenant": {}, "agent": {}, "model": {}, "minute": {}}

    def add(self, producer: int, ks: np.ndarray, at_ms: np.ndarray) -> None:
        """Add the events ``ks`` of one producer; ``at_ms`` are their times."""
        if not len(ks):
            return
        figures = np.stack([np.ones_like(ks), *numbers(producer, ks)])
        groupings: Mapping[str, tuple[np.ndarray, str]] = {
            "tenant": (ks // BLOCK_EVENTS % TENANTS, "tenant-{}"),
            "model": (ks % MODELS, "model-{}"),
            "minute": (at_ms // 60_000, "{}"),
            "agent": (np.full_like(ks, producer), "agent-{}"),
        }
        _add(self.total, figures)
        for dimension, (keys, label) in groupings.items():
            for key in np.unique(keys).tolist():
                into = self.by[dimension].setdefault(label.format(key), dict.fromkeys(SUMMED, 0))
                _add(into, figures[:, keys == key])


def block_sums(truth: Truth) -> dict[str, tuple[dict[str, int], bool]]:
    """Return, per session of a producer, the sums of all attempts, and whether every one was accepted."""
    blocks: dict[str, tuple[dict[str, int], bool]] = {}
    for first in range(0, truth.last + 1, BLOCK_EVENTS):
        ks = np.arange(max(1, first), min(first + BLOCK_EVENTS, truth.last + 1))
        ks = ks[truth.attempted[ks] > 0]
        if len(ks):
            sums = dict.fromkeys(SUMMED, 0)
            _add(sums, np.stack([np.ones_like(ks), *numbers(truth.producer, ks)]))
            blocks[session_of(first)] = (sums, bool(truth.accepted[ks].all()))
    return blocks


def events_of_block(session: str) -> Iterable[int]:
    """Return the event numbers that a session can hold."""
    first = int(session.removeprefix("block-")) * BLOCK_EVENTS
    return range(first, first + BLOCK_EVENTS)


def _add(into: dict[str, int], figures: np.ndarray) -> None:
    for name, value in zip(SUMMED, figures.sum(axis=1).tolist(), strict=True):
        into[name] += value
