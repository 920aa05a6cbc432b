"""The table of bad input, row by row: what comes in, and what becomes of it.

Every row is read together with good entries before and after it, which have to count whatever it is.
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import (
    PRODUCER,
    START_MS,
    ask,
    batch_entry,
    command_entry,
    entry,
    event,
    examples,
    json_entry,
    single_entry,
    total,
)
from token_actor.actor.fold import fold
from token_actor.core.ledger import Bounds, Ledger
from token_actor.core.series import NAMES_MAX, OTHER
from token_actor.core.usage import COUNTS, DIMENSIONS, TOKENS_MAX, check_count
from token_actor.errors import InvalidValue
from token_actor.wire.batches import LIST_FIELDS, encode_batch
from token_actor.wire.codec import BATCH_BYTES_MAX, MESSAGE_BYTES_MAX, pack, unpack_batch

BATCH = encode_batch([event(1, 2, message_id="x"), event(3)], producer=PRODUCER, epoch=0, first_seq=0)


def outcome(name, value):
    """Return why a field of the log is quarantined; ``None`` when it is counted."""
    ledger = Ledger()
    read = [json_entry(input_tokens=1000), entry(value, name, seq=1), json_entry(input_tokens=1000)]
    letters = fold(ledger, read, epoch=1).dead
    assert ledger.total()["input_tokens"] >= 2000
    assert ask(ledger, "books")["differences"] == []
    assert ask(ledger, "status")["missing"] == 0
    if not letters:
        return None
    (letter,) = letters
    assert (letter.source, letter.name, letter.raw) == (b"%d-1" % START_MS, name, value[:BATCH_BYTES_MAX])
    assert ledger.dead == {letter.reason: max(1, len(letter.events))}
    return letter.reason


def outcomes(**fields):
    """Return the outcome of one event in JSON and in msgpack."""
    return {outcome(b"j", json.dumps(fields).encode()), outcome(b"e", pack(fields))}


def changed(**fields: Any) -> bytes:
    """Return the bytes of a batch with some of its fields changed."""
    return pack({**unpack_batch(BATCH, lists=LIST_FIELDS), **fields})


def int64(*values: int) -> bytes:
    return np.array(values, dtype=np.int64).tobytes()


# --- bytes that say nothing -------------------------------------------------------------------------

NOT_DECODED = {
    "an empty batch": (b"b", b""),
    "an empty event": (b"e", b""),
    "an empty JSON": (b"j", b""),
    "an empty command": (b"c", b""),
    "random bytes": (b"b", base64.b64decode(b"q83vASNFZ4mrze8BI0VniavN7wEjRWeJ")),
    "random bytes as an event": (b"e", base64.b64decode(b"3q2+78r+ur7erb7vyv66vg==")),
    "random bytes as JSON": (b"j", base64.b64decode(b"/wD+AP0A/AA=")),
    "a batch cut short": (b"b", BATCH[:-1]),
    "a batch cut in the middle": (b"b", BATCH[: len(BATCH) // 2]),
    "a batch of one byte": (b"b", BATCH[:1]),
    "an event cut short": (b"e", pack({"model": "m"})[:-1]),
    "JSON cut short": (b"j", b'{"model": "m"'),
    "a batch with a byte behind it": (b"b", BATCH + b"\xc0"),
    "two batches": (b"b", BATCH * 2),
    "an event with a byte behind it": (b"e", pack({}) + b"\x00"),
    "two JSON objects": (b"j", b"{}{}"),
    "a field name that is wrong": (b"B", BATCH),
    "no field name": (b"", BATCH),
    "a long field name": (b"x" * 10_000, BATCH),
    "JSON as an event": (b"e", b'{"model": "m"}'),
    "an event as JSON": (b"j", pack({"model": "m"})),
    "a list": (b"e", pack([1])),
    "a JSON list": (b"j", b"[1]"),
    "a JSON number": (b"j", b"5"),
    "null": (b"j", b"null"),
    "nil": (b"e", b"\xc0"),
    "a misspelt field": (b"j", b'{"input_token": 5}'),
    "a misspelt field of a batch": (b"b", changed(x=1)),
    "a field name that is not UTF-8": (b"e", b"\x81\xa5mode\xff\xa1m"),
    "a field name of JSON that is not UTF-8": (b"j", b'{"mode\xff": "m"}'),
    "an array of four billion": (b"e", b"\xdd\xff\xff\xff\xff"),
    "a map of four billion": (b"e", b"\xdf\xff\xff\xff\xff"),
    "a batch of four billion keys": (b"b", b"\x81\xa1k\xdd\xff\xff\xff\xff"),
    "a string of four gigabytes": (b"e", b"\x81\xa5model\xdb\xff\xff\xff\xff"),
    "nested arrays": (b"e", (b"\xdd\x00\x00\x3f\xf0" * 3_277)[:MESSAGE_BYTES_MAX]),
    "nested arrays in a batch": (b"b", (b"\x81\xa1k" + b"\xdd\x00\x00\xff\xf0" * 13_107)[:BATCH_BYTES_MAX]),
    "nested maps": (b"e", b"\x81\xa1a" * 5_000),
    "deep": (b"e", pack({"model": [[[[[[[[1]]]]]]]]})),
    "deep JSON": (b"j", b'{"model": ' + b"[" * 8 + b"]" * 8 + b"}"),
    "very deep JSON": (b"j", b"[" * 16_000),
    "very deep objects of JSON": (b"j", b'{"a":' * 3_200),
    "an extension type": (b"e", pack({"model": msgpack.ExtType(5, b"x")})),
    "an extension type in a batch": (b"b", changed(m=[msgpack.ExtType(5, b"x"), None])),
    "a timestamp of msgpack": (b"e", pack({"timestamp": msgpack.Timestamp(5)})),
    "a malformed timestamp of msgpack": (b"e", b"\x81\xa5model\xd4\xff\x00"),
    "a key twice": (b"e", b"\x82\xa5model\xa1a\xa5model\xa1b"),
    "a key twice in JSON": (b"j", b'{"model": "a", "model": "b"}'),
    "a key twice in a batch": (b"b", b"\x82\xa1v\x01\xa1v\x01"),
    "a key that is a number": (b"e", b"\x81\x05\x01"),
    "a key that is bytes": (b"e", b"\x81\xc4\x05model\xa1a"),
    "a key of a batch that is bytes": (b"b", b"\x82\xa1v\x01\xc4\x01x\x01"),
    "a command with a key that is bytes": (b"c", b"\x82\xa1v\x01\xc4\x01x\x01"),
    "an int of 5,000 digits": (b"j", b'{"input_tokens": ' + b"9" * 5_000 + b"}"),
    "a batch without a producer": (b"b", changed(p=None)),
    "a batch of nothing": (b"b", changed(n=0)),
    "a batch of two billion": (b"b", changed(n=2**31)),
    "a batch with columns of another length": (b"b", changed(n=3)),
    "a batch that points before its keys": (b"b", changed(s=int64(-5, 0))),
    "a batch that points behind its keys": (b"b", changed(s=int64(2**40, 0))),
    "a batch with a series nobody used": (b"b", changed(k=[*unpack_batch(BATCH, lists=LIST_FIELDS)["k"], "x"])),
    "a batch with times before its first": (b"b", changed(t=START_MS, d=int64(-1, 0))),
    "a batch with ids for others": (b"b", changed(m=["x"])),
    "a command for a client of someone else": (
        b"c",
        pack({"v": 1, "id": "1", "client": "a}:b", "op": "reset", "args": {}}),
    ),
    "a command without an id": (b"c", pack({"v": 1, "client": "a", "op": "reset", "args": {}})),
    "a command with an event of text": (b"c", pack({"v": 1, "id": "1", "client": "a", "op": "record", "event": "x"})),
}


@pytest.mark.parametrize("name", NOT_DECODED)
def test_bytes_that_say_nothing_are_dead_decode(name):
    assert outcome(*NOT_DECODED[name]) == "decode"


@pytest.mark.parametrize("fields", [[], [b"e"], [b"e", b"\x80", b"j", b"{}"], [b"e", b"\x80", b"e"]])
def test_an_entry_with_any_other_number_of_fields_is_dead_decode(fields):
    ledger = Ledger()
    (letter,) = fold(ledger, [(b"5-0", fields)], epoch=1).dead
    assert (letter.reason, ledger.total()["requests"]) == ("decode", 0)


@given(st.sampled_from([b"b", b"c", b"e", b"j"]), st.binary(max_size=300))
@examples(300)
def test_random_bytes_are_dead_decode_or_an_event_or_of_another_version(name, value):
    assert outcome(name, value) in {None, "decode", "version", "bad_name"}


@pytest.mark.parametrize("byte", range(0, 256, 5))
def test_a_batch_with_any_byte_changed_is_counted_or_quarantined(byte):
    for place in range(len(BATCH)):
        value = BATCH[:place] + bytes([byte]) + BATCH[place + 1 :]
        ledger = Ledger()
        letters = fold(ledger, [entry(value), json_entry(input_tokens=1)], epoch=1).dead
        assert len(letters) <= 1
        assert total(ledger, "requests") + sum(ledger.dead.values()) >= 2
        assert ask(ledger, "books")["differences"] == []


# --- too large, another version ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "most"), [(b"b", BATCH_BYTES_MAX), (b"e", MESSAGE_BYTES_MAX), (b"j", MESSAGE_BYTES_MAX)]
)
def test_a_payload_above_its_limit_is_dead_too_large_before_it_is_decoded(name, most):
    assert outcome(name, b"\xff" * (most + 1)) == "too_large"
    assert outcome(name, b"\xff" * most) == "decode"


def test_a_command_above_its_limit_is_dead_too_large():
    assert outcome(b"c", b"\xff" * (MESSAGE_BYTES_MAX + 1)) == "too_large"


@pytest.mark.parametrize("version", [2, 99, None, "1"])
def test_another_version_is_dead_version_and_kept_as_it_came(version):
    assert outcome(b"b", changed(v=version)) == "version"
    assert outcome(b"b", changed(v=version, new="field")) == "version"
    assert outcome(b"c", pack({"v": version, "new": "field"})) == "version"


# --- numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [-1, TOKENS_MAX + 1, 2**63])
@pytest.mark.parametrize("field", COUNTS)
def test_a_count_out_of_range_is_dead_range(field, count):
    assert outcomes(**{field: count}) == {"range"}


@pytest.mark.parametrize("count", [1.0, 0.5, True, False, "5", "", None, [], {}, 1e308])
@pytest.mark.parametrize("field", COUNTS)
def test_a_count_that_is_no_int_is_dead_type(field, count):
    assert outcomes(**{field: count}) == {"type"}


@pytest.mark.parametrize("text", [b"NaN", b"Infinity", b"-Infinity", b"1e309", b"1e400"])
@pytest.mark.parametrize("field", ["input_tokens", "timestamp", "cost_usd"])
def test_a_number_of_json_that_is_none_is_dead_type(field, text):
    assert outcome(b"j", b'{"%s": %s}' % (field.encode(), text)) == "type"


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("field", ["input_tokens", "timestamp", "cost_usd"])
def test_a_number_of_msgpack_that_is_none_is_dead_type(field, number):
    assert outcome(b"e", pack({field: number})) == "type"


def test_an_int_of_4000_digits_is_dead_range():
    assert outcome(b"j", b'{"input_tokens": ' + b"9" * 4_000 + b"}") == "range"
    assert outcome(b"j", b'{"cost_usd": ' + b"9" * 4_000 + b"}") == "range"


@pytest.mark.parametrize("count", [-1, TOKENS_MAX + 1, 2**63 - 1])
def test_a_count_of_a_batch_out_of_range_is_dead_range(count):
    assert outcome(b"b", changed(i=int64(5, count))) == "range"


def test_a_count_of_a_batch_above_int64_is_dead_range():
    assert outcome(b"b", changed(i=np.array([5, 2**64 - 1], dtype=np.uint64).tobytes())) == "range"


@pytest.mark.parametrize("count", [-1, TOKENS_MAX + 1, 1.0, True, math.nan, "1", None])
def test_in_python_a_bad_count_is_a_value_error_naming_the_argument(count):
    with pytest.raises(ValueError, match="^cache_read ") as refused:
        check_count("cache_read", count)
    assert isinstance(refused.value, InvalidValue)


@pytest.mark.parametrize("cost", [-1, "-0.01", 1_001, "1e7"])
def test_a_cost_out_of_range_is_dead_range(cost):
    assert outcomes(cost_usd=cost) == {"range"}


@pytest.mark.parametrize("cost", [True, "", "free", "NaN", "1e9999999999999999999", [], {}])
def test_a_cost_that_is_no_number_is_dead_type(cost):
    assert outcomes(cost_usd=cost) == {"type"}


def test_more_reasoning_than_output_is_counted_flagged_and_shown():
    for read in (single_entry(output_tokens=1, reasoning_tokens=2), batch_entry(event(0, 1, counts=(0, 0, 2)))):
        ledger = Ledger()
        assert fold(ledger, [read], epoch=1).dead == []
        found = ask(ledger, "analytics")
        assert (found["requests"], found["inconsistent"], found["reasoning_tokens"]) == (1, 1, 2)


def test_an_event_of_nothing_is_counted_as_a_request():
    ledger = Ledger()
    assert fold(ledger, [single_entry(), json_entry(), batch_entry(event())], epoch=1).dead == []
    assert total(ledger, "requests") == 3


# --- names ------------------------------------------------------------------------------------------

BAD_NAMES = {
    "long": "x" * 129,
    "long in bytes": "é" * 65,
    "a line break": "a\nb",
    "a separator": "a\x1fb",
    "a zero": "\x00",
    "a control character of Latin-1": "\x85",
    "reserved": "__other__",
    "reserved too": "__",
}


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_bad_name_is_dead_bad_name(dimension, name):
    assert outcomes(**{dimension: BAD_NAMES[name]}) == {"bad_name"}


@pytest.mark.parametrize("name", ["long", "a line break", "reserved"])
def test_a_bad_name_in_a_batch_is_dead_bad_name(name):
    assert outcome(b"b", changed(k=["default\x1f\x1f\x1f" + BAD_NAMES[name] + "\x1f\x1f\x1f"])) == "bad_name"


def test_half_a_character_in_json_is_dead_bad_name():
    for field in ("model", "message_id"):
        assert outcome(b"j", b'{"%s": "\\ud800"}' % field.encode()) == "bad_name"
    assert outcome(b"j", b'{"tags": {"a": "\\ud800"}}') == "bad_name"
    assert outcome(b"j", b'{"model": "\xed\xa0\x80"}') == "bad_name"


@pytest.mark.parametrize("field", [b"model", b"tenant", b"message_id"])
def test_a_name_that_is_not_utf_8_is_dead_bad_name(field):
    assert outcome(b"e", b"\x81" + pack(field.decode()) + b"\xa1\xff") == "bad_name"
    assert outcome(b"j", b'{"%s": "\xff"}' % field) == "bad_name"
    command = pack({"v": 1, "id": "1", "client": "a", "op": "record", "event": {field.decode(): "@"}})
    assert outcome(b"c", command.replace(b"@", b"\xff")) == "bad_name"


def test_tags_that_are_not_utf_8_are_dead_bad_name():
    for value in (b"\x81\xa4tags\x81\xa1a\xa1\xff", b"\x81\xa4tags\x81\xa1\xff\xa1a"):
        assert outcome(b"e", value) == "bad_name"


def test_only_the_events_of_a_batch_whose_names_are_not_utf_8_are_dead_bad_name():
    for broken in (event(2, model="@"), event(2, message_id="@"), event(2, tags={"a": "@"})):
        ledger = Ledger()
        batch = encode_batch([event(1, model="m", message_id="x"), broken], producer=PRODUCER, epoch=0, first_seq=0)
        (letter,) = fold(ledger, [entry(batch.replace(b"@", b"\xff"))], epoch=1).dead
        assert [(position, reason) for position, reason, _ in letter.events] == [(1, "bad_name")]
        assert (total(ledger), ask(ledger, "status")["missing"]) == (1, 0)


# --- sequence numbers of what cannot be read ----------------------------------------------------------

UNREADABLE = {
    "too large": BATCH + b"\xc0" * BATCH_BYTES_MAX,
    "cut short": BATCH[:-1],
    "with a byte behind it": BATCH + b"\xc0",
    "with an unknown field": changed(x=1),
    "with a field twice": bytes([BATCH[0] + 1]) + BATCH[1:] + b"\xa1v\x01",
    "with columns of another length": changed(i=b"\x01\x02\x03"),
    "with an extension type": changed(g=[msgpack.ExtType(5, b"x"), None]),
    "with a list where none belongs": changed(i=[1, 2]),
}


def holes(*values):
    """Return how many events are missing after a batch of numbers 0 and 1, values, and one of numbers 4 and 5."""
    ledger = Ledger()
    read = [entry(changed()), *(entry(value, seq=place + 1) for place, value in enumerate(values)), entry(changed(q=4))]
    letters = fold(ledger, read, epoch=1).dead
    return ask(ledger, "status")["missing"], len(letters), ledger.dead


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_batch_that_cannot_be_read_leaves_no_false_hole_if_its_numbers_can(name):
    value = UNREADABLE[name].replace(b"\xa1q\x00", b"\xa1q\x02", 1)
    reason = "too_large" if name == "too large" else "decode"
    assert holes(value) == (0, 1, {reason: 1})


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_batch_that_cannot_be_read_is_quarantined_once_however_often_it_comes(name):
    value = UNREADABLE[name].replace(b"\xa1q\x00", b"\xa1q\x02", 1)
    assert holes(value, value, value)[:2] == (0, 1)


@pytest.mark.parametrize(
    "fields", [{"p": b"short"}, {"p": None}, {"o": -1}, {"q": "2"}, {"q": 2**63}, {"n": 0}, {"n": 5_000}, {"n": [2]}]
)
def test_the_events_of_a_batch_whose_numbers_cannot_be_trusted_are_missing(fields):
    assert holes(changed(**{"q": 2, **fields})) == (2, 1, {"decode": 1})


def test_the_events_of_a_batch_of_another_version_are_missing_until_it_is_counted():
    assert holes(changed(q=2, v=2)) == (2, 1, {"version": 1})
    assert holes(changed(q=2, v=2), changed(q=2)) == (0, 1, {"version": 1})


def test_a_batch_that_cannot_be_read_uses_up_its_numbers_where_it_stands_in_the_log():
    broken, whole = changed(q=2, x=1), changed(q=2)
    assert holes(broken, whole)[1:] == (1, {"decode": 1})
    assert holes(whole, broken)[1:] == (0, {})


@pytest.mark.parametrize("message_id", ["x" * 257, "é" * 129])
def test_a_long_message_id_is_dead_bad_name(message_id):
    assert outcomes(message_id=message_id) == {"bad_name"}
    assert outcome(b"b", changed(m=[message_id, None])) == "bad_name"


@pytest.mark.parametrize("value", [0, 5, 1.5, True, [], {}])
@pytest.mark.parametrize("field", [*DIMENSIONS, "message_id", "exactness"])
def test_a_text_that_is_none_is_dead_type(field, value):
    assert outcomes(**{field: value}) == {"type"}


@pytest.mark.parametrize(
    "name", ["名前", "naïve", "👩‍💻", "a b", "=cmd()", "<script>", "'; DROP TABLE", "\u202eabc", "x" * 128]
)
def test_other_unicode_is_kept_as_given(name):
    ledger = Ledger()
    fold(ledger, [single_entry(agent=name), json_entry(agent=name), batch_entry(event(agent=name))], epoch=1)
    assert ask(ledger, "analytics", selector={"agent": name})["requests"] == 3


@pytest.mark.parametrize("tags", [{"a": 1}, [], "a", {"": "x"}, {"a": None}, {"a": ["b"]}])
def test_tags_that_are_no_map_of_strings_are_dead_type(tags):
    assert outcomes(tags=tags) == {"type"}


def test_too_many_tags_are_dead_range():
    assert outcomes(tags={str(number): "x" for number in range(17)}) == {"range"}


@pytest.mark.parametrize("dimension", ["model", "user", "tenant"])
def test_names_without_end_are_counted_under_other_with_exact_totals(dimension):
    ledger = Ledger(Bounds(names_max={**NAMES_MAX, dimension: 100}, rows_max=5_000))
    for start in range(0, 3_000, 500):
        made = [event(1, **{dimension: f"n{number}"}) for number in range(start, start + 500)]
        assert fold(ledger, [batch_entry(*made, first_seq=start)], epoch=1).dead == []
    assert len(ledger.series) == 101
    found = ask(ledger, "analytics", group_by=[dimension])
    assert (found["requests"], len(found["groups"])) == (3_000, 101)
    assert (found["groups"][0][dimension], found["groups"][0]["requests"]) == (OTHER, 2_900)
    assert ask(ledger, "status")["folded_events"] == 2_900


# --- ids --------------------------------------------------------------------------------------------


def test_the_same_id_with_the_same_content_is_a_duplicate():
    ledger = Ledger()
    entries = [single_entry(message_id="m", input_tokens=5), json_entry(message_id="m", input_tokens=5)]
    entries += [
        batch_entry(event(5, message_id="m")),
        command_entry("record", event={"message_id": "m", "input_tokens": 5}),
    ]
    assert fold(ledger, entries, epoch=1).dead == []
    assert (total(ledger), total(ledger, "duplicates")) == (5, 3)


def test_the_same_id_with_other_content_is_dead_id_conflict():
    ledger = Ledger()
    entries = [single_entry(message_id="m", input_tokens=5), json_entry(message_id="m", input_tokens=6)]
    entries += [
        batch_entry(event(7, message_id="m")),
        command_entry("record", event={"message_id": "m", "input_tokens": 8}),
    ]
    assert [letter.reason for letter in fold(ledger, entries, epoch=1).dead] == ["id_conflict"] * 3
    assert (total(ledger), ledger.dead) == (5, {"id_conflict": 3})


# --- times ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "timestamp",
    [
        0, -1, START_MS, START_MS * 1000, START_MS * 1_000_000, 1e300, -1e300, 1.7e308, 2**63, "1970-01-01T00:00:00Z",
        "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00",
    ],
)  # fmt: skip
def test_a_time_that_is_far_off_is_clamped_and_flagged(timestamp):
    for read in (single_entry(timestamp=timestamp), json_entry(timestamp=timestamp)):
        ledger = Ledger()
        assert fold(ledger, [read], epoch=1).dead == []
        assert (total(ledger, "requests"), total(ledger, "clamped")) == (1, 1)


def test_a_time_of_400_digits_is_clamped_and_flagged():
    ledger = Ledger()
    assert fold(ledger, [json_entry(timestamp=10**400)], epoch=1).dead == []
    assert total(ledger, "clamped") == 1


@pytest.mark.parametrize(
    ("start_ms", "after_ms"), [(0, 0), (START_MS * 1000, 5), (-(2**62) + 1, 2**63 - 1), (2**62 - 1, 2**63 - 1)]
)
def test_a_time_of_a_batch_that_is_far_off_is_clamped_and_flagged(start_ms, after_ms):
    ledger = Ledger()
    assert fold(ledger, [entry(changed(t=start_ms, d=int64(0, after_ms)))], epoch=1).dead == []
    assert (total(ledger, "requests"), total(ledger, "clamped")) == (2, 2)


@pytest.mark.parametrize("timestamp", ["yesterday", "", "2023-11-14T22:13:20", "1700000000", True, [], {}])
def test_a_time_that_is_text_or_nothing_is_dead_type(timestamp):
    assert outcomes(timestamp=timestamp) == {"type"}


def test_an_entry_from_the_end_of_all_time_stops_nothing():
    ledger = Ledger()
    last = b"18446744073709551615-18446744073709551615"
    fold(ledger, [json_entry(input_tokens=1), (last, [b"j", b'{"input_tokens": 10}']), (last, [b"b", BATCH])], epoch=1)
    assert total(ledger) == 15
    assert ask(ledger, "books")["differences"] == []
    assert ask(ledger, "window", window_ms=1000)["tokens"] == 16
