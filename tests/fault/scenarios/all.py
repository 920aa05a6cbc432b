"""Every scenario there is, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.fault.scenarios import crashes, damage, limits, network, server

if TYPE_CHECKING:
    from tests.fault.scenario import Scenario

_FAMILIES: Final = (crashes, network, server, damage, limits)

SCENARIOS: Final[dict[str, Scenario]] = {each.name: each for family in _FAMILIES for each in family.SCENARIOS}
