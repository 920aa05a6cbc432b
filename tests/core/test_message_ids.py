"""Facts about message ids: known exactly, for a while, and not too many of them."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import examples, plain
from token_actor.core import message_ids
from token_actor.core.message_ids import MessageIds


def block_size(patch, bits):
    """Let a block hold ``2**bits`` ids."""
    patch.setattr(message_ids, "_ID_BITS", bits)
    patch.setattr(message_ids, "_SIZE", 1 << bits)
    patch.setattr(message_ids, "_INSIDE", (1 << bits) - 1)


@pytest.fixture
def small_blocks(monkeypatch):
    block_size(monkeypatch, 2)


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


@pytest.mark.parametrize("again", ["the same", "restored"])
def test_a_clock_that_was_behind_for_a_while_lets_no_id_age(again):
    known = MessageIds(age_ms_max=100)
    see(known, "a", at_ms=1000)
    see(known, "b", at_ms=300)
    if again == "restored":
        known = restored(known, age_ms_max=100)
    see(known, "c", at_ms=300)
    assert see(known, "a", "b", "c", at_ms=1100) == ([0, 1, 2], [])
    assert see(known, "a", "b", "c", at_ms=1101) == ([], [])


def trees(known):
    return [tree for segment in known.capture() for tree in segment.make()]


def restored(known, **bounds):
    again = MessageIds(**bounds)
    again.restore(trees(known), known.next_number)
    return again


def test_restored_ids_go_on_like_the_captured_ones(small_blocks):
    known = MessageIds(ids_max=3)
    see(known, "a", "b", at_ms=5)
    known.forget(["a"])
    see(known, "a", at_ms=6)
    again = restored(known, ids_max=3)
    assert plain(trees(again)) == plain(trees(known))
    for ids in (("c",), ("b", "a"), ("d", "c", "e")):
        assert see(again, *ids, at_ms=7) == see(known, *ids, at_ms=7)
    assert plain(trees(again)) == plain(trees(known))


def test_no_ids_are_restored_to_none():
    known = MessageIds(age_ms_max=10)
    assert trees(known) == []
    see(known, "a", at_ms=0)
    known._forget_older_than(100)
    again = restored(known)
    assert (len(again), again.next_number, trees(again)) == (0, 1, [])


def test_ids_are_cut_into_segments_by_their_numbers(small_blocks):
    known = MessageIds(ids_max=9)
    see(known, *"abcdefghijk")
    assert [(tree["first"], tree["ids"]) for tree in trees(known)] == [
        (2, ["c", "d"]),
        (4, ["e", "f", "g", "h"]),
        (8, ["i", "j", "k"]),
    ]


def test_a_token_changes_with_its_segment_and_no_other(small_blocks):
    known = MessageIds(ids_max=9)
    see(known, *"abcdefgh")

    def tokens():
        return {segment.name: segment.token for segment in known.capture()}

    before = tokens()
    see(known, "i")
    assert {name for name, token in tokens().items() if token != before.get(name)} == {"message_ids/2"}
    before = tokens()
    known.forget(["f", "x"])
    assert {name for name, token in tokens().items() if token != before[name]} == {"message_ids/1"}
    before = tokens()
    see(known, "j")
    assert {name for name, token in tokens().items() if token != before[name]} == {"message_ids/0", "message_ids/2"}


def test_a_picture_of_the_ids_stays_as_it_was(small_blocks):
    known = MessageIds(ids_max=7)
    see(known, *"abcdef")
    known.forget(["b"])
    picture = known.capture()
    before = plain([tree for segment in picture for tree in segment.make()])
    known.forget(["e", "c"])
    see(known, *"ghijklmnopq")
    assert plain([tree for segment in picture for tree in segment.make()]) == before
    assert before[1]["ids"] == ["e", "f"]


class PlainIds:
    """Know ids as an ordered dict does, one at a time."""

    def __init__(self, ids_max, age_ms_max):
        self.ids_max, self.age_ms_max = ids_max, age_ms_max
        self.known: OrderedDict[object, tuple[int, int]] = OrderedDict()
        self.forgotten = 0
        self.newest_ms = 0

    def see_one(self, message_id, numbers, at_ms):
        at_ms = max(at_ms, self.newest_ms)
        while self.known and next(iter(self.known.values()))[1] < at_ms - self.age_ms_max:
            self.known.popitem(last=False)
        if message_id in self.known:
            return "duplicate" if self.known[message_id][0] == numbers else "conflict"
        self.known[message_id] = (numbers, at_ms)
        self.newest_ms = at_ms
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


@given(
    READS, st.tuples(st.integers(1, 9), st.integers(0, 60)), st.lists(st.sampled_from("abcdefgh"), max_size=15),
    st.integers(0, 2), st.sets(st.integers(0, 15)), st.sets(st.integers(0, 15)),
)  # fmt: skip
@examples(300)
def test_ids_equal_an_ordered_dict_that_sees_them_one_by_one(reads, bounds, forgotten, bits, restarts, set_back):
    ids_max, age_ms_max = bounds
    with pytest.MonkeyPatch.context() as patch:
        block_size(patch, bits)
        known, oracle, now_ms = MessageIds(ids_max=ids_max, age_ms_max=age_ms_max), PlainIds(ids_max, age_ms_max), 1000
        for place, (step_ms, read) in enumerate(reads):
            now_ms += step_ms
            if place in set_back:
                now_ms -= 40
            expected = [oracle.see_one(message_id, numbers, now_ms) for message_id, numbers in read]
            duplicates, conflicts = known.see([i for i, _ in read], [n for _, n in read], [now_ms] * len(read))
            found = [
                "duplicate" if at in duplicates else "conflict" if at in conflicts else "new" for at in range(len(read))
            ]
            assert found == expected
            if place < len(forgotten):
                known.forget([forgotten[place]])
                oracle.forget(forgotten[place])
            if place in restarts:
                known = restored(known, ids_max=ids_max, age_ms_max=age_ms_max)
            assert {message_id for message_id in "abcdefgh" if message_id in known} == oracle.ids()
            assert len(known) == len(oracle.ids())
