"""Questions: what can be asked of a ledger, and how each is answered.

An answer never changes the state. It is a map of plain values, ready for the wire.

A new question is a function here with the arguments ``(ledger, arguments, now_ms)``, and a line in
``QUESTIONS`` with the names of its arguments. Nothing else in the actor has to know of it; the
client gets a method for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from token_actor.core.estimates import GIVEN
from token_actor.core.frames import RESOLUTIONS_MS, SUMS
from token_actor.core.ledger import COUNTERS, FUTURE_MS_MAX
from token_actor.core.limits import MEASURES, estimate_of
from token_actor.core.progress import producer_progress
from token_actor.core.series import OTHER, check_selector
from token_actor.core.sessions import session_figures
from token_actor.core.standings import standing_of
from token_actor.core.usage import (
    CLAMPED,
    DEFAULT_TENANT,
    DIMENSIONS,
    EXACTNESS,
    EXACTNESS_MASK,
    INCONSISTENT,
    NANO_PER_USD,
    TOKEN_KINDS,
    UNPRICED,
)
from token_actor.errors import InvalidQuestion

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from token_actor.core.columns import Int64s
    from token_actor.core.ledger import Ledger

GROUPS_MAX: Final = 10_000  # groups in one answer, the largest first
SCOPES_SHOWN_MAX: Final = 1_000  # values of ``by`` shown of each limit, those with most taken first
HISTORY_MAX: Final = 2_000  # events in one answer; ask again with ``before`` for more
_UNKNOWN_ACTIVITY: Final = {"first_seen": None, "last_seen": None, "peak_request_tokens": None}
WINDOW_MS_MAX: Final = 35 * 86_400_000


def answer(ledger: Ledger, kind: str, arguments: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """Return the answer to a question.

    ``now_ms`` is when it was asked, by the server's clock, which is corrected like that of the log;
    where it matters, time never lies before the log time. Raises ``InvalidQuestion`` naming the field that is wrong.
    """
    question = QUESTIONS.get(kind)
    if question is None:
        raise InvalidQuestion("kind", f"{kind!r} is not known; there are {', '.join(QUESTIONS)}")
    unknown = sorted(set(map(str, arguments)) - question.arguments)
    if unknown:
        raise InvalidQuestion(unknown[0], f"is not an argument of {kind!r}")
    return question.answer(ledger, arguments, max(now_ms + ledger.time.correction_ms, ledger.log_ms))


def _status(ledger: Ledger, arguments: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """Say how much there is of everything that is bounded, and what went wrong so far."""
    del arguments, now_ms
    total = ledger.total()
    return {
        "log_ms": ledger.log_ms,
        "events": total["requests"],
        "duplicates": total["duplicates"],
        "dead": dict(ledger.dead),
        "missing": ledger.producers.missing,
        "series": len(ledger.series),
        "folded_events": _folded_events(ledger),
        "producers": len(ledger.producers),
        "message_ids": len(ledger.message_ids),
        "recent_events": len(ledger.recent),
        "open_reservations": len(ledger.reservations.open),
        "set_aside_calls": ledger.reservations.promised,
    }


def _folded_events(ledger: Ledger) -> int:
    """Return how many events are counted under ``__other__`` because a bound was reached."""
    folded = [ledger.series.select({dimension: OTHER}) for dimension in DIMENSIONS]
    rows = np.unique(np.concatenate([rows for rows in folded if rows is not None]))
    return ledger.total(rows)["requests"]


def _analytics(ledger: Ledger, arguments: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """Sum what was used, over all time or a span of it, as a whole and by group."""
    group_by = _dimensions(arguments.get("group_by", ()))
    limit = _whole(arguments, "limit", default=GROUPS_MAX, least=0, most=GROUPS_MAX)
    rows = ledger.series.select(check_selector(arguments.get("selector", {})))
    span = _span(ledger, arguments)
    if span is None:
        rows = np.arange(len(ledger.series)) if rows is None else rows
        rows = rows[(ledger.last_ms[rows] > 0) | (ledger.counters[COUNTERS.index("duplicates"), rows] > 0)]
        values, names = ledger.counters[:, rows], list(COUNTERS)
    else:
        rows, values = _summed_over(ledger, rows, span)
        names = list(SUMS)
    total = dict(zip(names, values.sum(axis=1).tolist(), strict=True))
    return {
        **_with_totals(total),
        "series": len(rows),
        **(_activity(ledger, rows) if span is None else _UNKNOWN_ACTIVITY),
        "since": None if span is None else span[0] / 1000,
        "until": None if span is None else span[1] / 1000,
        "as_of": now_ms / 1000,
        **_groups(ledger, rows, values, names, group_by, limit),
    }


def _summed_over(ledger: Ledger, rows: Int64s | None, span: tuple[int, int]) -> tuple[Int64s, Int64s]:
    frame = ledger.frames.total(*span)
    if rows is None:
        return frame.rows, frame.sums
    wanted = np.isin(frame.rows, rows, assume_unique=True)
    return frame.rows[wanted], frame.sums[:, wanted]


def _activity(ledger: Ledger, rows: Int64s) -> dict[str, Any]:
    """Return when the log took the first and the last event, and the largest request; of all time, not of a span."""
    rows = rows[ledger.last_ms[rows] > 0]
    if len(rows) == 0:
        return {**_UNKNOWN_ACTIVITY, "peak_request_tokens": 0}
    return {
        "first_seen": int(ledger.first_ms[rows].min()) / 1000,
        "last_seen": int(ledger.last_ms[rows].max()) / 1000,
        "peak_request_tokens": int(ledger.peak_tokens[rows].max()),
    }


def _groups(
    ledger: Ledger, rows: Int64s, values: Int64s, names: Sequence[str], group_by: Sequence[str], limit: int
) -> dict[str, Any]:
    if not group_by:
        return {"group_by": [], "groups": [], "groups_omitted": 0}
    groups, labels = ledger.series.group(rows, group_by)
    sums = np.zeros((len(names), len(labels)), dtype=np.int64)
    for target, value in zip(sums, values, strict=True):
        np.add.at(target, groups, value)
    order = np.argsort(-sums[: len(TOKEN_KINDS)].sum(axis=0), kind="stable")[:limit]
    found = [
        {
            **{dimension: name or None for dimension, name in zip(group_by, labels[group], strict=True)},
            **_with_totals(dict(zip(names, sums[:, group].tolist(), strict=True))),
        }
        for group in order.tolist()
    ]
    return {"group_by": list(group_by), "groups": found, "groups_omitted": len(labels) - len(found)}


def _with_totals(sums: dict[str, int]) -> dict[str, Any]:
    total = sum(sums[kind] for kind in TOKEN_KINDS)
    return {**sums, "total_tokens": total, "cost_usd": sums["cost_nanousd"] / NANO_PER_USD}


def _history(ledger: Ledger, arguments: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """List the newest events, and where to go on for older ones."""
    del now_ms
    limit = _whole(arguments, "limit", default=10, least=0, most=HISTORY_MAX)
    before = None if arguments.get("before") is None else _whole(arguments, "before", default=0, least=0)
    rows = ledger.series.select(check_selector(arguments.get("selector", {})))
    places = ledger.recent.newest(rows, limit, before=before)
    return {
        "history": _entries(ledger, places),
        "next_before": int(places[-1]) if len(places) == limit and limit else None,
    }


def _entries(ledger: Ledger, places: Int64s) -> list[dict[str, Any]]:
    columns = [ledger.recent.column(name, places).tolist() for name in ("event_ms", "row", "cost", "flags")]
    notes = [ledger.recent.column(name, places).tolist() for name in ("message_id", "tags")]
    counts = ledger.recent.column("counts", places).T.tolist()
    return [
        {
            "timestamp": event_ms / 1000,
            **{dimension: name or None for dimension, name in ledger.series.names_of(row).items()},
            **dict(zip(SUMS, kinds, strict=False)),
            "total_tokens": sum(kinds[: len(TOKEN_KINDS)]),
            "cost_usd": None if flags & UNPRICED else cost / NANO_PER_USD,
            "message_id": message_id,
            "exactness": EXACTNESS[flags & EXACTNESS_MASK],
            "clamped": bool(flags & CLAMPED),
            "inconsistent": bool(flags & INCONSISTENT),
            "tags": tags,
        }
        for event_ms, row, cost, flags, message_id, tags, kinds in zip(*columns, *notes, counts, strict=True)
    ]


def _window(ledger: Ledger, arguments: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """Sum the tokens of all four kinds in the trailing window.

    Exact while the window lies in the recent events; beyond them by the times that the events claim, in whole
    minutes (hours for times long past).
    """
    window_ms = _whole(arguments, "window_ms", default=None, least=1, most=WINDOW_MS_MAX)
    rows = ledger.series.select(check_selector(arguments.get("selector", {})))
    since_ms = now_ms - window_ms
    if ledger.recent.covers(since_ms):
        return {"tokens": ledger.recent.tokens_since(rows, since_ms), "source": "recent"}
    until_ms = _aligned(ledger, now_ms + FUTURE_MS_MAX + 1, up=True)
    _, sums = _summed_over(ledger, rows, (_aligned(ledger, since_ms, up=False), until_ms))
    return {"tokens": int(sums[: len(TOKEN_KINDS)].sum()), "source": "frames"}


def _session(ledger: Ledger, arguments: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """Show one session as a TokenManager does."""
    names = {"tenant": DEFAULT_TENANT, **check_selector(arguments.get("selector", {}))}
    if set(names) != {"tenant", "session"}:
        raise InvalidQuestion("selector", "must name a session, may name its tenant, and nothing else")
    limit = _whole(arguments, "limit", default=0, least=0, most=HISTORY_MAX)
    return session_figures(ledger, **names, history_limit=limit, now_ms=now_ms)


def _books(ledger: Ledger, arguments: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """Add everything up in every way there is, and list what does not agree."""
    del arguments, now_ms
    total = [ledger.total()[name] for name in SUMS]
    ways = {f"frames by {resolution}": sums.tolist() for resolution, sums in ledger.frames.books().items()}
    values = ledger.counters[: len(SUMS), : len(ledger.series)]
    for dimension in DIMENSIONS:
        groups, labels = ledger.series.group(None, [dimension])
        sums = np.zeros((len(SUMS), len(labels)), dtype=np.int64)
        for target, value in zip(sums, values, strict=True):
            np.add.at(target, groups, value)
        ways[f"series by {dimension}"] = sums.sum(axis=1).tolist()
    return {
        "total": dict(zip(SUMS, total, strict=True)),
        "ways": len(ways),
        "differences": [
            {"way": way, "counter": name, "total": expected, "found": found}
            for way, sums in ways.items()
            for name, expected, found in zip(SUMS, total, sums, strict=True)
            if expected != found
        ],
    }


def _limits(ledger: Ledger, arguments: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """List the limits in force, and of each the values of ``by`` with most taken."""
    top = _whole(arguments, "top", default=10, least=0, most=SCOPES_SHOWN_MAX)
    return {
        "as_of": now_ms / 1000,
        "open_reservations": len(ledger.reservations.open),
        "expired_reservations": ledger.reservations.expired,
        "unknown_settled": ledger.reservations.unknown_settled,
        "limits": [
            {
                **meter.limit.as_map(),
                "scopes": len(meter.scopes),
                "refused": meter.refused,
                "waiting": ledger.admission.room.needing(meter.number),
                "debt": meter.debt,
                "paused_ms": meter.pause.left_ms(now_ms),
                "top": [standing_of(meter, scope, 0, now_ms).figures() for scope in meter.largest(top, now_ms)],
            }
            for meter in ledger.limits.meters.values()
        ],
    }


def _explain(ledger: Ledger, arguments: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """Say which limits cover a call, and what they would say to it now."""
    given = {name: value for name, value in arguments.items() if name != "selector"}
    asked = estimate_of({**given, **check_selector(arguments.get("selector", {}))})
    reservations, names = ledger.reservations, ledger.series.counted_as(asked.series)
    estimated = ledger.requests.completed(names, asked, given, for_money=ledger.limits.counts_money)
    standings = reservations.standings(names, estimated.estimate, now_ms, given=estimated.source == GIVEN)
    return {
        **reservations.decide(standings, now_ms),
        "estimate": estimated.as_map(),
        "limits": [
            {
                "name": standing.meter.limit.name,
                "mode": standing.meter.limit.mode,
                "cost": standing.cost,
                **standing.figures(),
                "fits": standing.fits,
                "retry_after_ms": reservations.retry_after_ms(standing, now_ms),
            }
            for standing in standings
        ],
    }


def _dimensions(value: Any) -> list[str]:  # noqa: ANN401 - checked here
    if not isinstance(value, list | tuple):
        raise InvalidQuestion("group_by", "must be a list of dimensions", reason="type")
    for dimension in value:
        if dimension not in DIMENSIONS:
            raise InvalidQuestion("group_by", f"{dimension!r} is not a dimension; there are {', '.join(DIMENSIONS)}")
    if len(set(value)) != len(value):
        raise InvalidQuestion("group_by", "must not name a dimension twice")
    return list(value)


def _whole(arguments: Mapping[str, Any], name: str, *, default: int | None, least: int, most: int = 2**62) -> int:
    value = arguments.get(name, default)
    if type(value) is not int:
        raise InvalidQuestion(name, f"must be an int, not {value!r}", reason="type")
    if not least <= value <= most:
        raise InvalidQuestion(name, f"must be between {least} and {most}, not {value}")
    return value


def _span(ledger: Ledger, arguments: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the span asked for in ms, widened to what is kept; ``None`` when it is all of time."""
    if arguments.get("since_ms") is None and arguments.get("until_ms") is None:
        return None
    since_ms = 0 if arguments.get("since_ms") is None else _whole(arguments, "since_ms", default=0, least=0)
    open_end = ledger.log_ms + FUTURE_MS_MAX + 1  # just after the latest time an event can claim
    until_ms = open_end if arguments.get("until_ms") is None else _whole(arguments, "until_ms", default=0, least=0)
    if since_ms >= until_ms and arguments.get("until_ms") is not None:
        raise InvalidQuestion("since", "must lie before until")
    return _aligned(ledger, since_ms, up=False), _aligned(ledger, max(since_ms, min(until_ms, open_end)), up=True)


