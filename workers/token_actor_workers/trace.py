"""Trace: one worker of a replay, which reports every n-th line of a recorded trace.

    python -m token_actor_workers.trace FILE --format azure-llm --worker 0 --workers 4

The file is read twice: first to check every line, so that nothing is sent of a trace that cannot be
sent whole, then to report. Every record has a message id made of ``--run`` and a line number, so a
line is counted once however often it is reported.
"""

from __future__ import annotations

import argparse
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from token_actor import InvalidValue, TokenActorError, TokenClient
from token_actor_workers.lines import FORMATS, Line, NotATrace, read_lines
from token_actor_workers.report import COUNTS, Stop, Truth, await_order, finish, record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

BATCH_EVENTS: Final = 50  # a trace of some thousand lines makes many batches, so that resends are worth the name
BAD_LINES_SHOWN: Final = 20
CHECK_TIMEOUT_S: Final = 600.0  # for a trace of a hundred million lines

USAGE_ERROR: Final = 2


@dataclass
class Survey:
    """Hold what the first reading of a trace has found of one worker's share.

    ``bad`` are its lines that cannot be reported. ``first_line_of`` has the lines whose message id was
    on an earlier line, and that line. Times are unix seconds, ``None`` when no line has one.
    """

    lines: int = 0
    bad: dict[int, str] = field(default_factory=dict)
    first_line_of: dict[int, int] = field(default_factory=dict)
    first_s: float | None = None
    last_s: float | None = None

    def ready(self) -> dict[str, Any]:
        """Return what whoever started this worker has to know before the order to begin."""
        shown = list(self.bad.items())[:BAD_LINES_SHOWN]
        return {
            "lines": self.lines,
            "bad": shown,
            "bad_count": len(self.bad),
            "first_s": self.first_s,
            "last_s": self.last_s,
        }


class Checker:
    """Check lines as the client will, and recognise message ids that occur again."""

    def __init__(self) -> None:
        """Start a client of a server in this process: it refuses what the real one would refuse."""
        self._client = TokenClient("memory://", buffer_events_max=100_000_000)
        self._known: dict[tuple[str, str], tuple[int, list[Any]]] = {}

    def problem(self, line: Line) -> str | None:
        """Return what is wrong with a line, ``None`` when it can be reported."""
        if line.problem is None:
            try:
                self._client.record(**line.event)
            except InvalidValue as error:
                return str(error)
        return line.problem

    def first_line(self, line: Line) -> int:
        """Return the first line with the same message id. Raises ``ValueError`` when its numbers are others."""
        message_id = line.event.get("message_id")
        if not message_id:
            return line.number
        numbers = [*(line.event.get(name, 0) for name in COUNTS), line.event.get("cost_usd")]
        scope = (line.event.get("tenant") or "", message_id)
        number, known = self._known.setdefault(scope, (line.number, numbers))
        if known != numbers:
            raise ValueError(f"has the message_id of line {number} and other numbers")
        return number

    def close(self) -> None:
        """Let go of the client."""
        self._client.close(CHECK_TIMEOUT_S)


def survey(lines: Iterator[Line], worker: int, workers: int) -> Survey:
    """Read a whole trace, and return what of it one worker has to report."""
    found = Survey()
    checker = Checker()
    for index, line in enumerate(lines):
        mine = index % workers == worker
        # Whether somebody else's line with an id is good decides who is the first with that id.
        if not mine and not line.event.get("message_id"):
            continue
        problem = checker.problem(line)
        try:
            first = checker.first_line(line) if problem is None else line.number
        except ValueError as error:
            problem, first = str(error), line.number
        if mine:
            _note(found, line, problem, first)
    checker.close()
    return found


def _note(found: Survey, line: Line, problem: str | None, first: int) -> None:
    found.lines += 1
    if problem is not None:
        found.bad[line.number] = problem
        return
    if first != line.number:
        found.first_line_of[line.number] = first
    moment = line.event.get("timestamp")
    if moment is not None:
        found.first_s = moment if found.first_s is None else min(found.first_s, moment)
        found.last_s = moment if found.last_s is None else max(found.last_s, moment)


