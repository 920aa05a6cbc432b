"""Timekeeping: the leader notices when log time is wrong, and tells the log what time it is.

Its own clock runs evenly from the moment at which it last agreed with the server's, so a jump of
either clock alone is noticed as what it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from token_actor.core.logtime import CLOCKS_AGREE_MS, LEAP_MS_MAX

if TYPE_CHECKING:
    from token_actor.actor.settings import Clock

TELL_EVERY_MS: Final = LEAP_MS_MAX // 3  # in a log without entries, so that its silence is never taken for a leap
_NUDGE_EVERY_MS: Final = 5  # the server's clock may be a little behind ours


class Timekeeper:
    """Compare log time with the time at which entries were read, for one leader."""

    def __init__(self, clock: Clock) -> None:
        """Start from what the clock shows now."""
        self._clock = clock
        self._offset_ms = clock.now_ms() - clock.ticks_ms()
        self._heard_ms = self._now_ms()
        self._all_read_ms: int | None = None
        self._ahead_ms = 0  # of log time, when an entry was last read as it came
        self._nudged_ms = -_NUDGE_EVERY_MS

    def _now_ms(self) -> int:
        return self._clock.ticks_ms() + self._offset_ms

    def _compare(self, id_ms: int) -> None:
        """Set our time by the wall clock where the server, which dated an entry just now, agrees with that."""
        now_ms = self._clock.now_ms()
        if abs(now_ms - id_ms) <= CLOCKS_AGREE_MS:
            self._offset_ms = now_ms - self._clock.ticks_ms()

    def look(self, *, id_ms: int | None, log_ms: int, all_read: bool) -> int | None:
        """Return the time to tell the log, in milliseconds since 1970; ``None`` when there is no need.

        ``id_ms`` is what the last entry just read was dated by the server, ``None`` when there was none;
        ``log_ms`` the log time after it; ``all_read`` says that the log held no more at that moment.
        """
        if id_ms is not None:
            self._compare(id_ms)
        now_ms = self._now_ms()
        since_ms, self._all_read_ms = self._all_read_ms, now_ms if all_read else None
        if id_ms is None:
            if now_ms - self._heard_ms < TELL_EVERY_MS:
                return None
        else:
            self._heard_ms = now_ms
            if since_ms is not None:
                self._ahead_ms = now_ms - log_ms
            # What was read now was appended since everything had been read: between these two moments.
            if since_ms is None or since_ms - CLOCKS_AGREE_MS <= log_ms <= now_ms + CLOCKS_AGREE_MS:
                return None
        self._heard_ms = now_ms
        return now_ms

    def until_ms(self, log_ms: int) -> int:
        """Return in how many ms the log will come to a log time by itself, if entries come; 0 when it is there."""
        return max(0, log_ms - (self._now_ms() - self._ahead_ms))

    def nudges(self, log_ms: int | None) -> bool:
        """Tell whether the log needs an entry to come to a log time it must come to; ``None``: there is none."""
        ticks_ms = self._clock.ticks_ms()
        if log_ms is None or self.until_ms(log_ms) or ticks_ms < self._nudged_ms + _NUDGE_EVERY_MS:
            return False
        self._nudged_ms = ticks_ms
        return True

    def dated(self, id_ms: int, correction_ms: int) -> int:
        """Return when an entry of another stream, just read, was appended, by the server's clock in milliseconds.

        That is what its id says; but where the id, corrected as those of the log are, cannot be true,
        it is what the id should have said. A silent log corrects nothing, and questions are asked all the same.
        """
        self._compare(id_ms)
        now_ms = self._now_ms() - correction_ms
        return id_ms if abs(now_ms - id_ms) <= CLOCKS_AGREE_MS else now_ms
