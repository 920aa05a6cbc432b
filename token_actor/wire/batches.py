"""Batches: many events of one producer, as columns, in the field ``b``.

A batch is a msgpack map. Columns are byte strings of little-endian unsigned integers, all of one
width (1, 2, 4 or 8 bytes, which follows from their length and ``n``); one that is absent is all 0.

====== ====================================================================================
``v``  version of this format: 1
``p``  producer: 16 bytes, new for every process
``o``  epoch of the producer: an int
``q``  sequence number of the first event; the others follow without a hole
``n``  number of events, at least 1
``k``  series keys: the seven names in the order of ``usage.DIMENSIONS``, joined by U+001F
``s``  column: which of ``k``
``i`` ``u`` ``r`` ``w`` ``z``  columns: input, output, cache read, cache write, reasoning tokens
``c``  column: cost in nano-USD
``f``  column of bytes: flags, bits 0-1 exactness, bit 2 unpriced; absent: exact and unpriced
``t``  unix milliseconds of the earliest event; absent: when the log took the batch
``d``  column: milliseconds after ``t``
``m``  message ids: a list of strings and nil; absent: none has one
``g``  tags: a list of maps and nil; absent: none has any
====== ====================================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from token_actor.core.columns import Columns, Int64s, Objects, Run, objects
from token_actor.core.dedupe import PRODUCER_BYTES
from token_actor.core.usage import (
    COST_NANOUSD_MAX,
    COUNTS,
    EXACTNESS_MASK,
    TIME_MS_MAX,
    TOKENS_MAX,
    UNPRICED,
    check_message_id,
    check_tags,
)
from token_actor.errors import BadEntry, InvalidValue
from token_actor.wire.codec import pack, peek_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from token_actor.core.usage import Event

BATCH_VERSION: Final = 1
EVENTS_MAX: Final = 1_000  # in one batch: the work that one message can make stays below a few milliseconds
_COUNT_FIELDS: Final = ("i", "u", "r", "w", "z")
LIST_FIELDS: Final = frozenset("kmg")
_FIELDS: Final = frozenset("vpoqnksiurwzcftdmg")
_FRAME_FIELDS: Final = frozenset("vpoqn")
_DTYPES: Final = {1: "<u1", 2: "<u2", 4: "<u4", 8: "<i8"}
_SAFE_ID_LENGTH: Final = 64  # characters; always within the bytes allowed
_KNOWN_FLAGS: Final = np.uint8(EXACTNESS_MASK | UNPRICED)


def encode_batch(events: Sequence[Event], *, producer: bytes, epoch: int, first_seq: int) -> bytes:
    """Return checked events, at least one, as the bytes of a batch."""
    series, *counts, cost, flags, times, message_ids, tags = zip(*events, strict=True)
    assert times.count(None) in {0, len(times)}, "a batch has all of its times or none"
    place_of = {key: place for place, key in enumerate(dict.fromkeys(series))}
    batch: dict[str, Any] = {
        "v": BATCH_VERSION,
        "p": producer,
        "o": epoch,
        "q": first_seq,
        "n": len(events),
        "k": list(place_of),
        "s": _column([place_of[key] for key in series]),
    }
    for field, values in zip((*_COUNT_FIELDS, "c"), (*counts, cost), strict=True):
        if any(values):
            batch[field] = _column(values)
    if flags.count(UNPRICED) != len(flags):
        batch["f"] = bytes(flags)
    if None not in times:
        batch["t"] = min(times)
        batch["d"] = _column([time - batch["t"] for time in times])
    if message_ids.count(None) != len(message_ids):
        batch["m"] = message_ids
    if tags.count(None) != len(tags):
        batch["g"] = tags
    return pack(batch)


def _column(values: Sequence[int]) -> bytes:
    """Return integers as bytes, as narrow as the largest allows."""
    column = np.array(values, dtype=np.int64)
    largest = int(column.max())
    width = 1 if largest < 1 << 8 else 2 if largest < 1 << 16 else 4 if largest < 1 << 32 else 8
    return column.astype(_DTYPES[width]).tobytes()


def decode_batch(batch: dict[str, Any], *, log_ms: int, entry: int) -> Columns:
    """Return the events of a batch that came with ``entry`` at ``log_ms``.

    Raises ``BadEntry`` when it is not a batch. What is wrong with single events is noted in
    ``problems`` of the columns.
    """
    count = _check_frame(batch)
    flags = batch.get("f")
    if flags is not None and (type(flags) is not bytes or len(flags) != count):
        raise BadEntry("decode", "'f' must be one byte per event")
    key_index = _integers(batch, "s", count)
    _check_key_index(key_index, len(batch["k"]))
    columns = Columns(
        keys=batch["k"],
        key_index=key_index,
        counts=np.stack([_integers(batch, field, count) for field in _COUNT_FIELDS]),
        cost=_integers(batch, "c", count),
        flags=np.full(count, UNPRICED, np.uint8) if flags is None else np.frombuffer(flags, np.uint8) & _KNOWN_FLAGS,
        event_ms=np.full(count, log_ms) if batch.get("t") is None else _times(batch["t"], _integers(batch, "d", count)),
        log_ms=np.full(count, log_ms),
        entry=np.full(count, entry),
        runs=[Run(batch["p"], batch["o"], batch["q"], 0, count)],
    )
    _check_ranges(columns)
    columns.message_ids = _message_ids(columns, batch.get("m"))
    columns.tags = _checked(columns, batch.get("g"), check_tags)
    return columns


def _check_frame(batch: dict[str, Any]) -> int:
    """Return the number of events. Raises ``BadEntry`` when the frame of the batch is wrong."""
    if batch.get("v") != BATCH_VERSION:
        raise BadEntry("version", f"batch version {batch.get('v')!r}; this program reads {BATCH_VERSION}")
    if not batch.keys() <= _FIELDS:
        raise BadEntry("decode", f"unknown field {min(batch.keys() - _FIELDS)!r}")
    _check_numbers(batch)
    keys = batch.get("k")
    if type(keys) is not list or not keys or not set(map(type, keys)) == {str}:
        raise BadEntry("decode", "'k' must be a list of strings")
    start = batch.get("t")
    if start is not None and (type(start) is not int or abs(start) > TIME_MS_MAX):
        raise BadEntry("decode", "'t' must be unix milliseconds")
    count: int = batch["n"]
    return count


def _check_numbers(batch: Mapping[str, Any]) -> None:
    """Refuse a batch that does not say whose events it has, and which numbers."""
    producer = batch.get("p")
    if type(producer) is not bytes or len(producer) != PRODUCER_BYTES:
        raise BadEntry("decode", f"'p' must be {PRODUCER_BYTES} bytes")
    for field, least, most in (("o", 0, 2**31), ("q", 0, 2**62), ("n", 1, EVENTS_MAX)):
        value = batch.get(field)
        if type(value) is not int or not least <= value <= most:
            raise BadEntry("decode", f"{field!r} must be an int from {least} to {most}")


def numbers_used_by(data: bytes) -> Run | None:
    """Return the sequence numbers that a batch which cannot be counted has used up.

    ``None`` when it does not say them, or has another version: what its fields mean then is not known
    here, and after an upgrade it may be counted, so its events *are* missing until then.
    """
    frame = peek_batch(data, scalars=_FRAME_FIELDS)
    if frame.get("v") != BATCH_VERSION:
        return None
    try:
        _check_numbers(frame)
    except BadEntry:
        return None
    return Run(frame["p"], frame["o"], frame["q"], 0, frame["n"])


def _integers(batch: dict[str, Any], field: str, count: int) -> Int64s:
    data = batch.get(field)
    if data is None:
        return np.zeros(count, dtype=np.int64)
    if type(data) is not bytes or len(data) % count or len(data) // count not in _DTYPES:
        raise BadEntry("decode", f"{field!r} must be {count} integers of 1, 2, 4 or 8 bytes")
    return np.frombuffer(data, dtype=_DTYPES[len(data) // count]).astype(np.int64)


def _times(start_ms: int, after_ms: Int64s) -> Int64s:
    """Return when the events were; a time that no clock can show is as far as times go."""
    if int(after_ms.min()) < 0:
        raise BadEntry("decode", "'d' must be milliseconds after 't', which is the earliest")
    return start_ms + np.minimum(after_ms, TIME_MS_MAX - start_ms)


def _check_key_index(key_index: Int64s, keys: int) -> None:
    """Refuse an index into nothing, and a key without an event, which would be a series of nothing."""
    in_range = int(key_index.min()) >= 0 and int(key_index.max()) < keys
    if not in_range or not np.bincount(key_index, minlength=keys).all():
        raise BadEntry("decode", "'s' must use every key of 'k', and nothing else")


def _check_ranges(columns: Columns) -> None:
    for name, values, most in (
        *zip(COUNTS, columns.counts, [TOKENS_MAX] * len(COUNTS), strict=True),
        ("cost_nanousd", columns.cost, COST_NANOUSD_MAX),
    ):
        wrong = np.flatnonzero((values < 0) | (values > most))
        for event in wrong.tolist():
            columns.problems.setdefault(event, InvalidValue(name, f"must be between 0 and {most}, not {values[event]}"))
    for event in np.flatnonzero((columns.cost != 0) & (columns.flags & UNPRICED != 0)).tolist():
        columns.problems.setdefault(event, InvalidValue("cost_nanousd", "must be 0 where 'f' says unpriced"))


def _message_ids(columns: Columns, values: Any) -> Objects | None:  # noqa: ANN401 - as it came
    if type(values) is list and len(values) == len(columns) and set(map(type, values)) == {str}:
        lengths = set(map(len, values))
        safe = 0 not in lengths and max(lengths) <= _SAFE_ID_LENGTH and "".join(values).isascii()
        if safe:  # the everyday case, checked all at once
            return objects(values)
    return _checked(columns, values, check_message_id)


def _checked(columns: Columns, values: Any, check: Callable[[object], Any]) -> Objects | None:  # noqa: ANN401
    """Return ``values`` as an object column, noting as problems the ones that ``check`` refuses."""
    if values is None:
        return None
    if type(values) is not list or len(values) != len(columns):
        raise BadEntry("decode", "'m' and 'g' must be lists with one item per event")
    for event, value in enumerate(values):
        try:
            values[event] = check(value)
        except InvalidValue as problem:
            columns.problems.setdefault(event, problem)
            values[event] = None
    return objects(values)
