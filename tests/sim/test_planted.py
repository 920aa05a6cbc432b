"""The simulator checks itself, as a second net behind the real processes: it catches bugs planted in the product.

It cannot see all of them. Nobody reserves in it, so a reservation that never expires is one for
the scenario "reserve storm" of ``tests/fault``. Its disk is all or nothing and has no cache that a
crash would lose, so a missing fsync is one for the real disk of ``tests/fault``.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from tests.fault.planted import BUGS as SHARED
from tests.sim.story import Story, Verdict
from tests.sim.world import Link
from token_actor.actor.leadership import Leadership
from token_actor.client.store import MemoryDisk, MemoryStore
from token_actor.errors import ServerRefused
from token_actor.transport.ports import Append, Expire, Put, TrimBelow

if TYPE_CHECKING:
    from collections.abc import Callable

SEEDS = 60


def _ttl_only_lease(stack: ExitStack) -> None:
    """Who holds the key leads, under the same epoch as everybody before; nobody looks whose key it is."""

    def lease(self: Any, **options: Any) -> Any:
        value = b"1:" + self._holder.encode()
        return self._connection.write([Put(key=self._keys.leader, value=value, ttl_ms=self._lease_ms, **options)])

    def contend(self: Any, ticks_ms: int) -> bool:
        del ticks_ms
        self.epoch = 0 if lease(self, only_if_absent=True) == [None] else 1
        return bool(self.epoch)

    def renew(self: Any) -> bool:
        lease(self)
        return True

    def write(self: Any, operations: Any) -> Any:
        return self._connection.write(operations)

    stack.enter_context(patch.multiple(Leadership, contend=contend, renew=renew, write=write))


def _unfenced_manifest(stack: ExitStack) -> None:
    """Nobody looks who leads before writing, and a manifest that is refused takes the next id there is."""
    original, guarded = Link.write, Link.write_if

    def write(self: Any, operations: Any) -> Any:
        outcomes = original(self, operations)
        for place, operation in enumerate(operations):
            refused = isinstance(outcomes[place], ServerRefused)
            if refused and isinstance(operation, Append) and operation.key.endswith(b":snapshots"):
                ((top, _),) = self.range(operation.key, count=1, newest_first=True)
                epoch, _, number = top.partition(b"-")
                following = replace(operation, entry_id=b"%b-%d" % (epoch, int(number) + 1))
                (outcomes[place],) = original(self, [following])
        return outcomes

    def write_if(self: Any, guard: bytes, holds: bytes | None, operations: Any) -> Any:
        if any(isinstance(operation, Put | Expire) and operation.key == guard for operation in operations):
            return guarded(self, guard, holds, operations)  # the lease itself is held as ever
        return write(self, operations)

    stack.enter_context(patch.multiple(Link, write=write, write_if=write_if))


def _seq_reset_at_restart(stack: ExitStack) -> None:
    """Whoever opens a disk again numbers from 0 under the name of the first who did."""
    names: dict[int, bytes] = {}

    def opened(self: Any, producer: bytes) -> MemoryStore:
        return MemoryStore(self, names.setdefault(id(self), producer))

    stack.enter_context(patch.object(MemoryDisk, "open", opened))


def _destructive_read(stack: ExitStack) -> None:
    """What has been read is deleted at once, as from a queue."""
    original = Link.read

    def read(self: Any, after: Any, **options: Any) -> Any:
        found = original(self, after, **options)
        for key, entries in found.items():
            if key.endswith(b":log"):
                self.write([TrimBelow(key=key, entry_id=entries[-1][0])])
        return found

    stack.enter_context(patch.object(Link, "read", read))


BUGS: dict[str, Callable[[ExitStack], None]] = {
    "dedupe off": SHARED["dedupe off"],
    "trim too early": SHARED["trim too early"],
    "offset saved before state": SHARED["offset saved before state"],
    "unfenced manifest": _unfenced_manifest,
    "retry with a new id": SHARED["retry with a new id"],
    "TTL-only lease": _ttl_only_lease,
    "snapshot without dedupe state": SHARED["snapshot without dedupe state"],
    "seq reset at restart": _seq_reset_at_restart,
    "float tokens": SHARED["float tokens"],
    "destructive read": _destructive_read,
}
FOUND = {  # what a story must have come to
    "dedupe off": "twice",
    "trim too early": "lost",
    "offset saved before state": "lost",
    "unfenced manifest": "problems",
    "retry with a new id": "twice",
    "TTL-only lease": "problems",
    "snapshot without dedupe state": "twice",
    "seq reset at restart": "lost",
    "float tokens": "problems",
    "destructive read": "lost",
}


def caught(what: str) -> Verdict | None:
    """Return the first story in which something of this kind went wrong."""
    for seed in range(1, SEEDS + 1):
        verdict = Story(seed).tell()
        if getattr(verdict, what):
            return verdict
    return None


@pytest.mark.fault
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught_within_60_stories(bug: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="token_actor")
    with ExitStack() as stack:
        BUGS[bug](stack)
        assert caught(FOUND[bug])
