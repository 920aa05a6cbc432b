"""From the keywords of ``record`` to an event: the same checks and names for every face."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Final

from token_actor.core.usage import (
    DIMENSIONS,
    UNPRICED,
    Event,
    check_count,
    check_exactness,
    check_message_id,
    check_tags,
    cost_to_nanousd,
    series_of,
)
from token_actor.errors import InvalidValue
from token_actor.wire.events import timestamp_to_ms

if TYPE_CHECKING:
    from collections.abc import Mapping

_KNOWN: Final = frozenset(DIMENSIONS)


def make_event(  # noqa: PLR0913 - one keyword for each thing known about a call
    names: Mapping[str, str],
    *,
    input_tokens: int = 0,
    output_tokens: int = 0,
    cache_read_tokens: int = 0,
    cache_write_tokens: int = 0,
    reasoning_tokens: int = 0,
    message_id: str | None = None,
    timestamp: float | str | datetime | None = None,
    cost_usd: object = None,
    tags: Mapping[str, str] | None = None,
    exactness: str | None = None,
    **dimensions: str | None,
) -> Event:
    """Return the event of one call; ``names`` are the dimensions it does not name itself.

    ``timestamp`` is unix seconds, ISO 8601 with a zone or an aware datetime; ``None`` means now.
    ``cost_usd`` is a decimal string or a number; ``None`` means that nobody knows the price. Raises
    ``InvalidValue`` naming the argument.
    """
    cost = cost_to_nanousd(cost_usd)
    if isinstance(timestamp, datetime):
        timestamp = timestamp.isoformat()
    return Event(
        _series(names, dimensions),
        check_count("input_tokens", input_tokens),
        check_count("output_tokens", output_tokens),
        check_count("cache_read_tokens", cache_read_tokens),
        check_count("cache_write_tokens", cache_write_tokens),
        check_count("reasoning_tokens", reasoning_tokens),
        cost or 0,
        check_exactness(exactness) | (UNPRICED if cost is None else 0),
        int(time.time() * 1000) if timestamp is None else timestamp_to_ms(timestamp),
        check_message_id(message_id),
        check_tags(dict(tags) if isinstance(tags, dict) else tags),  # ours: the caller may change his own afterwards
    )


def _series(names: Mapping[str, str], dimensions: Mapping[str, str | None]) -> str:
    merged = {**names, **{dimension: name for dimension, name in dimensions.items() if name is not None}}
    if not merged.keys() <= _KNOWN:
        raise InvalidValue(min(merged.keys() - _KNOWN), f"is not a dimension; there are {', '.join(DIMENSIONS)}")
    return series_of(merged)
