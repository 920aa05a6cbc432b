"""Calendars: which day, week or month of a time zone a moment lies in.

Rules of this file: a period begins at the first instant at which the clocks of its zone show its first
day, and ends where the next one begins. So every instant lies in exactly one period, whatever the clocks
do: days have 23 or 25 hours, begin at one o'clock where there was no midnight, and a day that a zone
left out has no instant at all.

The rules of the zones come from the package ``tzdata``, which is installed with this one, and never
from the machine: whoever folds the same log must come to the same periods. Each zone is read once.
"""

from __future__ import annotations

from bisect import bisect_left
from datetime import datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from token_actor.errors import InvalidValue

if TYPE_CHECKING:
    from token_actor.core.limits import Limit

PERIODS: Final = ("day", "week", "month")
WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
CALENDAR_END_MS: Final = 253_370_764_800_000  # the year 9999: dates end with it, so it is one period without end
FOREVER_MS: Final = 2**63 - 1
_PACKAGE: Final = "tzdata"
_INTO_THE_NEXT: Final = {"day": timedelta(days=1), "week": timedelta(days=7), "month": timedelta(days=31)}


@cache
def _zone_names() -> frozenset[str]:
    return frozenset(files(_PACKAGE).joinpath("zones").read_text(encoding="ascii").split())


@cache  # at most as many as there are names
def zone_of(name: str) -> ZoneInfo:
    """Return the time zone of a name, such as ``Europe/Berlin``.

    Raises ``InvalidValue`` for the field ``tz`` when there is none of that name.
    """
    if name not in _zone_names():
        raise InvalidValue("tz", f"{name!r} is not a time zone; they are named like Europe/Berlin, or UTC")
    with files(_PACKAGE).joinpath("zoneinfo", *name.split("/")).open("rb") as rules:
        return ZoneInfo.from_file(rules, key=name)


def period_of(limit: Limit, now_ms: int) -> tuple[int, int]:
    """Return when the period of a calendar limit in which a time lies begins, and when the next one does, in ms."""
    if now_ms >= CALENDAR_END_MS:
        return CALENDAR_END_MS, FOREVER_MS
    zone = zone_of(limit.tz)
    first_day = _first_day(limit, _local(now_ms // 1000, zone))
    start_ms = _begin_ms(first_day, zone)
    while True:  # twice where clocks that were set back show yesterday again
        first_day = _first_day(limit, first_day + _INTO_THE_NEXT[str(limit.period)])
        end_ms = _begin_ms(first_day, zone)
        if end_ms > now_ms:
            return start_ms, min(end_ms, CALENDAR_END_MS)
        start_ms = end_ms


def _local(unix_s: int, zone: ZoneInfo) -> datetime:
    """Return what the clocks of a zone show."""
    return datetime.fromtimestamp(unix_s, zone).replace(tzinfo=None)


def _first_day(limit: Limit, local: datetime) -> datetime:
    """Return the midnight, of whatever clock, with which the period of a local time begins."""
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
    if limit.period == "week":
        return midnight - timedelta(days=(midnight.weekday() - WEEKDAYS.index(limit.week_start)) % 7)
    return midnight.replace(day=1) if limit.period == "month" else midnight


def _begin_ms(midnight: datetime, zone: ZoneInfo) -> int:
    """Return the first instant at which the clocks of a zone show a midnight or more."""
    begin_s, after_s = (int(midnight.replace(tzinfo=zone, fold=fold).timestamp()) for fold in (0, 1))
    if after_s < begin_s:  # PEP 495: this midnight was left out, and the clocks leap over it in between
        leap = range(after_s, begin_s)
        begin_s = leap.start + bisect_left(leap, midnight, key=lambda unix_s: _local(unix_s, zone))
    return begin_s * 1000
