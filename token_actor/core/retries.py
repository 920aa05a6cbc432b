"""When to try again: how long a refused cost has to wait, if nothing else happens."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from token_actor.core.limits import CONCURRENCY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from token_actor.core.limit_table import Meter
    from token_actor.core.limits import Refund
    from token_actor.core.reservation_states import Open
    from token_actor.core.standings import Standing

REFUNDS_MAX: Final = 256  # looked at to say when there will be room; later ones are taken to give nothing back


def retry_after_ms(standing: Standing, opened: Mapping[str, Open], now_ms: int) -> int | None:
    """Return when the cost will fit if nothing else happens; ``None`` when it never can.

    ``opened`` are the open reservations, whose expiry may give something back.
    """
    if standing.fits:
        return 0
    meter, counter = standing.meter, standing.meter.find(standing.scope)
    if standing.never:
        return None
    if standing.cost <= standing.left:  # only the pause refuses
        return standing.paused_ms
    assert counter is not None, "what was never used has room"
    refunds = _refunds(meter, standing.scope, opened)
    if meter.limit.kind != CONCURRENCY:  # there nothing else gives back
        refunds = islice(refunds, REFUNDS_MAX)
    wait_ms = meter.counters.retry_after_ms(counter, standing.cost, now_ms, refunds)
    return max(wait_ms, standing.paused_ms)


def _refunds(meter: Meter, scope: str, opened: Mapping[str, Open]) -> Iterator[Refund]:
    """Yield what expiries will give back, the first one first: few of them are wanted, and many may be open."""
    if meter.limit.gives_back:
        for expires_ms, reservation in meter.holders.get(meter.name_of(scope), ()):
            for hold in opened[reservation].holds:
                if hold.meter == meter.number:
                    yield expires_ms, hold.place, hold.amount
