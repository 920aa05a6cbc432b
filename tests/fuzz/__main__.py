"""Fuzz one target, or all: ``python -m tests.fuzz [TARGET] [--seconds N] [--seed N]``.

What raises is printed as hex with its seed and saved under ``crashes``; a fault that was mended moves
to the corpus, where every run of the tests finds it again.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import random
import secrets
import sys
import time
import traceback
from pathlib import Path

from tests.fuzz.mutate import mutations
from tests.fuzz.targets import TARGETS, inputs_of

CRASHES = Path(__file__).parent / "crashes"
SLOW_S = 1.0  # one input is some messages, and a message gets a millisecond


def fuzz(name: str, seconds: float, seed: int) -> int:
    """Feed a target for some seconds; return how many inputs it failed on, of which one is enough to stop."""
    target, inputs = TARGETS[name], inputs_of(name)
    print(f"{name}: seed {seed}, {len(inputs)} inputs", flush=True)
    until_s = time.monotonic() + seconds
    done = 0
    for data in itertools.chain(inputs, mutations(inputs, random.Random(seed))):
        started_s = time.monotonic()
        try:
            target(data)
            took_s = time.monotonic() - started_s
            assert took_s < SLOW_S, f"took {took_s:.1f} s"
        except Exception:  # noqa: BLE001 - whatever it is, it is what we look for
            traceback.print_exc()
            CRASHES.mkdir(exist_ok=True)
            path = CRASHES / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}.bin"
            path.write_bytes(data)
            print(f"{name}: seed {seed}, input {done}, saved as {path}\n{data.hex()}", flush=True)
            return 1
        done += 1
        if time.monotonic() > until_s:
            break
    print(f"{name}: {done} inputs, no fault", flush=True)
    return 0


def main() -> int:
    """Fuzz what was asked for; the exit code is 1 when there was a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", nargs="?", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int)
    given = parser.parse_args()
    seed = secrets.randbits(32) if given.seed is None else given.seed
    return max(fuzz(name, given.seconds, seed) for name in ([given.target] if given.target else TARGETS))


if __name__ == "__main__":
    sys.exit(main())
