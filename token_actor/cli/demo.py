"""Demo: the main job on one machine, with everything it takes, and a summary that is checked."""

from __future__ import annotations

import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from token_actor.cli.demo_view import Picture, print_summary, view
from token_actor.cli.options import AnyRedis, AsJson, Namespace
from token_actor.cli.output import note, print_json
from token_actor.cli.processes import Children, interruptible
from token_actor.cli.stage import ASK_TIMEOUT_S, Stage, open_stage
from token_actor.cli.totals import added_up, differences, less, total_tokens
from token_actor.cli.workers import Crew
from token_actor.core.usage import NANO_PER_USD, TOKEN_KINDS
from token_actor.errors import TokenActorError, TransportError
from token_actor.operations.places import remove_namespace
from token_actor.service import named_url

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from token_actor import TokenClient

SETTLE_S: Final = 60.0  # for everything to be counted after the work is done
RESEND_SHARE: Final = 0.05  # of the batches are sent twice, as after a lost reply
WINDOW_S: Final = 5.0  # of the soft limit: short, so that a demo of some seconds shows it open again
AGENTS_SHOWN: Final = 8
LIMIT_PER_AGENT_S: Final = 300_000  # tokens: a little below what the simulated agents take once they are under way


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Hold what a demo does."""

    seconds: float
    workers: int
    agents: int
    limit_tokens: int
    seed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Hold what a demo came to."""

    plan: Plan
    reports: Sequence[Mapping[str, Any]]
    sent: Mapping[str, int]
    counted: Mapping[str, int]
    dead: int
    elapsed_s: float
    books: Mapping[str, Any]
    by_model: Sequence[Mapping[str, Any]]
    by_agent: Sequence[Mapping[str, Any]]
    window_max: int

    @property
    def wrong(self) -> list[str]:
        """Return what does not agree, a sentence each."""
        found = differences(self.sent, self.counted)
        if self.books["differences"]:
            found.append(f"the books do not balance: {self.books['differences'][0]}")
        return found

    def tally(self, name: str) -> float:
        """Return the sum of one figure over the reports of all workers."""
        return float(sum(report[name] for report in self.reports))

    def document(self) -> dict[str, Any]:
        """Return the document of ``--json``: the figures as the actor counted them, and what was sent."""
        counted = self.counted
        return {
            "ok": not self.wrong,
            "events": counted["events"],
            **{kind: counted[kind] for kind in TOKEN_KINDS},
            "total_tokens": total_tokens(counted),
            "cost_usd": counted["cost_nanousd"] / NANO_PER_USD,
            "duplicates": counted["duplicates"],
            "dead": self.dead,
            "elapsed_s": round(self.elapsed_s, 3),
            "events_per_s": round(counted["events"] / self.elapsed_s, 1),
            "sent": dict(self.sent),
            "counted": dict(counted),
            "differences": self.wrong,
            "books_balance_in_ways": self.books["ways"],
            "soft_limit": {
                "tokens": self.plan.limit_tokens,
                "window_s": WINDOW_S,
                "highest_seen": self.window_max,
                **{name: self.tally(name) for name in ("checks", "unanswered", "held_back", "held_back_s")},
            },
            "workers": list(self.reports),
            "by_model": list(self.by_model),
        }


