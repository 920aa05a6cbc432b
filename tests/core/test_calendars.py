"""Facts about days, weeks and months of time zones, on the days on which clocks do something strange."""

from __future__ import annotations

import random
import zoneinfo
from datetime import UTC, date, datetime, timedelta

import pytest

from token_actor.core import calendars
from token_actor.core.calendars import CALENDAR_END_MS, FOREVER_MS, PERIODS, WEEKDAYS, period_of, zone_of
from token_actor.core.limits import Limit
from token_actor.errors import InvalidValue

HOUR_MS = 3_600_000


def limit(period="day", tz="UTC", week_start="monday"):
    return Limit("l", 5, kind="calendar", period=period, tz=tz, week_start=week_start)


def utc_ms(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def shown(tz, ms):
    """What the clocks of a zone show."""
    return datetime.fromtimestamp(ms // 1000, zone_of(tz)).replace(tzinfo=None).isoformat(timespec="minutes")


@pytest.mark.parametrize(
    ("tz", "inside", "begins", "hours"),
    [
        ("UTC", "2026-02-28T23:59:59", "2026-02-28T00:00", 24),
        ("Asia/Kolkata", "2026-02-28T18:30", "2026-03-01T00:00", 24),
        ("Asia/Kathmandu", "2026-02-28T18:14:59", "2026-02-28T00:00", 24),
        ("America/New_York", "2026-03-08T12:00", "2026-03-08T00:00", 23),
        ("America/New_York", "2026-11-01T12:00", "2026-11-01T00:00", 25),
        ("Australia/Lord_Howe", "2026-10-04T00:00", "2026-10-04T00:00", 23.5),
        ("Australia/Lord_Howe", "2026-04-05T00:00", "2026-04-05T00:00", 24.5),
        ("Asia/Beirut", "2022-03-27T05:00", "2022-03-27T01:00", 23),  # their clocks went from midnight to one
        ("America/Havana", "2024-03-10T12:00", "2024-03-10T01:00", 23),
        ("Africa/Cairo", "2024-04-26T12:00", "2024-04-26T01:00", 23),
        ("Africa/Cairo", "2024-10-31T20:30", "2024-10-31T00:00", 25),  # at midnight they went back to eleven
        ("America/St_Johns", "2010-11-07T02:45", "2010-11-07T00:00", 25),  # at a minute past midnight: yesterday again
        (
            "America/Toronto",
            "1919-03-31T12:00",
            "1919-03-31T00:30",
            23.5,
        ),  # from half past eleven to half past midnight
        ("Pacific/Apia", "2011-12-30T09:59", "2011-12-29T00:00", 24),
        ("Pacific/Apia", "2011-12-30T10:00", "2011-12-31T00:00", 24),  # there was no 30th
    ],
)
def test_a_day_begins_when_the_clocks_first_show_it_and_lasts_until_they_show_the_next(tz, inside, begins, hours):
    start_ms, end_ms = period_of(limit(tz=tz), utc_ms(inside))
    assert (shown(tz, start_ms), (end_ms - start_ms) / HOUR_MS) == (begins, hours)


@pytest.mark.parametrize(
    ("week_start", "begins"),
    [
        ("monday", "2026-03-02T00:00"), ("tuesday", "2026-03-03T00:00"), ("wednesday", "2026-03-04T00:00"),
        ("thursday", "2026-03-05T00:00"), ("friday", "2026-03-06T00:00"), ("saturday", "2026-03-07T00:00"),
        ("sunday", "2026-03-08T00:00"),
    ],
)  # fmt: skip
def test_a_week_begins_on_the_day_that_the_limit_says(week_start, begins):
    start_ms, end_ms = period_of(limit("week", "America/New_York", week_start), utc_ms("2026-03-08T12:00"))
    assert shown("America/New_York", start_ms) == begins
    assert (end_ms - start_ms) / HOUR_MS == 7 * 24 - 1  # the clocks were put forward on that sunday


@pytest.mark.parametrize(
    ("inside", "begins", "days"),
    [
        ("2026-02-28T12:00", "2026-02-01T00:00", 28),
        ("2028-02-28T12:00", "2028-02-01T00:00", 29),
        ("2026-12-31T22:59", "2026-12-01T00:00", 31),
        ("2026-12-31T23:00", "2027-01-01T00:00", 31),
        ("2026-03-31T21:59", "2026-03-01T00:00", 31 - 1 / 24),
        ("2026-10-31T22:59", "2026-10-01T00:00", 31 + 1 / 24),
    ],
)
def test_a_month_is_as_long_as_it_is(inside, begins, days):
    start_ms, end_ms = period_of(limit("month", "Europe/Berlin"), utc_ms(inside))
    assert (shown("Europe/Berlin", start_ms), (end_ms - start_ms) / HOUR_MS) == (begins, days * 24)


STRANGE = [
    ("America/New_York", "2026-03-07T20:00"),
    ("Europe/Berlin", "2026-10-24T12:00"),
    ("Australia/Lord_Howe", "2026-04-04T06:00"),
    ("Asia/Beirut", "2022-03-26T12:00"),
    ("America/Havana", "2024-11-02T22:00"),
    ("Africa/Cairo", "2024-10-31T12:00"),
    ("America/St_Johns", "2010-11-06T20:00"),
    ("Pacific/Apia", "2011-12-29T20:00"),
    ("Pacific/Kwajalein", "1993-08-20T20:00"),
    ("America/Asuncion", "2024-03-23T20:00"),
]


@pytest.mark.parametrize(("tz", "since"), STRANGE, ids=[tz for tz, _ in STRANGE])
@pytest.mark.parametrize("period", PERIODS)
def test_minute_by_minute_a_period_begins_where_clocks_show_a_later_one_than_ever(tz, since, period):
    """The brute-force oracle: look at the clock every minute, for a day and a half."""
    of = limit(period, tz, "sunday")
    latest, begun_ms, ends_ms = first_day(of, utc_ms(since)), None, None
    for now_ms in range(utc_ms(since), utc_ms(since) + 36 * HOUR_MS, 60_000):
        start_ms, end_ms = period_of(of, now_ms)
        assert start_ms <= now_ms < end_ms
        if first_day(of, now_ms) > latest:
            latest, begun_ms = first_day(of, now_ms), now_ms
            assert ends_ms in (None, now_ms)
        assert begun_ms in (None, start_ms)
        assert begun_ms is not None or start_ms < utc_ms(since)
        ends_ms = end_ms


def first_day(of, ms):
    """The first day of the period that the clocks show."""
    today = datetime.fromtimestamp(ms // 1000, zone_of(of.tz)).date()
    if of.period == "week":
        return today - timedelta(days=(today.weekday() + 1) % 7)  # begun on a sunday
    return date(today.year, today.month, 1) if of.period == "month" else today


def test_in_every_zone_one_period_ends_where_the_next_begins():
    rng = random.Random(1)
    for tz in sorted(calendars._zone_names()):
        of = limit(rng.choice(PERIODS), tz, rng.choice(WEEKDAYS))
        now_ms = rng.randrange(utc_ms("2060-01-01"))
        for _ in range(20):
            start_ms, end_ms = period_of(of, now_ms)
            assert start_ms <= now_ms < end_ms
            assert period_of(of, start_ms) == period_of(of, end_ms - 1) == (start_ms, end_ms)
            assert period_of(of, end_ms)[0] == end_ms
            now_ms = end_ms


@pytest.mark.parametrize("tz", ["UTC", "Pacific/Kiritimati", "Pacific/Midway"])
@pytest.mark.parametrize("period", PERIODS)
def test_after_the_last_date_there_is_one_period_without_end(tz, period):
    start_ms, end_ms = period_of(limit(period, tz), CALENDAR_END_MS - 1)
    assert start_ms < end_ms == CALENDAR_END_MS
    for now_ms in (CALENDAR_END_MS, 2**62):
        assert period_of(limit(period, tz), now_ms) == (CALENDAR_END_MS, FOREVER_MS)


def test_time_may_begin_at_nothing():
    assert period_of(limit(tz="America/New_York"), 0) == (-19 * HOUR_MS, 5 * HOUR_MS)


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "europe/berlin", "../zones", "/etc/localtime", "Europe", "UTC "])
def test_a_zone_that_there_is_not_is_refused(name):
    with pytest.raises(InvalidValue) as refused:
        zone_of(name)
    assert refused.value.field == "tz"


def test_what_a_machine_says_of_a_zone_is_not_heard(tmp_path):
    tokyo = calendars.files("tzdata").joinpath("zoneinfo", "Asia", "Tokyo").read_bytes()
    (tmp_path / "Europe").mkdir()
    (tmp_path / "Europe" / "Berlin").write_bytes(tokyo)
    zoneinfo.reset_tzpath(to=[tmp_path])
    zone_of.cache_clear()
    try:
        noon = datetime(2026, 1, 1, 12)
        assert zoneinfo.ZoneInfo.no_cache("Europe/Berlin").utcoffset(noon) == timedelta(hours=9)
        assert zone_of("Europe/Berlin").utcoffset(noon) == timedelta(hours=1)
    finally:
        zoneinfo.reset_tzpath()


def test_a_zone_is_read_once():
    assert zone_of("Asia/Tokyo") is zone_of("Asia/Tokyo")
