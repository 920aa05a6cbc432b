"""Log time: the clock of the ledger, which nobody reads off a wall.

The id of an entry says when the server took it. That is the time, unless the server's clock is wrong:

* A *leap* forward of more than an hour between two entries counts as an hour, until a ``clock`` entry
  of the leader says what time it is. So a server whose clock jumps by a year ages nothing by a year.
* A ``clock`` entry tells the time of the leader. If the id's differs by more than clocks of hosts may,
  the difference corrects every later id. It is the one place where log time may move back, and then
  nothing the ledger remembers lies in the future.

Between two ``clock`` entries log time only moves forward. It is a function of the log alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from token_actor.core.columns import Int64s

LEAP_MS_MAX: Final = 3_600_000  # a leader says what time it is more often, so a longer silence has no leader either
CLOCKS_AGREE_MS: Final = 5_000  # hosts that keep their clocks differ by much less


class LogTime:
    """Tell the log time of entries.

    ``now_ms`` is that of the last one, ``correction_ms`` what ids are off by,
    ``id_ms`` what the last id said.
    """

    def __init__(self) -> None:
        """Start before the first entry."""
        self.now_ms = 0
        self.correction_ms = 0
        self._held_ms = 0  # by how much leaps were cut since the last clock entry
        self.id_ms = 0
        self._epoch = 0

    def corrected(self, id_ms: Int64s) -> Int64s:
        """Return when the server took entries, its clock corrected: what events are dated by."""
        return id_ms + self.correction_ms if self.correction_ms else id_ms

    def of(self, id_ms: int) -> int:
        """Return the log time of one entry just read, whether or not it could be counted; does not move on."""
        return id_ms + self.correction_ms - self._held_ms

    def read(self, id_ms: Int64s) -> Int64s:
        """Return the log times of entries in log order, at least one, and move on to the last."""
        times = self.corrected(id_ms)
        leaps = self._leaps(id_ms)
        if leaps is not None:
            times = times - self._held_ms - leaps
            self._held_ms += int(leaps[-1])
        elif self._held_ms:
            times = times - self._held_ms
        times = np.maximum.accumulate(np.maximum(times, self.now_ms))
        self.id_ms = int(id_ms[-1])
        self.now_ms = int(times[-1])
        return times

    def move(self, id_ms: int) -> int:
        """Return the log time of one entry, and move on to it: ``read`` of it alone, without an array."""
        before = self.id_ms or id_ms
        leap = max(0, id_ms - before - LEAP_MS_MAX)
        self._held_ms += leap
        self.id_ms = id_ms
        self.now_ms = max(self.now_ms, id_ms + self.correction_ms - self._held_ms)
        return self.now_ms

    def _leaps(self, id_ms: Int64s) -> Int64s | None:
        """Return by how much leaps up to each entry exceed what counts of them; ``None`` for not at all."""
        before = self.id_ms or int(id_ms[0])
        if int(id_ms.max()) - min(before, int(id_ms.min())) <= LEAP_MS_MAX:
            return None  # the everyday case: all of them lie close together
        excess = np.maximum(np.diff(id_ms, prepend=before) - LEAP_MS_MAX, 0)
        return np.cumsum(excess) if excess.any() else None

    def tell(self, id_ms: int, now_ms: int, epoch: int) -> bool:
        """Take the time of a leader with its entry's id; tell whether log time moved back.

        What an earlier leader says is not heard.
        """
        if epoch < self._epoch:
            return False
        before_ms = self.now_ms
        off_ms = now_ms - id_ms
        self.correction_ms = 0 if abs(off_ms) <= CLOCKS_AGREE_MS else off_ms
        self._held_ms = 0
        self.id_ms = id_ms
        self._epoch = epoch
        self.now_ms = id_ms + self.correction_ms
        return self.now_ms < before_ms

    def dump(self) -> list[int]:
        """Return the state as plain values."""
        return [self.now_ms, self.correction_ms, self._held_ms, self.id_ms, self._epoch]

    def restore(self, dumped: Sequence[int]) -> None:
        """Take over what ``dump`` returned."""
        self.now_ms, self.correction_ms, self._held_ms, self.id_ms, self._epoch = dumped
