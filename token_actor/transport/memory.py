"""The ports on a server that lives in this process: the twin of ``redis`` for tests and simulations.

It keeps what the package relies on, to the letter: ids that only grow, refusals in the words of
the real server, last ids and counts that survive trims, keys that expire, reads that wait. It keeps
nothing when the process ends. The contract suite runs on it and on real servers alike.

This file is the threads' side: ``_Shared`` is touched under its condition only. What commands do is
in ``memory_keys``.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from token_actor.errors import ClosedError, ServerUnavailable
from token_actor.transport.memory_keys import Keyspace, Stream
from token_actor.transport.ports import EXCHANGE_COUNT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from token_actor.transport.ports import Append, Entry, Operation, Outcome, StreamState

ADDRESS: Final = "memory://"

# Names and shapes are those of a real server, so that a check for "no append-only file" finds what it looks for.
FACTS: Final = {
    "server_name": "memory",
    "redis_version": "7.0.0",
    "redis_mode": "standalone",
    "run_id": "memory",
    "role": "master",
    "loading": "0",
    "config:maxmemory": "0",
    "config:maxmemory-policy": "noeviction",
    "config:appendonly": "no",
    "config:appendfsync": "no",
    "config:save": "",
}


def wall_clock_ms() -> int:
    """Return the milliseconds since 1970 by the clock of this machine."""
    return time.time_ns() // 1_000_000


class MemoryServer:
    """Be a server in this process; ``connect`` as often as needed, from any thread.

    ``clock_ms`` gives the milliseconds since 1970 for stream ids and for the expiry of keys; a call
    that waits does so in real time. ``go_away`` and ``come_back`` play an outage.
    """

    def __init__(self, *, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._shared = _Shared(Keyspace(clock_ms))

    @property
    def address(self) -> str:
        """Say that this server is not a real one."""
        return ADDRESS

    def connect(self) -> MemoryConnection:
        """Return a new connection."""
        return MemoryConnection(self._shared)

    def go_away(self) -> None:
        """Let every call, also one that waits, raise ``ServerUnavailable`` until ``come_back``; for tests."""
        with self._shared.changed:
            self._shared.away = True
            self._shared.outages += 1
            self._shared.changed.notify_all()

    def come_back(self) -> None:
        """Serve again, with everything that was there before; for tests."""
        with self._shared.changed:
            self._shared.away = False


class MemoryConnection:
    """Be one connection to a ``MemoryServer``; see ``ports.Connection``."""

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared
        self._closed = False

    def read(
        self, after: Mapping[bytes, bytes], *, count: int, block_ms: int | None = None
    ) -> dict[bytes, list[Entry]]:
        """See ``ports.Reader``."""
        assert after, "a read names at least one stream"
        with self._serving() as keyspace:
            return self._wait_for_entries(keyspace, after, count, block_ms or 0)

    def range(
        self, key: bytes, *, start: bytes = b"-", end: bytes = b"+", count: int, newest_first: bool = False
    ) -> list[Entry]:
        """See ``ports.Reader``."""
        with self._serving() as keyspace:
            return keyspace.entries_between(key, start=start, end=end, count=count, newest_first=newest_first)

    def get(self, key: bytes) -> bytes | None:
        """See ``ports.Reader``."""
        with self._serving() as keyspace:
            return keyspace.value(key, bytes)

    def expires_at_ms(self, key: bytes) -> int | None:
        """See ``ports.Reader``."""
        with self._serving() as keyspace:
            return keyspace.expires_at_ms(key)

    def get_fields(self, key: bytes) -> dict[bytes, bytes]:
        """See ``ports.Reader``."""
        with self._serving() as keyspace:
            return dict(keyspace.value(key, dict) or {})

    def stream_state(self, key: bytes) -> StreamState | None:
        """See ``ports.Reader``."""
        with self._serving() as keyspace:
            stream = keyspace.value(key, Stream)
            return None if stream is None else stream.state()

    def write(self, operations: Sequence[Operation]) -> list[Outcome]:
        """See ``ports.Writer``."""
        with self._serving() as keyspace:
            outcomes = [keyspace.carry_out(operation) for operation in operations]
            self._shared.changed.notify_all()
            return outcomes

    def write_together(self, operations: Sequence[Operation]) -> list[Outcome]:
        """See ``ports.Writer``."""
        with self._serving() as keyspace:
            outcomes = keyspace.carry_out_together(operations)
            self._shared.changed.notify_all()
            return outcomes

    def write_if(self, guard: bytes, holds: bytes | None, operations: Sequence[Operation]) -> list[Outcome] | None:
        """See ``ports.Writer``."""
        with self._serving() as keyspace:
            if keyspace.value(guard, bytes) != holds:
                return None
            outcomes = keyspace.carry_out_together(operations)
            self._shared.changed.notify_all()
            return outcomes

    def exchange(self, append: Append, *, inbox: bytes, after: bytes, block_ms: int) -> tuple[bytes, list[Entry]]:
        """See ``ports.Exchanger``."""
        with self._serving() as keyspace:
            question_id = keyspace.append(append)
            self._shared.changed.notify_all()
            answers = self._wait_for_entries(keyspace, {inbox: after}, EXCHANGE_COUNT, block_ms)
            return question_id, answers.get(inbox, [])

    def server_facts(self) -> dict[str, str]:
        """See ``ports.Inspector``."""
        with self._serving():
            return dict(FACTS)

    @property
    def breaks(self) -> int:
        """See ``ports.Connection``."""
        return self._shared.outages

    def close(self) -> None:
        """See ``ports.Connection``."""
        with self._shared.changed:
            self._closed = True
            self._shared.changed.notify_all()

    @contextmanager
    def _serving(self) -> Iterator[Keyspace]:
        """Hold the server for one call."""
        with self._shared.changed:
            if self._closed:
                message = f"the connection to {ADDRESS} is closed"
                raise ClosedError(message)
            self._check_connected()
            yield self._shared.keyspace

    def _check_connected(self) -> None:
        if self._shared.away or self._closed:
            message = f"{ADDRESS} cannot be used for the moment (the connection is gone)"
            raise ServerUnavailable(message)

    def _wait_for_entries(
        self, keyspace: Keyspace, after: Mapping[bytes, bytes], count: int, block_ms: int
    ) -> dict[bytes, list[Entry]]:
        deadline_s = time.monotonic() + block_ms / 1000
        while True:
            found = keyspace.entries_after(after, count)
            left_s = deadline_s - time.monotonic()
            if found or left_s <= 0:
                return found
            self._shared.changed.wait(left_s)
            self._check_connected()


class _Shared:
    """What the connections of one server share."""

    def __init__(self, keyspace: Keyspace) -> None:
        self.keyspace = keyspace
        self.changed = threading.Condition()
        self.away = False
        self.outages = 0
