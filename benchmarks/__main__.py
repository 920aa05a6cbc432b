"""Measure everything: ``python -m benchmarks [--json] [--scale 0.5]``.

Prints one table with the targets; a figure that misses its target ends in exit code 1. Run it on a
machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks import manager, snapshots, throughput

AT_LEAST_PER_S = {
    "batches_of_500_per_s": 200_000,
    "batches_of_100_per_s": 200_000,
    "single_entries_with_ids_per_s": 60_000,
}
AT_MOST = {
    "snapshot_longest_step_ms": 20.0,  # the loop stands still no longer than that
    "snapshot_longest_step_cpu_ms": 15.0,
    "snapshot_idle_share_of_bytes": 0.4,  # a fleet that did little since then writes little
}


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    parser.add_argument("--scale", type=float, default=1.0, help="length of the backlogs (default: 1)")
    options = parser.parse_args()
    calls = list(manager.measured())
    rates = throughput.measure(options.scale)
    taken = snapshots.measure(options.scale)
    if options.json:
        print(json.dumps({"calls_us": {figure.name: figure.us for figure in calls}, "actor": rates, "snapshot": taken}))
    else:
        for figure in calls:
            budget = "" if figure.budget_us is None else f"at most {figure.budget_us:,.0f}"
            print(f"{figure.name:<45} {figure.us:>14,.2f} µs   {budget}")
        for name, value in rates.items():
            target = AT_LEAST_PER_S.get(name)
            print(f"{name:<45} {value:>14,.1f}      {'' if target is None else f'at least {target:,}'}")
        for name, value in taken.items():
            most = AT_MOST.get(name)
            print(f"{name:<45} {value:>14,.3f}      {'' if most is None else f'at most {most:,}'}")
    missed = [figure.name for figure in calls if not figure.kept]
    missed += [name for name, most in AT_MOST.items() if taken[name] > most]
    missed += [name for name, least in AT_LEAST_PER_S.items() if rates[name] < least]
    if missed:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
