"""One read of the log, decoded: columns and commands in log order, and what cannot be decoded.

Entries between two commands become one ``Columns``, whatever their form, so that the ledger works
on whole reads. The order of the log is kept, because the first of two equal ids wins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from token_actor.core.columns import Columns, Rejection, columns_of, joined
from token_actor.errors import BadEntry, InvalidValue
from token_actor.wire.batches import LIST_FIELDS, decode_batch, numbers_used_by
from token_actor.wire.clock import CLOCK_FIELD, ClockEntry
from token_actor.wire.codec import unpack_batch, unpack_json, unpack_message
from token_actor.wire.entries import log_ms_of
from token_actor.wire.events import event_of
from token_actor.wire.messages import BATCH_FIELD, COMMAND_FIELD, EVENT_FIELD, JSON_FIELD, decode_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from token_actor.core.columns import Run
    from token_actor.core.commands import Command
    from token_actor.core.usage import Event
    from token_actor.wire.entries import Entry

_FIELDS_PER_ENTRY: Final = 2
LEFT_OPEN: Final = frozenset({"version", "internal"})  # reasons an upgrade may mend: no numbers are used up by these
EVENTS_PER_READ: Final = 32_768  # decoded at a time, whatever the entries claim to hold: about 5 MB of columns


@dataclass(frozen=True, slots=True)
class PlacedCommand:
    """Hold a command, the place of its entry in the read, and its log time."""

    command: Command
    entry: int
    log_ms: int


@dataclass(frozen=True, slots=True)
class PlacedClock:
    """Hold what a leader says the time is, the place of its entry in the read, and what the id of that says."""

    clock: ClockEntry
    entry: int
    id_ms: int


@dataclass(frozen=True, slots=True)
class RefusedBatch:
    """Hold why a batch cannot be counted at all, and the sequence numbers it has used up.

    It is a step like any other: whether a number was seen before depends on the place in the log.
    """

    rejection: Rejection
    numbers: Run


@dataclass(slots=True)
class DecodedRead:
    """Hold a read: ``steps`` to apply in order, and what could not be decoded and has no place among them.

    ``entries`` is how many entries were taken, ``events`` how many events they hold.
    """

    entries: int = 0
    events: int = 0
    steps: list[Columns | PlacedCommand | PlacedClock | RefusedBatch] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)


class _Segment:
    """Collect the events between two commands."""

    def __init__(self) -> None:
        self._parts: list[Columns] = []
        self._singles: list[Event] = []
        self._log_ms: list[int] = []
        self._entries: list[int] = []

    def add_single(self, event: Event, log_ms: int, entry: int) -> None:
        self._singles.append(event)
        self._log_ms.append(log_ms)
        self._entries.append(entry)

    def add_batch(self, columns: Columns) -> None:
        self._close_singles()
        self._parts.append(columns)

    def _close_singles(self) -> None:
        if self._singles:
            self._parts.append(columns_of(self._singles, log_ms=self._log_ms, entries=self._entries))
            self._singles, self._log_ms, self._entries = [], [], []

    def closed(self) -> list[Columns]:
        """Return everything collected as one ``Columns``, or nothing, and start anew."""
        self._close_singles()
        parts, self._parts = self._parts, []
        return [joined(parts)] if parts else []


def decode_read(entries: Sequence[Entry]) -> DecodedRead:
    """Return what the entries of a read say, as many of them as hold about ``EVENTS_PER_READ`` events.

    Whatever they hold, this does not raise.
    """
    read = DecodedRead()
    segment = _Segment()
    for place, (entry_id, fields) in enumerate(entries):
        if read.events >= EVENTS_PER_READ:
            break
        read.entries += 1
        read.events += 1
        try:
            _take(read, segment, place, log_ms_of(entry_id), *_only_field(fields))
        except BadEntry as bad:
            _refuse(read, segment, Rejection(place, None, bad.reason, bad.detail), fields)
        except InvalidValue as problem:
            read.rejections.append(Rejection(place, None, problem.reason, str(problem)))
        except Exception as fault:  # noqa: BLE001 - a fault of ours in one entry must not stop the log for ever
            read.rejections.append(Rejection(place, None, "internal", repr(fault)))
    read.steps += segment.closed()
    return read


def _take(read: DecodedRead, segment: _Segment, place: int, log_ms: int, name: bytes, value: bytes) -> None:
    """Decode one entry. Raises ``BadEntry``, ``InvalidValue``."""
    if name == EVENT_FIELD:
        segment.add_single(event_of(unpack_message(value, any_text=True)), log_ms, place)
    elif name == BATCH_FIELD:
        columns = decode_batch(unpack_batch(value, lists=LIST_FIELDS), log_ms=log_ms, entry=place)
        read.events += len(columns) - 1
        segment.add_batch(columns)
    elif name == JSON_FIELD:
        segment.add_single(event_of(unpack_json(value)), log_ms, place)
    elif name == COMMAND_FIELD:
        command = decode_command(value)
        read.steps += [*segment.closed(), PlacedCommand(command, place, log_ms)]
    elif name == CLOCK_FIELD:
        clock = ClockEntry.decode(value)
        read.steps += [*segment.closed(), PlacedClock(clock, place, log_ms)]
    else:
        raise BadEntry("decode", f"unknown field name {name[:40]!r}")


def _refuse(read: DecodedRead, segment: _Segment, refusal: Rejection, fields: Sequence[bytes]) -> None:
    """Note that an entry is refused, at its place among the steps if it has used up sequence numbers."""
    single = len(fields) == _FIELDS_PER_ENTRY and fields[0] == BATCH_FIELD
    numbers = numbers_used_by(fields[1]) if single else None
    if numbers is None:
        read.rejections.append(refusal)
    else:
        read.steps += [*segment.closed(), RefusedBatch(refusal, numbers)]


def _only_field(fields: Sequence[bytes]) -> tuple[bytes, bytes]:
    if len(fields) != _FIELDS_PER_ENTRY:
        raise BadEntry("decode", f"must have one field, not {len(fields) // 2}")
    return fields[0], fields[1]
