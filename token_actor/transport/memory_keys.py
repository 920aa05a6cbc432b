"""The keys of the in-memory server: what its commands do, one at a time, and nothing of threads.

Refusals are said in the words of a real server. Entries are shared with their readers, who do not
change them.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar, assert_never, cast

from token_actor.errors import ServerRefused
from token_actor.transport.memory_refusals import (
    ABORTED,
    ARGUMENTS,
    END_INVALID,
    EXPIRE_INVALID,
    FIELD_NOT_AN_INTEGER,
    ID_EXHAUSTED,
    ID_INVALID,
    ID_NOT_ABOVE,
    ID_ZERO,
    NOT_AN_INTEGER,
    OVERFLOW,
    START_INVALID,
    WRONG_TYPE,
    refusal_to_begin,
)
from token_actor.transport.ports import (
    AddToField,
    Append,
    Delete,
    DeleteEntries,
    DeleteFields,
    Entry,
    Expire,
    Increment,
    Operation,
    Outcome,
    Put,
    PutField,
    StreamState,
    TrimBelow,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Id: TypeAlias = "tuple[int, int]"  # milliseconds and sequence number of a stream id
Kind = TypeVar("Kind")

ID_PART_MAX: Final = 2**64 - 1  # both parts of an id are unsigned 64-bit numbers
ID_MIN: Final = (0, 0)
ID_MAX: Final = (ID_PART_MAX, ID_PART_MAX)
ID_TEXT: Final = re.compile(rb"(\d{1,20})(?:-(\d{1,20}))?")
INTEGER_TEXT: Final = re.compile(rb"0|-?[1-9]\d{0,18}")
INTEGER_MIN: Final = -(2**63)  # integers of the real server are signed 64-bit numbers
INTEGER_MAX: Final = 2**63 - 1


class Keyspace:
    """The keys of a server and what its commands do to them."""

    def __init__(self, clock_ms: Callable[[], int]) -> None:
        self._clock_ms = clock_ms
        self._values: dict[bytes, Stream | bytes | dict[bytes, bytes]] = {}
        self._expire_at_ms: dict[bytes, int] = {}

    def value(self, key: bytes, kind: type[Kind]) -> Kind | None:
        """Return the value of a key unless it has expired; refuse when it is of another kind."""
        expire_at_ms = self._expire_at_ms.get(key)
        if expire_at_ms is not None and self._clock_ms() > expire_at_ms:
            self._forget(key)
        value = self._values.get(key)
        if value is not None and not isinstance(value, kind):
            raise ServerRefused(WRONG_TYPE)
        return value

    def expires_at_ms(self, key: bytes) -> int | None:
        """Return when a key goes; ``None`` when it stays or is not there."""
        return None if self.value(key, object) is None else self._expire_at_ms.get(key)

    def entries_after(self, after: Mapping[bytes, bytes], count: int) -> dict[bytes, list[Entry]]:
        """Return up to ``count`` entries per stream with ids above those given."""
        found = {}
        for key, entry_id in after.items():
            stream = self.value(key, Stream)
            last_read = _parse_id(entry_id)
            if stream is not None and (entries := stream.after(last_read, count)):
                found[key] = entries
        return found

    def entries_between(self, key: bytes, *, start: bytes, end: bytes, count: int, newest_first: bool) -> list[Entry]:
        """Return up to ``count`` entries between two bounds as a range names them."""
        first, last = _parse_start(start), _parse_end(end)
        stream = self.value(key, Stream)
        return [] if stream is None else stream.between(first, last, count, newest_first=newest_first)

    def carry_out(self, operation: Operation) -> Outcome:
        """Return what ``operation`` came to, also when it is refused."""
        try:
            return self._change(operation)
        except ServerRefused as refusal:
            return refusal

    def carry_out_together(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Return what each operation came to; nothing is done when a server would not even begin with one of them."""
        refusals = [refusal_to_begin(operation) for operation in operations]
        if any(refusals):
            return [refusal or ServerRefused(ABORTED) for refusal in refusals]
        return [self.carry_out(operation) for operation in operations]

    def append(self, append: Append) -> bytes:
        """Append an entry, and return its id."""
        if not append.fields or len(append.fields) % 2:
            raise ServerRefused(ARGUMENTS.format("xadd"))
        wanted = None if append.entry_id == b"*" else _parse_id(append.entry_id)
        if wanted == ID_MIN:
            raise ServerRefused(ID_ZERO)
        stream = self.value(append.key, Stream) or Stream()
        entry_id = stream.append(wanted, list(append.fields), now_ms=self._clock_ms())
        if append.length_max is not None:
            stream.keep(append.length_max)
        self._values[append.key] = stream
        return entry_id

    def _change(self, operation: Operation) -> bytes | int | None:  # noqa: C901, PLR0911 - a case and a return per operation
        match operation:
            case Append():
                return self.append(operation)
            case Expire(key=key, ttl_ms=ttl_ms):
                return self._expire(key, ttl_ms)
            case TrimBelow(key=key, entry_id=entry_id):
                lowest = _parse_id(entry_id)
                stream = self.value(key, Stream)
                return 0 if stream is None else stream.drop_below(lowest)
            case DeleteEntries(key=key, entry_ids=entry_ids):
                return self._delete_entries(key, entry_ids)
            case Put():
                return self._put(operation)
            case PutField():
                return self._put_field(operation)
            case AddToField():
                return self._add_to_field(operation)
            case DeleteFields(key=key, fields=fields):
                return self._delete_fields(key, fields)
            case Delete(keys=keys):
                if not keys:
                    raise ServerRefused(ARGUMENTS.format("del"))
                return sum(self.value(key, object) is not None and self._forget(key) for key in keys)
            case Increment(key=key):
                return self._increment(key)
            case _:
                assert_never(operation)

    def _expire(self, key: bytes, ttl_ms: int) -> int:
        if self.value(key, object) is None:
            return 0
        if ttl_ms > 0:
            self._expire_at_ms[key] = self._clock_ms() + ttl_ms
        else:
            self._forget(key)
        return 1

    def _delete_entries(self, key: bytes, entry_ids: Sequence[bytes]) -> int:
        if not entry_ids:
            raise ServerRefused(ARGUMENTS.format("xdel"))
        stream = self.value(key, Stream)
        wanted = [_parse_id(entry_id) for entry_id in entry_ids]
        return 0 if stream is None else sum(stream.drop(entry_id) for entry_id in wanted)

    def _put(self, put: Put) -> bytes | None:
        if put.ttl_ms is not None and put.ttl_ms <= 0:
            raise ServerRefused(EXPIRE_INVALID)
        if self.value(put.key, object) is not None and put.only_if_absent:
            return None
        self._forget(put.key)
        self._values[put.key] = put.value
        if put.ttl_ms is not None:
            self._expire_at_ms[put.key] = self._clock_ms() + put.ttl_ms
        return b"OK"

    def _put_field(self, put: PutField) -> int:
        fields: dict[bytes, bytes] = self.value(put.key, dict) or {}
        if put.field in fields:
            return 0
        fields[put.field] = put.value
        self._values[put.key] = fields
        return 1

    def _add_to_field(self, add: AddToField) -> int:
        amount = _parse_integer(b"%d" % add.amount, otherwise=NOT_AN_INTEGER)
        fields: dict[bytes, bytes] = self.value(add.key, dict) or {}
        total = _sum(_parse_integer(fields.get(add.field, b"0"), otherwise=FIELD_NOT_AN_INTEGER), amount)
        fields[add.field] = b"%d" % total
        self._values[add.key] = fields
        return total

    def _delete_fields(self, key: bytes, names: Sequence[bytes]) -> int:
        if not names:
            raise ServerRefused(ARGUMENTS.format("hdel"))
        fields: dict[bytes, bytes] = self.value(key, dict) or {}
        found = sum(fields.pop(name, None) is not None for name in names)
        if found and not fields:
            self._forget(key)
        return found

    def _increment(self, key: bytes) -> int:
        text = self.value(key, bytes)
        total = _sum(_parse_integer(b"0" if text is None else text, otherwise=NOT_AN_INTEGER), 1)
        self._values[key] = b"%d" % total
        return total

    def _forget(self, key: bytes) -> bool:
        self._expire_at_ms.pop(key, None)
        return self._values.pop(key, None) is not None


