"""Facts about frames: what every series used per minute, hour and day."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import DAY_MS, HOUR_MS, MINUTE_MS, START_MS, examples, plain
from token_actor.core import frames as frames_module
from token_actor.core.frames import RESOLUTIONS_MS, SUMS, Frame, FrameSet, merged, summed_by

NOTHING: list[list[int]] = [[] for _ in SUMS]
SHORT = {"minute": 10 * MINUTE_MS, "hour": 3 * HOUR_MS, "day": 4 * DAY_MS}


def add(frames, *events, log_ms=None):
    """Add events given as (row, time, input tokens); each is one request."""
    rows, times, tokens = (np.array(column, dtype=np.int64) for column in zip(*events, strict=True))
    values = np.zeros((len(SUMS), len(events)), dtype=np.int64)
    values[0], values[5] = tokens, 1
    frames.advance(int(times.max()) if log_ms is None else log_ms)
    frames.add(rows, times, values)


def tokens_of(frame):
    """Return a frame as {row: (input tokens, requests)}."""
    return {row: (int(frame.sums[0, at]), int(frame.sums[5, at])) for at, row in enumerate(frame.rows.tolist())}


def found(frames, resolution, since_ms=0, until_ms=2 * START_MS):
    return {start: tokens_of(frame) for start, frame in frames.between(resolution, since_ms, until_ms)}


# --- sums by group --------------------------------------------------------------------------------


def test_values_are_summed_by_group():
    groups, sums = summed_by(np.array([3, 1, 3]), np.array([[1, 2, 4], [10, 20, 40]]))
    assert (groups.tolist(), sums.tolist()) == ([1, 3], [[2, 5], [20, 50]])


def test_nothing_has_no_groups():
    groups, sums = summed_by(np.empty(0, dtype=np.int64), np.empty((2, 0), dtype=np.int64))
    assert (len(groups), sums.shape) == (0, (2, 0))


def test_no_frames_make_an_empty_one():
    assert (merged([]).rows.tolist(), merged([]).sums.tolist()) == ([], NOTHING)


def test_one_frame_is_itself():
    frame = Frame(np.array([1]), np.ones((len(SUMS), 1), dtype=np.int64))
    assert merged([frame]) is frame


# --- frames ---------------------------------------------------------------------------------------


def test_an_event_is_in_its_minute_its_hour_and_its_day():
    frames = FrameSet()
    at_ms = START_MS + 5 * HOUR_MS + 7 * MINUTE_MS + 1
    add(frames, (3, at_ms, 10))
    assert found(frames, "minute") == {at_ms - 1: {3: (10, 1)}}
    assert found(frames, "hour") == {START_MS + 5 * HOUR_MS: {3: (10, 1)}}
    assert found(frames, "day") == {START_MS: {3: (10, 1)}}


def test_a_frame_begins_with_its_first_millisecond_and_ends_before_the_next():
    frames = FrameSet()
    add(frames, (0, START_MS - 1, 1), (0, START_MS, 2), (0, START_MS + MINUTE_MS - 1, 3), (0, START_MS + MINUTE_MS, 4))
    assert found(frames, "minute", START_MS, START_MS + MINUTE_MS) == {START_MS: {0: (5, 2)}}


def test_frames_come_oldest_first():
    frames = FrameSet()
    for minute in (2, 0, 1):
        add(frames, (0, START_MS + minute * MINUTE_MS, 1))
    starts = [start for start, _ in frames.between("minute", 0, 2 * START_MS)]
    assert starts == [START_MS, START_MS + MINUTE_MS, START_MS + 2 * MINUTE_MS]


def test_a_late_event_joins_its_frame():
    frames = FrameSet()
    add(frames, (1, START_MS, 1), (2, START_MS + MINUTE_MS, 2))
    frames.fold()
    add(frames, (0, START_MS, 5), (1, START_MS, 7), log_ms=START_MS + MINUTE_MS)
    assert found(frames, "minute")[START_MS] == {0: (5, 1), 1: (8, 2)}


def test_many_events_are_folded_without_being_asked(monkeypatch):
    monkeypatch.setattr(frames_module, "WAITING_MAX", 3)
    frames = FrameSet()
    add(frames, (0, START_MS, 1), (0, START_MS, 1))
    assert frames._frames["minute"] == {}
    add(frames, (0, START_MS, 1))
    assert len(frames._frames["minute"]) == 1


def test_a_large_part_is_not_rewritten_for_a_few_late_events():
    frames = FrameSet()
    add(frames, *((row, START_MS, 1) for row in range(100)))
    frames.fold()
    (large,) = frames._frames["minute"][START_MS // MINUTE_MS]
    add(frames, (5, START_MS, 1))
    frames.fold()
    parts = frames._frames["minute"][START_MS // MINUTE_MS]
    assert parts[0] is large
    assert [len(part.rows) for part in parts] == [100, 1]


def test_parts_merge_when_the_next_one_is_not_much_smaller():
    frames = FrameSet()
    for rows in (range(8), range(3), range(4)):
        add(frames, *((row, START_MS, 1) for row in rows))
        frames.fold()
    assert [len(part.rows) for part in frames._frames["minute"][START_MS // MINUTE_MS]] == [8]
    assert found(frames, "minute")[START_MS][0] == (3, 3)


# --- retention ------------------------------------------------------------------------------------


def test_a_resolution_is_complete_from_its_oldest_frame_on():
    frames = FrameSet(retention_ms=SHORT)
    frames.advance(START_MS + 90 * MINUTE_MS)
    kept = {resolution: frames.oldest_kept(resolution) for resolution in RESOLUTIONS_MS}
    assert kept == {"minute": START_MS + 80 * MINUTE_MS, "hour": START_MS - 2 * HOUR_MS, "day": START_MS - 4 * DAY_MS}


def test_what_is_too_old_is_dropped_with_its_sums_kept():
    frames = FrameSet(retention_ms=SHORT)
    add(frames, (0, START_MS, 10))
    add(frames, (0, START_MS + HOUR_MS, 1))
    assert found(frames, "minute") == {START_MS + HOUR_MS: {0: (1, 1)}}
    assert {name: sums.tolist()[0] for name, sums in frames.books().items()} == dict.fromkeys(RESOLUTIONS_MS, 11)


def test_an_event_that_comes_too_late_for_a_resolution_is_still_in_the_books():
    frames = FrameSet(retention_ms=SHORT)
    add(frames, (0, START_MS, 10), log_ms=START_MS + HOUR_MS)
    assert found(frames, "minute") == {}
    assert found(frames, "hour") == {START_MS: {0: (10, 1)}}
    assert frames.books()["minute"].tolist()[0] == 10


def test_the_books_of_nothing_are_zero():
    assert {name: sums.tolist() for name, sums in FrameSet().books().items()} == dict.fromkeys(
        RESOLUTIONS_MS, [0] * len(SUMS)
    )


def jumped(*, asked):
    """Return frames whose log time was a day ahead for a while; they may have been asked meanwhile."""
    frames = FrameSet(retention_ms=SHORT)
    add(frames, (1, START_MS, 1), (2, START_MS + HOUR_MS, 2))
    frames.advance(START_MS + DAY_MS)
    if asked:
        frames.fold()
    frames.advance(START_MS + 2 * HOUR_MS)
    add(frames, (1, START_MS, 4), (1, START_MS + 2 * HOUR_MS, 8))
    return frames


def test_what_time_makes_too_old_is_gone_also_when_it_moves_back_before_anybody_asks():
    early, late = jumped(asked=True), jumped(asked=False)
    assert plain((trees(late), late.rest())) == plain((trees(early), early.rest()))


def test_a_resolution_is_not_complete_again_because_time_moved_back():
    frames = jumped(asked=False)
    assert frames.oldest_kept("minute") == START_MS + DAY_MS - 10 * MINUTE_MS
    assert found(frames, "hour") == {}
    assert found(frames, "day") == {START_MS: {1: (13, 3), 2: (2, 1)}}
    assert {name: sums[0] for name, sums in frames.books().items()} == dict.fromkeys(RESOLUTIONS_MS, 15)


# --- totals ---------------------------------------------------------------------------------------


def test_a_total_uses_days_and_hours_where_they_fit():
    frames = FrameSet(retention_ms=SHORT)
    for hours in (0, 1, 23, 24, 26):
        add(frames, (0, START_MS + hours * HOUR_MS, 10**hours if hours < 18 else hours))
    # the minutes and hours of the first day are gone; its day is not
    assert tokens_of(frames.total(START_MS, START_MS + DAY_MS)) == {0: (1 + 10 + 23, 3)}
    assert tokens_of(frames.total(START_MS, START_MS + DAY_MS + 2 * HOUR_MS)) == {0: (1 + 10 + 23 + 24, 4)}


@pytest.mark.parametrize("until_ms", [START_MS, START_MS - MINUTE_MS])
def test_the_total_of_no_time_is_nothing(until_ms):
    frames = FrameSet()
    add(frames, (0, START_MS, 1))
    assert tokens_of(frames.total(START_MS, until_ms)) == {}


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.integers(-2 * DAY_MS, 3 * DAY_MS) | st.integers(0, 3 * HOUR_MS),
        st.integers(0, 1000),
    ),
    min_size=1,
    max_size=6,
)


@given(st.lists(EVENTS, max_size=12), st.lists(st.tuples(st.integers(-60, 90), st.integers(0, 90)), max_size=6))
@examples(100)
def test_a_total_equals_a_brute_force_sum_where_everything_is_kept(reads, spans):
    frames = FrameSet()
    for read in reads:
        add(frames, *((row, START_MS + at_ms, tokens) for row, at_ms, tokens in read), log_ms=START_MS + 3 * DAY_MS)
    events = [event for read in reads for event in read]
    for first, minutes in [*spans, (-3000, 9000), (0, 1440), (-1440, 2880), (59, 61), (1, 60), (-1, 1441)]:
        since_ms, until_ms = first * MINUTE_MS, (first + minutes) * MINUTE_MS
        if since_ms < 2 * DAY_MS:  # the minutes of the last day are kept; before, whole days are
            since_ms, until_ms = since_ms // DAY_MS * DAY_MS, -(-until_ms // DAY_MS) * DAY_MS
        expected: dict[int, tuple[int, int]] = {}
        for row, at_ms, tokens in events:
            if since_ms <= at_ms < until_ms:
                used, requests = expected.get(row, (0, 0))
                expected[row] = (used + tokens, requests + 1)
        assert tokens_of(frames.total(START_MS + since_ms, START_MS + until_ms)) == expected


@given(st.lists(EVENTS, max_size=12), st.lists(st.integers(0, 5 * HOUR_MS), min_size=12, max_size=12))
@examples(100)
def test_each_resolution_has_what_it_has_to_keep_and_all_books_agree(reads, steps):
    frames, now_ms, events = FrameSet(retention_ms=SHORT), START_MS, []
    for read, step_ms in zip(reads, steps, strict=False):
        now_ms += step_ms
        taken = [(row, min(START_MS + at_ms, now_ms), tokens) for row, at_ms, tokens in read]
        add(frames, *taken, log_ms=now_ms)
        events += taken
        for resolution, width_ms in RESOLUTIONS_MS.items():
            expected: dict[int, dict[int, tuple[int, int]]] = {}
            for row, at_ms, tokens in events:
                start = at_ms // width_ms * width_ms
                if start >= frames.oldest_kept(resolution):
                    frame = expected.setdefault(start, {})
                    used, requests = frame.get(row, (0, 0))
                    frame[row] = (used + tokens, requests + 1)
            assert found(frames, resolution) == expected
        whole = sum(tokens for _, _, tokens in events)
        assert {int(sums[0]) for sums in frames.books().values()} == {whole}


# --- new rows, dumps ------------------------------------------------------------------------------


def test_rows_that_become_one_are_added_up():
    frames = FrameSet()
    add(frames, (0, START_MS, 1), (1, START_MS, 2), (2, START_MS + MINUTE_MS, 4))
    frames.renumber(np.array([1, 1, 0]))
    assert found(frames, "minute") == {START_MS: {1: (3, 2)}, START_MS + MINUTE_MS: {0: (4, 1)}}


def trees(frames):
    return {segment.name: list(segment.make()) for segment in frames.capture()}


def restored(frames, **options):
    again = FrameSet(**options)
    parts = {
        resolution: [tree for name, made in trees(frames).items() if f"/{resolution}/" in name for tree in made]
        for resolution in RESOLUTIONS_MS
    }
    again.restore(parts, frames.rest())
    return again


def test_restored_frames_go_on_like_the_captured_ones():
    frames = FrameSet(retention_ms=SHORT)
    add(frames, (0, START_MS, 1), (7, START_MS + MINUTE_MS, 2))
    add(frames, (1, START_MS + HOUR_MS, 4))
    again = restored(frames, retention_ms=SHORT)
    assert plain((trees(again), again.rest())) == plain((trees(frames), frames.rest()))
    for each in (frames, again):
        add(each, (0, START_MS + HOUR_MS, 8), (0, START_MS + 5 * HOUR_MS, 16))
    assert plain((trees(again), again.rest())) == plain((trees(frames), frames.rest()))


def test_a_picture_does_not_change_when_the_frames_go_on():
    frames = FrameSet(retention_ms=SHORT)
    add(frames, (0, START_MS, 1))
    before, rest, picture = plain(trees(frames)), frames.rest(), frames.capture()
    dropped = plain(rest)
    add(frames, (0, START_MS, 2))
    add(frames, (0, START_MS + DAY_MS, 2))
    frames.fold()
    assert plain({segment.name: list(segment.make()) for segment in picture}) == before
    assert plain(rest) == dropped


def test_frames_of_nothing_are_restored_to_nothing():
    again = restored(FrameSet())
    assert plain((trees(again), again.rest())) == plain(({}, FrameSet().rest()))


def test_segments_are_ten_minutes_days_of_hours_and_months_of_days():
    frames = FrameSet()
    add(frames, (0, START_MS, 1), (0, START_MS + 9 * MINUTE_MS, 1), (0, START_MS + 10 * MINUTE_MS, 1))
    minutes, day = START_MS // (10 * MINUTE_MS), START_MS // DAY_MS
    assert list(trees(frames)) == [
        f"frames/minute/{minutes}", f"frames/minute/{minutes + 1}", f"frames/hour/{day}", f"frames/day/{day // 32}",
    ]  # fmt: skip


def test_a_token_changes_with_its_segment_and_no_other():
    frames, tokens = FrameSet(), {}
    add(frames, (0, START_MS, 1), (0, START_MS + 9 * MINUTE_MS, 1), (0, START_MS + 10 * MINUTE_MS, 1))
    group, day = START_MS // (10 * MINUTE_MS), START_MS // DAY_MS
    minutes, next_minutes = f"frames/minute/{group}", f"frames/minute/{group + 1}"
    rest = {f"frames/hour/{day}", f"frames/day/{day // 32}"}

    def changed():
        before = dict(tokens)
        tokens.update({segment.name: segment.token for segment in frames.capture()})
        return {name for name, token in tokens.items() if token != before.get(name)}

    assert changed() == {minutes, next_minutes, *rest}
    assert changed() == set()
    add(frames, (1, START_MS + 10 * MINUTE_MS, 1))
    assert changed() == {next_minutes, *rest}
    frames.advance(START_MS + DAY_MS + MINUTE_MS)  # lets go of the first minute
    assert changed() == {minutes}
    frames.renumber(np.array([1, 0]))
    assert changed() == {minutes, next_minutes, *rest}


def test_a_large_frame_is_made_piece_by_piece(monkeypatch):
    monkeypatch.setattr(frames_module, "_ROWS_AT_ONCE", 4)
    frames, again = FrameSet(), FrameSet()
    events = [(row, START_MS + minute * MINUTE_MS, row + 1) for row in (0, 1, 2, 5, 6, 9, 30) for minute in (0, 1)]
    add(frames, *events)
    for each in reversed(events):  # in other parts
        add(again, each)
        again.fold()
    made = trees(frames)[f"frames/minute/{START_MS // (10 * MINUTE_MS)}"]
    assert [tree["rows"].tolist() for tree in made] == [[0, 1, 2, 5, 6], [9, 30, 0, 1, 2], [5, 6, 9, 30]]
    assert plain(trees(again)) == plain(trees(frames))
    assert plain(trees(restored(frames))) == plain(trees(frames))
    assert found(restored(frames), "minute") == found(frames, "minute")
