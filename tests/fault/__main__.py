"""Run scenarios and print one table: ``python -m tests.fault [--long] [--minutes N] [--scenario NAME] [--seed S]``."""

from __future__ import annotations

import argparse
import json
import sys

from tests.fault.cast import ForkServer
from tests.fault.scenario import SEED, Scale, table
from tests.fault.scenarios.all import SCENARIOS


def main() -> int:
    """Run what is asked for; exit 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault", description=__doc__)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--short", action="store_true", help="as in CI (the default)")
    length.add_argument("--long", action="store_true", help="1,000 kills of the actor")
    parser.add_argument("--minutes", type=float, default=20.0, help="bound of each scenario of the long run")
    parser.add_argument("--scenario", action="append", choices=sorted(SCENARIOS), help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--planted", help="run with a planted bug")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    asked = parser.parse_args()
    scale = Scale(short=not asked.long, minutes=asked.minutes)
    outcomes = []
    with ForkServer() as forks:
        for scenario in SCENARIOS.values():
            if asked.scenario and scenario.name not in asked.scenario:
                continue
            if scenario.long_only and scale.short and not asked.scenario:
                continue
            print(f"{scenario.name}: {scenario.injects} ...", file=sys.stderr, flush=True)
            outcomes.append(scenario.run(forks, seed=asked.seed, scale=scale, planted=asked.planted))
    print(json.dumps([outcome.document() for outcome in outcomes], indent=1) if asked.json else table(outcomes))
    return 0 if all(outcome.held for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
