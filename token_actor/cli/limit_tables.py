"""Limits for people: how full each is, what became of it, and what a call would be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from token_actor.cli.output import duration, number
from token_actor.cli.tables import Column, bar
from token_actor.client.report import amount_text, unit_text
from token_actor.core.killing import is_killed
from token_actor.core.limits import BUCKET, CONCURRENCY, MONEY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from token_actor.operations.limit_files import Change

_PER: Final = {CONCURRENCY: "at once"}


def limit_rows(limits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each value of ``by`` that is shown of a limit, one for a limit of which nothing is taken."""
    return [{**limit, **top, "per": limit} for limit in limits for top in limit["top"] or [_untouched(limit)]]


def _untouched(limit: Mapping[str, Any]) -> dict[str, Any]:
    capacity = limit["amount"] if limit["burst"] is None else limit["burst"]
    return {"scope": {}, "amount": capacity, "used": 0, "reserved": 0, "remaining": capacity}


def fullest(limits: Sequence[Mapping[str, Any]], selector: Mapping[str, str], count: int) -> list[dict[str, Any]]:
    """Return so many rows of limits, the fullest first: those that a selector does not leave out."""
    rows = [
        row
        for row in limit_rows(limits)
        if all({**row["selector"], **row["scope"]}.get(name, value) == value for name, value in selector.items())
    ]
    return sorted(rows, key=fullness, reverse=True)[:count]


def fullness(figures: Mapping[str, Any]) -> float:
    """Return the share of a limit that is taken; one of nothing is full."""
    taken, amount = figures["used"] + figures["reserved"], figures["amount"]
    return taken / amount if amount else 1.0


def limit_columns(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Return the columns of a list of limits."""
    columns = [
        Column(title="limit", cells=[row["name"] for row in rows], name=True, style="cyan"),
        *_scope_columns(rows),
        Column(title="kind", cells=[row["kind"] for row in rows], rank=5, name=True),
        Column(title="per", cells=[_per(row["per"]) for row in rows], rank=2),
        *_figures(rows, [row["unit"] for row in rows]),
        Column(title="refused", cells=list(_refused(rows)), rank=4),
    ]
    covers = [", ".join(f"{name} {value}" for name, value in row["selector"].items()) for row in rows]
    if any(covers):
        columns.insert(1, Column(title="covers", cells=[text or "all" for text in covers], name=True, rank=5))
    if any(row["mode"] != "enforce" for row in rows):
        columns.append(Column(title="mode", cells=[row["mode"] for row in rows], rank=1))
    return columns


def _refused(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield how often each limit refused, in its first row: that is counted for all values of ``by`` together."""
    told = set[str]()
    for row in rows:
        yield "" if row["name"] in told else number(row["refused"])
        told.add(row["name"])


def explained_columns(told: Sequence[Mapping[str, Any]], units: Mapping[str, str]) -> list[Column]:
    """Return the columns of what each limit would say to a call."""
    kinds = [units.get(each["name"], "tokens") for each in told]
    costs = [amount_text(each["cost"], unit) for each, unit in zip(told, kinds, strict=True)]
    return [
        Column(title="limit", cells=[each["name"] for each in told], name=True, style="cyan"),
        *_scope_columns(told),
        Column(title="cost", cells=costs),
        *_figures(told, kinds),
        Column(title="retry after", cells=[_wait(each) for each in told]),
    ]


def _scope_columns(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    scopes = [", ".join(value or "-" for value in row["scope"].values()) or _each(row) for row in rows]
    return [Column(title="of", cells=[text or "-" for text in scopes], name=True)] if any(scopes) else []


def _each(row: Mapping[str, Any]) -> str:
    """Say that each value of ``by`` has its own, for a limit of which nothing is taken."""
    return f"each {', '.join(row['by'])}" if row.get("by") else ""


def _figures(rows: Sequence[Mapping[str, Any]], units: Sequence[str]) -> list[Column]:
    """Return the columns of what is taken of each limit; the last one to go says what remains."""
    ranks = {"used": 1, "reserved": 2, "remaining": 0, "amount": 3}
    columns = [
        Column(
            title=title,
            cells=[amount_text(row[title], unit) for row, unit in zip(rows, units, strict=True)],
            rank=rank,
        )
        for title, rank in ranks.items()
    ]
    return [
        *columns,
        Column(title="unit", cells=["usd" if unit == MONEY else unit for unit in units], rank=2, name=True),
        Column(title="taken", cells=[bar(fullness(row)) for row in rows], rank=1),
    ]


def _per(limit: Mapping[str, Any]) -> str:
    if limit["kind"] == "calendar":
        return str(limit["period"])
    seconds = limit["seconds"]
    time = _PER.get(limit["kind"]) or (duration(seconds) if seconds >= 1 else f"{seconds:g} s")
    return f"{amount_text(limit['amount'], limit['unit'])} in {time}" if limit["kind"] == BUCKET else time


def _wait(each: Mapping[str, Any]) -> str:
    if each["fits"]:
        return "-"
    wait = "never fits" if each["retry_after_ms"] is None else wait_text(each["retry_after_ms"])
    return f"{wait} (shadow)" if each["mode"] == "shadow" else wait


def wait_text(milliseconds: int) -> str:
    """Return how long to wait, in whole seconds rounded up."""
    return duration(-(-milliseconds // 1000))


def verdict(told: Mapping[str, Any], units: Mapping[str, str]) -> str:
    """Return in one sentence what a call would be told, and by which limit."""
    name = told["limit"]
    if name is None:
        return "granted: no limit covers this call"
    unit = units.get(name, "tokens")
    left = f"{amount_text(told['remaining'], unit)} of {amount_text(told['amount'], unit)}{unit_text(unit)} left"
    if told["granted"]:
        return f"granted: the tightest limit is {name!r}, with {left}"
    costs = [each["cost"] for each in told["limits"] if each["name"] == name]
    cost = f"it costs {amount_text(costs[0], unit)}, with " if costs else ""
    if is_killed(name, told["amount"]):
        return f"killed ({name!r}): refused until 'token-actor revive' of the same names"
    if told["retry_after_ms"] is None:
        return f"refused by limit {name!r} for good: {cost}{left}; it can never fit"
    return f"refused by limit {name!r}: {cost}{left}; try again in {wait_text(told['retry_after_ms'])}"


def change_sentences(changes: Sequence[Change]) -> Iterator[str]:
    """Yield what became of each limit, and how many stayed as they were."""
    for change in changes:
        name, fields = change.limit.name, change.limit.as_map()
        if change.what == "new":
            yield f"{name}: in force now, with nothing used"
        elif change.what == "changed":
            what = ", ".join(f"{field} {_shown(was)} -> {_shown(fields[field])}" for field, was in change.was.items())
            counters = "what was used still counts" if change.counters_kept else "it begins with nothing used"
            yield f"{name}: {what}; {counters}"
    same = sum(change.what == "same" for change in changes)
    if same:
        yield f"{number(same)} in force already"


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ",".join(f"{name}={each}" for name, each in value.items()) or "none"
    return "none" if value is None else str(value)
