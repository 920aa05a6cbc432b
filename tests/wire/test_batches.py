"""Facts about batches: many events of one producer, as columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import PRODUCER, START_MS, event, examples
from token_actor.core.columns import Run
from token_actor.core.usage import COST_NANOUSD_MAX, SEPARATOR, TIME_MS_MAX, TOKENS_MAX, UNPRICED, Event, series_key
from token_actor.errors import BadEntry
from token_actor.wire.batches import BATCH_VERSION, EVENTS_MAX, LIST_FIELDS, decode_batch, encode_batch
from token_actor.wire.codec import BATCH_BYTES_MAX, pack, unpack_batch

LOG_MS = START_MS + 12_345


def encoded(*events: Event) -> dict[str, Any]:
    """Return events as the map of a batch."""
    data = encode_batch(events, producer=PRODUCER, epoch=2, first_seq=7)
    return unpack_batch(data, lists=LIST_FIELDS)


def decoded(batch):
    return decode_batch(unpack_batch(pack(batch), lists=LIST_FIELDS), log_ms=LOG_MS, entry=4)


def events_of(columns):
    """Return columns as the events they mean."""
    count = len(columns)
    ids = [None] * count if columns.message_ids is None else columns.message_ids.tolist()
    tags = [None] * count if columns.tags is None else columns.tags.tolist()
    keys = [columns.keys[place] for place in columns.key_index]
    numbers = (columns.cost.tolist(), columns.flags.tolist(), columns.event_ms.tolist())
    return [Event(*each) for each in zip(keys, *columns.counts.tolist(), *numbers, ids, tags, strict=True)]


def refusal(batch):
    with pytest.raises(BadEntry) as refused:
        decoded(batch)
    return refused.value.reason


def problems(batch):
    """Return the problems of a batch by event: field and reason."""
    return {event: (problem.field, problem.reason) for event, problem in decoded(batch).problems.items()}


# --- encoding -------------------------------------------------------------------------------------


def test_a_batch_of_little_is_little():
    assert encoded(event(1), event(2)) == {
        "v": BATCH_VERSION, "p": PRODUCER, "o": 2, "q": 7, "n": 2, "k": [series_key()], "s": b"\0\0", "i": b"\x01\x02",
    }  # fmt: skip


def test_a_column_is_as_wide_as_its_largest_number_needs():
    widths = {
        most: len(encoded(event(), event(most))["i"]) // 2 for most in (1, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32)
    }
    assert widths == {1: 1, 255: 1, 256: 2, 65_535: 2, 65_536: 4, 2**32 - 1: 4, 2**32: 8}


def test_a_series_key_is_sent_once():
    batch = encoded(event(agent="a"), event(agent="b"), event(agent="a"))
    assert (batch["k"], batch["s"]) == ([series_key(agent="a"), series_key(agent="b")], b"\x00\x01\x00")


def test_times_are_sent_after_the_earliest():
    batch = encoded(event(at_ms=START_MS + 300), event(at_ms=START_MS))
    assert (batch["t"], batch["d"]) == (START_MS, b"\x2c\x01\x00\x00")


def test_a_batch_has_all_of_its_times_or_none():
    with pytest.raises(AssertionError, match="all of its times or none"):
        encoded(event(at_ms=START_MS), event())


def test_ids_tags_and_flags_are_sent_when_there_are_any():
    batch = encoded(event(message_id="m", tags={"a": "b"}, flags=1), event())
    assert (batch["m"], batch["g"], batch["f"]) == (["m", None], [{"a": "b"}, None], bytes([1, UNPRICED]))


# --- decoding -------------------------------------------------------------------------------------


def test_the_events_of_a_batch_carry_the_numbers_of_its_producer():
    columns = decoded(encoded(event(), event(), event()))
    assert columns.runs == [Run(PRODUCER, 2, 7, 0, 3)]
    assert (columns.log_ms.tolist(), columns.entry.tolist()) == ([LOG_MS] * 3, [4] * 3)


def test_events_without_a_time_happened_when_the_log_took_them():
    assert decoded(encoded(event(), event())).event_ms.tolist() == [LOG_MS, LOG_MS]


def test_events_of_one_time_need_no_column_of_times():
    batch = encoded(event(at_ms=START_MS), event(at_ms=START_MS))
    del batch["d"]
    assert decoded(batch).event_ms.tolist() == [START_MS, START_MS]


def test_fields_that_are_nil_are_absent():
    batch = encoded(event(1), event(2))
    absent = dict.fromkeys("urwzcftdmg")
    assert events_of(decoded({**batch, **absent})) == events_of(decoded(batch))


def test_columns_are_of_64_bit_numbers():
    columns = decoded(encoded(event(1, at_ms=START_MS)))
    assert {columns.counts.dtype, columns.cost.dtype, columns.event_ms.dtype, columns.key_index.dtype} == {
        np.dtype(np.int64)
    }


NUMBERS = st.one_of(*(st.integers(0, most) for most in (0, 255, 65_535, 2**32 - 1, TOKENS_MAX)))
NAMES = st.sampled_from(["", "a", "é", "名前", "x" * 128])
IDS = st.none() | st.text(min_size=1, max_size=64).filter(lambda text: text.isprintable())
TAGS = st.none() | st.dictionaries(st.sampled_from("abc"), st.sampled_from(["", "x"]), min_size=1)
TIMES = st.one_of(
    *(st.integers(START_MS, START_MS + spread) for spread in (0, 200, 60_000, 10**9, 10**12))
) | st.integers(-TIME_MS_MAX, TIME_MS_MAX)


@st.composite
def events(draw):
    timed = draw(st.booleans())
    flags = draw(st.integers(0, 7))
    return [
        Event(
            series_key(draw(NAMES), agent=draw(NAMES), session=draw(NAMES)),
            *(draw(NUMBERS) for _ in range(5)),
            0 if flags & UNPRICED else draw(st.integers(0, COST_NANOUSD_MAX)),
            flags,
            draw(TIMES) if timed else None,
            draw(IDS),
            draw(TAGS),
        )
        for _ in range(draw(st.integers(1, 5)))
    ]


@given(events())
@examples(300)
def test_what_is_encoded_decodes_to_the_same(sent):
    columns = decoded(encoded(*sent))
    assert columns.problems == {}
    assert events_of(columns) == [
        each._replace(timestamp_ms=LOG_MS) if each.timestamp_ms is None else each for each in sent
    ]


# --- what is refused as a whole ---------------------------------------------------------------------

BATCH = encoded(event(1, 2, agent="a", at_ms=START_MS), event(3, 4, agent="b", at_ms=START_MS + 1))


def test_the_batch_of_these_tests_is_one():
    assert decoded(BATCH).counts[:2].tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize("version", [None, 0, 2, "1", b"\x01"])
def test_a_batch_of_another_version_is_refused_as_such(version):
    assert refusal({**BATCH, "v": version}) == "version"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("x", 1), ("", 1), ("tenant", "a"),
        ("p", None), ("p", b"x" * 15), ("p", b"x" * 17), ("p", "x" * 16), ("p", 5),
        ("o", None), ("o", -1), ("o", 2**31 + 1), ("o", "0"), ("o", 0.0), ("o", True),
        ("q", None), ("q", -1), ("q", 2**62 + 1), ("q", 1.0), ("q", "7"),
        ("n", None), ("n", 0), ("n", -2), ("n", 1), ("n", 3), ("n", EVENTS_MAX + 1), ("n", 2**63), ("n", 2.0),
        ("k", None), ("k", []), ("k", [b"a", b"b"]), ("k", [1, 2]), ("k", ["a", None]), ("k", "ab"), ("k", ["a"]),
        ("k", [BATCH["k"][0], BATCH["k"][1], BATCH["k"][0]]),
        ("s", None), ("s", b"\x00\x02"), ("s", b"\x00\x00"), ("s", b""), ("s", b"\x00"), ("s", b"\x00\x01\x00"),
        ("s", "ab"), ("s", 1), ("s", b"\xff" * 16), ("s", (-2).to_bytes(8, "little", signed=True) + bytes(8)),
        ("i", b"\x01"), ("i", b"\x01" * 3), ("i", b"\x01" * 6), ("i", b"\x01" * 32), ("i", b""), ("i", "ab"), ("i", 5),
        ("z", b"\x01"), ("c", b"\x01" * 10), ("d", b"\x01"), ("d", b"\xff" * 16),
        ("f", b"\x00"), ("f", b"\x00" * 4), ("f", "ab"), ("f", 1),
        ("t", 1.5), ("t", "now"), ("t", True), ("t", 2**62), ("t", -(2**62)),
        ("m", ["a"]), ("m", ["a", "b", "c"]), ("m", []), ("m", "ab"), ("m", b"ab"),
        ("g", [None]), ("g", {}), ("g", [None] * 3),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_a_batch_with_a_wrong_field_is_refused(field, value):
    assert refusal({**BATCH, field: value}) == "decode"


@pytest.mark.parametrize("field", ["v", "p", "o", "q", "n", "k", "s"])
def test_a_batch_that_lacks_a_field_is_refused(field):
    reason = refusal({name: value for name, value in BATCH.items() if name != field})
    assert reason == ("version" if field == "v" else "decode")


def test_a_batch_may_have_this_many_events():
    batch = {**BATCH, "n": EVENTS_MAX, "k": ["a"], "s": bytes(EVENTS_MAX), "i": None, "u": None, "d": None}
    assert len(decoded(batch)) == EVENTS_MAX


# --- what is wrong with single events ---------------------------------------------------------------


def int64(*values):
    return b"".join(value.to_bytes(8, "little", signed=value < 0) for value in values)


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("i", "input_tokens"), ("u", "output_tokens"), ("r", "cache_read_tokens"), ("w", "cache_write_tokens"),
        ("z", "reasoning_tokens"),
    ],
)  # fmt: skip
def test_a_count_out_of_range_is_a_problem_of_its_event(field, name):
    assert problems({**BATCH, field: int64(TOKENS_MAX, TOKENS_MAX + 1)}) == {1: (name, "range")}
    assert problems({**BATCH, field: int64(-1, 0)}) == {0: (name, "range")}
    assert problems({**BATCH, field: int64(2**64 - 1, 5)}) == {0: (name, "range")}


def test_a_cost_out_of_range_is_a_problem_of_its_event():
    batch = {**BATCH, "f": b"\x00\x00"}
    assert problems({**batch, "c": int64(COST_NANOUSD_MAX, COST_NANOUSD_MAX + 1)}) == {1: ("cost_nanousd", "range")}


def test_a_cost_that_nobody_knows_is_a_problem_of_its_event():
    assert problems({**BATCH, "f": bytes([0, UNPRICED]), "c": b"\x05\x05"}) == {1: ("cost_nanousd", "range")}
    assert problems({**BATCH, "c": b"\x05\x00"}) == {0: ("cost_nanousd", "range")}


def test_flags_of_our_own_cannot_be_set_from_outside():
    assert decoded({**BATCH, "f": b"\xff\xf8"}).flags.tolist() == [7, 0]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["a", "x" * 257], {1: ("message_id", "bad_name")}),
        (["é" * 129, "é" * 128], {0: ("message_id", "bad_name")}),
        ([5, "a"], {0: ("message_id", "type")}),
        (["a", b"b"], {1: ("message_id", "type")}),
        ([{"a": "b"}, None], {0: ("message_id", "type")}),
        (["", None], {}),
        (["x" * 65, "a"], {}),
    ],
)
def test_a_bad_message_id_is_a_problem_of_its_event(ids, expected):
    assert problems({**BATCH, "m": ids}) == expected


def test_the_empty_message_id_is_none():
    columns = decoded({**BATCH, "m": ["", "a"]})
    assert columns.message_ids is not None
    assert columns.message_ids.tolist() == [None, "a"]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([{"a": "b"}, {"a": 1}], {1: ("tags", "type")}),
        (["a", None], {0: ("tags", "type")}),
        ([{"a": "b\n"}, {}], {0: ("tags", "bad_name")}),
        ([{str(number): "x" for number in range(17)}, None], {0: ("tags", "range")}),
        ([None, None], {}),
    ],
)
def test_bad_tags_are_a_problem_of_their_event(tags, expected):
    assert problems({**BATCH, "g": tags}) == expected


def test_the_first_problem_of_an_event_is_told():
    assert problems({**BATCH, "i": int64(-1, 0), "z": int64(-1, -1), "m": [5, "a"]}) == {
        0: ("input_tokens", "range"),
        1: ("reasoning_tokens", "range"),
    }


def test_a_time_beyond_all_times_is_as_far_as_times_go():
    batch = {**BATCH, "t": TIME_MS_MAX - 5, "d": int64(3, 2**63 - 1)}
    assert decoded(batch).event_ms.tolist() == [TIME_MS_MAX - 2, TIME_MS_MAX]
    assert decoded({**batch, "t": -TIME_MS_MAX}).event_ms.tolist() == [3 - TIME_MS_MAX, TIME_MS_MAX]


def test_a_batch_of_many_series_decodes_with_its_keys_unchecked():
    columns = decoded({**BATCH, "k": ["no key", "a" * 500 + SEPARATOR]})
    assert (columns.keys, columns.problems) == (["no key", "a" * 500 + SEPARATOR], {})


# --- mutations --------------------------------------------------------------------------------------

VALID = encode_batch(
    [
        event(1, 2, message_id="m", tags={"a": "b"}, at_ms=START_MS, agent="a", flags=0, cost_nanousd=5),
        event(300, at_ms=START_MS),
    ],
    producer=PRODUCER,
    epoch=0,
    first_seq=0,
)


@st.composite
def mutated(draw):
    data = bytearray(VALID)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data) - 1))
        what = draw(st.sampled_from(["set", "cut", "insert", "end"]))
        if what == "set":
            data[place] = draw(st.integers(0, 255))
        elif what == "cut":
            del data[place : place + draw(st.integers(1, 5))]
        elif what == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=9))
        else:
            del data[place:]
        if not data:
            break
    return bytes(data)


@given(mutated())
@examples(400)
def test_a_damaged_batch_is_decoded_or_refused(data):
    assert len(data) < BATCH_BYTES_MAX
    try:
        columns = decode_batch(unpack_batch(data, lists=LIST_FIELDS), log_ms=LOG_MS, entry=0)
    except BadEntry as bad:
        columns, reason = None, bad.reason
    else:
        reason = None
    assert reason in {None, "decode", "version"}
    assert columns is None or len(events_of(columns)) == len(columns) == columns.runs[0].stop
