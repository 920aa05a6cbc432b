"""Facts about one event as a map of names."""

from __future__ import annotations

import pytest

from token_actor.core.usage import COUNTS, DIMENSIONS, UNPRICED, Event, series_key
from token_actor.errors import BadEntry, InvalidValue
from token_actor.wire.events import EVENT_FIELDS, event_of, timestamp_to_ms


def refusal(check, *arguments):
    with pytest.raises(InvalidValue) as refused:
        check(*arguments)
    return refused.value.field, refused.value.reason


def test_an_event_has_these_fields_and_no_others():
    others = {"message_id", "timestamp", "cost_usd", "tags", "exactness"}
    assert others | {*COUNTS, *DIMENSIONS} == EVENT_FIELDS


def test_an_event_of_nothing_is_one():
    assert event_of({}) == Event(series_key())


def test_every_field_finds_its_place():
    fields = {
        "tenant": "t", "project": "p", "user": "u", "agent": "a", "session": "s", "provider": "v", "model": "m",
        "input_tokens": 1, "output_tokens": 2, "cache_read_tokens": 3, "cache_write_tokens": 4, "reasoning_tokens": 5,
        "cost_usd": "0.000000006", "exactness": "aborted", "timestamp": 7, "message_id": "x", "tags": {"y": "z"},
    }  # fmt: skip
    assert fields.keys() == EVENT_FIELDS
    series = "t\x1fp\x1fu\x1fa\x1fs\x1fv\x1fm"
    assert event_of(fields) == (series, 1, 2, 3, 4, 5, 6, 3, 7000, "x", {"y": "z"})


def test_fields_that_are_nil_are_absent():
    assert event_of(dict.fromkeys(EVENT_FIELDS - set(COUNTS))) == Event(series_key())


def test_an_event_that_costs_nothing_is_priced():
    assert event_of({"cost_usd": 0}).flags == 0
    assert event_of({"exactness": "estimated"}).flags == 1 | UNPRICED


@pytest.mark.parametrize("field", ["input_token", "Model", "", "__class__", "\ud800"])
def test_an_unknown_field_is_refused_so_no_typing_error_is_a_number_missing(field):
    with pytest.raises(BadEntry) as refused:
        event_of({"input_tokens": 1, field: 1})
    assert (refused.value.reason, refused.value.detail) == ("decode", f"unknown field {field!r}")


@pytest.mark.parametrize("value", [["a"], {"a": "b"}, 7, True, b"a", 0, False, 1.5])
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_name_that_is_no_string_is_refused_by_its_dimension(dimension, value):
    assert refusal(event_of, {dimension: value}) == (dimension, "type")


def test_the_first_of_several_bad_names_is_told():
    assert refusal(event_of, {"model": ["m"], "agent": {}}) == ("agent", "type")


@pytest.mark.parametrize("field", COUNTS)
def test_a_bad_count_is_refused_by_its_field(field):
    assert refusal(event_of, {field: -1}) == (field, "range")
    assert refusal(event_of, {field: None}) == (field, "type")


# --- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timestamp", "milliseconds"),
    [
        (None, None),
        (1_700_000_000, 1_700_000_000_000),
        (1_700_000_000.25, 1_700_000_000_250),
        ("2023-11-14T22:13:20Z", 1_700_000_000_000),
        ("2023-11-14T23:13:20.125+01:00", 1_700_000_000_125),
        ("20231114T221320Z", 1_700_000_000_000),
        ("1970-01-01 00:00:00+00:00", 0),
        ("0001-01-01T00:00:00+23:59", -62_135_683_140_000),
        ("9999-12-31T23:59:59-23:59", 253_402_387_139_000),
    ],
)
def test_a_time_is_unix_seconds_or_iso_8601_with_a_zone(timestamp, milliseconds):
    assert timestamp_to_ms(timestamp) == milliseconds


@pytest.mark.parametrize(
    "timestamp",
    ["", "now", "2023-11-14T22:13:20", "2023-11-14", "2023-13-01T00:00:00Z", "1700000000", "\ud800", "x" * 10_000],
    ids=lambda text: repr(text[:20]),
)
def test_a_text_that_is_no_time_with_a_zone_is_refused(timestamp):
    assert refusal(timestamp_to_ms, timestamp) == ("timestamp", "type")


@pytest.mark.parametrize("timestamp", [True, [], {}, b"1", float("nan"), float("inf")])
def test_a_time_that_is_neither_number_nor_text_is_refused(timestamp):
    assert refusal(timestamp_to_ms, timestamp) == ("timestamp", "type")
