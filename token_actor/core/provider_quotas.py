"""Quotas as providers tell them in the headers of their responses.

Two families are read: ``x-ratelimit-{limit,remaining,reset}-{requests,tokens}`` (OpenAI and those who do
as it does; resets are durations like ``6m0s``), and ``anthropic-ratelimit-{requests,tokens,input-tokens,
output-tokens}-{limit,remaining,reset}`` (resets are RFC 3339). Besides, ``retry-after`` in seconds or as
an HTTP date, and ``retry-after-ms``, which is finer and goes first.

Headers are what strangers wrote: a value that is not understood is left out by itself, and named.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from token_actor.core.limits import AMOUNT_MAX
from token_actor.core.provider_limits import QUOTA_UNITS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SECONDS_MAX: Final = 366 * 86_400  # what lies further ahead is no reset, but a time in another form
PAUSE_S_DEFAULT: Final = 1.0  # for a refusal that does not say how long it lasts
REFUSED: Final = 429  # too many requests
OVERLOADED: Final = frozenset({503, 529})  # these count only when they say when to come back
_VALUE_MAX: Final = 64  # characters of a value that can be one of these; what is longer is not looked at
_SHOWN_MAX: Final = 80  # characters of what was not understood
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_WHOLE: Final = re.compile(r"[0-9]{1,19}")
_NUMBER: Final = re.compile(r"[0-9]{1,19}(?:\.[0-9]{1,9})?")
_UNIT_S: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART: Final = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)(ms|us|µs|ns|d|h|m|s)")
_DURATION: Final = re.compile(rf"(?:{_PART.pattern})+")


class Quota(NamedTuple):
    """Hold what a provider says of one quota; ``None`` is what it does not say. ``reset_s`` is from now."""

    limit: int | None = None
    remaining: int | None = None
    reset_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderQuotas:
    """Hold what the headers of one response say.

    ``quotas`` are by unit: ``requests``, ``tokens``, ``input_tokens``, ``output_tokens``. ``retry_after_s`` is
    ``None`` when nobody asked to wait. ``not_understood`` are the headers left out, with their values.
    """

    quotas: Mapping[str, Quota] = field(default_factory=dict)
    retry_after_s: float | None = None
    not_understood: tuple[str, ...] = ()

    @property
    def amounts(self) -> dict[str, int]:
        """Return the amounts to hold a fleet to, by unit.

        The sum of input and output is left out where each has a quota of its own: it says no more.
        """
        found = {unit: quota.limit for unit, quota in self.quotas.items() if quota.limit is not None}
        if not found.keys().isdisjoint({"input_tokens", "output_tokens"}):
            found.pop("tokens", None)
        return found

    def pause_s(self, status: int) -> float | None:
        """Return how long nothing more should be sent after a response of this status; ``None``: go on.

        A refusal (429) that does not say it lasts until the last quota of which nothing remains is full again.
        """
        if status in OVERLOADED or (status == REFUSED and self.retry_after_s is not None):
            return self.retry_after_s
        if status != REFUSED:
            return None
        resets_s = [quota.reset_s for quota in self.quotas.values() if quota.remaining == 0]
        return max((reset_s for reset_s in resets_s if reset_s is not None), default=PAUSE_S_DEFAULT)


def read_quotas(headers: Mapping[str, str], now_s: float) -> ProviderQuotas:
    """Return what headers say, in whatever case their names are; never raises for what is in them.

    ``now_s`` is unix time, for the forms that name a moment; a ``date`` among the headers goes before it.
    """
    values = {_text(name).lower(): _text(value).strip() for name, value in headers.items()}
    date = _http_date(values.get("date", ""))
    now_s = now_s if date is None else (date - _EPOCH).total_seconds()
    quotas: dict[str, Quota] = {}
    strange, wait_s = [], None
    for name, (unit, part, read) in _HEADERS.items():
        text = values.get(name)
        if text is None:
            continue
        value = read(text, now_s) if len(text) <= _VALUE_MAX else None
        if value is None:
            strange.append(f"{name}: {text}"[:_SHOWN_MAX])
        elif part:
            quotas[unit] = quotas.get(unit, Quota())._replace(**{part: value})  # type: ignore[arg-type] # as its reader reads it
        else:
            wait_s = value
    return ProviderQuotas(quotas=quotas, retry_after_s=wait_s, not_understood=tuple(strange))


def _text(value: object) -> str:
    """Return a name or value as text; what can be none is shown by its type."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, int | float) and abs(value) <= AMOUNT_MAX:
        return str(value)
    return value if isinstance(value, str) else f"<{type(value).__name__}>"


def _limit(text: str, now_s: float) -> int | None:
    """Return an amount; 0 is none: there was a response, so something may be sent."""
    return _count(text, now_s) or None


def _count(text: str, now_s: float) -> int | None:
    del now_s
    count = int(text) if _WHOLE.fullmatch(text) else None
    return None if count is None or count > AMOUNT_MAX else count


def _seconds(text: str, now_s: float) -> float | None:
    del now_s
    return _bounded(float(text)) if _NUMBER.fullmatch(text) else None


def _milliseconds(text: str, now_s: float) -> float | None:
    del now_s
    return _bounded(float(text) / 1000) if _NUMBER.fullmatch(text) else None


def _duration(text: str, now_s: float) -> float | None:
    """Return the seconds of ``1h2m3.5s`` or ``20ms``; some say plain seconds, or a moment."""
    if _DURATION.fullmatch(text):
        return _bounded(sum(float(count) * _UNIT_S[unit] for count, unit in _PART.findall(text)))
    seconds = _seconds(text, now_s)
    return _moment(text, now_s) if seconds is None else seconds


def _moment(text: str, now_s: float) -> float | None:
    """Return the seconds until an RFC 3339 time, which has a zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if moment.tzinfo is None else _until(moment, now_s)


def _wait(text: str, now_s: float) -> float | None:
    """Return plain seconds, or those until an HTTP date."""
    date = _http_date(text)
    return _seconds(text, now_s) if date is None else _until(date, now_s)


def _http_date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):  # the ways in which it says that it is none
        return None
    return date.replace(tzinfo=date.tzinfo or UTC)


def _until(moment: datetime, now_s: float) -> float | None:
    return _bounded(max(0.0, (moment - _EPOCH).total_seconds() - now_s))


def _bounded(seconds: float) -> float | None:
    return seconds if seconds <= SECONDS_MAX else None


class _Header(NamedTuple):
    """Say what a header tells, and how to read it."""

    unit: str
    part: str
    read: Callable[[str, float], float | None]


_HEADERS: Final[Mapping[str, _Header]] = {  # of what is told in two ways, the one further down counts
    **{
        f"x-ratelimit-{word}-{unit}": _Header(unit, part, read)
        for unit in ("requests", "tokens")
        for word, part, read in (
            ("limit", "limit", _limit),
            ("remaining", "remaining", _count),
            ("reset", "reset_s", _duration),
        )
    },
    **{
        f"anthropic-ratelimit-{unit.replace('_', '-')}-{word}": _Header(unit, part, read)
        for unit in QUOTA_UNITS
        for word, part, read in (
            ("limit", "limit", _limit),
            ("remaining", "remaining", _count),
            ("reset", "reset_s", _moment),
        )
    },
    "retry-after": _Header("", "", _wait),
    "retry-after-ms": _Header("", "", _milliseconds),
}
