"""Small makers of events, columns and log entries, for tests that would drown in them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import HealthCheck, settings

from token_actor.core.columns import Columns, columns_of
from token_actor.core.commands import Command
from token_actor.core.queries import answer
from token_actor.core.snapshot import Capture
from token_actor.core.usage import COUNTS, DIMENSIONS, SEPARATOR, UNPRICED, Event, series_key
from token_actor.wire.batches import encode_batch
from token_actor.wire.clock import ClockEntry
from token_actor.wire.codec import pack, pack_tree, unpack_trees
from token_actor.wire.messages import encode_command

if TYPE_CHECKING:
    from token_actor.core.ledger import Ledger

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
START_MS = 19_675 * DAY_MS  # 2023-11-14 00:00 UTC: the first moment of a minute, an hour and a day
PRODUCER = b"producer-0123456"
OTHER_PRODUCER = b"another-01234567"


def examples(count: int) -> settings:
    """Return settings for a property: the same examples on every run, unless MORE_EXAMPLES asks for other and more."""
    factor = int(os.environ.get("MORE_EXAMPLES", "1"))
    return settings(
        max_examples=count * factor,
        derandomize=factor == 1,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


def event(
    input_tokens: int = 0,
    output_tokens: int = 0,
    *,
    at_ms: int | None = None,
    message_id: str | None = None,
    flags: int = UNPRICED,
    cost_nanousd: int = 0,
    tags: dict[str, str] | None = None,
    counts: tuple[int, int, int] = (0, 0, 0),
    **names: str | None,
) -> Event:
    """Return an event; ``counts`` are cache read, cache write and reasoning tokens."""
    kinds = (input_tokens, output_tokens, *counts)
    return Event(series_key(**names), *kinds, cost_nanousd, flags, at_ms, message_id, tags)


def columns(*events: Event, log_ms: int = START_MS) -> Columns:
    """Return events as one read of single entries, all of one log time."""
    return columns_of(events, log_ms=[log_ms] * len(events), entries=list(range(len(events))))


def apply(ledger: Ledger, *events: Event, log_ms: int = START_MS) -> list[tuple[str, str]]:
    """Count events; return reason and detail of those that cannot be counted."""
    return [(rejection.reason, rejection.detail) for rejection in ledger.apply(columns(*events, log_ms=log_ms))]


def tell(ledger: Ledger, *times_ms: int) -> None:
    """Let a leader tell a ledger what time it is, so that what comes next is no leap."""
    for time_ms in times_ms:
        ledger.tell(time_ms, now_ms=time_ms, epoch=1)


def clock_entry(now_ms: int, *, epoch: int = 1, at_ms: int = START_MS, seq: int = 0) -> tuple[bytes, list[bytes]]:
    """Return the log entry in which a leader says what time it is."""
    return entry(ClockEntry(now_ms, epoch).encode(), b"t", at_ms=at_ms, seq=seq)


def ask(ledger: Ledger, kind: str, now_ms: int = 0, **arguments: Any) -> dict[str, Any]:
    """Ask a ledger."""
    return answer(ledger, kind, arguments, now_ms)


def total(ledger: Ledger, counter: str = "input_tokens") -> int:
    """Return the total of one counter."""
    return ledger.total()[counter]


def entry(value: bytes, name: bytes = b"b", *, at_ms: int = START_MS, seq: int = 0) -> tuple[bytes, list[bytes]]:
    """Return a log entry with one field."""
    return b"%d-%d" % (at_ms, seq), [name, value]


def batch_entry(
    *events: Event, at_ms: int = START_MS, seq: int = 0, producer: bytes = PRODUCER, epoch: int = 0, first_seq: int = 0
) -> tuple[bytes, list[bytes]]:
    """Return the log entry of a batch."""
    data = encode_batch(events, producer=producer, epoch=epoch, first_seq=first_seq)
    return entry(data, b"b", at_ms=at_ms, seq=seq)


def single_entry(at_ms: int = START_MS, seq: int = 0, **fields: Any) -> tuple[bytes, list[bytes]]:
    """Return the log entry of one event in msgpack."""
    return entry(pack(fields), b"e", at_ms=at_ms, seq=seq)


def json_entry(at_ms: int = START_MS, seq: int = 0, **fields: Any) -> tuple[bytes, list[bytes]]:
    """Return the log entry of one event in JSON."""
    return entry(json.dumps(fields).encode(), b"j", at_ms=at_ms, seq=seq)


def command_entry(
    operation: str,
    arguments: dict[str, Any] | None = None,
    *,
    event: dict[str, Any] | None = None,
    request_id: str = "1",
    at_ms: int = START_MS,
    seq: int = 0,
) -> tuple[bytes, list[bytes]]:
    """Return the log entry of a command."""
    command = Command(operation=operation, request_id=request_id, client="c", arguments=arguments or {})
    return entry(encode_command(command, event), b"c", at_ms=at_ms, seq=seq)


def fields_of(event: Event) -> dict[str, Any]:
    """Return an event as the map that means it, as far as the tests need: no cost, no tags, exact."""
    names = dict(zip(DIMENSIONS, event.series.split(SEPARATOR), strict=True))
    fields: dict[str, Any] = {name: text for name, text in names.items() if text}
    fields.update(zip(COUNTS, event[1:6], strict=True))
    if event.timestamp_ms is not None:
        fields["timestamp"] = event.timestamp_ms / 1000
    if event.message_id is not None:
        fields["message_id"] = event.message_id
    return fields


def plain(value: Any) -> Any:
    """Return a tree with its arrays as (type, shape, lists), so that ``==`` compares all of it exactly."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tolist())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def state_of(ledger: Ledger) -> dict[str, list[Any]]:
    """Return the trees of every segment of a ledger."""
    return {segment.name: list(segment.make()) for segment in Capture(ledger).segments()}


def packed(state: dict[str, list[Any]]) -> dict[str, bytes]:
    """Return the bytes of every segment, as a snapshot holds them."""
    return {name: b"".join(map(pack_tree, trees)) for name, trees in state.items()}


def travelled(state: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return segments as they come back from the server."""
    return {name: unpack_trees(data) for name, data in packed(state).items()}
