"""The settings of an actor, and the time as it sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from token_actor.core.ledger import Bounds
    from token_actor.wire.keys import Keys


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorSettings:
    """Hold the settings of an actor.

    ``lease_ms`` is how long a leader may be silent until another actor takes over; all actors of a
    partition need the same. ``block_ms`` is the
    longest an idle leader's read waits, and so the longest until a stop is noticed;
    ``standby_block_ms`` that of an actor standing by, and so the longest until it takes over from a
    leader that gave the lease back. A snapshot is due after ``snapshot_every_ms`` or
    ``snapshot_every_entries`` of the log. ``events_per_turn`` is aimed at, not guaranteed.
    With ``accept_data_loss`` a log that has lost entries nobody counted is no reason to refuse.
    ``partitions`` is how many the namespace has; it is written down once, and another number refused.
    """

    keys: Keys
    holder: str
    partitions: int = 1
    bounds: Bounds | None = None
    lease_ms: int = 2_000
    block_ms: int = 250
    standby_block_ms: int = 50
    events_per_turn: int = 32_768
    snapshot_every_ms: int = 60_000
    snapshot_every_entries: int = 1_000_000
    accept_data_loss: bool = False


class Clock:
    """Be the time as the loop sees it: ``now_ms`` for people, ``ticks_ms`` never jumps."""

    def __init__(self, now_ms: Callable[[], int], ticks_ms: Callable[[], int], wait: Callable[[float], bool]) -> None:
        """Take the clocks, and ``wait(seconds)``, which returns early with ``True`` when asked to stop."""
        self.now_ms = now_ms
        self.ticks_ms = ticks_ms
        self.wait = wait
