"""Facts about the ring of recent events."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import examples, plain
from token_actor.core import recent as recent_module
from token_actor.core.recent import RecentEvents


def append(recent, *rows, log_ms=0, tokens=None, ids=None, tags=None):
    """Append one event per row; its input tokens are given, or its place."""
    count = len(rows)
    counts = np.zeros((5, count), dtype=np.int64)
    counts[0] = range(recent.next_place, recent.next_place + count) if tokens is None else tokens
    times = np.array(log_ms if isinstance(log_ms, list) else [log_ms] * count, dtype=np.int64)
    recent.append(
        np.array(rows, dtype=np.int64),
        {
            "event_ms": times + 1,
            "log_ms": times,
            "cost": np.zeros(count, dtype=np.int64),
            "flags": np.zeros(count, dtype=np.uint8),
            "counts": counts,
            "message_id": None if ids is None else np.array(ids, dtype=np.object_),
            "tags": None if tags is None else np.array(tags, dtype=np.object_),
        },
    )


def ring(*rows, events_max=100):
    recent = RecentEvents(events_max=events_max)
    for row in rows:
        append(recent, row)
    return recent


def newest(recent, rows, limit=100, **before):
    wanted = None if rows is None else np.array(rows, dtype=np.int64)
    return recent.newest(wanted, limit, **before).tolist()


@pytest.fixture(params=["walk", "scan"])
def path(request, monkeypatch):
    """Take one of the two ways to find events: along the chains, or in passes over the columns."""
    if request.param == "scan":
        monkeypatch.setattr(recent_module, "_CHAINS_MAX", -1)
        monkeypatch.setattr(recent_module, "_BLOCK", 3)
    return request.param


# --- places ---------------------------------------------------------------------------------------


def test_an_event_has_the_place_of_its_number():
    recent = ring(0, 1, 0)
    assert (recent.first_place, recent.next_place, len(recent)) == (0, 3, 3)


def test_only_the_last_events_are_kept():
    recent = ring(0, 1, 0, 2, events_max=3)
    assert (recent.first_place, recent.next_place, len(recent)) == (1, 4, 3)


def test_more_events_than_are_kept_may_come_at_once():
    recent = RecentEvents(events_max=3)
    append(recent, *range(10))
    assert (recent.first_place, len(recent)) == (7, 3)
    assert recent.column("row", np.arange(7, 10)).tolist() == [7, 8, 9]
    assert newest(recent, [8]) == [8]


def test_the_ring_grows_up_to_its_bound(monkeypatch):
    monkeypatch.setattr(recent_module, "_FIRST_CAPACITY", 2)
    recent = RecentEvents(events_max=5)
    for row in range(9):
        append(recent, row)
        places = np.arange(recent.first_place, recent.next_place)
        assert recent.column("counts", places)[0].tolist() == places.tolist()
    assert recent._capacity == 5


def test_an_event_keeps_its_id_and_tags_or_has_none():
    recent = RecentEvents(events_max=10)
    append(recent, 0, 0, ids=["m", None], tags=[None, {"a": "b"}])
    append(recent, 0)
    places = np.arange(3)
    assert recent.column("message_id", places).tolist() == ["m", None, None]
    assert recent.column("tags", places).tolist() == [None, {"a": "b"}, None]


def test_an_id_is_gone_when_its_place_in_the_ring_is_taken():
    recent = RecentEvents(events_max=2)
    append(recent, 0, 0, ids=["a", "b"])
    append(recent, 0)
    assert recent.column("message_id", np.arange(1, 3)).tolist() == ["b", None]


# --- newest ---------------------------------------------------------------------------------------


def test_the_newest_events_of_a_series_come_first(path):
    assert newest(ring(0, 1, 0, 2, 0), [0]) == [4, 2, 0]


def test_no_more_than_asked_for_come(path):
    assert newest(ring(0, 1, 0, 2, 0), [0, 1], 2) == [4, 2]


@pytest.mark.parametrize("rows", [[0], None])
def test_none_come_when_none_are_asked_for(path, rows):
    assert newest(ring(0, 1, 0), rows, 0) == []


def test_several_series_come_in_the_order_of_the_log(path):
    assert newest(ring(0, 1, 2, 1, 0), [0, 1]) == [4, 3, 1, 0]


def test_every_series_comes_when_none_is_named():
    assert newest(ring(0, 1, 2, events_max=2), None) == [2, 1]


def test_of_no_series_nothing_comes(path):
    assert newest(ring(0, 1), []) == []


def test_of_an_unknown_series_nothing_comes(path):
    assert newest(ring(0, 1), [5, 70_000]) == []


def test_events_that_are_not_kept_do_not_come(path):
    assert newest(ring(0, 0, 1, 0, 1, events_max=2), [0]) == [3]


def test_nothing_comes_from_an_empty_ring(path):
    assert newest(RecentEvents(), [0]) == []
    assert newest(RecentEvents(), None) == []


@pytest.mark.parametrize(("before", "places"), [(0, []), (1, []), (2, [1]), (3, [2, 1]), (5, [4, 3]), (99, [4, 3])])
def test_a_page_ends_before_a_place(before, places):
    recent = ring(0, 0, 0, 0, 0, events_max=4)
    assert newest(recent, [0], 2, before=before) == newest(recent, None, 2, before=before) == places


def test_many_series_are_found_by_a_scan():
    recent = ring(*range(100))
    assert newest(recent, list(range(0, 100, 2)), 3) == [98, 96, 94]
    assert newest(recent, list(range(80)), 3) == [79, 78, 77]


# --- windows --------------------------------------------------------------------------------------


def tokens_since(recent, rows, since_ms):
    return recent.tokens_since(None if rows is None else np.array(rows, dtype=np.int64), since_ms)


@pytest.fixture
def timed():
    """Events at 10, 20, 20 and 30 ms, of rows 0, 1, 0, 0, with 1, 2, 4 and 8 tokens."""
    recent = RecentEvents(events_max=100)
    append(recent, 0, 1, 0, 0, log_ms=[10, 20, 20, 30], tokens=[1, 2, 4, 8])
    return recent


@pytest.mark.parametrize(
    ("rows", "since_ms", "tokens"),
    [
        ([0], 0, 13), ([0], 10, 13), ([0], 11, 12), ([0], 20, 12), ([0], 21, 8), ([0], 30, 8), ([0], 31, 0),
        ([1], 20, 2), ([0, 1], 20, 14), (None, 11, 14), (None, 0, 15), ([], 0, 0), ([9], 0, 0),
    ],
)  # fmt: skip
def test_the_tokens_since_a_time_are_those_at_it_and_after(path, timed, rows, since_ms, tokens):
    assert tokens_since(timed, rows, since_ms) == tokens


def test_the_tokens_are_those_of_all_four_kinds_and_not_of_reasoning():
    recent = RecentEvents()
    append(recent, 0)
    recent._columns["counts"][:, 0] = [1, 20, 300, 4000, 50_000]
    assert tokens_since(recent, [0], 0) == tokens_since(recent, None, 0) == 4321


def test_a_chain_too_long_to_walk_is_scanned(monkeypatch, timed):
    monkeypatch.setattr(recent_module, "_STEPS_MAX", 2)
    assert [tokens_since(timed, [0], since_ms) for since_ms in (0, 20, 30)] == [13, 12, 8]
    assert newest(timed, [0], 3) == [3, 2, 0]


def test_a_window_is_covered_while_nothing_of_it_was_dropped(timed):
    assert timed.covers(0)
    append(timed, *[0] * 96, log_ms=40)
    assert timed.covers(0)
    append(timed, 0, log_ms=50)
    assert (timed.covers(21), timed.covers(20)) == (True, False)  # the oldest kept came at 20, as did one of those gone


def test_no_event_lies_in_a_future_that_is_taken_back(path, timed):
    timed.not_after(15)
    assert [tokens_since(timed, [0], since_ms) for since_ms in (10, 11, 15, 16)] == [13, 12, 12, 0]
    append(timed, 0, log_ms=16, tokens=[16])
    assert tokens_since(timed, None, 16) == 16


ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 20)), min_size=1, max_size=9)


@given(
    st.lists(ROWS, max_size=10),
    st.integers(1, 20),
    st.sets(st.integers(0, 6)),
    st.integers(0, 12),
    st.integers(-5, 250),
)
@examples(150)
def test_newest_and_windows_equal_brute_force(reads, events_max, rows, limit, since_ms):
    recent, now_ms, events = RecentEvents(events_max=events_max), 0, []
    for read in reads:
        times = []
        for row, step_ms in read:
            now_ms += step_ms
            times.append(now_ms)
            events.append((len(events), row, now_ms))
        append(recent, *(row for row, _ in read), log_ms=times)
    kept = events[-events_max:]
    wanted = sorted(rows)
    places = [place for place, row, _ in reversed(kept) if row in rows]
    tokens = sum(place for place, row, at_ms in kept if row in rows and at_ms >= since_ms)
    assert recent.covers(since_ms) == (len(events) <= events_max or kept[0][2] < since_ms)
    assert tokens_since(recent, None, since_ms) == sum(place for place, _, at_ms in kept if at_ms >= since_ms)
    with pytest.MonkeyPatch.context() as patch:
        for chains_max, steps_max, block in ((64, 4096, 65_536), (64, 3, 4), (-1, 0, 3)):
            patch.setattr(recent_module, "_CHAINS_MAX", chains_max)
            patch.setattr(recent_module, "_STEPS_MAX", steps_max)
            patch.setattr(recent_module, "_BLOCK", block)
            assert newest(recent, wanted, limit) == places[:limit]
            assert tokens_since(recent, wanted, since_ms) == tokens
            for before in (0, len(events) // 2, len(events)):
                assert newest(recent, wanted, limit, before=before) == [p for p in places if p < before][:limit]


# --- new rows, dumps ------------------------------------------------------------------------------


def test_series_that_become_one_become_one_chain(path):
    recent = ring(0, 1, 2, 1, 0, 3, events_max=5)
    recent.renumber(np.array([0, 1, 0, 1]))
    assert (newest(recent, [0]), newest(recent, [1])) == ([4, 2], [5, 3, 1])
    append(recent, 0)
    assert newest(recent, [0]) == [6, 4, 2]


def test_an_empty_ring_may_be_renumbered():
    recent = RecentEvents()
    recent.renumber(np.empty(0, dtype=np.int64))
    append(recent, 0)
    assert newest(recent, [0]) == [0]


def trees(segments):
    return [tree for segment in segments for tree in segment.make()]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(recent_module, "_PLACE_BITS", 2)


@pytest.mark.parametrize("count", [0, 3, 12])
def test_a_restored_ring_goes_on_like_the_captured_one(path, small_blocks, count):
    recent, again = ring(*(number % 3 for number in range(count)), events_max=5), RecentEvents(events_max=5)
    again.restore(trees(recent.capture()), recent.next_place)
    for each in (recent, again):
        append(each, 1, 3, 4, ids=["a", None, "b"])
    assert plain(trees(again.capture())) == plain(trees(recent.capture()))
    for row in range(5):
        assert newest(again, [row]) == newest(recent, [row])


def test_segments_are_blocks_of_places(small_blocks):
    recent = ring(*range(11), events_max=9)
    assert [segment.name for segment in recent.capture()] == ["recent/0", "recent/1", "recent/2"]
    assert [(tree["first"], tree["row"].tolist()) for tree in trees(recent.capture())] == [
        (2, [2, 3]), (4, [4, 5, 6, 7]), (8, [8, 9, 10]),
    ]  # fmt: skip


def test_a_token_changes_with_its_segment_and_no_other(small_blocks):
    recent = ring(*range(10), events_max=100)

    def tokens():
        return {segment.name: segment.token for segment in recent.capture()}

    before = tokens()
    append(recent, 1)
    assert {name for name, token in tokens().items() if token != before[name]} == {"recent/2"}
    before = tokens()
    recent.renumber(np.arange(10)[::-1])
    assert {name for name, token in tokens().items() if token != before[name]} == set(before)
    before = tokens()
    recent.not_after(0)
    assert {name for name, token in tokens().items() if token != before[name]} == set(before)


@given(
    st.integers(0, 25), st.integers(1, 20), st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=30), max_size=9),
    st.integers(0, 9), st.integers(0, 9), st.integers(0, 8),
)  # fmt: skip
@examples(200)
def test_a_picture_stays_as_it_was_whatever_the_ring_does_next(
    before, events_max, reads, renumbered, taken_back, made_after
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recent_module, "_PLACE_BITS", 2)
        patch.setattr(recent_module, "_FIRST_CAPACITY", 4)
        recent = ring(*(number % 6 for number in range(before)), events_max=events_max)
        expected = plain(trees(recent.capture()))
        picture, made = recent.capture(), []
        for place, read in enumerate([*reads, [0]]):
            if place >= made_after and picture:  # one segment after each read, like a writer
                segment = picture.pop(0)
                made += segment.make()
                segment.release()
            append(recent, *read, ids=["new"] * len(read), tags=[{"new": "tag"}] * len(read))
            if place == renumbered:
                recent.renumber(np.arange(6)[::-1])
            if place == taken_back:
                recent.not_after(-1)
        made += trees(picture)
        assert plain(made) == expected


@pytest.mark.parametrize("events_max", [3, 100])
def test_what_a_restored_ring_answers_does_not_depend_on_events_it_no_longer_keeps(path, events_max):
    """The events before the first one kept are in no chain: they are not in the snapshot either."""
    recent, again = ring(0, 1, 0, 2, 1, 1, 0, 1, events_max=5), RecentEvents(events_max=events_max)
    again.restore(trees(recent.capture()), recent.next_place)
    kept = [place for place in newest(recent, None) if place >= again.first_place]
    for rows in ([0], [1], [2], [0, 2], [0, 1, 2]):
        assert newest(again, rows) == [place for place in newest(recent, rows) if place in kept]
        for since_ms in (0, 1):
            wanted = [place for place in newest(again, rows) if since_ms == 0]
            assert tokens_since(again, rows, since_ms) == sum(wanted)