def demo(
    *,
    redis: AnyRedis = None,
    namespace: Namespace = None,
    seconds: Annotated[float, typer.Option(min=0.5, metavar="SECONDS", help="How long the fleet works.")] = 20.0,
    workers: Annotated[int, typer.Option(min=1, max=64, metavar="N", help="Worker processes.")] = 4,
    agents: Annotated[
        int, typer.Option(min=1, max=10_000, metavar="N", help="Agents, shared out among the workers.")
    ] = 24,
    soft_limit: Annotated[
        int | None, typer.Option(min=1, metavar="TOKENS", help=f"Tokens of the fleet in any {WINDOW_S:.0f} s.")
    ] = None,
    seed: Annotated[str | None, typer.Option(metavar="TEXT", help="The same seed, the same fleet.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the main job on this machine: a server, an actor, a fleet that reports, and a checked summary.

    With --redis it uses that server, in a namespace of its own that it removes again.
    """
    plan = Plan(
        seconds=seconds,
        workers=min(workers, agents),
        agents=agents,
        limit_tokens=soft_limit or int(agents * LIMIT_PER_AGENT_S * WINDOW_S),
        seed=seed or secrets.token_hex(4),
    )
    with interruptible():
        outcome = run_demo(plan, redis or named_url(), namespace)
    if as_json:
        print_json(outcome.document())
    else:
        print_summary(outcome, WINDOW_S)
    if outcome.wrong:
        raise TokenActorError(f"the totals differ: {'; '.join(outcome.wrong)}; did somebody else report here?")


def run_demo(plan: Plan, url: str | None, namespace: str | None) -> Outcome:
    """Put a demo on its stage, and return what it came to."""
    own_namespace = namespace or f"demo-{secrets.token_hex(4)}"
    with ExitStack() as stack:
        stage = stack.enter_context(open_stage(url, own_namespace, note, accept_data_loss=True))
        if namespace is None and not stage.embedded:
            stack.callback(_remove, stage)
        stage.ensure_server()
        crew = Crew(stack.enter_context(Children()), "token_actor_workers.fleet", _arguments(plan, stage))
        stage.ensure_actor()
        outcome = _perform(plan, stage, crew)
        stage.client.close()
    return outcome


def _remove(stage: Stage) -> None:
    """Leave somebody's server as it was found."""
    stage.watch.stop()
    try:
        remove_namespace(stage.connection, stage.target.namespace)
    except TransportError as error:
        note(f"the namespace {stage.target.namespace} is still on the server: {error}", style="yellow")


def _arguments(plan: Plan, stage: Stage) -> list[list[str]]:
    """Return the arguments of every worker."""
    options = {
        "--redis": stage.target.url,
        "--namespace": stage.target.namespace,
        "--seconds": str(plan.seconds),
        "--seed": plan.seed,
        "--limit-tokens": str(plan.limit_tokens),
        "--limit-seconds": str(WINDOW_S),
        "--resend": str(RESEND_SHARE),
    }
    same = ["--supervised", *(word for option in options.items() for word in option)]
    each, more = divmod(plan.agents, plan.workers)
    return [[*same, "--agents", str(each + (number < more))] for number in range(plan.workers)]


def _perform(plan: Plan, stage: Stage, crew: Crew) -> Outcome:
    """Let the fleet work, show it, and add everything up."""
    crew.until_ready(stage.watch.check)
    deadline = time.monotonic() + plan.seconds + SETTLE_S
    before, dead_before = stage.totals(deadline), stage.dead(deadline)
    begun_at = time.monotonic()
    crew.begin({})
    picture = Picture(plan=plan, url=stage.target.url, actor=stage.watch.pid, window_s=WINDOW_S)
    with view(picture) as show:
        stage.watch.note = show.note

        def look() -> None:
            stage.watch.check()
            picture.elapsed_s = time.monotonic() - begun_at
            stage.ask(lambda: _ask_for(picture, stage.client))
            show.draw()

        reports = crew.until_done(look, deadline)
        stage.wait_until_counted(deadline)
    elapsed_s = time.monotonic() - begun_at
    return Outcome(
        plan=plan,
        reports=reports,
        sent=added_up(reports),
        counted=less(stage.totals(deadline), before),
        dead=stage.dead(deadline) - dead_before,
        elapsed_s=elapsed_s,
        books=stage.insist(stage.client.books, deadline),
        by_model=stage.insist(lambda: stage.client.analytics(["model"])["groups"], deadline),
        by_agent=stage.insist(lambda: stage.client.analytics(["agent"], limit=AGENTS_SHOWN)["groups"], deadline),
        window_max=picture.window_max,
    )


def _ask_for(picture: Picture, client: TokenClient) -> None:
    """Bring a picture up to date."""
    total = client.analytics(["model"], stale_ok=True, timeout_s=ASK_TIMEOUT_S)
    agents = client.analytics(["agent"], limit=AGENTS_SHOWN, stale_ok=True, timeout_s=ASK_TIMEOUT_S)
    picture.in_window = client.tokens_in_window(WINDOW_S, stale_ok=True, timeout_s=ASK_TIMEOUT_S)
    picture.window_max = max(picture.window_max, picture.in_window)
    picture.total, picture.by_model, picture.by_agent = total, total["groups"], agents["groups"]
