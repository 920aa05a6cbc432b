"""Facts about the events of one read, as columns."""

from __future__ import annotations

import numpy as np
import pytest

from tests.makers import START_MS, columns, event, plain
from token_actor.core.columns import Columns, Run, columns_of, grown, joined, objects
from token_actor.core.usage import UNPRICED
from token_actor.errors import InvalidValue

PROBLEM = InvalidValue("input_tokens", "is wrong")


def batch(*events, entry=0, first_seq=0, producer=b"p" * 16):
    """Return events as the columns of one batch: one entry, its keys once, a run."""
    made = columns(*events)
    made.entry = np.full(len(events), entry)
    made.runs = [Run(producer, 0, first_seq, 0, len(events))]
    return made


def test_an_event_is_one_place_in_every_column():
    made = columns_of(
        [
            event(1, 2, counts=(3, 4, 5), cost_nanousd=6, flags=1, at_ms=70, message_id="m", tags={"a": "b"}),
            event(10, agent="x"),
        ],
        log_ms=[100, 200],
        entries=[3, 4],
    )
    assert made.keys == ["default" + "\x1f" * 6, "default\x1f\x1f\x1fx\x1f\x1f\x1f"]
    assert made.key_index.tolist() == [0, 1]
    assert made.counts.tolist() == [[1, 10], [2, 0], [3, 0], [4, 0], [5, 0]]
    assert made.cost.tolist() == [6, 0]
    assert made.flags.tolist() == [1, UNPRICED]
    assert made.log_ms.tolist() == [100, 200]
    assert made.entry.tolist() == [3, 4]
    assert made.message_ids is not None
    assert made.message_ids.tolist() == ["m", None]
    assert made.tags is not None
    assert made.tags.tolist() == [{"a": "b"}, None]


def test_an_event_without_a_time_happened_when_the_log_took_it():
    made = columns_of([event(at_ms=70), event()], log_ms=[100, 200], entries=[0, 1])
    assert made.event_ms.tolist() == [70, 200]


def test_a_column_of_nothing_is_none():
    made = columns(event(1), event(2))
    assert (made.message_ids, made.tags) == (None, None)


def test_columns_have_a_length():
    assert len(columns(event(), event(), event())) == 3


def test_one_part_is_joined_to_itself():
    part = columns(event())
    assert joined([part]) is part


def test_parts_are_joined_in_order():
    whole = joined([batch(event(1, agent="a"), event(2, agent="b")), columns(event(3, agent="a"))])
    assert [whole.keys[place].split("\x1f")[3] for place in whole.key_index] == ["a", "b", "a"]
    assert whole.counts[0].tolist() == [1, 2, 3]


def test_joined_runs_and_problems_keep_to_their_events():
    second = batch(event(2), event(3), entry=1, first_seq=7)
    second.problems = {1: PROBLEM}
    whole = joined([batch(event(1)), second])
    assert [(run.first_seq, run.start, run.stop) for run in whole.runs] == [(0, 0, 1), (7, 1, 3)]
    assert whole.problems == {2: PROBLEM}


def test_ids_and_tags_are_joined_to_parts_without_any():
    whole = joined([columns(event()), columns(event(message_id="m", tags={"a": "b"})), columns(event())])
    assert whole.message_ids is not None
    assert whole.message_ids.tolist() == [None, "m", None]
    assert whole.tags is not None
    assert whole.tags.tolist() == [None, {"a": "b"}, None]


def split_and_joined(whole, event):
    before, after = whole.split(event)
    return before, after, joined([before, after])


def test_what_was_split_joins_to_the_same_columns():
    first, third = batch(event(1, agent="a"), event(2, agent="b"), first_seq=5), batch(event(4, agent="c"), entry=2)
    first.problems, third.problems = {1: PROBLEM}, {0: PROBLEM}
    whole = joined([first, columns_of([event(3, message_id="m")], log_ms=[START_MS], entries=[1]), third])
    for place in (0, 2, 3):
        before, after, again = split_and_joined(whole, place)
        assert (len(before), len(after)) == (place, 4 - place)
        for name in Columns.__slots__:
            assert plain(getattr(again, name)) == plain(getattr(whole, name)), name


def test_keys_are_split_with_their_events():
    whole = joined([batch(event(agent="a"), event(agent="b")), batch(event(agent="c"), entry=1)])
    before, after = whole.split(2)
    assert [key.split("\x1f")[3] for key in before.keys] == ["a", "b"]
    assert [key.split("\x1f")[3] for key in after.keys] == ["c"]
    assert after.key_index.tolist() == [0]


def test_the_rejection_of_an_event_names_its_place_in_its_entry():
    whole = joined([batch(event(), event(), entry=0), batch(event(), event(), event(), entry=2)])
    rejection = whole.rejection(4, "range", "too much")
    assert (rejection.entry, rejection.position, rejection.reason, rejection.detail) == (2, 2, "range", "too much")


def test_objects_are_strings_maps_and_none():
    made = objects(["a", None, {"b": "c"}])
    assert made is not None
    assert (made.dtype, made.tolist()) == (np.object_, ["a", None, {"b": "c"}])


def test_maps_alone_stay_maps():
    made = objects([{"a": "b"}, {"a": "b"}])
    assert made is not None
    assert made.tolist() == [{"a": "b"}, {"a": "b"}]


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_an_array_grows_on_its_last_axis(shape):
    array = np.ones(shape, dtype=np.int32)
    larger = grown(array, 5)
    assert (larger.shape, larger.dtype, int(larger.sum())) == ((*shape[:-1], 5), np.int32, int(array.sum()))
    assert (larger[..., 3:] == 0).all()
