"""Replay: a recorded trace, reported by several worker processes, counted by the actor, and checked."""

from __future__ import annotations

import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from token_actor.cli.options import AnyRedis, AsJson, Namespace
from token_actor.cli.output import answers, duration, note, number, print_json
from token_actor.cli.processes import Children, interruptible
from token_actor.cli.progress import ticker
from token_actor.cli.stage import ASK_TIMEOUT_S, Stage, open_stage
from token_actor.cli.totals import added_up, differences, less, print_sent_and_counted, total_tokens
from token_actor.cli.workers import Crew
from token_actor.core.texts import counted
from token_actor.core.usage import TOKEN_KINDS
from token_actor.errors import TokenActorError
from token_actor.service import default_namespace, named_url

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from token_actor.cli.progress import Ticker

TIMEOUT_S: Final = 120.0
BAD_LINES_SHOWN: Final = 10


class TraceFormat(StrEnum):
    """Name the formats of a trace."""

    AZURE_LLM = "azure-llm"
    JSONL = "jsonl"
    CSV = "csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Hold what is replayed, and how."""

    file: Path
    format: TraceFormat
    workers: int
    speed: float
    resend: float
    run: str
    project: str
    original_times: bool
    skip_bad: bool
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Hold what a replay came to: what the workers sent, and what the actor counted of it."""

    sent: Mapping[str, int]
    counted: Mapping[str, int]
    dead: int
    elapsed_s: float

    def document(self) -> dict[str, Any]:
        """Return the document of ``--json``: the figures as the actor counted them."""
        events = self.counted["events"]
        return {
            "events": events,
            **{kind: self.counted[kind] for kind in TOKEN_KINDS},
            "total_tokens": total_tokens(self.counted),
            "duplicates": self.counted["duplicates"],
            "dead": self.dead,
            "elapsed_s": round(self.elapsed_s, 3),
            "events_per_s": round(events / self.elapsed_s, 1),
        }


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="The trace.")],
    *,
    trace_format: Annotated[TraceFormat, typer.Option("--format", help="Format of the trace.")],
    redis: AnyRedis = None,
    namespace: Namespace = None,
    workers: Annotated[int, typer.Option(min=1, max=64, metavar="N", help="Worker processes.")] = 4,
    speed: Annotated[float, typer.Option(min=0, metavar="X", help="Times real time; 0 is as fast as it goes.")] = 0,
    resend: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="Share of the batches that are sent twice.")
    ] = 0,
    project: Annotated[
        str | None, typer.Option(metavar="NAME", help="Project of every record; else a new one.")
    ] = None,
    original_times: Annotated[
        bool, typer.Option("--original-times", help="Do not shift the last event to now.")
    ] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out lines that cannot be reported.")] = False,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Longest time, on top of the trace's own.")
    ] = TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Report a recorded trace through several worker processes, and check what the actor counted.

    Without --redis and TOKEN_ACTOR_REDIS it starts a server of its own, without a running actor an actor.
    """
    run = f"replay-{secrets.token_hex(4)}"
    trace = Trace(
        file=file,
        format=trace_format,
        workers=workers,
        speed=speed,
        resend=resend,
        run=run,
        project=project or run,
        original_times=original_times,
        skip_bad=skip_bad,
        timeout_s=timeout,
    )
    with interruptible():
        outcome = run_replay(trace, redis or named_url(), namespace or default_namespace())
    if as_json:
        print_json(outcome.document())
    else:
        _print_outcome(trace, outcome)
    wrong = differences(outcome.sent, outcome.counted)
    if wrong:
        raise TokenActorError(f"the totals differ: {'; '.join(wrong)}; 'token-actor dead list' may show why")


