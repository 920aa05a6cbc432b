"""How long a decision takes that a lease makes: ``python -m benchmarks.lease_bench [--json]``.

The lease has a block that lasts for the whole round, so nothing waits for the network. ``reserve`` is the
decision, and with ``release`` or ``settle`` is the whole life of a call. Each figure is the best of several
rounds. The actor is in this process, and does nothing meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from benchmarks.manager import Figure, best_us
from token_actor import Limit, TokenClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from token_actor.client.lease_blocks import LeasedCall

BUDGET_US: Final = 2.0
CALLS: Final = 20_000
PLENTY: Final = 10**9  # of everything in the block


def measured() -> Iterator[Figure]:
    """Measure decisions, and whole calls."""
    with TokenClient("memory://", agent="bench") as client:
        client.put_limit(Limit("l", 10**15))
        lease = client.lease(ttl_s=600, held_s=3_600)
        lease.reserve(10).release()
        (block,) = lease._blocks  # noqa: SLF001 - made larger than any demand would
        block.tokens = block.calls = PLENTY
        kept: list[LeasedCall] = []
        yield _figure("lease.reserve", lambda: kept.append(lease.reserve(10)), CALLS, BUDGET_US)
        yield _figure("lease.try_reserve", lambda: kept.append(lease.try_reserve(10) or kept[0]), CALLS, BUDGET_US)
        for call in kept:
            call.release()
        yield _figure("lease.reserve, then release", lambda: lease.reserve(10).release(), CALLS)
        yield _figure("lease.reserve, then settle", lambda: lease.reserve(10).settle(5, 5), CALLS // 4)


def _figure(name: str, call: Callable[[], object], calls: int, budget_us: float | None = None) -> Figure:
    return Figure(name=name, us=best_us(call, calls), budget_us=budget_us)


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    options = parser.parse_args()
    figures = list(measured())
    if options.json:
        print(json.dumps([asdict(figure) for figure in figures]))
    else:
        for figure in figures:
            budget = "" if figure.budget_us is None else f"at most {figure.budget_us:,.0f}"
            print(f"{figure.name:<45} {figure.us:>14,.2f} µs   {budget}")
    return 0 if all(figure.kept for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
