"""Commands through lost replies, and a backlog that takes its time."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from tests.fault.cast import until
from tests.fault.scenario import Scale, Scenario
from tests.fault.truth import Journal, agent_of, names, numbers
from token_actor.service import TokenClient

if TYPE_CHECKING:
    from tests.fault.stage import Stage

COMMANDER: Final = 9  # the number of the test itself among the producers
PATIENCE_S: Final = 20.0
BACKLOG_EVENTS: Final = 10_000_000
PRODUCERS: Final = 10
EVENTS_PER_MINUTE: Final = 2_500_000  # what a run of few minutes is content with
WRITTEN_S: Final = 1_800.0


def _commands(stage: Stage, scale: Scale) -> None:
    """Give commands through a link that loses replies, while actors die: a repetition has the answer of the first.

    A command that counts an event under a new id is answered with ``counted``; carried out twice it would
    be a duplicate of itself.
    """
    server = stage.serve()
    link = stage.link(server)
    actor = stage.start_actor()
    leader = stage.await_serving(noted=False)
    journal = Journal(stage.journal(COMMANDER))
    with closing(TokenClient(link.url, namespace=stage.keys.namespace, timeout_s=PATIENCE_S)) as client:
        link.lost_replies = 0.1
        for k, _ in enumerate(scale.turns(stage, 200, 5_000), 1):
            at_ms = time.time_ns() // 1_000_000
            journal.attempts(k, k, at_ms)
            answers = [client._engine.command("record", {}, **_command(k, at_ms)) for _ in range(1 + (k % 10 == 0))]
            journal.accepted(k, k)
            if [answer["counted"] for answer in answers] != [True, False][: len(answers)]:
                stage.broken.append(f"I8: command {k} was answered {answers}")
            if k % 40 == 0:
                actor.kill()
                killed = time.monotonic()
                actor = stage.start_actor()
                leader = stage.await_serving(after=leader, since=killed)
                stage.faults += 1
        link.lost_replies = 0.0
    stage.faults += link.replies_lost


def _command(k: int, at_ms: int) -> dict[str, Any]:
    tokens = numbers(COMMANDER, k)
    event = {
        **names(COMMANDER, k),
        "input_tokens": tokens.input_tokens,
        "output_tokens": tokens.output_tokens,
        "cache_read_tokens": tokens.cache_read_tokens,
        "reasoning_tokens": tokens.reasoning_tokens,
        "message_id": f"{agent_of(COMMANDER)}/{k}",
        "timestamp": at_ms / 1000,
    }
    return {"tenant": event["tenant"], "event": event}


def _backlog(stage: Stage, scale: Scale) -> None:
    """Let producers write millions of events while no actor runs; then one comes, and is killed half-way."""
    stage.serve(appendfsync="everysec")
    each = min(BACKLOG_EVENTS, int(scale.minutes * EVENTS_PER_MINUTE)) // PRODUCERS
    for number in range(1, PRODUCERS + 1):
        stage.start_producer(number, every_ms=0, chunk=5_000, events_max=each)
    until(
        lambda: all(int(truth.accepted.sum()) == each for truth in stage.truths()),
        "a backlog",
        WRITTEN_S,
        poll_s=1.0,
    )
    begun = time.monotonic()
    settings: dict[str, Any] = {"lease_ms": 2_000, "snapshot_every_ms": 5_000, "snapshot_every_entries": 1_000_000}
    doomed = stage.start_actor(**settings)
    stage.await_snapshots(doomed, 1)
    doomed.kill()
    killed = time.monotonic()
    stage.faults += 1
    stage.start_actor(**settings)
    stage.await_counted(each * PRODUCERS)
    stage.recovery_ms.append((time.monotonic() - killed) * 1000)
    stage.notes.append(f"{each * PRODUCERS} events counted in {time.monotonic() - begun:.1f} s, with a kill between")


SCENARIOS: Final = [
    Scenario(name="commands", injects="lost replies to commands, and kill -9 of actors", play=_commands),
    Scenario(
        name="backlog",
        injects="10,000,000 events before an actor comes",
        play=_backlog,
        serving_ms=300_000,  # all of it counted
        long_only=True,
    ),
]