def run_replay(trace: Trace, url: str | None, namespace: str) -> Outcome:
    """Replay a trace, and return what it came to; waits for all of it."""
    with ExitStack() as stack:
        stage = stack.enter_context(open_stage(url, namespace, note))
        if stage.embedded:
            note(f"started a server: {stage.target.url}")
        stage.ensure_server()
        crew = Crew(stack.enter_context(Children()), "token_actor_workers.trace", _arguments(trace, stage))
        ready = crew.until_ready(stage.watch.check, trace.timeout_s)
        lines = sum(one["lines"] for one in ready)
        _check_lines(trace, ready, lines)
        stage.ensure_actor()
        if stage.watch.pid is not None:
            note(f"started an actor: process {stage.watch.pid}")
        order, span_s = _order(trace, ready)
        deadline = time.monotonic() + trace.timeout_s + (span_s / trace.speed if trace.speed else 0)
        before, dead_before = stage.totals(deadline, project=trace.project), stage.dead(deadline)
        begun_at = time.monotonic()
        crew.begin(order)
        with ticker("counted", lines) as shown:
            stage.watch.note = shown.note
            sent = added_up(crew.until_done(lambda: _look(stage, trace, shown, before["events"]), deadline))
            stage.wait_until_counted(deadline)
        elapsed_s = time.monotonic() - begun_at
        counted = less(stage.totals(deadline, project=trace.project), before)
        dead = stage.dead(deadline) - dead_before
    return Outcome(sent=sent, counted=counted, dead=dead, elapsed_s=elapsed_s)


def _look(stage: Stage, trace: Trace, shown: Ticker, before: int) -> None:
    """Show how far the actor has come, and that it is still there."""
    stage.watch.check()
    answer = stage.ask(lambda: stage.client.analytics(project=trace.project, stale_ok=True, timeout_s=ASK_TIMEOUT_S))
    if answer is not None:
        shown.show(answer["requests"] - before)


def _arguments(trace: Trace, stage: Stage) -> list[list[str]]:
    """Return the arguments of every worker."""
    options = {
        "--format": trace.format.value,
        "--redis": stage.target.url,
        "--namespace": stage.target.namespace,
        "--run": trace.run,
        "--project": trace.project,
        "--speed": str(trace.speed),
        "--resend": str(trace.resend),
    }
    same = [str(trace.file), "--supervised", *(word for option in options.items() for word in option)]
    return [list(same) for _ in range(trace.workers)]


def _check_lines(trace: Trace, ready: Sequence[Mapping[str, Any]], lines: int) -> None:
    """Refuse a trace with bad lines or none, before anything is sent. Raises ``TokenActorError``."""
    bad = sorted((number, problem) for one in ready for number, problem in one["bad"])
    bad_count = sum(one["bad_count"] for one in ready)
    for line, problem in bad[:BAD_LINES_SHOWN]:
        note(f"{trace.file}, line {line}: {problem}", style="yellow")
    if bad_count and not trace.skip_bad:
        raise TokenActorError(
            f"{number(bad_count)} of {number(lines)} lines of {trace.file} cannot be reported, the first is line "
            f"{bad[0][0]} ({bad[0][1]}); nothing was sent. Mend them, or leave them out with --skip-bad"
        )
    if lines == bad_count:
        raise TokenActorError(f"there is nothing to replay in {trace.file}; is --format {trace.format.value} right?")
    if bad_count:
        note(f"left out {number(bad_count)} of {counted(lines, 'line')}", style="yellow")


def _order(trace: Trace, ready: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], float]:
    """Return the order to begin, and how many seconds the trace is long."""
    first_s = min((one["first_s"] for one in ready if one["first_s"] is not None), default=None)
    last_s = max((one["last_s"] for one in ready if one["last_s"] is not None), default=None)
    if first_s is None or last_s is None:
        return {"shift_s": 0.0, "first_s": None}, 0.0
    shift_s = 0.0 if trace.original_times else time.time() - last_s
    if not trace.original_times:
        where = "later" if shift_s >= 0 else "earlier"
        note(
            f"times are shifted {duration(shift_s)} {where}, so that the last event is now (not with --original-times)"
        )
    return {"shift_s": shift_s, "first_s": first_s}, last_s - first_s


def _print_outcome(trace: Trace, outcome: Outcome) -> None:
    """Print what the workers say they sent beside what the actor counted."""
    console = answers()
    console.print(f"{trace.file.name}, reported by {trace.workers} workers as project {trace.project}", style="bold")
    print_sent_and_counted(console, outcome.sent, outcome.counted)
    document = outcome.document()
    console.print(
        f"{number(document['duplicates'])} duplicates dropped, {number(document['dead'])} dead letters, "
        f"{document['elapsed_s']:,.1f} s, {document['events_per_s']:,.0f} events/s"
    )
