"""Every scenario there is, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.fault.scenarios import crashes

if TYPE_CHECKING:
    from tests.fault.scenario import Scenario

SCENARIOS: Final[dict[str, Scenario]] = {
    scenario.name: scenario for family in (crashes,) for scenario in family.SCENARIOS
}
