"""Run scenarios and print one table: ``python -m tests.fault [--long] [--minutes N] [--scenario NAME] [--seed S]``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Final

from tests.fault.cast import ForkServer
from tests.fault.scenario import SEED, Outcome, Scale, add_row, table
from tests.fault.scenarios.all import SCENARIOS
from tests.fault.soak import Soak

ROWS: Final = Path("build/soak.jsonl")


def main() -> int:
    """Run what is asked for; exit 1 when a promise was broken."""
    asked = _arguments()
    outcomes = Soak(asked.minutes, asked.rows or ROWS).run() if asked.long and not asked.scenario else _scenarios(asked)
    print(json.dumps([outcome.document() for outcome in outcomes], indent=1) if asked.json else table(outcomes))
    return 0 if all(outcome.held for outcome in outcomes) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fault", description=__doc__)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--short", action="store_true", help="as in CI (the default)")
    length.add_argument("--long", action="store_true", help="for a record: 1,000 kills of the actor, and much else")
    parser.add_argument("--minutes", type=float, default=25.0, help="about how long the long run may take")
    parser.add_argument("--scenario", action="append", choices=sorted(SCENARIOS), help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--times", type=int, default=1, help="run each so many times, each with the next seed")
    parser.add_argument("--parts", type=int, default=1, help="do this part of the turns of a long run")
    parser.add_argument("--planted", help="run with a planted bug")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument("--rows", type=Path, help=f"add a line per scenario to this file; the long run: {ROWS}")
    return parser.parse_args()


def _scenarios(asked: argparse.Namespace) -> list[Outcome]:
    scale = Scale(short=not asked.long, minutes=asked.minutes, parts=asked.parts)
    outcomes = []
    with ForkServer() as forks:
        for scenario in SCENARIOS.values():
            if (asked.scenario and scenario.name not in asked.scenario) or (
                scenario.long_only and scale.short and not asked.scenario
            ):
                continue
            for seed in range(asked.seed, asked.seed + asked.times):
                print(f"{scenario.name}: {scenario.injects} ...", file=sys.stderr, flush=True)
                outcomes.append(scenario.run(forks, seed=seed, scale=scale, planted=asked.planted))
                if asked.rows is not None:
                    add_row(asked.rows, outcomes[-1])
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
