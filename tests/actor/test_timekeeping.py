"""A leader tells the log what time it is when log time is wrong, and only then."""

from __future__ import annotations

from token_actor.actor.settings import Clock
from token_actor.actor.timekeeping import TELL_EVERY_MS, Timekeeper
from token_actor.core.logtime import CLOCKS_AGREE_MS

T = 1_700_000_000_000
HOUR_MS = 3_600_000


class Watch:
    """A wall clock and an even one, both set by the test."""

    def __init__(self) -> None:
        self.now_ms = T
        self.ticks_ms = 0
        self.keeper = Timekeeper(Clock(lambda: self.now_ms, lambda: self.ticks_ms, lambda _: False))

    def pass_ms(self, milliseconds: int) -> None:
        """Let time pass."""
        self.now_ms += milliseconds
        self.ticks_ms += milliseconds

    def look(self, off_ms: int | None = 0, *, log_off_ms: int | None = None, all_read: bool = True) -> int | None:
        """Look after a second, at an entry dated ``off_ms`` away from the true time; ``None`` for no entry."""
        self.pass_ms(1_000)
        true_ms = T + self.ticks_ms
        id_ms = None if off_ms is None else true_ms + off_ms
        log_ms = true_ms + (log_off_ms if log_off_ms is not None else (off_ms or 0))
        return self.keeper.look(id_ms=id_ms, log_ms=log_ms, all_read=all_read)


def test_nothing_is_told_while_the_clocks_agree() -> None:
    watch = Watch()
    assert [watch.look(off) for off in (0, 900, -900, None, CLOCKS_AGREE_MS)] == [None] * 5


def test_a_server_that_is_ahead_is_told_the_time() -> None:
    watch = Watch()
    watch.look()
    assert watch.look(HOUR_MS) == T + watch.ticks_ms


def test_a_server_that_is_behind_is_told_the_time() -> None:
    watch = Watch()
    watch.look()
    assert watch.look(-HOUR_MS) == T + watch.ticks_ms


def test_old_entries_of_a_backlog_prove_nothing() -> None:
    watch = Watch()
    assert watch.look(-HOUR_MS, all_read=False) is None
    assert watch.look(-HOUR_MS, all_read=True) is None
    assert watch.look(0) is None


def test_a_corrected_log_is_left_alone() -> None:
    watch = Watch()
    watch.look()
    assert watch.look(HOUR_MS, log_off_ms=0) is None


def test_a_jump_of_its_own_clock_is_not_passed_on() -> None:
    watch = Watch()
    watch.look()
    watch.now_ms += HOUR_MS
    assert watch.look() is None


def test_a_clock_that_was_set_right_is_believed_once_it_agrees_with_the_server() -> None:
    watch = Watch()
    watch.now_ms = T - HOUR_MS
    wrong = Timekeeper(Clock(lambda: watch.now_ms, lambda: watch.ticks_ms, lambda _: False))
    wrong.look(id_ms=None, log_ms=T, all_read=True)
    assert wrong.look(id_ms=T, log_ms=T, all_read=True) == T - HOUR_MS
    watch.now_ms = T
    assert wrong.look(id_ms=T, log_ms=T, all_read=True) is None


def test_a_silent_log_is_told_the_time_now_and_then() -> None:
    watch = Watch()
    assert watch.look(None) is None
    watch.pass_ms(TELL_EVERY_MS)
    assert watch.look(None) == T + watch.ticks_ms
    assert watch.look(None) is None


def test_nobody_who_waits_needs_no_nudge() -> None:
    assert Watch().keeper.nudges(None) is False


def test_the_log_is_nudged_when_it_should_be_there_and_not_again_at_once() -> None:
    watch = Watch()
    assert watch.keeper.until_ms(T + 1_000) == 1_000
    assert watch.keeper.nudges(T + 1_000) is False
    watch.pass_ms(1_000)
    assert [watch.keeper.nudges(T + 1_000), watch.keeper.nudges(T + 1_000)] == [True, False]
    watch.pass_ms(5)
    assert watch.keeper.nudges(T + 1_000) is True


def test_it_is_nudged_by_the_servers_clock_as_far_as_that_was_heard() -> None:
    watch = Watch()
    watch.look(-3_000)
    assert watch.keeper.until_ms(watch.now_ms) == 0, "a backlog tells nothing of the server's clock"
    watch.look(-3_000)
    assert (watch.keeper.until_ms(watch.now_ms - 3_000), watch.keeper.until_ms(watch.now_ms)) == (0, 3_000)
