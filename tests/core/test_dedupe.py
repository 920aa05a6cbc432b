"""Facts about counting once: sequence numbers and message ids."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import examples
from token_actor.core import dedupe
from token_actor.core.dedupe import MessageIds, ProducerMark, ProducerMarks

# --- one producer ---------------------------------------------------------------------------------


def test_a_number_is_new_once():
    mark = ProducerMark()
    assert mark.see(0, 3) == [(0, 3)]
    assert mark.see(0, 3) == []


def test_numbers_in_order_need_nothing_but_a_high_water_mark():
    mark = ProducerMark()
    mark.see(0, 3)
    mark.see(3, 7)
    assert (mark.next_seq, mark.ranges, mark.missing) == (7, [], 0)


def test_a_hole_is_missing_until_it_is_filled():
    mark = ProducerMark()
    mark.see(0, 2)
    mark.see(5, 6)
    assert mark.missing == 3
    assert mark.see(2, 5) == [(2, 5)]
    assert (mark.missing, mark.next_seq, mark.ranges) == (0, 6, [])


def test_the_numbers_before_the_first_one_seen_are_missing():
    mark = ProducerMark()
    assert mark.see(10, 12) == [(10, 12)]
    assert mark.missing == 10


def test_of_an_overlap_only_the_new_parts_are_new():
    mark = ProducerMark()
    mark.see(2, 4)
    mark.see(6, 8)
    assert mark.see(1, 9) == [(1, 2), (4, 6), (8, 9)]
    assert mark.ranges == [(1, 9)]


def test_a_span_may_end_within_a_known_range():
    mark = ProducerMark()
    mark.see(5, 9)
    assert mark.see(3, 7) == [(3, 5)]
    assert mark.see(6, 9) == []


def test_a_span_may_lie_before_every_known_range():
    mark = ProducerMark()
    mark.see(9, 10)
    assert mark.see(4, 5) == [(4, 5)]
    assert mark.ranges == [(4, 5), (9, 10)]


def test_a_duplicate_is_recognised_however_late_it_comes():
    mark = ProducerMark()
    for number in range(1000):
        mark.see(number, number + 1)
    assert mark.see(0, 1) == []


def test_too_many_holes_close_the_oldest_and_stay_missing_for_ever(monkeypatch):
    monkeypatch.setattr(dedupe, "RANGES_MAX", 2)
    mark = ProducerMark()
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
    mark, seen = ProducerMark(), set()
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
        mark, counted = ProducerMark(), []
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


def test_restored_marks_go_on_like_the_dumped_ones():
    marks, again = ProducerMarks(), ProducerMarks()
    for start in (0, 5, 9):
        marks.see(b"a", 7, start, start + 2)
    marks.see(b"b", 0, 0, 1)
    again.restore(marks.dump())
    assert again.dump() == marks.dump()
    assert again.see(b"a", 7, 0, 12) == marks.see(b"a", 7, 0, 12) == [(2, 5), (7, 9), (11, 12)]
    assert (again.missing, len(again)) == (marks.missing, len(marks)) == (0, 2)


# --- message ids ----------------------------------------------------------------------------------


def see(known, *ids, at_ms=0, numbers=1):
    return known.see(list(ids), [numbers] * len(ids), [at_ms] * len(ids))


def test_an_id_is_new_once():
    known = MessageIds()
    assert see(known, "a", "b") == ([], [])
    assert see(known, "c", "a") == ([1], [])
    assert len(known) == 3


def test_an_id_that_comes_twice_at_once_is_a_duplicate_the_second_time():
    assert see(MessageIds(), "a", "b", "a") == ([2], [])


def test_an_id_with_other_numbers_is_a_conflict_and_the_first_one_wins():
    known = MessageIds()
    see(known, "a", numbers=1)
    assert see(known, "a", numbers=2) == ([], [0])
    assert see(known, "a", numbers=1) == ([0], [])


def test_an_id_is_known_by_name():
    known = MessageIds()
    see(known, "a")
    assert ("a" in known, "b" in known) == (True, False)


def test_the_oldest_ids_are_forgotten_when_there_are_too_many():
    known = MessageIds(ids_max=2)
    see(known, "a", "b", "c")
    assert ("a" in known, "b" in known, "c" in known) == (False, True, True)


def test_an_id_is_forgotten_in_the_middle_of_a_read_too():
    known = MessageIds(ids_max=2)
    assert see(known, "a", "b", "c", "a") == ([], [])


def test_an_id_is_known_until_it_is_older_than_its_age():
    known = MessageIds(age_ms_max=100)
    see(known, "a", at_ms=1000)
    assert see(known, "a", at_ms=1100) == ([0], [])
    assert see(known, "a", at_ms=1101) == ([], [])


def test_a_repetition_does_not_make_an_id_younger():
    known = MessageIds(age_ms_max=100)
    see(known, "a", at_ms=1000)
    see(known, "a", at_ms=1090)
    see(known, "b", at_ms=1150)
    assert "a" not in known


def test_old_ids_are_forgotten_when_new_ones_come():
    known = MessageIds(age_ms_max=100)
    see(known, "a", "b", at_ms=1000)
    see(known, "c", at_ms=2000)
    assert len(known) == 1


def test_a_forgotten_id_may_come_again():
    known = MessageIds()
    see(known, "a", "b")
    known.forget(["a", "x"])
    assert len(known) == 1
    assert see(known, "a", "b", numbers=9) == ([], [1])


def test_a_forgotten_id_that_came_again_ages_from_then_on():
    known = MessageIds(ids_max=2)
    see(known, "a", "b")
    known.forget(["a"])
    see(known, "a")
    see(known, "c")
    assert ("a" in known, "b" in known, "c" in known) == (True, False, True)


def test_restored_ids_go_on_like_the_dumped_ones():
    known, again = MessageIds(ids_max=3), MessageIds(ids_max=3)
    see(known, "a", "b", at_ms=5)
    known.forget(["a"])
    see(known, "a", at_ms=6)
    again.restore(known.dump())
    assert again.dump() == known.dump()
    for ids in (("c",), ("b", "a"), ("d", "c", "e")):
        assert see(again, *ids, at_ms=7) == see(known, *ids, at_ms=7)
    assert again.dump() == known.dump()


class PlainIds:
    """Know ids as an ordered dict does, one at a time."""

    def __init__(self, ids_max, age_ms_max):
        self.ids_max, self.age_ms_max = ids_max, age_ms_max
        self.known: OrderedDict[object, tuple[int, int]] = OrderedDict()
        self.forgotten = 0

    def see_one(self, message_id, numbers, at_ms):
        while self.known and next(iter(self.known.values()))[1] < at_ms - self.age_ms_max:
            self.known.popitem(last=False)
        if message_id in self.known:
            return "duplicate" if self.known[message_id][0] == numbers else "conflict"
        self.known[message_id] = (numbers, at_ms)
        if len(self.known) > self.ids_max:
            self.known.popitem(last=False)
        return "new"

    def forget(self, message_id):
        if message_id in self.known:  # its place stays taken until its time has come
            self.forgotten += 1
            self.known = OrderedDict(
                ((self.forgotten,) if key == message_id else key, value) for key, value in self.known.items()
            )

    def ids(self):
        return {key for key in self.known if isinstance(key, str)}


READS = st.lists(
    st.tuples(
        st.integers(0, 30), st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 1)), min_size=1, max_size=9)
    ),
    max_size=15,
)


@given(READS, st.integers(1, 9), st.integers(0, 60), st.lists(st.sampled_from("abcdefgh"), max_size=15))
@examples(300)
def test_ids_equal_an_ordered_dict_that_sees_them_one_by_one(reads, ids_max, age_ms_max, forgotten):
    known, oracle, now_ms = MessageIds(ids_max=ids_max, age_ms_max=age_ms_max), PlainIds(ids_max, age_ms_max), 1000
    for place, (step_ms, read) in enumerate(reads):
        now_ms += step_ms
        expected = [oracle.see_one(message_id, numbers, now_ms) for message_id, numbers in read]
        duplicates, conflicts = known.see([i for i, _ in read], [n for _, n in read], [now_ms] * len(read))
        found = [
            "duplicate" if at in duplicates else "conflict" if at in conflicts else "new" for at in range(len(read))
        ]
        assert found == expected
        if place < len(forgotten):
            known.forget([forgotten[place]])
            oracle.forget(forgotten[place])
        assert {message_id for message_id in "abcdefgh" if message_id in known} == oracle.ids()
        assert len(known) == len(oracle.ids())
