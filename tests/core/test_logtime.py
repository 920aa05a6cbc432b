"""Log time is read off ids, does not believe in leaps, and is corrected by leaders."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from token_actor.core.logtime import CLOCKS_AGREE_MS, LEAP_MS_MAX, LogTime

T = 1_700_000_000_000
YEAR_MS = 365 * 86_400_000


def read(clock: LogTime, *id_ms: int) -> list[int]:
    """Let a clock read ids."""
    return clock.read(np.array(id_ms, dtype=np.int64)).tolist()


class TestIds:
    def test_time_is_what_ids_say(self) -> None:
        clock = LogTime()
        assert read(clock, T, T, T + 5) == [T, T, T + 5]
        assert clock.now_ms == T + 5

    def test_it_never_moves_back_by_itself(self) -> None:
        clock = LogTime()
        assert read(clock, T + 10, T, T + 11) == [T + 10, T + 10, T + 11]
        assert read(clock, T) == [T + 11]

    def test_the_first_entry_is_no_leap(self) -> None:
        assert read(LogTime(), T) == [T]

    def test_an_hour_of_silence_is_believed(self) -> None:
        clock = LogTime()
        assert read(clock, T, T + LEAP_MS_MAX) == [T, T + LEAP_MS_MAX]

    def test_a_leap_counts_as_an_hour(self) -> None:
        clock = LogTime()
        assert read(clock, T, T + YEAR_MS, T + YEAR_MS + 7) == [T, T + LEAP_MS_MAX, T + LEAP_MS_MAX + 7]
        assert read(clock, T + YEAR_MS + 8) == [T + LEAP_MS_MAX + 8]

    def test_two_leaps_count_as_two_hours(self) -> None:
        clock = LogTime()
        read(clock, T)
        read(clock, T + YEAR_MS)
        assert read(clock, T + 2 * YEAR_MS) == [T + 2 * LEAP_MS_MAX]

    def test_that_of_one_entry_is_told_without_moving_on(self) -> None:
        clock = LogTime()
        read(clock, T, T + YEAR_MS)
        clock.tell(T + YEAR_MS, T + 3, epoch=1)
        assert clock.of(T + YEAR_MS + 7) == T + 10
        assert clock.now_ms == T + 3

    def test_events_are_dated_by_the_id_also_after_a_leap(self) -> None:
        clock = LogTime()
        read(clock, T, T + YEAR_MS)
        assert clock.corrected(np.array([T + YEAR_MS])).tolist() == [T + YEAR_MS]

    @given(
        st.lists(st.integers(0, 3 * LEAP_MS_MAX), min_size=1, max_size=30),
        st.lists(st.integers(1, 29), max_size=6),
    )
    def test_it_does_not_depend_on_how_the_log_is_cut(self, steps: list[int], cuts: list[int]) -> None:
        ids = (T + np.cumsum(np.array(steps, dtype=np.int64))).tolist()
        whole, cut = LogTime(), LogTime()
        edges = sorted({0, *(at for at in cuts if at < len(ids)), len(ids)})
        parts = [read(cut, *ids[begin:end]) for begin, end in itertools.pairwise(edges)]
        assert read(whole, *ids) == [time for part in parts for time in part]
        assert whole.dump() == cut.dump()

    @given(
        st.lists(st.integers(-LEAP_MS_MAX, 3 * LEAP_MS_MAX), min_size=1, max_size=30),
        st.integers(-YEAR_MS, YEAR_MS),
    )
    def test_an_entry_alone_moves_it_as_a_read_of_one(self, steps: list[int], off_ms: int) -> None:
        reading, moving = LogTime(), LogTime()
        for clock in (reading, moving):
            clock.tell(T, T + off_ms, epoch=1)
        for id_ms in itertools.accumulate(steps, initial=T):
            assert read(reading, id_ms) == [moving.move(id_ms)]
            assert reading.dump() == moving.dump()

    def test_the_first_entry_alone_is_no_leap(self) -> None:
        assert LogTime().move(T) == T


class TestWhatALeaderTells:
    def test_clocks_that_agree_correct_nothing(self) -> None:
        clock = LogTime()
        read(clock, T)
        assert clock.tell(T + 20, T + 20 + CLOCKS_AGREE_MS, epoch=1) is False
        assert clock.correction_ms == 0
        assert clock.now_ms == T + 20

    def test_it_ends_what_was_held_of_a_leap(self) -> None:
        clock = LogTime()
        read(clock, T, T + YEAR_MS)
        assert clock.tell(T + YEAR_MS, T + YEAR_MS, epoch=1) is False
        assert read(clock, T + YEAR_MS + 1) == [T + YEAR_MS + 1]

    def test_a_server_that_jumped_forward_is_corrected(self) -> None:
        clock = LogTime()
        read(clock, T, T + YEAR_MS)
        assert clock.tell(T + YEAR_MS, T + 3, epoch=1) is True
        assert clock.now_ms == T + 3
        assert read(clock, T + YEAR_MS + 10) == [T + 13]

    def test_a_server_that_jumped_back_sticks_to_its_last_id_and_is_told_on(self) -> None:
        clock = LogTime()
        read(clock, T)
        for later in (10_000, 20_000, 30_000):
            assert clock.tell(T, T + later, epoch=1) is False
            assert read(clock, T, T) == [T + later, T + later]

    def test_the_correction_ends_when_the_clocks_agree_again(self) -> None:
        clock = LogTime()
        clock.tell(T + YEAR_MS, T, epoch=1)
        clock.tell(T + YEAR_MS, T + YEAR_MS, epoch=1)
        assert read(clock, T + YEAR_MS + 5) == [T + YEAR_MS + 5]

    def test_a_leader_of_the_past_is_not_heard(self) -> None:
        clock = LogTime()
        clock.tell(T, T, epoch=2)
        assert clock.tell(T + 5, T - YEAR_MS, epoch=1) is False
        assert read(clock, T + 6) == [T + 6]

    def test_the_state_can_be_kept(self) -> None:
        clock, restored = LogTime(), LogTime()
        read(clock, T, T + YEAR_MS)
        clock.tell(T + YEAR_MS + 3, T + 9, epoch=4)
        read(clock, T + 3 * YEAR_MS)
        restored.restore(clock.dump())
        assert read(clock, T + 4 * YEAR_MS) == read(restored, T + 4 * YEAR_MS)
        assert clock.dump() == restored.dump()
