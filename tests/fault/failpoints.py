"""Failpoints: a connector that ends or pauses this process at a named write, so that no failpoint is in the product.

A write is named by its operation and the kind of its key: ``Put:chunk``, ``Append:snapshots``,
``TrimBelow:log``, ``DeleteEntries:snapshots``, ``Delete:chunk``, ``Append:dead``, ``Expire:leader``;
``snapshot`` is each write that belongs to one.
"""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from token_actor.transport.ports import Connection, Connector, Operation, Outcome
SNAPSHOT_WRITES: Final = {
    "Put:chunk",
    "Append:snapshots",
    "DeleteEntries:snapshots",
    "Delete:chunk",
    "TrimBelow:log",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failpoint:
    """Say where: ``before`` or ``after`` the ``nth`` write of a name (1 is the first), and what happens there.

    ``guarded`` is in the middle of a guarded write: the guard was looked at, and nothing is written yet.
    """

    write: str
    nth: int = 1
    when: Literal["before", "guarded", "after"] = "before"
    action: Literal["kill", "stop"] = "kill"

    def is_about(self, name: str) -> bool:
        """Tell whether a write of that name counts."""
        return name == self.write or (self.write == "snapshot" and name in SNAPSHOT_WRITES)

    def reach(self) -> None:
        """Be at the failpoint: end or pause this process, here and not an instruction later.

        A signal to the whole process might be taken by another thread, and this one go on for a while.
        """
        number = signal.SIGKILL if self.action == "kill" else signal.SIGSTOP
        signal.pthread_kill(threading.get_ident(), number)


def name_of(operation: Operation) -> str:
    """Return what a write is called."""
    key = operation.keys[0] if hasattr(operation, "keys") else operation.key
    kind = key.partition(b"}:")[2].partition(b":")[0].decode() or "meta"
    return f"{type(operation).__name__}:{kind}"


class FailingConnector:
    """Connect as another connector does, to connections that reach a failpoint."""

    def __init__(self, connector: Connector, failpoint: Failpoint) -> None:
        """Count writes over all connections made here."""
        self.address = connector.address
        self.failpoint = failpoint
        self.seen = 0
        self._connector = connector

    def connect(self) -> Connection:
        """Return a connection with the failpoint in it."""
        return _FailingConnection(self._connector.connect(), self)


class _FailingConnection:
    """Pass everything on, and reach the failpoint at the write it is about."""

    def __init__(self, connection: Connection, owner: FailingConnector) -> None:
        self._connection = connection
        self._owner = owner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def write(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Write as asked; in two parts when the failpoint lies between two operations."""
        place = self._place(operations)
        if place is None:
            return self._connection.write(operations)
        cut = place if self._owner.failpoint.when == "before" else place + 1
        outcomes = self._connection.write(operations[:cut])
        self._owner.failpoint.reach()
        return outcomes + self._connection.write(operations[cut:])  # a paused process goes on here

    def write_if(self, guard: bytes, holds: bytes | None, operations: Sequence[Operation]) -> list[Outcome] | None:
        """Write all or nothing as asked, with the failpoint before or after it."""
        place = self._place(operations)
        if place is not None and self._owner.failpoint.when == "before":
            self._owner.failpoint.reach()
        if place is not None and self._owner.failpoint.when == "guarded":
            self._reach_before_it_is_done()
        outcomes = self._connection.write_if(guard, holds, operations)
        if place is not None and (self._owner.failpoint.when == "after" or self._is_still_to_reach()):
            self._owner.failpoint.reach()
        return outcomes

    def _reach_before_it_is_done(self) -> None:
        """Reach the failpoint between the look at the guard and what depends on it."""
        connection: Any = self._connection
        original = connection._conversation

        def conversation(*commands: Any) -> Any:
            if commands[0] == (b"MULTI",):
                del connection._conversation
                self._owner.failpoint.reach()
            return original(*commands)

        connection._conversation = conversation

    def _is_still_to_reach(self) -> bool:
        """Tell whether there was nothing between a look at the guard and the write: then it is reached after it."""
        return vars(self._connection).pop("_conversation", None) is not None

    def _place(self, operations: Sequence[Operation]) -> int | None:
        for place, operation in enumerate(operations):
            if self._owner.failpoint.is_about(name_of(operation)):
                self._owner.seen += 1
                if self._owner.seen == self._owner.failpoint.nth:
                    return place
        return None