class Stream:
    """A stream: ids and entries side by side in ascending order, the trimmed ones before ``_head``.

    Every read is a binary search. Trimming moves ``_head``; the lists are cut once half of them is gone,
    so that a trimmed entry costs a constant on average.
    """

    def __init__(self) -> None:
        self._ids: list[Id] = []
        self._entries: list[Entry] = []
        self._head = 0
        self._last_id: Id = ID_MIN
        self._added = 0

    def append(self, wanted: Id | None, fields: list[bytes], *, now_ms: int) -> bytes:
        """Append an entry under the next id, or the one ``wanted``; return the id."""
        if self._last_id == ID_MAX:
            raise ServerRefused(ID_EXHAUSTED)
        entry_id = max((now_ms, 0), _id_above(self._last_id)) if wanted is None else wanted
        if entry_id <= self._last_id:
            raise ServerRefused(ID_NOT_ABOVE)
        text = b"%d-%d" % entry_id
        self._ids.append(entry_id)
        # A list, as a real server's reply is one: what compares equal here compares equal there.
        self._entries.append(cast("Entry", [text, fields]))
        self._last_id = entry_id
        self._added += 1
        return text

    def after(self, entry_id: Id, count: int) -> list[Entry]:
        """Return up to ``count`` entries with ids above ``entry_id``."""
        position = bisect_right(self._ids, entry_id, self._head)
        return self._entries[position : position + count]

    def between(self, first: Id, last: Id, count: int, *, newest_first: bool) -> list[Entry]:
        """Return up to ``count`` entries with ids from ``first`` to ``last``, both included."""
        low, high = bisect_left(self._ids, first, self._head), bisect_right(self._ids, last, self._head)
        if newest_first:
            return self._entries[max(low, high - count) : high][::-1]
        return self._entries[low : min(high, low + count)]

    def state(self) -> StreamState:
        """Return what a server tells of a stream."""
        return StreamState(
            length=len(self._ids) - self._head,
            last_id=b"%d-%d" % self._last_id,
            first_id=self._entries[self._head][0] if self._head < len(self._ids) else None,
            entries_added=self._added,
        )

    def keep(self, length_max: int) -> None:
        """Drop the oldest entries until ``length_max`` are left."""
        self._move_head(max(self._head, len(self._ids) - length_max))

    def drop_below(self, entry_id: Id) -> int:
        """Drop the entries below ``entry_id``; return how many there were."""
        return self._move_head(bisect_left(self._ids, entry_id, self._head))

    def drop(self, entry_id: Id) -> bool:
        """Drop one entry; return whether it was there."""
        position = bisect_left(self._ids, entry_id, self._head)
        if position == len(self._ids) or self._ids[position] != entry_id:
            return False
        del self._ids[position], self._entries[position]
        self._move_head(self._head)
        return True

    def _move_head(self, head: int) -> int:
        dropped, self._head = head - self._head, head
        if self._head * 2 > len(self._ids):
            del self._ids[: self._head], self._entries[: self._head]
            self._head = 0
        return dropped


