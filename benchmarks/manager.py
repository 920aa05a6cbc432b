"""How long the in-process ``TokenManager`` takes: ``python benchmarks/manager.py [--json]``.

Each figure is the best of several rounds, which is the one that other programs on the machine
disturbed least. Budgets are what the project promises; a figure above its budget ends in exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from token_actor.core.window import SAMPLES_MAX
from token_actor.manager import TokenManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUNDS: Final = 7
HISTORY: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Hold one measurement: microseconds per call, and what it may take at most."""

    name: str
    us: float
    budget_us: float | None = None

    @property
    def kept(self) -> bool:
        """Return whether the budget, if there is one, was kept."""
        return self.budget_us is None or self.us <= self.budget_us


def best_us(call: Callable[[], object], calls: int) -> float:
    """Return the microseconds of one call in the best round."""
    rounds_s = []
    for _ in range(ROUNDS):
        started_s = time.perf_counter()
        for _ in range(calls):
            call()
        rounds_s.append(time.perf_counter() - started_s)
    return min(rounds_s) / calls * 1e6


def used_manager() -> TokenManager:
    """Return a manager with a full history, full ids and a full window."""
    manager = TokenManager(context_window_limit=10**12, history_size=HISTORY)
    for number in range(SAMPLES_MAX):
        manager.update_tokens(1000, 500, 200, 100, f"used-{number}")
    return manager


def measured() -> Iterator[Figure]:
    """Measure what an agent does on every call, and what it asks now and then."""
    manager = used_manager()
    fresh_ids = (f"message-{number}" for number in range(10**9))
    yield Figure(
        name="update_tokens, fresh message id",
        us=best_us(lambda: manager.update_tokens(1000, 500, 200, 100, next(fresh_ids)), 20_000),
        budget_us=6.0,
    )
    yield Figure(name="update_tokens, no id", us=best_us(lambda: manager.update_tokens(1000, 500), 20_000))
    yield Figure(
        name="update_tokens, duplicate",
        us=best_us(lambda: manager.update_tokens(1000, 500, message_id="message-139000"), 20_000),
    )
    yield Figure(name="check_rate_limit", us=best_us(lambda: manager.check_rate_limit(1, 10**6), 20_000))
    yield Figure(name="predict_overflow", us=best_us(lambda: manager.predict_overflow(4000), 20_000))
    yield Figure(name="get_analytics", us=best_us(manager.get_analytics, 5_000), budget_us=15.0)
    yield Figure(name="get_usage_history(10)", us=best_us(manager.get_usage_history, 1_000))
    for name, budget_us in (("json", 2000.0), ("csv", None), ("prometheus", None)):
        yield Figure(
            name=f"export_metrics, {name}, {HISTORY} entries",
            us=best_us(lambda name=name: manager.export_metrics(name), 100),  # type: ignore[misc]
            budget_us=budget_us,
        )


def main() -> int:
    """Print the figures; return 1 when a budget was not kept."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    as_json = arguments.parse_args().json
    figures = list(measured())
    if as_json:
        print(json.dumps({"figures": [{**asdict(figure), "kept": figure.kept} for figure in figures]}))
    else:
        print(f"{'TokenManager, ' + sys.version.split()[0]:40} {'µs':>9} {'budget':>9}")
        for figure in figures:
            budget = f"{figure.budget_us:9.1f}" if figure.budget_us is not None else " " * 9
            print(f"{figure.name:40} {figure.us:9.2f} {budget} {'' if figure.kept else 'TOO SLOW'}".rstrip())
    return 0 if all(figure.kept for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
