"""The servers that the contract runs on, and what its tests say often."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from token_actor.errors import ServerRefused
from token_actor.transport.ports import Append

if TYPE_CHECKING:
    from token_actor.transport.ports import Connection, Connector, Entry, Operation, Outcome

Key: TypeAlias = Callable[[str], bytes]  # names a key of the test that asks

LONG_MS = 30_000  # a wait that no test sits out
JOIN_S = 20.0
WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"
INVALID_ID = "ERR Invalid stream ID specified as stream command argument"
MEMORY, FAKEREDIS, VALKEY = "memory", "fakeredis", "valkey"


@dataclass
class Subject:
    """A server under test, and its connections, which close with the test."""

    name: str
    connector: Connector
    opened: list[Connection] = field(default_factory=list)

    def connect(self) -> Connection:
        """Open one more connection."""
        self.opened.append(self.connector.connect())
        return self.opened[-1]


def one(connection: Connection, operation: Operation) -> Outcome:
    """Carry out one operation."""
    (outcome,) = connection.write([operation])
    return outcome


def append(connection: Connection, key: bytes, *values: bytes) -> list[bytes]:
    """Append one entry per value; return the ids."""
    outcomes = connection.write([Append(key=key, fields=[b"v", value]) for value in values])
    assert all(isinstance(outcome, bytes) for outcome in outcomes)
    return outcomes  # type: ignore[return-value]


def fill(connection: Connection, key: bytes, *entry_ids: bytes) -> None:
    """Append entries with explicit ids."""
    outcomes = connection.write([Append(key=key, fields=[b"v", b"1"], entry_id=entry_id) for entry_id in entry_ids])
    assert outcomes == list(entry_ids)


def ids(entries: list[Entry]) -> list[bytes]:
    """Return the ids of entries."""
    return [entry_id for entry_id, _ in entries]


def refusal(connection: Connection, operation: Operation) -> str:
    """Return the text with which an operation is refused."""
    outcome = one(connection, operation)
    assert isinstance(outcome, ServerRefused)
    assert outcome.code == str(outcome).split(" ", 1)[0]
    return str(outcome)


def wait_until(reached: Callable[[], bool]) -> None:
    """Ask again and again until something has happened."""
    deadline_s = time.monotonic() + JOIN_S
    while not reached():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.001)
