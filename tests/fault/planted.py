"""Planted bugs: what the suite must notice. Each is a patch of the product inside one process of a test.

The name comes by the environment, and only the processes of the tests look there. A bug is planted
where a change of a few lines would put it; what it breaks is said by the scenario that catches it.
"""

from __future__ import annotations

import os
import uuid
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import msgpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENVIRONMENT: Final = "TOKEN_ACTOR_TESTS_PLANTED"
PRODUCER: Final = "TOKEN_ACTOR_TESTS_PRODUCER"  # its number, for a bug that needs to know who it is


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Run the block with the bug ``name``, or without one for ``None``. Raises ``KeyError`` for an unknown name."""
    with ExitStack() as stack:
        if name:
            BUGS[name](stack)
        yield


def _dedupe_off(stack: ExitStack) -> None:
    """Every sequence number counts as new."""
    stack.enter_context(
        patch("token_actor.core.dedupe.ProducerMarks.see", lambda self, producer, epoch, start, stop: [(start, stop)])
    )


def _trim_too_early(stack: ExitStack) -> None:
    """The log is trimmed below the newest entry, which no snapshot covers yet."""
    from token_actor.actor import loop
    from token_actor.transport.ports import TrimBelow

    original = loop.Actor._turn

    def turn(self: Any, block_ms: int | None) -> None:
        original(self, block_ms)
        self._connection.write([TrimBelow(key=self._keys.log, entry_id=self._follower.position.offset)])

    stack.enter_context(patch.object(loop.Actor, "_turn", turn))


def _offset_before_state(stack: ExitStack) -> None:
    """A snapshot says it goes up to where the log ends, and holds the state of before the last read."""
    from token_actor.actor import recovery

    original = recovery.recover

    def recover(connection: Any, keys: Any, *arguments: Any, **options: Any) -> Any:
        recovered = original(connection, keys, *arguments, **options)
        following = connection.range(keys.log, start=b"(" + recovered.position.offset, count=3)
        if following and recovered.position.entries:
            entries = recovered.position.entries + len(following)
            recovered.position = replace(recovered.position, offset=following[-1][0], entries=entries)
        return recovered

    stack.enter_context(patch("token_actor.actor.follower.recover", recover))


def _unfenced_manifest(stack: ExitStack) -> None:
    """A manifest that is refused takes the next id there is, whoever leads meanwhile."""
    from token_actor.errors import ServerRefused
    from token_actor.transport.ports import Append
    from token_actor.transport.redis import RedisConnection

    original = RedisConnection.write

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

    def write_if(self: Any, guard: bytes, holds: bytes, operations: Any) -> Any:
        return self.write(operations)

    stack.enter_context(patch.object(RedisConnection, "write", write))
    stack.enter_context(patch.object(RedisConnection, "write_if", write_if))


def _retry_with_a_new_id(stack: ExitStack) -> None:
    """A batch that is sent again comes under a new producer, as a library would that numbers attempts."""
    from token_actor.client.lanes import Lane

    original = Lane.appends
    sent: dict[bytes, int] = {}

    def appends(self: Any, count: int) -> Any:
        renamed = []
        for append in original(self, count):
            data = append.fields[1]
            sent[data] = sent.get(data, 0) + 1
            if sent[data] > 1:
                batch = msgpack.unpackb(data, strict_map_key=False)
                data = msgpack.packb({**batch, "p": uuid.uuid4().bytes})
            renamed.append(replace(append, fields=[append.fields[0], data]))
        return renamed

    stack.enter_context(patch.object(Lane, "appends", appends))


def _snapshot_without_dedupe_state(stack: ExitStack) -> None:
    """A snapshot forgets which sequence numbers were seen."""
    stack.enter_context(patch("token_actor.core.dedupe.ProducerMarks.restore", lambda self, trees, missing: None))


def _seq_reset_at_restart(stack: ExitStack) -> None:
    """A producer that starts again numbers from 0 under its old name."""
    number = int(os.environ.get(PRODUCER, "0"))
    stack.enter_context(patch("token_actor.client.delivery.uuid", SimpleNamespace(uuid4=lambda: uuid.UUID(int=number))))


def _float_tokens(stack: ExitStack) -> None:
    """Tokens are added up as floats of a width that people take for enough."""
    from token_actor.core import ledger

    original = ledger.Ledger._count

    def count(self: Any, *arguments: Any) -> Any:
        result = original(self, *arguments)
        import numpy as np

        self.counters = self.counters.astype(np.float32).astype(np.int64)
        return result

    stack.enter_context(patch.object(ledger.Ledger, "_count", count))


def _destructive_read(stack: ExitStack) -> None:
    """What has been read is deleted at once, as from a queue."""
    from token_actor.transport.ports import TrimBelow
    from token_actor.transport.redis import RedisConnection

    original = RedisConnection.read

    def read(self: Any, after: Any, **options: Any) -> Any:
        found = original(self, after, **options)
        for key, entries in found.items():
            if key.endswith(b":log"):
                self.write([TrimBelow(key=key, entry_id=entries[-1][0])])
        return found

    stack.enter_context(patch.object(RedisConnection, "read", read))


def _fsync_removed(stack: ExitStack) -> None:
    """The spool leaves it to the system when its bytes reach the disk."""
    from token_actor.client import slots

    original = slots._connect

    def connect(*arguments: Any, **options: Any) -> Any:
        database = original(*arguments, **options)
        database.execute("PRAGMA synchronous = OFF")
        return database

    stack.enter_context(patch.object(slots, "_connect", connect))


def _ttl_only_lease(stack: ExitStack) -> None:
    """Who holds the key leads; epochs do not grow, and nobody looks whose key it is when he renews it."""
    from token_actor.actor.leadership import Leadership
    from token_actor.transport.ports import Put

    def contend(self: Any, ticks_ms: int) -> bool:
        lease = Put(key=self._keys.leader, value=self._holder.encode(), ttl_ms=self._lease_ms, only_if_absent=True)
        self.epoch = 0 if self._connection.write([lease]) == [None] else 1
        return bool(self.epoch)

    def renew(self: Any) -> bool:
        self._connection.write([Put(key=self._keys.leader, value=self._holder.encode(), ttl_ms=self._lease_ms)])
        return True

    for name, bug in (
        ("contend", contend),
        ("renew", renew),
        ("write", lambda self, operations: self._connection.write(operations)),
    ):
        stack.enter_context(patch.object(Leadership, name, bug))


def _reservation_never_expires(stack: ExitStack) -> None:
    """Nothing that is reserved is ever due."""
    stack.enter_context(patch("token_actor.core.reservations.Reservations.due_ms", lambda self: None))


def _counter_outlives_recall(stack: ExitStack) -> None:
    """A leader says that it recalls what is set aside, and leaves the counters to be taken from, for ever."""
    from token_actor.actor.escrow import EscrowKeeper
    from token_actor.transport.ports import DeleteFields

    original = EscrowKeeper._write

    def write(self: Any, operations: Any) -> bool:
        return original(self, [each for each in operations if not isinstance(each, DeleteFields)])

    stack.enter_context(patch.object(EscrowKeeper, "_write", write))
    stack.enter_context(patch.object(EscrowKeeper, "_sweep", lambda self, ledger: None))


BUGS: Final[dict[str, Callable[[ExitStack], None]]] = {
    "dedupe off": _dedupe_off,
    "trim too early": _trim_too_early,
    "offset saved before state": _offset_before_state,
    "TTL-only lease": _ttl_only_lease,
    "unfenced manifest": _unfenced_manifest,
    "retry with a new id": _retry_with_a_new_id,
    "snapshot without dedupe state": _snapshot_without_dedupe_state,
    "seq reset at restart": _seq_reset_at_restart,
    "float tokens": _float_tokens,
    "destructive read": _destructive_read,
    "fsync removed": _fsync_removed,
    "reservation never expires": _reservation_never_expires,
    "counter outlives recall": _counter_outlives_recall,
}
