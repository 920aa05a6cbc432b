"""From the keywords of ``record`` to an event: checked at once, and nobody's to change afterwards."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest

from token_actor.client.recording import make_event
from token_actor.core.usage import DIMENSIONS, UNPRICED
from token_actor.errors import InvalidValue


def names_of(event):
    return dict(zip(DIMENSIONS, event.series.split("\x1f"), strict=True))


def test_an_event_of_nothing_is_a_request_of_the_default_tenant():
    event = make_event({})
    assert event[1:8] == (0, 0, 0, 0, 0, 0, UNPRICED)
    assert names_of(event) == {**dict.fromkeys(DIMENSIONS, ""), "tenant": "default"}
    assert (event.message_id, event.tags) == (None, None)


def test_all_counts_are_taken():
    event = make_event(
        {}, input_tokens=1, output_tokens=2, cache_read_tokens=3, cache_write_tokens=4, reasoning_tokens=5
    )
    assert event[1:6] == (1, 2, 3, 4, 5)


def test_a_dimension_of_the_call_goes_before_the_clients():
    names = names_of(make_event({"agent": "a", "model": "m"}, model="other", session="s"))
    assert (names["agent"], names["model"], names["session"]) == ("a", "other", "s")


def test_a_dimension_that_is_none_is_the_clients():
    assert names_of(make_event({"agent": "a"}, agent=None))["agent"] == "a"


def test_a_dimension_that_is_empty_is_none():
    assert names_of(make_event({"agent": "a", "tenant": "t"}, agent="", tenant=""))["agent"] == ""


def test_without_a_timestamp_it_is_now():
    before_ms = int(time.time() * 1000)
    assert before_ms <= make_event({}).timestamp_ms <= int(time.time() * 1000)


@pytest.mark.parametrize(
    "timestamp",
    [
        1_700_000_000,
        1_700_000_000.0,
        "2023-11-14T22:13:20Z",
        "2023-11-14T23:13:20+01:00",
        datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
        datetime(2023, 11, 15, 3, 43, 20, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    ],
)
def test_a_timestamp_may_be_a_number_a_text_or_a_datetime(timestamp):
    assert make_event({}, timestamp=timestamp).timestamp_ms == 1_700_000_000_000


@pytest.mark.parametrize("timestamp", [1e306, -1e306, 10**400, 1e300])
def test_a_timestamp_beyond_all_time_is_taken_and_clamped_later(timestamp):
    assert abs(make_event({}, timestamp=timestamp).timestamp_ms) <= 2**62


@pytest.mark.parametrize(
    ("cost", "nanousd"),
    [("0.1", 100_000_000), (0.1, 100_000_000), (Decimal("0.000000001"), 1), (0, 0), (2, 2 * 10**9)],
    ids=["text", "float", "decimal", "nothing", "int"],
)
def test_a_cost_is_exact(cost, nanousd):
    event = make_event({}, cost_usd=cost)
    assert (event.cost_nanousd, event.flags & UNPRICED) == (nanousd, 0)


@pytest.mark.parametrize(("word", "flag"), [("exact", 0), ("estimated", 1), ("lower_bound", 2), ("aborted", 3)])
def test_exactness_is_a_flag(word, flag):
    assert make_event({}, exactness=word).flags == flag | UNPRICED


def test_tags_are_a_copy_that_the_caller_cannot_change():
    tags = {"k": "v"}
    event = make_event({}, tags=tags)
    tags["k"] = object()
    assert event.tags == {"k": "v"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input_tokens", -1),
        ("input_tokens", 1.0),
        ("output_tokens", "1"),
        ("cache_read_tokens", True),
        ("cache_write_tokens", 10**12 + 1),
        ("reasoning_tokens", None),
        ("message_id", 5),
        ("message_id", "x" * 257),
        ("timestamp", "yesterday"),
        ("timestamp", "2026-01-01T00:00:00"),
        ("timestamp", datetime(2026, 1, 1)),
        ("timestamp", float("nan")),
        ("timestamp", True),
        ("cost_usd", -1),
        ("cost_usd", "much"),
        ("cost_usd", float("inf")),
        ("cost_usd", 10**6 + 1),
        ("tags", ["k"]),
        ("tags", {"k": 1}),
        ("tags", {str(n): "v" for n in range(17)}),
        ("exactness", "roughly"),
        ("agent", "a\n"),
        ("model", "__other__"),
        ("tenant", "x" * 129),
        ("session", 5),
        ("user", "\ud800"),
        ("colour", "red"),
    ],
    ids=range(27),
)
def test_a_wrong_argument_is_named(field, value):
    with pytest.raises(InvalidValue) as wrong:
        make_event({}, **{field: value})
    assert wrong.value.field == field


def test_a_name_that_cannot_be_hashed_is_refused():
    with pytest.raises(InvalidValue) as wrong:
        make_event({}, agent=["a"])
    assert (wrong.value.field, wrong.value.reason) == ("agent", "type")


class TestThroughAClient:
    @pytest.fixture
    def client(self, memory_fleet):
        memory_fleet.actor()
        return memory_fleet.client(agent="mine", model="m")

    def test_the_clients_dimensions_are_in_every_record(self, client):
        client.record(1)
        client.record(1, agent="other")
        groups = client.analytics(["agent", "model"])["groups"]
        assert {(group["agent"], group["model"]) for group in groups} == {("mine", "m"), ("other", "m")}

    def test_a_wrong_argument_is_a_value_error_and_records_nothing(self, client):
        with pytest.raises(ValueError, match="^input_tokens must be between 0 and"):
            client.record(-1)
        assert client.pending == 0

    def test_times_at_both_ends_of_time_go_into_one_batch(self, client):
        client.record(1, timestamp=1e300)
        client.record(1, timestamp=-1e300)
        answer = client.analytics()
        assert (answer["requests"], answer["clamped"]) == (2, 2)

    def test_tags_that_are_used_again_are_recorded_as_they_were(self, client):
        tags = {"turn": "0"}
        for turn in range(3):
            tags["turn"] = str(turn)
            client.record(1, tags=tags)
        tags["turn"] = object()
        assert [entry["tags"] for entry in client.history()] == [{"turn": "2"}, {"turn": "1"}, {"turn": "0"}]

    def test_a_message_id_counts_once(self, client):
        for _ in range(3):
            client.record(1, message_id="m")
        answer = client.analytics()
        assert (answer["requests"], answer["duplicates"]) == (1, 2)
