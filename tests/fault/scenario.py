"""Scenarios as values: what each injects, how it runs, and what it came to; one table for all who run them."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.fault.cast import NotSeenError
from tests.fault.checker import (
    Verdict,
    check_bounds,
    check_counts,
    check_loss_said,
    check_recovery,
    check_said,
    check_state,
)
from tests.fault.stage import SERVING_MS_MAX, Stage
from token_actor.errors import TokenActorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.fault.cast import ForkServer

SEED: Final = 20_231
SHOWN: Final = 6  # broken promises of one scenario below the table; --json has all


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Say how much to inject: ``short`` for every CI run, else for as long as ``minutes`` allow.

    A long run may be one of ``parts`` that are made beside each other.
    """

    short: bool = True
    minutes: float = 20.0
    parts: int = 1

    def of(self, short: int, long: int) -> int:
        """Return how often to do something."""
        return short if self.short else -(-long // self.parts)

    def turns(self, stage: Stage, short: int, long: int) -> Iterator[int]:
        """Count so many turns, as far as the time allows; what was not done for lack of it is noted."""
        begun = time.monotonic()
        for turn in range(self.of(short, long)):
            if time.monotonic() - begun > self.minutes * 60:
                stage.notes.append(f"{turn} turns of {self.of(short, long)}: the time was up")
                return
            yield turn


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Hold what a scenario came to; ``skipped`` says why it could not run here."""

    name: str
    seed: int
    faults: int = 0
    events: int = 0
    lost: int = 0
    twice: int = 0
    stale: int = 0
    over_granted: int | None = None
    recovery_ms: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    skipped: str | None = None

    @property
    def held(self) -> bool:
        """Tell whether every promise was kept."""
        return not self.violations

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**asdict(self), "held": self.held}

    def percentile(self, share: float) -> float | None:
        """Return the recovery time below which ``share`` of them lie, ``None`` when there was none."""
        ordered = sorted(self.recovery_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


class CannotRunError(Exception):
    """Say what this machine lacks for a scenario."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Be one scenario: ``play`` injects its faults on a stage; the checks that follow are the same for all.

    ``serving_ms`` is the bound of I9. ``long_only`` ones are no part of CI. ``known`` says which fault of the
    product makes it fail for now. ``logs`` are the actions that somebody must have logged. ``loss_said_by`` is the
    action without which a loss is silent; with it, what was damaged beyond repair may be lost.
    """

    name: str
    injects: str
    play: Callable[[Stage, Scale], None]
    serving_ms: float = SERVING_MS_MAX
    long_only: bool = False
    known: str | None = None
    logs: frozenset[str] = frozenset()
    loss_said_by: str | None = None

    def run(
        self,
        forks: ForkServer,
        *,
        seed: int = SEED,
        scale: Scale | None = None,
        planted: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Outcome:
        """Play it on a stage of its own, then stop the faults, drain, and check everything.

        ``settings`` are those of all actors, unless the scenario says otherwise.
        """
        outcome = Outcome(name=self.name, seed=seed)
        directory = Path(tempfile.mkdtemp(prefix="token-actor-fault-"))
        begun = time.monotonic()
        try:
            with Stage(forks, directory, seed=seed, planted=planted, settings=settings) as stage:
                verdict = Verdict()
                try:
                    self.play(stage, scale or Scale())
                    check_bounds(stage, verdict)
                    stage.stop_producers()
                    stage.drain()
                    if stage.check is None:
                        check_counts(stage.client, stage.truths(), verdict)
                    else:
                        stage.check(verdict)
                    if self.loss_said_by is not None:
                        check_loss_said(stage, self.loss_said_by, verdict)
                    check_state(stage, verdict)
                    check_recovery(stage.recovery_ms, self.serving_ms, verdict)
                    check_said(stage, self.logs, verdict)
                except CannotRunError as lacks:
                    outcome.skipped = str(lacks)
                except NotSeenError as not_seen:
                    verdict.note("I9", str(not_seen))
                except TokenActorError as error:
                    verdict.note("I9", f"the checker got no answer: {error}; {stage.last_words()}")
                for broken in stage.broken:
                    verdict.violations.append(broken)
                outcome.faults, outcome.recovery_ms, outcome.notes = stage.faults, stage.recovery_ms, stage.notes
                outcome.events, outcome.lost, outcome.twice = verdict.events, verdict.lost, verdict.twice
                outcome.stale, outcome.over_granted = verdict.stale, verdict.over_granted
                outcome.violations = verdict.violations
        finally:
            outcome.seconds = time.monotonic() - begun
            shutil.rmtree(directory, ignore_errors=True)
        return outcome


def add_row(rows: Path, outcome: Outcome) -> None:
    """Add what a scenario came to to a file, as one line in one write: others may do the same."""
    with rows.open("ab", buffering=0) as file:
        file.write(json.dumps(asdict(outcome)).encode() + b"\n")


def read_rows(rows: Path) -> list[Outcome]:
    """Return what a file holds."""
    return [Outcome(**json.loads(line)) for line in rows.read_text().splitlines()]


def merged(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return one outcome per name: those of parts that ran beside each other, or again with other seeds, as one."""
    found: dict[str, Outcome] = {}
    for each in outcomes:
        into = found.setdefault(each.name, Outcome(name=each.name, seed=each.seed))
        for name in ("faults", "events", "lost", "twice", "stale", "seconds"):
            setattr(into, name, getattr(into, name) + getattr(each, name))
        if each.over_granted is not None:
            into.over_granted = (into.over_granted or 0) + each.over_granted
        into.recovery_ms += each.recovery_ms
        into.notes += each.notes
        into.violations += [f"{violation} (seed {each.seed})" for violation in each.violations]
        into.skipped = into.skipped or each.skipped
    return list(found.values())


HEADINGS: Final = ("scenario", "faults", "events", "lost", "twice", "stale", "over-grant", "p50 ms", "p99 ms", "s", "")


def table(outcomes: list[Outcome]) -> str:
    """Return the one table of a run, and below it what did not hold."""
    rows = [HEADINGS, *(_row(outcome) for outcome in outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [
        "  ".join(_aligned(row[c], widths[c], left=c in (0, len(row) - 1)) for c in range(len(row))).rstrip()
        for row in rows
    ]
    for outcome in outcomes:
        shown = outcome.violations[:SHOWN]
        lines += [f"  {outcome.name} (seed {outcome.seed}): {violation}" for violation in shown]
        if len(outcome.violations) > SHOWN:
            lines.append(f"  {outcome.name} (seed {outcome.seed}): and {len(outcome.violations) - SHOWN} more")
    return "\n".join(lines)


def _row(outcome: Outcome) -> tuple[str, ...]:
    recovery = [outcome.percentile(0.5), outcome.percentile(0.99)]
    return (
        outcome.name,
        str(outcome.faults),
        str(outcome.events),
        str(outcome.lost),
        str(outcome.twice),
        str(outcome.stale),
        "-" if outcome.over_granted is None else str(outcome.over_granted),
        *("-" if each is None else f"{each:.0f}" for each in recovery),
        f"{outcome.seconds:.1f}",
        f"skipped: {outcome.skipped}" if outcome.skipped else "held" if outcome.held else "BROKEN",
    )


def _aligned(cell: str, width: int, *, left: bool) -> str:
    return cell.ljust(width) if left else cell.rjust(width)
