"""The formulas of one session: usage, overflow, trend, rates.

Rules of this file: every function is a pure formula, and no figure of a session is computed
anywhere else. The in-process ``TokenManager`` and the fleet's ledger only collect the figures; both
ask here for the answers, so they cannot disagree.

Tokens of the context window are ``input + output``: what a conversation carries along. The *total*
of one request is all four kinds, cache reads and writes included: what it made the provider handle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypedDict

from token_actor.core.usage import TOKENS_MAX, check_count
from token_actor.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Sequence

TREND_REQUESTS: Final = 6  # the last three are compared with the three before
PCT_MAX: Final = 100.0


class Analytics(TypedDict):
    """The answers about one session, in the order of the public contract.

    ``total_tokens`` is input and output, ``total_tokens_with_cache`` all four kinds.
    """

    total_requests: int
    total_input_tokens: int
    total_output_tokens: int
    total_cache_read_tokens: int
    total_cache_write_tokens: int
    total_tokens: int
    avg_input_per_request: float
    avg_output_per_request: float
    avg_total_per_request: float
    context_usage_pct: float
    context_window_limit: int
    uptime_seconds: float
    requests_per_minute: float
    tokens_per_minute: float
    peak_usage_pct: float
    current_history_size: int
    max_history_size: int
    trend: str
    overflow_warning_threshold: float
    total_tokens_with_cache: int


class HistoryEntry(TypedDict):
    """One request in the history of a session; ``total_tokens`` is all four kinds.

    The cumulative counts and the usage are those just after the request.
    """

    timestamp: float
    datetime: str
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    total_tokens: int
    message_id: str | None
    cumulative_input: int
    cumulative_output: int
    context_usage_pct: float


HISTORY_COLUMNS: Final = tuple(HistoryEntry.__annotations__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFigures:
    """Hold what a session has used so far.

    ``peak_tokens`` is the highest ``input_tokens + output_tokens`` ever seen. ``recent_totals``
    are the totals (all four kinds) of the last requests, oldest first, at most
    ``TREND_REQUESTS``. ``uptime_s`` is seconds since the session started or was reset.
    """

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    peak_tokens: int = 0
    uptime_s: float = 0.0
    recent_totals: Sequence[int] = ()
    current_history_size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRules:
    """Hold what a session is measured against.

    ``context_window_limit`` is tokens, ``overflow_warning_threshold`` per cent of them,
    ``history_size`` entries; 0 keeps no history. Raises ``InvalidValue`` naming the rule when the
    limit is not above 0 or not finite, the threshold is outside 0 to 100, or the size is not an int of at least 0.
    """

    context_window_limit: int = 200_000
    overflow_warning_threshold: float = 80.0
    history_size: int = 100

    def __post_init__(self) -> None:
        """Refuse rules that nothing can be measured against."""
        _check_limit(self.context_window_limit)
        threshold = check_number("overflow_warning_threshold", self.overflow_warning_threshold)
        if not 0 <= threshold <= PCT_MAX:
            raise InvalidValue("overflow_warning_threshold", f"must be between 0 and 100, not {threshold}")
        check_count("history_size", self.history_size)


def check_number(field: str, value: object) -> int | float:
    """Return ``value`` if it is a number.

    Raises ``InvalidValue`` naming ``field`` when it is a bool, NaN, or anything but an int or a float.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidValue(field, f"must be a number, not {type(value).__name__}", reason="type")
    if isinstance(value, float) and math.isnan(value):
        raise InvalidValue(field, "must be a number, not NaN", reason="type")
    return value


def context_usage_pct(input_tokens: int, output_tokens: int, context_window_limit: int) -> float:
    """Return how much of the context window is used, in per cent, unrounded; it may exceed 100."""
    return (input_tokens + output_tokens) / context_window_limit * 100


def predict_overflow(used_tokens: int, estimated_tokens: float, context_window_limit: int) -> tuple[bool, float]:
    """Return whether ``estimated_tokens`` more would overflow the window, and the usage in per cent then.

    Filling the window to the last token is no overflow. An estimate may be a fraction. Raises
    ``InvalidValue`` naming the argument when the estimate is negative, above 10**12, or no number,
    or when the limit is not above 0.
    """
    _check_limit(context_window_limit)
    if not 0 <= check_number("estimated_tokens", estimated_tokens) <= TOKENS_MAX:
        raise InvalidValue("estimated_tokens", f"must be between 0 and {TOKENS_MAX}, not {estimated_tokens}")
    predicted = used_tokens + estimated_tokens
    return predicted > context_window_limit, predicted / context_window_limit * 100


