"""Facts about counting once: what has been seen of every producer."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import examples
from token_actor.core import dedupe
from token_actor.core.dedupe import ProducerMark, ProducerMarks

# --- one producer ---------------------------------------------------------------------------------


class Seen:
    """See spans one after the other; the mark is the one after the last of them."""

    def __init__(self):
        self.mark = ProducerMark()

    def see(self, start, stop):
        self.mark, new = self.mark.see(start, stop)
        return new

    def __getattr__(self, name):
        value = getattr(self.mark, name)
        return list(value) if name == "ranges" else value


def test_a_number_is_new_once():
    mark = Seen()
    assert mark.see(0, 3) == [(0, 3)]
    assert mark.see(0, 3) == []


def test_numbers_in_order_need_nothing_but_a_high_water_mark():
    mark = Seen()
    mark.see(0, 3)
    mark.see(3, 7)
    assert (mark.next_seq, mark.ranges, mark.missing) == (7, [], 0)


def test_a_hole_is_missing_until_it_is_filled():
    mark = Seen()
    mark.see(0, 2)
    mark.see(5, 6)
    assert mark.missing == 3
    assert mark.see(2, 5) == [(2, 5)]
    assert (mark.missing, mark.next_seq, mark.ranges) == (0, 6, [])


def test_the_numbers_before_the_first_one_seen_are_missing():
    mark = Seen()
    assert mark.see(10, 12) == [(10, 12)]
    assert mark.missing == 10


def test_of_an_overlap_only_the_new_parts_are_new():
    mark = Seen()
    mark.see(2, 4)
    mark.see(6, 8)
    assert mark.see(1, 9) == [(1, 2), (4, 6), (8, 9)]
    assert mark.ranges == [(1, 9)]


def test_a_span_may_end_within_a_known_range():
    mark = Seen()
    mark.see(5, 9)
    assert mark.see(3, 7) == [(3, 5)]
    assert mark.see(6, 9) == []


def test_a_span_may_lie_before_every_known_range():
    mark = Seen()
    mark.see(9, 10)
    assert mark.see(4, 5) == [(4, 5)]
    assert mark.ranges == [(4, 5), (9, 10)]


def test_a_duplicate_is_recognised_however_late_it_comes():
    mark = Seen()
    for number in range(1000):
        mark.see(number, number + 1)
    assert mark.see(0, 1) == []


def test_too_many_holes_close_the_oldest_and_stay_missing_for_ever(monkeypatch):
    monkeypatch.setattr(dedupe, "RANGES_MAX", 2)
    mark = Seen()
    for start in (1, 3, 5):
        mark.see(start, start + 1)
    assert (mark.ranges, mark.closed, mark.missing) == ([(3, 4), (5, 6)], 1, 3)
    assert mark.see(0, 1) == []
    assert mark.see(2, 3) == [(2, 3)]
    assert mark.missing == 2


SPANS = st.tuples(st.integers(0, 40), st.integers(1, 12)).map(lambda span: (span[0], span[0] + span[1]))


@given(st.lists(SPANS, max_size=40))
@examples(200)
def test_a_mark_equals_a_set_of_all_numbers_ever_seen(spans):
    mark, seen = Seen(), set()
    for start, stop in spans:
        new = [number for first, last in mark.see(start, stop) for number in range(first, last)]
        assert new == sorted(set(range(start, stop)) - seen)
        seen.update(range(start, stop))
        assert mark.missing == max(seen) + 1 - len(seen)
        assert all(before[1] < after[0] for before, after in zip(mark.ranges, mark.ranges[1:], strict=False))
        assert not mark.ranges or mark.ranges[0][0] > mark.next_seq


@given(st.lists(SPANS, max_size=40), st.integers(1, 3))
@examples(100)
def test_a_mark_with_few_ranges_never_counts_a_number_twice(spans, ranges_max):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedupe, "RANGES_MAX", ranges_max)
        mark, counted = Seen(), []
        for start, stop in spans:
            counted += [number for first, last in mark.see(start, stop) for number in range(first, last)]
            assert len(mark.ranges) <= ranges_max
        assert len(counted) == len(set(counted))
        if spans:
            assert mark.missing == max(stop for _, stop in spans) - len(counted)


# --- all producers --------------------------------------------------------------------------------


def test_producers_and_their_epochs_are_counted_apart():
    marks = ProducerMarks()
    assert marks.see(b"a", 0, 0, 2) == [(0, 2)]
    assert marks.see(b"b", 0, 0, 2) == [(0, 2)]
    assert marks.see(b"a", 1, 0, 2) == [(0, 2)]
    assert (len(marks), marks.missing) == (3, 0)


def test_what_is_missing_adds_up_over_producers_and_falls_again():
    marks = ProducerMarks()
    marks.see(b"a", 0, 3, 4)
    marks.see(b"b", 0, 2, 4)
    assert marks.missing == 5
    marks.see(b"a", 0, 0, 2)
    assert marks.missing == 3


def test_the_longest_idle_producer_is_forgotten_first_and_its_holes_are_not():
    marks = ProducerMarks(producers_max=2)
    marks.see(b"a", 0, 0, 1)
    marks.see(b"b", 0, 3, 4)
    marks.see(b"a", 0, 1, 2)
    marks.see(b"c", 0, 0, 1)
    assert (len(marks), marks.missing) == (2, 3)
    assert marks.see(b"a", 0, 0, 2) == []
    assert marks.see(b"b", 0, 3, 4) == [(3, 4)]


def test_with_every_new_producer_beyond_the_bound_exactly_the_longest_idle_one_is_forgotten():
    marks, kept = ProducerMarks(producers_max=20), []
    rng = random.Random(3)
    for number in range(5_000):
        producer = b"%d" % (rng.choice(kept)[0] if kept and rng.random() < 0.5 else number)
        kept = [*(each for each in kept if each[1] != producer), (number, producer)][-20:]
        kept = [(int(name), name) for _, name in kept]
        marks.see(producer, 0, 0, 1)
    assert list(marks.capture()[1]) == [(name, 0) for _, name in kept]


def test_captured_marks_are_those_of_the_moment():
    marks = ProducerMarks()
    marks.see(b"a", 7, 0, 5)
    marks.see(b"b", 0, 2, 3)
    _, taken = marks.capture()
    marks.see(b"a", 7, 5, 6)
    marks.see(b"c", 0, 0, 1)
    assert {key: (mark.next_seq, mark.ranges) for key, mark in taken.items()} == {
        (b"a", 7): (5, ()),
        (b"b", 0): (0, ((2, 3),)),
    }


def trees(segments):
    return [tree for segment in segments for tree in segment.make()]


def test_restored_marks_go_on_like_the_captured_ones():
    marks, again = ProducerMarks(), ProducerMarks()
    for start in (0, 5, 9):
        marks.see(b"a", 7, start, start + 2)
    marks.see(b"b", 0, 0, 1)
    segments, taken = marks.capture()
    again.restore(trees(segments), marks.missing)
    assert trees(again.capture()[0]) == trees(segments)
    assert taken == again.capture()[1]
    assert again.see(b"a", 7, 0, 12) == marks.see(b"a", 7, 0, 12) == [(2, 5), (7, 9), (11, 12)]
    assert (again.missing, len(again)) == (marks.missing, len(marks)) == (0, 2)


def test_marks_are_cut_into_segments_that_do_not_change_when_more_is_seen(monkeypatch):
    monkeypatch.setattr(dedupe, "_MARK_BITS", 1)
    marks = ProducerMarks()
    for name in b"abcde":
        marks.see(bytes([name]), 0, 0, 1)
    segments, _ = marks.capture()
    marks.see(b"a", 0, 1, 2)
    assert [segment.name for segment in segments] == ["producers/0", "producers/1", "producers/2"]
    assert [[mark[0] for mark in tree["marks"]] for tree in trees(segments)] == [[b"a", b"b"], [b"c", b"d"], [b"e"]]
    assert {segment.token for segment in segments}.isdisjoint(segment.token for segment in marks.capture()[0])
