"""The long run: what matters most, for about as long as one is willing to wait, as rows of one file.

Takeovers are measured alone. The rest runs in lanes beside each other, each step a process of its own that
adds its row when it is done; so a run that is broken off keeps what it has measured. Whatever time is left
goes to the simulator.
"""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.fault.scenario import SEED, Outcome, add_row, merged, read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SEEDS: Final = 5_000
SEEDS_PER_STEP: Final = 100
SIMULATOR: Final = "simulator"
SIMULATOR_SHARE: Final = 1.15  # of the time: it may go on a little, to tell all its stories
STEP_S: Final = 600.0  # checks and draining after the last fault, at the most


@dataclass(frozen=True, slots=True)
class Step:
    """Run a scenario for a share of the time: one of ``parts`` of its turns, ``times`` in a row."""

    scenario: str
    share: float
    parts: int = 1
    times: int = 1


ALONE: Final[Sequence[Sequence[Step]]] = ((Step("takeover", 0.22, parts=2),), (Step("takeover", 0.22, parts=2),))
BESIDE: Final[Sequence[Sequence[Step]]] = (
    (Step("actor killed", 0.6, parts=2),),
    (Step("actor killed", 0.6, parts=2),),
    (Step("leader paused in a snapshot", 0.6),),
    (
        Step("producer killed, spool", 0.15),
        Step("server killed", 0.1),
        Step("lagging replica", 0.05, times=5),
        Step("handover", 0.1, parts=2),
        Step("backlog", 0.16),
    ),
)


class Soak:
    """Run all steps, and collect their rows."""

    def __init__(self, minutes: float, rows: Path) -> None:
        """Prepare a run of about ``minutes`` whose rows go to ``rows``, anew."""
        self._minutes = minutes
        self._rows = rows
        self._ends_at = time.monotonic() + minutes * SIMULATOR_SHARE * 60
        self._seeds: queue.SimpleQueue[int] = queue.SimpleQueue()
        for first in range(1, SEEDS + 1, SEEDS_PER_STEP):
            self._seeds.put(first)
        self._numbers = 0
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False
        rows.parent.mkdir(parents=True, exist_ok=True)
        rows.write_text("")

    def run(self) -> list[Outcome]:
        """Run everything, and return what it came to."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            _together([partial(self._lane, lane) for lane in ALONE])
            _together([partial(self._lane, lane, simulate=True) for lane in BESIDE])
        except KeyboardInterrupt:
            self._stop()
        return merged(read_rows(self._rows))

    def _stop(self) -> None:
        """End every step under way; the rows of those that are done stay."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                with suppress(ProcessLookupError):
                    process.kill()  # its fork server ends with it, and ends all others

    def _lane(self, steps: Sequence[Step], *, simulate: bool = False) -> None:
        for step in steps:
            self._run_step(step)
        if simulate:
            self._simulate()

    def _run_step(self, step: Step) -> None:
        with self._lock:
            self._numbers += 1
            seed = SEED + 1_000 * self._numbers
        minutes = step.share * self._minutes / step.times
        command = ["tests.fault", "--long", "--scenario", step.scenario, "--minutes", f"{minutes:.3f}"]
        command += ["--parts", str(step.parts), "--times", str(step.times), "--seed", str(seed)]
        code, _ = self._command([*command, "--rows", str(self._rows)], minutes * step.times * 60 + STEP_S)
        if code not in (0, 1):
            self._add(Outcome(name=step.scenario, seed=seed, violations=[f"the step ended with {code}"]))

    def _simulate(self) -> None:
        """Tell stories until all are told, or the time is up."""
        while time.monotonic() < self._ends_at and not self._stopped:
            try:
                first = self._seeds.get_nowait()
            except queue.Empty:
                return
            command = ["tests.sim", "--seeds", str(SEEDS_PER_STEP), "--first", str(first), "--jobs", "1", "--json"]
            code, said = self._command(command, STEP_S)
            if code in (0, 1):
                self._add(_simulated(first, json.loads(said)))
            else:
                self._add(Outcome(name=SIMULATOR, seed=first, violations=[f"the simulator ended with {code}"]))

    def _command(self, words: Sequence[str], timeout_s: float) -> tuple[int | None, str]:
        """Run a module of this suite; return its exit code, ``None`` for one that was ended, and what it said."""
        with self._lock:
            if self._stopped:
                return 0, "{}"
            process = subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.PIPE, text=True)
            self._running.add(process)
        try:
            said, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return None, ""
        finally:
            with self._lock:
                self._running.discard(process)
        return process.returncode, said

    def _add(self, outcome: Outcome) -> None:
        if not self._stopped:
            add_row(self._rows, outcome)


def _simulated(first: int, summary: dict[str, object]) -> Outcome:
    faults = summary["faults"]
    seconds, events, lost, twice = (summary[name] for name in ("seconds", "events", "lost", "twice"))
    assert isinstance(faults, dict)
    injected = sum(count for name, count in faults.items() if name not in ("manifests", "seconds"))
    bad = [f"seed {seed} went wrong" for seed in summary["bad_seeds"]]  # type: ignore[attr-defined]
    return Outcome(
        name=SIMULATOR,
        seed=first,
        faults=injected,
        events=int(str(events)),
        lost=int(str(lost)),
        twice=int(str(twice)),
        violations=bad,
        notes=[f"{summary['seeds']} stories"],
        seconds=float(str(seconds)),
    )


def _together(tasks: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=task, daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
