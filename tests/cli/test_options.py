"""What was typed becomes times, dimensions and a place to connect to."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
import typer

from token_actor.cli.options import dimensions, moment, selector_of, target_of

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1_800), ("-1h", 3_600), ("1.5h", 5_400), ("7d", 604_800), ("1w", 604_800)],
)
def test_a_time_ago_is_counted_from_now(text, seconds):
    assert moment(text) == pytest.approx(time.time() - seconds, abs=5)


def test_now_is_now():
    assert moment("now") == pytest.approx(time.time(), abs=5)


@pytest.mark.parametrize("text", ["2026-01-31T12:00:00Z", "2026-01-31T13:00+01:00", "2026-01-31 12:00:00.000+00:00"])
def test_iso_8601_names_its_zone(text):
    assert moment(text) == NOON


def test_unix_seconds_are_taken_as_they_are():
    assert moment("1700000000.5") == 1_700_000_000.5


def test_without_a_zone_a_time_is_local(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert moment("2026-01-31T21:00") == NOON
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "yesterday", "1y", "--1h", "25:00", "0001-01-01"])
def test_anything_else_is_no_time(text):
    with pytest.raises(typer.BadParameter, match="no time"):
        moment(text)


def test_dimensions_may_be_repeated_or_have_commas():
    assert dimensions(["agent,model", "model", " user "]) == ["agent", "model", "user"]
    assert dimensions(None) == []


def test_a_dimension_that_does_not_exist_is_named():
    with pytest.raises(typer.BadParameter, match="'colour' is not a dimension; there are tenant"):
        dimensions(["agent,colour"])


def test_only_what_was_given_is_selected():
    assert selector_of(agent="a", model=None) == {"agent": "a"}


def test_options_go_before_the_environment(monkeypatch):
    monkeypatch.setenv("TOKEN_ACTOR_REDIS", "redis://u:secret@here/0")
    monkeypatch.setenv("TOKEN_ACTOR_NAMESPACE", "ours")
    named = target_of(None, None)
    assert (named.url, named.namespace, named.has_password) == ("redis://u:secret@here/0", "ours", True)
    given = target_of("redis://there/0", "theirs")
    assert (given.url, given.namespace, given.has_password) == ("redis://there/0", "theirs", False)
