"""One event as a map, msgpack in ``e`` or JSON in ``j``: what anything that can speak Redis may report."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from token_actor.core.usage import (
    COUNTS,
    DIMENSIONS,
    UNPRICED,
    Event,
    check_count,
    check_exactness,
    check_message_id,
    check_tags,
    cost_to_nanousd,
    seconds_to_ms,
    series_of,
)
from token_actor.errors import BadEntry, InvalidValue

if TYPE_CHECKING:
    from collections.abc import Mapping

EVENT_FIELDS: Final = frozenset(
    (*COUNTS, *DIMENSIONS, "message_id", "timestamp", "cost_usd", "tags", "exactness"),
)


def event_of(fields: Mapping[str, Any]) -> Event:
    """Return the event that a map of the names above describes.

    Raises ``InvalidValue`` naming the field that is wrong, ``BadEntry`` for an unknown field.
    """
    if not fields.keys() <= EVENT_FIELDS:
        unknown = sorted(map(str, fields.keys() - EVENT_FIELDS))
        raise BadEntry("decode", f"unknown field {unknown[0]!r}")
    get = fields.get
    cost = cost_to_nanousd(get("cost_usd"))
    input_tokens, output_tokens, cache_read, cache_write, reasoning = [
        check_count(name, get(name, 0)) for name in COUNTS
    ]
    return Event(
        series_of(fields),
        input_tokens,
        output_tokens,
        cache_read,
        cache_write,
        reasoning,
        cost or 0,
        check_exactness(get("exactness")) | (UNPRICED if cost is None else 0),
        timestamp_to_ms(get("timestamp")),
        check_message_id(get("message_id")),
        check_tags(get("tags")),
    )


def timestamp_to_ms(value: object) -> int | None:
    """Return unix seconds or an ISO 8601 time with a zone as unix milliseconds; ``None`` stays ``None``.

    Raises ``InvalidValue`` naming ``timestamp``.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        return seconds_to_ms("timestamp", value)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise InvalidValue("timestamp", f"must be ISO 8601, not {value[:40]!r}", reason="type") from None
    if moment.tzinfo is None:
        raise InvalidValue("timestamp", "must name its zone, as in 2026-01-31T12:00:00Z", reason="type")
    return seconds_to_ms("timestamp", moment.timestamp())