def _aligned(ledger: Ledger, time_ms: int, *, up: bool) -> int:
    """Return ``time_ms`` on a boundary of the finest resolution that still keeps that time."""
    kept = (width for name, width in RESOLUTIONS_MS.items() if ledger.frames.oldest_kept(name) <= time_ms)
    width_ms = next(kept, RESOLUTIONS_MS["day"])
    return (-(-time_ms // width_ms) if up else time_ms // width_ms) * width_ms


class _Kind(NamedTuple):
    """Hold how a kind of question is answered, and which arguments it takes."""

    answer: Callable[[Ledger, Mapping[str, Any], int], dict[str, Any]]
    arguments: frozenset[str] = frozenset()


QUESTIONS: Final[Mapping[str, _Kind]] = {
    "status": _Kind(_status),
    "analytics": _Kind(_analytics, frozenset({"selector", "group_by", "since_ms", "until_ms", "limit"})),
    "history": _Kind(_history, frozenset({"selector", "limit", "before"})),
    "window": _Kind(_window, frozenset({"selector", "window_ms"})),
    "session": _Kind(_session, frozenset({"selector", "limit"})),
    "books": _Kind(_books),
    "producer": _Kind(producer_progress, frozenset({"producer", "epochs"})),
    "limits": _Kind(_limits, frozenset({"top"})),
    "explain": _Kind(_explain, frozenset({"selector", *MEASURES, "cost_usd"})),
}
