"""Limits: what may be used, by whom, in which time; and what one call counts against each of them.

A limit is a value. The counters that it is held against are in ``limit_counters``, and who counts
where is in ``limit_table``. A new kind is a name here and a class of counters there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np

from token_actor.core.analytics import check_number
from token_actor.core.calendars import PERIODS, WEEKDAYS, zone_of
from token_actor.core.usage import (
    DIMENSIONS,
    SEPARATOR,
    TOKEN_KINDS,
    check_count,
    check_name,
    cost_to_nanousd,
    seconds_to_ms,
    series_of,
)
from token_actor.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from token_actor.core.columns import Int64s
    from token_actor.core.usage import Event

CONCURRENCY: Final = "concurrency"  # a unit and a kind: reservations that are open at once
TOKEN_UNITS: Final = ("tokens", "input_tokens", "output_tokens")
MONEY: Final = "cost_nanousd"
UNITS: Final = (*TOKEN_UNITS, "requests", MONEY, CONCURRENCY)
CALENDAR: Final = "calendar"
BUCKET: Final = "bucket"
KINDS: Final = ("window", BUCKET, CALENDAR, CONCURRENCY)
MODES: Final = ("enforce", "shadow")
ON_EXPIRE: Final = ("charge", "refund")
ON_OUTAGE: Final = ("closed", "open", "safe")
THRESHOLDS: Final = (50, 80, 100)  # per cent of a budget at which somebody wants to be told
THRESHOLD_MAX: Final = 1_000  # per cent: what is used without having been reserved is not refused
THRESHOLDS_LEN_MAX: Final = 10  # each is an event per value of ``by`` and period
SAFE_SHARE: Final = 0.01  # with a hundred clients the fleet then grants about as much as with the actor

AMOUNT_MAX: Final = 10**18  # a billion dollars in nano-USD; fits an int64
WINDOW_MS_MAX: Final = 35 * 86_400_000  # a month and some days; what lies further back is for reports
PER_MILLE: Final = 1_000
WEIGHT_MAX: Final = 10  # times one token; int64 sums of a window stay exact for 200,000 calls of the largest size

Refund: TypeAlias = "tuple[int, int, int]"  # when a hold is given back if nobody settles it; its place; its amount
MEASURES: Final = ("tokens", *TOKEN_KINDS)
RESERVE_ARGUMENTS: Final = frozenset({*DIMENSIONS, *MEASURES, "cost_usd", "requests"})


class Estimate(NamedTuple):
    """Hold what a call may use, or several (``requests``). ``tokens`` of no kind yet count as the dearest kind."""

    series: str
    tokens: int = 0
    kinds: tuple[int, ...] = (0,) * len(TOKEN_KINDS)
    cost_nanousd: int = 0
    requests: int = 1


def estimate_of(arguments: Mapping[str, Any]) -> Estimate:
    """Return the estimate that a map of dimensions, token counts, ``cost_usd`` and ``requests`` describes.

    Raises ``InvalidValue`` naming the field that is wrong.
    """
    if not RESERVE_ARGUMENTS.issuperset(arguments):
        name = next(name for name in arguments if name not in RESERVE_ARGUMENTS)
        raise InvalidValue(str(name), "is not a dimension, a token count, cost_usd, or requests", reason="decode")
    tokens, *kinds = [check_count(name, arguments[name]) if name in arguments else 0 for name in MEASURES]
    series = series_of(arguments)
    cost_nanousd = (cost_to_nanousd(arguments["cost_usd"]) or 0) if "cost_usd" in arguments else 0
    requests = check_count("requests", arguments["requests"]) if "requests" in arguments else 1
    return Estimate(series, tokens, tuple(kinds), cost_nanousd, requests)


@dataclass(frozen=True, slots=True)
class Limit:
    """Hold one limit. Raises ``InvalidValue`` naming the field that is wrong.

    At most ``amount`` of ``unit`` is granted in any ``seconds`` (``kind`` ``window``), or ``amount``
    per ``seconds`` with at most ``burst`` at once (``bucket``; ``None`` means ``amount``), or
    ``amount`` reservations are open at once (``concurrency``). ``selector`` says by dimension which
    calls are covered, none means all; each value of the dimensions ``by`` has a counter of its own.
    ``weights`` say by kind of token how much one counts, in thousandths at the finest; kinds not
    named count as the unit says. ``mode`` ``shadow`` counts and tells, but refuses nothing.
    ``on_expire`` says what becomes of a reservation that nobody settled.

    A ``calendar`` limit grants ``amount`` per ``period`` (``day``, ``week``, ``month``) of the time zone
    ``tz``, weeks beginning on ``week_start``; ``seconds`` means nothing to it. At each of its ``thresholds``,
    in per cent, it is told once per period (``None`` means 50, 80 and 100; an empty list, never). Where calls
    wait for quota, the values of the dimensions ``fair_by`` take turns; none means first come, first served.
    ``on_outage`` says what a client decides when the actor cannot be reached: refuse (``closed``), grant
    (``open``), or grant ``safe_share`` of the amount by itself (``safe``).
    """

    name: str
    amount: int
    unit: str = "tokens"
    kind: str = "window"
    seconds: float = 60
    burst: int | None = None
    selector: Mapping[str, str] = field(default_factory=dict)
    by: Sequence[str] = ()
    weights: Mapping[str, float] | None = None
    mode: str = "enforce"
    on_expire: str = "charge"
    period: str | None = None
    tz: str = "UTC"
    week_start: str = "monday"
    thresholds: Sequence[int] | None = None
    fair_by: Sequence[str] = ()
    on_outage: str = "closed"
    safe_share: float = SAFE_SHARE
    window_ms: int = field(init=False, compare=False)
    per_mille: tuple[int, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Check every field, and turn the numbers of people into integers."""
        if not check_name("name", self.name):
            raise InvalidValue("name", "must not be empty", reason="bad_name")
        for name, known in _CHOICES:
            if getattr(self, name) not in known:
                raise InvalidValue(name, f"must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        if CONCURRENCY in {self.unit, self.kind}:
            self._set(unit=CONCURRENCY, kind=CONCURRENCY)
        _check_amount("amount", self.amount, least=1 if self.kind == "bucket" else 0)
        if self.burst is not None:
            if self.kind != "bucket":
                raise InvalidValue("burst", f"is for buckets, not for {self.kind!r}")
            _check_amount("burst", self.burst, least=0)
        self._set(window_ms=seconds_to_ms("seconds", self.seconds))
        if not 1 <= self.window_ms <= WINDOW_MS_MAX:
            raise InvalidValue("seconds", f"must be above 0, at most {WINDOW_MS_MAX // 1000}, not {self.seconds!r}")
        self._set(selector=_checked_selector(self.selector))
        self._set(by=_checked_dimensions("by", self.by), fair_by=_checked_dimensions("fair_by", self.fair_by))
        if not 0 <= check_number("safe_share", self.safe_share) <= 1:
            raise InvalidValue("safe_share", f"must be between 0 and 1, not {self.safe_share!r}")
        self._set(per_mille=_checked_weights(self.unit, self.weights))
        self._check_calendar()

    def _check_calendar(self) -> None:
        if self.kind != CALENDAR:
            for name, usual in (("period", None), ("tz", "UTC"), ("thresholds", None)):
                if getattr(self, name) != usual:
                    raise InvalidValue(name, f"is for calendars, not for {self.kind!r}")
            return
        if self.period not in PERIODS:
            raise InvalidValue("period", f"must be one of {', '.join(PERIODS)}, not {self.period!r}")
        zone_of(check_name("tz", self.tz))
        if self.thresholds is not None:
            self._set(thresholds=_checked_thresholds(self.thresholds))

    def _set(self, **fields: object) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def capacity(self) -> int:
        """Return the most that can be granted at once."""
        return self.burst if self.burst is not None else self.amount

    @property
    def gives_back(self) -> bool:
        """Tell whether a reservation that expires costs nothing."""
        return self.on_expire == "refund" or self.kind == CONCURRENCY

    @property
    def shape(self) -> tuple[object, ...]:
        """Return what the counters depend on: two limits of one shape can share them."""
        time = {CALENDAR: (self.period, self.tz, self.week_start), CONCURRENCY: ()}.get(self.kind, (self.window_ms,))
        return (self.unit, self.kind, time, self.by, tuple(sorted(self.selector.items())), self.per_mille)

    @property
    def told_at(self) -> Sequence[int]:
        """Return at which per cent of the amount somebody is told; only calendars tell."""
        if self.kind != CALENDAR:
            return ()
        return THRESHOLDS if self.thresholds is None else self.thresholds

    def scope_of(self, names: Sequence[str]) -> str | None:
        """Return the value of ``by`` that a tuple of seven names counts under; ``None`` when it is not covered."""
        for dimension, name in self.selector.items():
            if names[DIMENSIONS.index(dimension)] != name:
                return None
        return SEPARATOR.join([names[DIMENSIONS.index(dimension)] for dimension in self.by])

    def cost_of(self, estimate: Estimate) -> int:
        """Return what an estimate costs in the unit of this limit."""
        if self.unit in TOKEN_UNITS:
            weighed = sum(count * weight for count, weight in zip(estimate.kinds, self.per_mille, strict=True))
            return -(-(weighed + estimate.tokens * max(self.per_mille)) // PER_MILLE)
        if self.unit == MONEY:
            return estimate.cost_nanousd
        return estimate.requests if self.unit == "requests" else min(1, estimate.requests)

    def charge_of(self, event: Event) -> int:
        """Return what one event used in the unit of this limit; it holds no reservation open."""
        if self.unit == CONCURRENCY:
            return 0
        return self.cost_of(Estimate(event.series, 0, tuple(event[1:5]), event.cost_nanousd))

    def charges_of(self, counts: Int64s, cost: Int64s) -> Int64s:
        """Return what events used, as ``charge_of``; ``counts`` has shape (5, n), ``cost`` is in nano-USD."""
        if self.unit == "requests":
            return np.ones(len(cost), dtype=np.int64)
        if self.unit == MONEY:
            return cost
        weighed: Int64s = np.array(self.per_mille, dtype=np.int64) @ counts[: len(TOKEN_KINDS)]
        return -(-weighed // PER_MILLE)

    def as_map(self) -> dict[str, Any]:
        """Return the limit as a map of plain values, which ``limit_of`` reads."""
        return {
            "name": self.name,
            "amount": self.amount,
            "unit": self.unit,
            "kind": self.kind,
            "seconds": self.window_ms / 1000,
            "burst": self.burst,
            "selector": dict(self.selector),
            "by": list(self.by),
            "weights": None if self.weights is None else dict(self.weights),
            "mode": self.mode,
            "on_expire": self.on_expire,
            "period": self.period,
            "tz": self.tz,
            "week_start": self.week_start,
            "thresholds": None if self.thresholds is None else list(self.thresholds),
            "fair_by": list(self.fair_by),
            "on_outage": self.on_outage,
            "safe_share": self.safe_share,
        }


_CHOICES: Final = (
    ("unit", UNITS),
    ("kind", KINDS),
    ("mode", MODES),
    ("on_expire", ON_EXPIRE),
    ("on_outage", ON_OUTAGE),
    ("week_start", WEEKDAYS),
)


LIMIT_FIELDS: Final = frozenset(name for name, each in Limit.__dataclass_fields__.items() if each.init)


def limit_of(fields: Mapping[str, Any]) -> Limit:
    """Return the limit that a map of its fields describes. Raises ``InvalidValue`` naming the wrong one."""
    for name in fields:
        if name not in LIMIT_FIELDS:
            raise InvalidValue(str(name), "is not a field of a limit", reason="decode")
    for name in ("name", "amount"):
        if name not in fields:
            raise InvalidValue(name, "is missing", reason="decode")
    return Limit(**fields)


def _check_amount(field_name: str, value: object, *, least: int) -> None:
    if type(value) is not int:
        raise InvalidValue(field_name, f"must be an int, not {type(value).__name__}", reason="type")
    if not least <= value <= AMOUNT_MAX:
        raise InvalidValue(field_name, f"must be between {least} and {AMOUNT_MAX}")


def _checked_selector(selector: object) -> dict[str, str]:
    if not isinstance(selector, dict):
        raise InvalidValue("selector", "must map dimensions to names", reason="type")
    for dimension in selector:
        if dimension not in DIMENSIONS:
            raise InvalidValue("selector", f"{dimension!r} is not a dimension; there are {', '.join(DIMENSIONS)}")
    return {dimension: check_name("selector", name) for dimension, name in selector.items()}


def _checked_dimensions(field_name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise InvalidValue(field_name, "must be a list of dimensions", reason="type")
    for dimension in value:
        if dimension not in DIMENSIONS:
            raise InvalidValue(field_name, f"{dimension!r} is not a dimension; there are {', '.join(DIMENSIONS)}")
    if len(set(value)) != len(value):
        raise InvalidValue(field_name, "must not name a dimension twice")
    return tuple(value)


def _checked_thresholds(thresholds: object) -> tuple[int, ...]:
    if not isinstance(thresholds, list | tuple) or any(type(each) is not int for each in thresholds):
        raise InvalidValue("thresholds", "must be a list of ints, in per cent", reason="type")
    if len(thresholds) > THRESHOLDS_LEN_MAX:
        raise InvalidValue("thresholds", f"must be at most {THRESHOLDS_LEN_MAX}, not {len(thresholds)}")
    if not all(1 <= each <= THRESHOLD_MAX for each in thresholds):
        raise InvalidValue("thresholds", f"must be between 1 and {THRESHOLD_MAX} per cent")
    if any(one >= next_one for one, next_one in pairwise(thresholds)):
        raise InvalidValue("thresholds", "must grow from each to the next")
    return tuple(thresholds)


def _checked_weights(unit: str, weights: object) -> tuple[int, ...]:
    """Return the weight of each kind of token in thousandths."""
    usual = dict.fromkeys(TOKEN_KINDS, PER_MILLE if unit == "tokens" else 0)
    if unit in TOKEN_KINDS:
        usual[unit] = PER_MILLE
    if weights is None:
        return tuple(usual.values())
    if not isinstance(weights, dict):
        raise InvalidValue("weights", "must map kinds of tokens to numbers", reason="type")
    if unit not in TOKEN_UNITS:
        raise InvalidValue("weights", f"are for tokens, not for {unit!r}")
    for kind, weight in weights.items():
        if kind not in TOKEN_KINDS:
            raise InvalidValue("weights", f"{kind!r} is not a kind of token; there are {', '.join(TOKEN_KINDS)}")
        usual[kind] = seconds_to_ms("weights", weight)  # thousandths, of a weight as of a second
        if not 0 <= usual[kind] <= WEIGHT_MAX * PER_MILLE:
            raise InvalidValue("weights", f"must be between 0 and {WEIGHT_MAX}, not {weight!r}")
    return tuple(usual.values())