def _parse_integer(text: bytes, *, otherwise: str) -> int:
    """Return the number that a text spells; refuse with ``otherwise`` when it spells none."""
    if not INTEGER_TEXT.fullmatch(text) or not INTEGER_MIN <= int(text) <= INTEGER_MAX:
        raise ServerRefused(otherwise)
    return int(text)


def _sum(number: int, amount: int) -> int:
    total = number + amount
    if not INTEGER_MIN <= total <= INTEGER_MAX:
        raise ServerRefused(OVERFLOW)
    return total


def _parse_id(text: bytes, *, missing_part: int = 0) -> Id:
    match = ID_TEXT.fullmatch(text)
    if match is None:
        raise ServerRefused(ID_INVALID)
    entry_id = (int(match[1]), missing_part if match[2] is None else int(match[2]))
    if max(entry_id) > ID_PART_MAX:
        raise ServerRefused(ID_INVALID)
    return entry_id


def _parse_start(text: bytes) -> Id:
    """Return the first id of a range."""
    if text in (b"-", b"+"):
        return ID_MIN if text == b"-" else ID_MAX
    entry_id = _parse_id(text.removeprefix(b"("))
    if not text.startswith(b"("):
        return entry_id
    if entry_id == ID_MAX:
        raise ServerRefused(START_INVALID)
    return _id_above(entry_id)


def _parse_end(text: bytes) -> Id:
    """Return the last id of a range."""
    if text in (b"-", b"+"):
        return ID_MIN if text == b"-" else ID_MAX
    entry_id = _parse_id(text.removeprefix(b"("), missing_part=ID_PART_MAX)
    if not text.startswith(b"("):
        return entry_id
    if entry_id == ID_MIN:
        raise ServerRefused(END_INVALID)
    milliseconds, sequence = entry_id
    return (milliseconds, sequence - 1) if sequence else (milliseconds - 1, ID_PART_MAX)


def _id_above(entry_id: Id) -> Id:
    milliseconds, sequence = entry_id
    return (milliseconds, sequence + 1) if sequence < ID_PART_MAX else (milliseconds + 1, 0)
