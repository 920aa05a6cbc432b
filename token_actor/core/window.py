"""What was used lately: exact sums over a trailing window, in bounded memory.

Every sample is a *group* of events: the time of its last event, and the running total after it. A
window's sum is then one subtraction, found by bisection. When the samples run out, pairs of old
groups merge, which costs precision only where windows begin in the distant past, and only towards
the safe side: a group that a window covers in part counts whole.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import Final

SAMPLES_MAX: Final = 131_072  # 16 bytes each: 2 MiB for a session that never sleeps; the newer half is always exact

_LOW_64_BITS: Final = 2**64 - 1


class TrailingWindow:
    """Answer how much was used in the last seconds, for any number of seconds.

    Exact for every window that holds at most ``samples_max / 2`` events; beyond that the sum is
    never too small. Events of one instant share a sample.
    """

    __slots__ = ("_samples_max", "_times_s", "_total", "_totals")

    def __init__(self, *, samples_max: int = SAMPLES_MAX) -> None:
        """Start with nothing used. ``samples_max`` is a multiple of 4, so that halves thin evenly."""
        assert samples_max > 0
        assert samples_max % 4 == 0
        self._samples_max = samples_max
        self._total = 0
        self._times_s = array("d")
        # Running totals modulo 2**64: their differences stay exact however large the total grows, as
        # long as one window holds less than 2**64 tokens, which takes 4 million calls of the largest size.
        self._totals = array("Q")

    def __len__(self) -> int:
        """Return the number of samples held."""
        return len(self._times_s)

    def add(self, amount: int, at_s: float) -> None:
        """Count ``amount`` at ``at_s`` seconds; a time before the last event's is taken as the last event's."""
        self._total += amount
        if self._times_s and at_s <= self._times_s[-1]:
            self._totals[-1] = self._total & _LOW_64_BITS
            return
        if len(self._times_s) == self._samples_max:
            self._merge_older_half()
        self._times_s.append(at_s)
        self._totals.append(self._total & _LOW_64_BITS)

    def sum(self, window_s: float, now_s: float) -> int:
        """Return what was used in the ``window_s`` seconds up to ``now_s``, both ends included.

        A ``now_s`` before the last event is taken as the time of the last event.
        """
        if self._times_s:
            now_s = max(now_s, self._times_s[-1])
        before = bisect_left(self._times_s, now_s - window_s)
        if before == 0:
            return self._total
        return (self._total - self._totals[before - 1]) & _LOW_64_BITS

    def clear(self) -> None:
        """Forget everything."""
        self._total = 0
        del self._times_s[:]
        del self._totals[:]

    def _merge_older_half(self) -> None:
        half = self._samples_max // 2
        self._times_s[:half] = self._times_s[1:half:2]  # of each pair the later one: its time, its running total
        self._totals[:half] = self._totals[1:half:2]


class SteadyTime:
    """Turn a clock that people may set back into one that never runs backwards.

    A step back is skipped, and time goes on from there, so nothing freezes until the clock has
    caught up. A step forward is believed: it looks the same as the sleep of a laptop or a virtual
    machine, through which a provider's window moves on while the machine's monotonic clock stands
    still.
    """

    __slots__ = ("_behind_s", "_clock_s")

    def __init__(self, clock_s: float) -> None:
        """Start where the clock stands."""
        self._clock_s = clock_s
        self._behind_s = 0.0

    def at(self, clock_s: float) -> float:
        """Return the steady time, in seconds, of the next reading of the clock."""
        if clock_s < self._clock_s:
            self._behind_s += self._clock_s - clock_s
        self._clock_s = clock_s
        return clock_s + self._behind_s