def trend(totals: Sequence[int]) -> str:
    """Return where the size of requests is going: ``increasing``, ``decreasing`` or ``stable``.

    ``totals`` are all four kinds of each request, oldest first; only the last six matter, and
    fewer are ``stable``. The mean of the last three must be above 1.2 times, or below 0.8 times,
    the mean of the three before; compared in integers, so that exactly 1.2 times is ``stable``.
    """
    if len(totals) < TREND_REQUESTS:
        return "stable"
    earlier = sum(totals[-6:-3])
    later = sum(totals[-3:])
    if 5 * later > 6 * earlier:
        return "increasing"
    if 5 * later < 4 * earlier:
        return "decreasing"
    return "stable"


def session_analytics(figures: SessionFigures, rules: SessionRules) -> Analytics:
    """Return every answer about a session by name.

    Averages, per cents, rates and seconds are rounded to 2 decimals; rates and averages of nothing
    are 0.0.
    """
    used = figures.input_tokens + figures.output_tokens
    limit = rules.context_window_limit
    return {
        "total_requests": figures.requests,
        "total_input_tokens": figures.input_tokens,
        "total_output_tokens": figures.output_tokens,
        "total_cache_read_tokens": figures.cache_read_tokens,
        "total_cache_write_tokens": figures.cache_write_tokens,
        "total_tokens": used,
        "avg_input_per_request": _ratio(figures.input_tokens, figures.requests),
        "avg_output_per_request": _ratio(figures.output_tokens, figures.requests),
        "avg_total_per_request": _ratio(used, figures.requests),
        "context_usage_pct": round(context_usage_pct(used, 0, limit), 2),
        "context_window_limit": limit,
        "uptime_seconds": round(figures.uptime_s, 2),
        "requests_per_minute": _ratio(figures.requests * 60, figures.uptime_s),
        "tokens_per_minute": _ratio(used * 60, figures.uptime_s),
        "peak_usage_pct": round(context_usage_pct(figures.peak_tokens, 0, limit), 2),
        "current_history_size": figures.current_history_size,
        "max_history_size": rules.history_size,
        "trend": trend(figures.recent_totals),
        "overflow_warning_threshold": rules.overflow_warning_threshold,
        "total_tokens_with_cache": used + figures.cache_read_tokens + figures.cache_write_tokens,
    }


def history_entry(  # noqa: PLR0913 - one keyword for each thing known about a request
    *,
    timestamp_s: float,
    input_tokens: int,
    output_tokens: int,
    cache_read_tokens: int,
    cache_write_tokens: int,
    message_id: str | None,
    cumulative_input: int,
    cumulative_output: int,
    context_window_limit: int,
) -> HistoryEntry:
    """Return one request as a row of history.

    ``timestamp_s`` is unix seconds. The cumulative counts are those of the session just after the
    request, and ``context_window_limit`` the one in force then.
    """
    return {
        "timestamp": timestamp_s,
        "datetime": iso_utc(timestamp_s),
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "cache_read_tokens": cache_read_tokens,
        "cache_write_tokens": cache_write_tokens,
        "total_tokens": input_tokens + output_tokens + cache_read_tokens + cache_write_tokens,
        "message_id": message_id,
        "cumulative_input": cumulative_input,
        "cumulative_output": cumulative_output,
        "context_usage_pct": context_usage_pct(cumulative_input, cumulative_output, context_window_limit),
    }


def iso_utc(timestamp_s: float) -> str:
    """Return unix seconds as ISO 8601 in UTC, always with microseconds, so that text sorts by time."""
    return datetime.fromtimestamp(timestamp_s, UTC).isoformat(timespec="microseconds")


def _check_limit(limit: object) -> None:
    if not 0 < check_number("context_window_limit", limit) < math.inf:
        raise InvalidValue("context_window_limit", f"must be positive and finite, not {limit}")


def _ratio(amount: int, by: float) -> float:
    return round(amount / by, 2) if by > 0 else 0.0
