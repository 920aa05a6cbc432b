"""Facts about one read of the log, decoded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import (
    START_MS,
    batch_entry,
    clock_entry,
    command_entry,
    entry,
    event,
    examples,
    json_entry,
    single_entry,
)
from token_actor.core.columns import Columns
from token_actor.core.usage import COUNTS, DIMENSIONS
from token_actor.wire import reads
from token_actor.wire.batches import EVENTS_MAX
from token_actor.wire.clock import ClockEntry
from token_actor.wire.codec import pack
from token_actor.wire.reads import EVENTS_PER_READ, PlacedClock, PlacedCommand, decode_read


def inputs(step):
    return step.counts[0].tolist()


def test_nothing_decodes_to_nothing():
    read = decode_read([])
    assert (read.steps, read.rejections) == ([], [])


def test_entries_of_every_form_become_one_step_in_their_order():
    (step,) = decode_read(
        [
            single_entry(input_tokens=1),
            json_entry(input_tokens=2),
            batch_entry(event(3), event(4)),
            json_entry(input_tokens=5),
            batch_entry(event(6)),
        ]
    ).steps
    assert isinstance(step, Columns)
    assert inputs(step) == [1, 2, 3, 4, 5, 6]
    assert step.entry.tolist() == [0, 1, 2, 2, 3, 4]
    assert [(run.start, run.stop) for run in step.runs] == [(2, 4), (5, 6)]


def test_events_have_the_log_time_of_their_entry():
    (step,) = decode_read([single_entry(START_MS), batch_entry(event(), at_ms=START_MS + 5)]).steps
    assert isinstance(step, Columns)
    assert step.log_ms.tolist() == [START_MS, START_MS + 5]


def test_a_read_says_how_many_entries_and_events_it_took():
    entries = [single_entry(), batch_entry(event(), event(), event()), command_entry("reset"), entry(b"junk")]
    read = decode_read(entries)
    assert (read.entries, read.events) == (4, 6)


def test_a_read_ends_with_the_entry_that_makes_it_a_good_piece_of_work(monkeypatch):
    monkeypatch.setattr(reads, "EVENTS_PER_READ", 4)
    entries = [batch_entry(event(1), event(2)), batch_entry(event(3), event(4), event(5)), single_entry(input_tokens=6)]
    read = decode_read(entries)
    assert (read.entries, read.events, [inputs(step) for step in read.steps]) == (2, 5, [[1, 2, 3, 4, 5]])


def test_entries_that_say_nothing_make_work_too(monkeypatch):
    monkeypatch.setattr(reads, "EVENTS_PER_READ", 2)
    read = decode_read([entry(b"junk")] * 3)
    assert (read.entries, len(read.rejections)) == (2, 2)


def test_the_largest_batches_there_can_be_are_decoded_a_few_at_a_time():
    full = batch_entry(*[event()] * EVENTS_MAX)
    assert len(full[1][1]) < 1200  # bytes: one entry claims much and is little
    read = decode_read([full] * 1000)
    assert read.events < EVENTS_PER_READ + EVENTS_MAX


def test_a_command_divides_the_events_before_it_from_those_after():
    read = decode_read(
        [single_entry(input_tokens=1), command_entry("reset", at_ms=START_MS + 9), single_entry(input_tokens=2)]
    )
    first, command, last = read.steps
    assert (inputs(first), inputs(last)) == ([1], [2])
    assert isinstance(command, PlacedCommand)
    assert (command.command.operation, command.entry, command.log_ms) == ("reset", 1, START_MS + 9)


def test_commands_alone_are_steps():
    assert len(decode_read([command_entry("reset"), command_entry("reset")]).steps) == 2


def test_a_clock_entry_divides_the_events_before_it_from_those_after():
    told = clock_entry(START_MS + 5, epoch=3, at_ms=START_MS + 9)
    first, clock, last = decode_read([single_entry(input_tokens=1), told, single_entry(input_tokens=2)]).steps
    assert (inputs(first), inputs(last)) == ([1], [2])
    assert clock == PlacedClock(ClockEntry(START_MS + 5, 3), 1, START_MS + 9)


def test_a_clock_entry_that_cannot_be_read_is_rejected_and_the_rest_is_read():
    read = decode_read([single_entry(input_tokens=1), entry(b"late", b"t"), single_entry(input_tokens=2)])
    assert [(rejection.entry, rejection.reason) for rejection in read.rejections] == [(1, "decode")]
    assert [inputs(step) for step in read.steps] == [[1, 2]]


def test_what_cannot_be_decoded_is_rejected_and_the_rest_is_read():
    read = decode_read([single_entry(input_tokens=1), entry(b"junk", b"b"), single_entry(input_tokens=2)])
    (step,) = read.steps
    assert inputs(step) == [1, 2]
    assert [(rejection.entry, rejection.position, rejection.reason) for rejection in read.rejections] == [
        (1, None, "decode")
    ]


def test_a_bad_value_is_rejected_under_its_own_reason():
    (rejection,) = decode_read([single_entry(input_tokens=-1)]).rejections
    assert (rejection.reason, rejection.detail) == ("range", "input_tokens must be between 0 and 1000000000000, not -1")


@pytest.mark.parametrize("fields", [[], [b"b"], [b"b", b"", b"e", b""], [b"e", b"\x80", b"x"]])
def test_an_entry_has_exactly_one_field(fields):
    (rejection,) = decode_read([(b"5-0", fields)]).rejections
    assert rejection.reason == "decode"


def test_an_entry_may_be_a_list_of_two():
    (step,) = decode_read([[b"5-0", [b"e", b"\x80"]]]).steps
    assert isinstance(step, Columns)
    assert step.log_ms.tolist() == [5]


@pytest.mark.parametrize("name", [b"", b"x", b"B", b"batch", b"\xff" * 100])
def test_a_field_with_another_name_is_rejected(name):
    (rejection,) = decode_read([entry(b"\x80", name)]).rejections
    assert (rejection.reason, len(rejection.detail) < 250) == ("decode", True)


def test_a_fault_of_ours_rejects_its_entry_and_stops_nothing(monkeypatch):
    def broken(fields):
        raise RuntimeError(f"cannot read {fields}")

    monkeypatch.setattr(reads, "event_of", broken)
    read = decode_read([single_entry(), batch_entry(event(3))])
    assert [(r.reason, r.detail) for r in read.rejections] == [("internal", "RuntimeError('cannot read {}')")]
    assert [inputs(step) for step in read.steps] == [[3]]


NAMES = st.sampled_from([b"b", b"c", b"e", b"j", b"x", b""])
VALUES = st.one_of(
    st.binary(max_size=60),
    st.dictionaries(
        st.sampled_from([*COUNTS, *DIMENSIONS, "timestamp", "cost_usd", "message_id", "tags", "exactness", "x"]),
        st.one_of(
            st.integers(-(2**63), 2**64 - 1),
            st.floats(),
            st.text(max_size=4),
            st.booleans() | st.none(),
            st.binary(max_size=3),
            st.lists(st.text(max_size=2), max_size=2),
            st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=2),
        ),
        max_size=4,
    ).map(pack),
    st.sampled_from([batch_entry(event(1))[1][1], command_entry("reset")[1][1], json_entry(model="m")[1][1]]),
)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8))
@examples(400)
def test_every_entry_is_either_read_or_rejected_whatever_it_holds(values):
    entries = [entry(value, name, at_ms=START_MS + place) for place, (name, value) in enumerate(values)]
    read = decode_read(entries)
    taken = [place for step in read.steps if isinstance(step, Columns) for place in set(step.entry.tolist())]
    taken += [step.entry for step in read.steps if isinstance(step, PlacedCommand)]
    taken += [rejection.entry for rejection in read.rejections]
    assert sorted(taken) == list(range(len(entries)))
    assert not any(rejection.reason == "internal" for rejection in read.rejections)
    times = [log_ms for step in read.steps if isinstance(step, Columns) for log_ms in step.log_ms.tolist()]
    assert times == sorted(times)
