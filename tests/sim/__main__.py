"""Run the simulator: ``python -m tests.sim --seeds 5000``; exits with 1 and the seed of every story that went wrong."""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
import time
import traceback
from collections import Counter

from tests.sim.story import Story, Verdict


def tell(seed: int) -> Verdict:
    """Tell the story of one seed; a story that breaks down is a problem of that seed."""
    logging.disable(logging.CRITICAL)
    try:
        return Story(seed).tell()
    except Exception:  # noqa: BLE001 - with its seed it can be told again, and looked at
        return Verdict(seed, problems=[traceback.format_exc()])


def main() -> int:
    """Tell many stories, and sum up."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=300, help="how many stories to tell")
    parser.add_argument("--first", type=int, default=1, help="the seed of the first one")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    begun_s = time.monotonic()
    faults: Counter[str] = Counter()
    bad: list[Verdict] = []
    events = 0
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    with multiprocessing.Pool(arguments.jobs) as pool:
        for done, verdict in enumerate(pool.imap_unordered(tell, seeds, chunksize=4), 1):
            events += verdict.events
            faults += verdict.faults
            if not verdict.clean:
                bad.append(verdict)
                print(verdict, file=sys.stderr, flush=True)
            if done % 100 == 0:
                print(f"{done:,} of {len(seeds):,} stories, {len(bad)} went wrong", file=sys.stderr, flush=True)
    summary = {
        "seeds": len(seeds),
        "clean": len(seeds) - len(bad),
        "bad_seeds": sorted(verdict.seed for verdict in bad),
        "events": events,
        "lost": sum(len(verdict.lost) for verdict in bad),
        "twice": sum(len(verdict.twice) for verdict in bad),
        "faults": dict(sorted(faults.items())),
        "seconds": round(time.monotonic() - begun_s, 1),
    }
    print(json.dumps(summary) if arguments.json else "\n".join(f"{name:8} {value}" for name, value in summary.items()))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
