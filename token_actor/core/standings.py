"""Standings: how the limits that cover a call stand towards what it may cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from token_actor.core.reservation_states import Hold
from token_actor.core.usage import SEPARATOR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from token_actor.core.limit_table import Meter
    from token_actor.core.limits import Estimate, Limit


class Standing(NamedTuple):
    """Say how one limit stands towards one cost.

    ``left`` is what is not taken, whether or not it can be granted now; ``aside`` of it is set aside (see ``escrow``).
    """

    meter: Meter
    scope: str
    cost: int
    used: int
    reserved: int
    left: int
    paused_ms: int = 0
    aside: int = 0

    @property
    def remaining(self) -> int:
        """Return what can still be granted; nothing during a pause."""
        return 0 if self.paused_ms else self.left

    @property
    def fits(self) -> bool:
        """Tell whether the cost can be granted, once what is set aside is recalled; nothing always can."""
        return self.cost <= (0 if self.paused_ms else self.left)

    @property
    def fits_now(self) -> bool:
        """Tell whether the cost can be granted without touching what is set aside."""
        return not self.cost or self.has_room_for(1)

    def has_room_for(self, calls: int) -> bool:
        """Tell whether so many calls of the cost can be granted without touching what is set aside."""
        return not self.paused_ms and calls * self.cost <= self.left - self.aside

    @property
    def never(self) -> bool:
        """Tell whether the cost is more than can ever be granted at once."""
        return self.cost > self.meter.limit.capacity

    @property
    def enforced(self) -> bool:
        """Tell whether the limit refuses, or only tells."""
        return self.meter.limit.mode == "enforce"

    def held(self) -> Standing:
        """Return how the limit stands when the cost is reserved."""
        reserved, left = self.reserved + self.cost, max(0, self.left - self.cost)
        return Standing(self.meter, self.scope, self.cost, self.used, reserved, left, self.paused_ms, self.aside)

    def figures(self) -> dict[str, Any]:
        """Return what is taken of how much, and by whom, as a map."""
        names = zip(self.meter.limit.by, self.scope.split(SEPARATOR), strict=False)
        return {
            "scope": {dimension: name or None for dimension, name in names},
            "amount": self.meter.limit.capacity,
            "used": self.used,
            "reserved": self.reserved,
            "remaining": self.remaining,
        }

    def tightness(self) -> tuple[int, str]:
        """Order limits by the share that remains, in millionths."""
        limit = self.meter.limit
        return self.remaining * 1_000_000 // max(1, limit.capacity), limit.name


def cost_to(limit: Limit, estimate: Estimate, *, given: bool) -> int:
    """Return what an estimate costs under a limit.

    One that was not ``given`` costs no more than the limit can ever grant: else a guess that is too large would
    refuse for good, and nothing smaller could be learned.
    """
    cost = limit.cost_of(estimate)
    return cost if given else min(cost, max(1, limit.capacity))


def tightest_after(standings: Sequence[Standing]) -> Standing | None:
    """Return the limit with the smallest share left once the cost is reserved; ``None`` of none."""
    return min(standings, key=lambda standing: standing.held().tightness(), default=None)


def standing_of(meter: Meter, scope: str, cost: int, now_ms: int) -> Standing:
    """Return how a limit stands towards a cost under one value of ``by``; changes nothing."""
    counter = meter.find(scope)
    used, reserved = (0, 0) if counter is None else meter.counters.sums(counter, now_ms)
    left = max(0, meter.limit.capacity - used - reserved)
    aside = meter.aside.get(meter.name_of(scope), 0) if meter.aside else 0
    return Standing(meter, scope, cost, used, reserved, left, meter.pause.left_ms(now_ms), aside)


def shown(standing: Standing | None) -> dict[str, Any]:
    """Return the figures of a limit as a decision shows them; ``None`` means that no limit covers the call."""
    if standing is None:
        return dict.fromkeys(("limit", "unit", "cost", "scope", "amount", "used", "reserved", "remaining"))
    limit = standing.meter.limit
    return {"limit": limit.name, "unit": limit.unit, "cost": standing.cost, **standing.figures()}


def hold_of(standing: Standing, now_ms: int) -> Hold:
    """Take what a limit stands to hold."""
    meter, cost = standing.meter, standing.cost
    name = meter.name_of(standing.scope)
    return Hold(meter.number, name, meter.counters.hold(meter.index(name), cost, now_ms), cost)
