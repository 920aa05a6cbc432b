"""Pauses: limits that grant nothing for a while, because a provider said so.

A pause ends by itself, by log time. A shorter one never ends a longer one, so whoever hears first of
the longest wait speaks for the fleet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from token_actor.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from token_actor.core.limit_table import LimitTable, Meter

PAUSE_MS_MAX: Final = 3_600_000  # an hour: a mistaken header shall not stop a fleet for longer


class Pause(NamedTuple):
    """Say that nothing is granted from one log time until before another."""

    since_ms: int = 0
    until_ms: int = 0

    def left_ms(self, now_ms: int) -> int:
        """Return how long it still lasts; 0 when it is over."""
        return max(0, self.until_ms - now_ms)

    def set_back(self, now_ms: int) -> Pause:
        """Return it as it is when log time moves back to ``now_ms``: what began later begins now."""
        late_ms = max(0, self.since_ms - now_ms)
        return Pause(self.since_ms - late_ms, self.until_ms - late_ms)


def pause(meter: Meter, now_ms: int, for_ms: int) -> None:
    """Let a limit grant nothing for so long from now, unless it does so for longer already."""
    if now_ms + for_ms > meter.pause.until_ms:
        meter.pause = Pause(now_ms, now_ms + for_ms)


def pause_limits(limits: LimitTable, names: list[str], now_ms: int, for_ms: int) -> dict[str, Any]:
    """Pause the limits with these names, as far as there are any; return how long each is paused now, as a map.

    That is no change of the table: who waits is looked at when its time comes, and clients need no new copy.
    """
    meters = [limits.meters[name] for name in names if name in limits.meters]
    limits.changes += len(meters)
    for meter in meters:
        pause(meter, now_ms, for_ms)
    return {"paused": {meter.limit.name: meter.pause.left_ms(now_ms) for meter in meters}}


def selecting(limits: LimitTable, selector: Mapping[str, str]) -> list[str]:
    """Return the names of the limits that cover just what ``selector`` says, no more and no less."""
    return [name for name, meter in limits.meters.items() if meter.limit.selector == selector]


def check_pause_ms(value: object) -> int:
    """Return how long to pause, in ms. Raises ``InvalidValue``."""
    if type(value) is not int:
        raise InvalidValue("for_ms", "must be an int", reason="type")
    if not 1 <= value <= PAUSE_MS_MAX:
        raise InvalidValue("for_ms", f"must be between 1 and {PAUSE_MS_MAX}, not {value}")
    return value
