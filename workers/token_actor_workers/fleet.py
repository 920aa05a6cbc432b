"""Fleet: one worker with some agents that report what they use, and keep to a soft limit.

    python -m token_actor_workers.fleet --agents 6 --seconds 20

Without ``--seconds`` it goes on until SIGTERM. The agents' behaviour follows from ``--seed``; see
``simulation``. Before each call a worker asks whether the fleet is within the limit, and holds the
call back while it is not. That is a look at the past and reserves nothing: workers that look at the same
moment can all go ahead.
"""

from __future__ import annotations

import argparse
import heapq
import secrets
import sys
import time
import uuid
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final

from token_actor import ActorUnavailable, TokenActorError, TokenClient
from token_actor_workers.report import Stop, Truth, await_order, finish, record
from token_actor_workers.simulation import Agent

if TYPE_CHECKING:
    from collections.abc import Sequence

ASK_TIMEOUT_S: Final = 1.0  # for the answer whether the limit allows a call; without one, the call is made
HOLD_BACK_S: Final = 0.25  # until the limit is looked at again
RETRY_SHARE: Final = 0.03  # of the calls are reported again under the same message id, as after a time-out


@dataclass
class Tally:
    """Count what the limit did to this worker's calls, and what the worker did on top."""

    checks: int = 0
    held_back: int = 0
    held_back_s: float = 0.0
    unanswered: int = 0
    retries: int = 0


class Fleet:
    """Make the calls of some agents, each when it is due."""

    def __init__(self, client: TokenClient, options: argparse.Namespace, stop: Stop) -> None:
        """Make the agents ``worker``, ``worker + workers``, ..., so that no two workers have the same."""
        self.truth = Truth()
        self.tally = Tally()
        self._client = client
        self._options = options
        self._stop = stop
        self._random = Random(f"{options.seed}/{options.worker}")  # noqa: S311 - a simulation, no secret
        self._run = uuid.uuid4().hex[:12]  # ids of two runs with one seed must differ
        numbers = range(options.worker, options.agents * options.workers, options.workers)
        self.agents = [Agent(number, Random(f"{options.seed}/{number}")) for number in numbers]  # noqa: S311 - same

    def work(self, until: float | None) -> None:
        """Make calls until asked to stop, or a time by the monotonic clock; ``None`` means for ever."""
        now = time.monotonic()
        due = [(now + agent.next_pause_s(), place, agent) for place, agent in enumerate(self.agents)]
        heapq.heapify(due)
        held_since: dict[int, float] = {}
        while until is None or due[0][0] < until:
            at, place, agent = due[0]
            if self._stop.wait(at - time.monotonic()):
                break
            if self._within_limit():
                self._call(agent)
                now = time.monotonic()
                self.tally.held_back_s += now - held_since.pop(place, now)
                heapq.heapreplace(due, (now + agent.next_pause_s(), place, agent))
            else:
                now = time.monotonic()
                self.tally.held_back += place not in held_since
                held_since.setdefault(place, now)
                heapq.heapreplace(due, (now + HOLD_BACK_S, place, agent))
        now = time.monotonic()
        self.tally.held_back_s += sum(now - since for since in held_since.values())

    def _within_limit(self) -> bool:
        if not self._options.limit_tokens:
            return True
        self.tally.checks += 1
        try:
            return self._client.check_rate_limit(
                self._options.limit_seconds,
                self._options.limit_tokens,
                stale_ok=True,
                timeout_s=ASK_TIMEOUT_S,
                tenant=self._options.tenant,
            )
        except ActorUnavailable:
            self.tally.unanswered += 1
            return True

    def _call(self, agent: Agent) -> None:
        usage: dict[str, Any] = agent.next_call()
        usage["message_id"] = f"{self._run}-{self.truth.sums['events']}"
        if not record(self._client, usage, self._stop):
            return
        self.truth.add(usage)
        if self._random.random() < RETRY_SHARE and record(self._client, usage, self._stop):
            self.tally.retries += 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line; ends the program when they are wrong."""
    parser = argparse.ArgumentParser(prog="python -m token_actor_workers.fleet", description=__doc__.split("\n")[0])
    parser.add_argument("--redis", help="address of the server; else TOKEN_ACTOR_REDIS, else this host")
    parser.add_argument("--namespace")
    parser.add_argument("--tenant", default="default")
    parser.add_argument("--worker", type=int, default=0, help="which of the workers this is, from 0")
    parser.add_argument("--workers", type=int, default=1, help="how many there are")
    parser.add_argument("--agents", type=int, default=6, help="agents of this worker")
    parser.add_argument("--seconds", type=float, help="how long to work; for ever when absent")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="the same seed, the same fleet")
    parser.add_argument("--limit-tokens", type=int, default=0, help="soft limit; 0 is none")
    parser.add_argument("--limit-seconds", type=float, default=60.0, help="the window of the soft limit")
    parser.add_argument("--resend", type=float, default=0.0, help="share of the batches to send twice")
    parser.add_argument("--supervised", action="store_true", help="wait for an order on stdin; end when it does")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, stop: Stop) -> int:
    """Wait for the order if there is one to come, work, and return the exit code."""
    with TokenClient(
        options.redis, namespace=options.namespace, tenant=options.tenant, resend_share=options.resend
    ) as client:
        fleet = Fleet(client, options, stop)
        if options.supervised and await_order({"agents": len(fleet.agents)}, stop) is None:
            return 0
        fleet.work(None if options.seconds is None else time.monotonic() + options.seconds)
        sessions = sum(agent.sessions for agent in fleet.agents)
        return finish(client, fleet.truth, stop, worker=options.worker, sessions=sessions, **vars(fleet.tally))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker, and return its exit code."""
    options = parse(arguments)
    try:
        return run(options, Stop())
    except TokenActorError as error:
        print(f"token_actor_workers: {error}", file=sys.stderr)  # noqa: T201 - stderr is how a program complains
        return 1


if __name__ == "__main__":
    sys.exit(main())
