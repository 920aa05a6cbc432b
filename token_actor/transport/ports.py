"""What the rest of the package needs of a server: four small ports, and nothing of redis.

A ``Connector`` opens ``Connection`` objects. One connection belongs to one thread at a time; only
``close`` may come from another thread. Keys, fields and ids are bytes. Nothing here retries: whoever
knows whether a command may be repeated does that.

Every method raises

* ``ServerUnavailable`` when the connection cannot be made or breaks, or the server says that it
  cannot serve for the moment (it still loads its data, say). The outcome of the command is then
  unknown, and the next call connects anew.
* ``ServerRefused`` when the server answers with an error. So it does when it does not let this
  client in: ``code`` is then ``WRONGPASS``, ``NOAUTH`` or ``NOPERM``.
* ``ClosedError`` after ``close()``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from token_actor.wire.entries import Entry as Entry  # noqa: PLC0414, TC001 - part of the ports' vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from token_actor.errors import ServerRefused

Outcome: TypeAlias = "bytes | int | ServerRefused | None"  # what one operation of a write came to

FIRST = b"0-0"  # reads after this id start with the oldest entry
EXCHANGE_COUNT = 1_024  # answers one exchange takes; what is more stays in the inbox for the next call


@dataclass(frozen=True, slots=True, kw_only=True)
class Append:
    """Append one entry to a stream.

    ``entry_id`` is ``b"*"`` for the server's choice, else an explicit id, which the server refuses
    when it is not above the last one. ``length_max`` bounds the stream approximately, dropping the
    oldest; ``None`` means unbounded. Outcome: the id.
    """

    key: bytes
    fields: Sequence[bytes]
    entry_id: bytes = b"*"
    length_max: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expire:
    """Let a key go after ``ttl_ms`` milliseconds from now. Outcome: 1, or 0 when there is no key."""

    key: bytes
    ttl_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimBelow:
    """Drop the entries of a stream with an id below ``entry_id``, exactly. Outcome: how many went."""

    key: bytes
    entry_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteEntries:
    """Delete single entries of a stream. Outcome: how many were there."""

    key: bytes
    entry_ids: Sequence[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Set a string key. Outcome: ``b"OK"``, or ``None`` when ``only_if_absent`` and it was there.

    ``ttl_ms`` ``None`` means it stays.
    """

    key: bytes
    value: bytes
    ttl_ms: int | None = None
    only_if_absent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PutField:
    """Set a field of a hash if it is absent. Outcome: 1 when set, 0 when it was there."""

    key: bytes
    field: bytes
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AddToField:
    """Add to an integer in a field of a hash, which is 0 when it is absent. Outcome: its new value."""

    key: bytes
    field: bytes
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteFields:
    """Delete fields of a hash. Outcome: how many were there."""

    key: bytes
    fields: Sequence[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Delete keys. Outcome: how many were there."""

    keys: Sequence[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Increment:
    """Add one to an integer key. Outcome: its new value."""

    key: bytes


Operation: TypeAlias = (
    Append | Expire | TrimBelow | DeleteEntries | Put | PutField | AddToField | DeleteFields | Delete | Increment
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamState:
    """Hold what the server knows of a stream.

    ``entries_added`` counts every entry ever appended; ``first_id`` is ``None`` when it is empty.
    """

    length: int
    last_id: bytes
    first_id: bytes | None
    entries_added: int


class Reader(Protocol):
    """Read streams and keys.

    An entry is a pair to unpack, and not to change: a server's reply is passed on as it was parsed, so
    the pair may be a list of two.
    """

    def read(
        self, after: Mapping[bytes, bytes], *, count: int, block_ms: int | None = None
    ) -> dict[bytes, list[Entry]]:
        """Return up to ``count`` entries per stream with ids above those given; no key for none.

        Names at least one stream. Waits up to ``block_ms`` milliseconds for the first entry; ``None``
        and 0 do not wait.
        """

    def range(
        self, key: bytes, *, start: bytes = b"-", end: bytes = b"+", count: int, newest_first: bool = False
    ) -> list[Entry]:
        """Return up to ``count`` entries of one stream between two ids (``(`` excludes one)."""

    def get(self, key: bytes) -> bytes | None:
        """Return a string key, or ``None``."""

    def expires_at_ms(self, key: bytes) -> int | None:
        """Return when a key goes, in ms since 1970 by the server's clock; ``None`` when it stays or is not there."""

    def get_fields(self, key: bytes) -> dict[bytes, bytes]:
        """Return a hash; empty when there is none."""

    def stream_state(self, key: bytes) -> StreamState | None:
        """Return what the server knows of a stream, or ``None`` when there is none."""


class Writer(Protocol):
    """Change streams and keys."""

    def write(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Carry out ``operations`` in order, in one round trip; return the outcome of each.

        A refused operation is a ``ServerRefused`` *in the list* and does not stop the others; it is
        not a transaction.
        """

    def write_together(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Carry out ``operations``, at least one, with nothing of anybody else's in between, in one round trip.

        Outcomes are those of ``write_if``.
        """

    def write_if(self, guard: bytes, holds: bytes | None, operations: Sequence[Operation]) -> list[Outcome] | None:
        """Carry out ``operations`` at once if the string key ``guard`` holds ``holds``; else return ``None``.

        ``holds`` ``None`` means that there is no such key. Nobody can change or drop the key in between.
        Outcomes are those of ``write``, but when the server will not even begin with one of them (it is
        full, say), nothing is done, and every outcome is a ``ServerRefused``.
        """


class Exchanger(Protocol):
    """Ask and wait for the answer in one round trip."""

    def exchange(self, append: Append, *, inbox: bytes, after: bytes, block_ms: int) -> tuple[bytes, list[Entry]]:
        """Append a question and read ``inbox`` after an id, sent in one write.

        Waits up to ``block_ms`` milliseconds for entries of the inbox; 0 does not wait. Returns the
        id of the question and the entries, none when nothing came in time. A refused question is
        raised at once; so is an inbox that cannot be read, and then the question has been asked.
        """


class Inspector(Protocol):
    """Look at the server itself."""

    def server_facts(self) -> dict[str, str]:
        """Return the server's INFO fields, and the CONFIG settings it lets us see.

        Settings have the prefix ``config:`` (``config:maxmemory-policy``); one that may not be read
        is absent.
        """


class Connection(Reader, Writer, Exchanger, Inspector, Protocol):
    """Be one connection to the server, for one thread at a time."""

    @property
    def breaks(self) -> int:
        """Return how often it was lost or left so far: after that there may be another server on the other side."""

    def close(self) -> None:
        """Let go of the server; a call that waits in another thread ends with ``ServerUnavailable``.

        Closing twice is fine.
        """


class Connector(Protocol):
    """Open connections to one server."""

    @property
    def address(self) -> str:
        """Say which server this is, without a password."""

    def connect(self) -> Connection:
        """Return a new connection; it connects on first use."""
