"""Processes that end or stand still at the worst moment."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Final

from tests.fault.cast import Child, until
from tests.fault.scenario import Scale, Scenario
from token_actor.transport.ports import Delete

if TYPE_CHECKING:
    from tests.fault.stage import Stage

WRITES_MAX: Final = 120  # of one small snapshot
# Where a leader is paused, the most delicate places first: what it writes there is stale when it goes on.
PAUSES: Final = [
    {"write": write, "when": when}
    for write, when in (
        ("Append:snapshots", "before"),
        ("Append:snapshots", "guarded"),
        ("TrimBelow:log", "guarded"),
        ("Append:snapshots", "after"),
        ("Put:chunk", "before"),
        ("Delete:chunk", "guarded"),
        ("Expire:leader", "guarded"),
    )
]


def _actor_killed(stage: Stage, scale: Scale) -> None:
    """Kill the only actor at any moment, again and again, under load."""
    stage.serve()
    actor = stage.start_actor()
    leader = stage.await_serving(noted=False)
    for number in (1, 2):
        stage.start_producer(number, every_ms=scale.of(4, 40), chunk=20)
    for _ in scale.turns(stage, 50, 1_000):
        stage.await_entries(stage.random.randrange(1, 60))
        actor.kill()
        killed = time.monotonic()
        stage.faults += 1
        actor = stage.start_actor()
        leader = stage.await_serving(after=leader, since=killed)


def _producer_killed(stage: Stage, scale: Scale, *, message_ids: bool) -> None:
    stage.serve()
    stage.start_actor()
    stage.await_serving(noted=False)
    for number in (1, 2, 3):
        stage.start_producer(number, every_ms=1, chunk=40, message_ids=message_ids)
    for _ in scale.turns(stage, 20, 300):
        number = stage.random.randrange(1, 4)
        stage.await_entries(stage.random.randrange(1, 40))
        stage.producers[number].kill()
        stage.faults += 1
        stage.start_producer(number)


def _producer_killed_without_ids(stage: Stage, scale: Scale) -> None:
    _producer_killed(stage, scale, message_ids=False)


def _producer_killed_with_ids(stage: Stage, scale: Scale) -> None:
    _producer_killed(stage, scale, message_ids=True)


def _everyone_asked_to_stop(stage: Stage, scale: Scale) -> None:
    """Ask the actor, then a producer to stop, again and again; each ends by itself, with exit code 0."""
    stage.serve()
    actor = stage.start_actor()
    leader = stage.await_serving(noted=False)
    for number in (1, 2):
        stage.start_producer(number)
    for turn in scale.turns(stage, 8, 100):
        stage.await_entries(30)
        actor.send(signal.SIGTERM)
        asked = time.monotonic()
        code = actor.wait()
        if code != 0:
            stage.broken.append(f"I9: the actor that was asked to stop ended with {code}: {actor.said()[-3:]}")
        actor = stage.start_actor()
        leader = stage.await_serving(after=leader, since=asked)
        number = 1 + turn % 2
        stage.await_entries(10)
        stage.producers[number].send(signal.SIGTERM)
        code = stage.producers[number].wait()
        if code != 0:
            stage.broken.append(f"I1: the producer that was asked to stop ended with {code}")
        stage.start_producer(number)
        stage.faults += 2


def _snapshot_steps(stage: Stage, scale: Scale) -> None:
    """Kill the actor at every write of a snapshot in turn, from its first to its last."""
    stage.serve()
    for number in (1, 2):
        stage.start_producer(number)
    leader, nth = None, 0
    for turn in scale.turns(stage, WRITES_MAX, 10 * WRITES_MAX):
        nth += 1
        failpoint = {"write": "snapshot", "nth": nth}
        doomed = stage.start_actor(f"doomed-{turn}", failpoint=failpoint, snapshot_every_ms=20)
        code = doomed.wait()
        if code != -signal.SIGKILL:
            stage.broken.append(f"the actor did not reach write {nth}, it ended with {code}")
        killed = time.monotonic()
        stage.faults += 1
        survivor = stage.start_actor(f"survivor-{turn}")
        leader = stage.await_serving(after=leader, since=killed)
        stage.await_snapshots(survivor, 1)  # a good one in between, so that every write happens again
        survivor.send(signal.SIGTERM)
        survivor.wait()
        if "snapshot" in doomed.actions():  # it had a whole one behind it
            stage.notes.append(f"{nth - 1} writes are one snapshot")
            if scale.short:
                return
            nth = 0


def _leader_paused(stage: Stage, scale: Scale) -> None:
    """Stop the leader where it stands; another one takes over; then the first one goes on."""
    stage.serve()
    stage.watch_manifests()
    one = stage.start_actor("one")
    leader = stage.await_serving(noted=False)
    for number in (1, 2):
        stage.start_producer(number)
    other = stage.start_actor("two")
    for _ in scale.turns(stage, 8, 100):
        stage.await_entries(stage.random.randrange(1, 50))
        one.pause()
        paused = time.monotonic()
        leader = stage.await_serving(after=leader, since=paused)
        stage.await_entries(20)
        one.resume()
        stage.faults += 1
        stage.await_entries(20)
        one, other = other, one


def _leader_paused_in_a_snapshot(stage: Stage, scale: Scale) -> None:
    """Stop the leader in the middle of a snapshot, and let it go on when others have written theirs."""
    stage.serve()
    stage.watch_manifests()
    for number in (1, 2):
        stage.start_producer(number)
    leader = None
    for turn in scale.turns(stage, 7, 105):
        failpoint = {**PAUSES[turn % len(PAUSES)], "nth": 2 + turn % 3, "action": "stop"}
        paused = stage.start_actor("paused", failpoint=failpoint)
        stopped = _await_stopped(paused)
        other = stage.start_actor("other")
        leader = stage.await_serving(after=leader, since=stopped)
        stage.await_snapshots(other, 2)
        known = len(paused.actions())
        paused.resume()
        _await_word(paused, known)
        stage.faults += 1
        stage.await_entries(30)
        stage.await_snapshots(other, 1)
        for actor in (paused, other):
            actor.kill()


def _two_leaders(stage: Stage, scale: Scale) -> None:
    """Take the lease away from a leader that works, so that another one leads beside it until it notices."""
    stage.serve()
    stage.watch_manifests()
    stage.start_actor("one")
    leader = stage.await_serving(noted=False)
    stage.start_actor("two")
    for number in (1, 2):
        stage.start_producer(number)
    for _ in scale.turns(stage, 12, 200):
        stage.await_entries(stage.random.randrange(1, 60))
        stage.connection.write([Delete(keys=[stage.keys.leader])])
        stage.faults += 1
        stage.await_entries(10)
        leader = stage.await_serving()
    stage.notes.append(f"{leader} led at the end")


def _await_word(actor: Child, known: int) -> None:
    until(lambda: len(actor.actions()) > known, "a word of who was paused")


def _await_stopped(actor: Child) -> float:
    until(lambda: actor.state() == "T", f"the failpoint of process {actor.pid}")
    return time.monotonic()


SCENARIOS: Final = [
    Scenario(name="actor killed", injects="kill -9 of the only actor, under load", play=_actor_killed),
    Scenario(name="producer killed", injects="kill -9 of producers without a spool", play=_producer_killed_without_ids),
    Scenario(
        name="producer killed, ids",
        injects="kill -9 of producers that record again under the same message ids",
        play=_producer_killed_with_ids,
    ),
    Scenario(name="asked to stop", injects="SIGTERM of actor and producers in turn", play=_everyone_asked_to_stop),
    Scenario(name="snapshot steps", injects="kill -9 at every write of a snapshot in turn", play=_snapshot_steps),
    Scenario(name="leader paused", injects="SIGSTOP and SIGCONT of the leader", play=_leader_paused),
    Scenario(
        name="leader paused in a snapshot",
        injects="SIGSTOP at its writes, SIGCONT after those of its successor",
        play=_leader_paused_in_a_snapshot,
    ),
    Scenario(name="two leaders", injects="the lease deleted under a leader that works", play=_two_leaders),
]
