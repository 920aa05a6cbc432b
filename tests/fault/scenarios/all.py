"""Every scenario there is, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.fault.scenarios import clocks, crashes, damage, escrow, limits, network, server, spools, takeovers, volume

if TYPE_CHECKING:
    from tests.fault.scenario import Scenario

_FAMILIES: Final = (crashes, takeovers, spools, network, server, damage, clocks, limits, escrow, volume)

SCENARIOS: Final[dict[str, Scenario]] = {each.name: each for family in _FAMILIES for each in family.SCENARIOS}