def own_order(found: Survey, options: argparse.Namespace) -> dict[str, Any]:
    """Return the order to begin of a worker that nobody supervises."""
    shift_s = 0.0 if options.original_times or found.last_s is None else time.time() - found.last_s
    return {"shift_s": shift_s, "first_s": found.first_s}


def report(
    client: TokenClient, found: Survey, options: argparse.Namespace, order: Mapping[str, Any], stop: Stop
) -> Truth:
    """Report the share of one worker, in step with the times of the trace when there is a speed."""
    truth = Truth()
    begun_at = time.monotonic()
    for index, line in enumerate(read_lines(options.file, options.format)):
        if index % options.workers != options.worker or line.number in found.bad:
            continue
        usage = dict(line.event)
        moment = usage.get("timestamp")
        if moment is not None:
            if options.speed and stop.wait(begun_at + (moment - order["first_s"]) / options.speed - time.monotonic()):
                break
            usage["timestamp"] = moment + order["shift_s"]
        first = found.first_line_of.get(line.number, line.number)
        usage["message_id"] = f"{options.run}:{first}"
        if options.project:
            usage["project"] = options.project
        if not record(client, usage, stop):
            break
        if first == line.number:
            truth.add(usage)
    return truth


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line; ends the program when they are wrong."""
    parser = argparse.ArgumentParser(prog="python -m token_actor_workers.trace", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--worker", type=int, default=0, help="which of the workers this is, from 0")
    parser.add_argument("--workers", type=int, default=1, help="how many share the trace")
    parser.add_argument("--redis", help="address of the server; else TOKEN_ACTOR_REDIS, else this host")
    parser.add_argument("--namespace")
    parser.add_argument("--tenant")
    parser.add_argument("--project", help="project of every record, instead of the one that a line names")
    parser.add_argument("--run", default=f"run-{uuid.uuid4().hex[:8]}", help="what makes the message ids of one run")
    parser.add_argument("--speed", type=float, default=0.0, help="times real time; 0 is as fast as it goes")
    parser.add_argument("--resend", type=float, default=0.0, help="share of the batches to send twice")
    parser.add_argument("--original-times", action="store_true", help="do not shift the last event to now")
    parser.add_argument("--skip-bad", action="store_true", help="leave out lines that cannot be reported")
    parser.add_argument("--supervised", action="store_true", help="wait for an order on stdin; end when it does")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, stop: Stop) -> int:
    """Survey, wait for the order if there is one to come, report, and return the exit code."""
    found = survey(read_lines(options.file, options.format), options.worker, options.workers)
    if options.supervised:
        order = await_order(found.ready(), stop)
    else:
        order = own_order(found, options)
        if found.bad and not options.skip_bad:
            number, problem = next(iter(found.bad.items()))
            return complain(f"{options.file}, line {number}: {problem} ({len(found.bad)} bad lines; see --skip-bad)")
    if order is None:
        return 0
    client = TokenClient(
        options.redis,
        namespace=options.namespace,
        tenant=options.tenant,
        agent=f"worker-{options.worker}",
        batch_events_max=BATCH_EVENTS,
        resend_share=options.resend,
    )
    truth = report(client, found, options, order, stop)
    return finish(client, truth, stop, worker=options.worker)


def complain(problem: object) -> int:
    """Say on stderr why this worker fails, and return its exit code."""
    print(f"token_actor_workers: {problem}", file=sys.stderr)  # noqa: T201 - stderr is how a program complains
    return 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker, and return its exit code."""
    options = parse(arguments)
    try:
        return run(options, Stop())
    except (NotATrace, OSError) as error:
        return complain(f"{options.file}: {error}")
    except TokenActorError as error:
        return complain(error)


if __name__ == "__main__":
    sys.exit(main())
