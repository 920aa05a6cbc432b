"""Limits under a storm of callers, while leaders and callers are killed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from tests.fault import storms
from tests.fault.grants import GrantBook
from tests.fault.scenario import Scale, Scenario
from token_actor.core.limits import Limit

if TYPE_CHECKING:
    from tests.fault.checker import Verdict
    from tests.fault.stage import Stage

PROCESSES: Final = (5, 8)  # short, long
THREADS: Final = (10, 25)  # of each: 50 callers, and 200
WINDOW: Final = Limit("storm", 3_000, seconds=2)
CALLS: Final = Limit("calls", 30, kind="concurrency")  # fewer than there are callers
ECHOES: Final = 20  # commands that come a second time after each kill, as from a network that repeats
ASKED_AGAIN: Final = 200  # commands that are sent once more when all is over


def _reserve_storm(stage: Stage, scale: Scale) -> None:
    """Kill leaders, standbys and callers, while all callers reserve under the same two limits."""
    stage.serve()
    watch = storms.LogWatch(stage)
    gone: set[str] = set()  # killed processes of callers: number and life
    stage.check = lambda verdict: _check_grants(stage, watch, gone, verdict)
    leading = storms.start_actor(stage)
    leader = stage.await_serving(noted=False)
    for limit in (WINDOW, CALLS):
        stage.client.put_limit(limit)
    processes = scale.of(*PROCESSES)
    lives = dict.fromkeys(range(1, processes + 1), 0)
    for number in lives:
        stage.start_producer(number, role="caller", life=0, threads=scale.of(*THREADS))
    standby = storms.start_actor(stage)
    deadline = time.monotonic() + scale.minutes * 60
    for turn in range(1, scale.of(6, 200) + 1):
        storms.await_standby(standby)
        stage.await_entries(stage.random.randrange(200, 600))
        leading.kill()
        killed = time.monotonic()
        stage.faults += 1
        storms.echo(stage, watch, ECHOES)
        leader = stage.await_serving(after=leader, since=killed)
        leading, standby = standby, storms.start_actor(stage)
        if turn % 2:
            number = stage.random.randrange(1, processes + 1)
            stage.producers[number].kill()
            stage.faults += 1
            gone.add(f"{number}.{lives[number]}")
            lives[number] = turn
            stage.start_producer(number, life=turn)
        if time.monotonic() > deadline:
            stage.notes.append("the time was up")
            break
    stage.await_entries(300)


def _check_grants(stage: Stage, watch: storms.LogWatch, killed: set[str], verdict: Verdict) -> None:
    """Compare what callers were told, what the log says, what a replay decides, and what the actor shows."""
    stage.drain()
    expired = storms.come_to_rest(stage, verdict)
    if not storms.seen_whole(stage, watch, ASKED_AGAIN, verdict):
        return
    told = storms.told_by_diaries(stage, killed, verdict)
    replayed = storms.replay(watch.entries)
    book = GrantBook(lambda request, key: _granted(told.get(("reserve", key)), replayed.get(request)))
    storms.follow(book, watch, told, replayed, verdict)
    storms.check_inboxes(stage, replayed, verdict)
    storms.check_usage(stage, book, verdict)
    ended = storms.check_endings(book, replayed, expired, verdict)
    stage.notes.append(f"{book.grants} granted, {book.refusals} refused, fullest window {book.fullest}; {ended}")
    stage.notes.append(f"{len(told)} answers seen, {book.repeated} requests repeated, {len(killed)} processes killed")


def _granted(told: dict[str, Any] | None, replayed: Any) -> bool | None:
    """Return whether a request was granted: as its caller was told, else as the log decides."""
    if told is not None:
        return "granted" in told
    return None if replayed is None else bool(replayed["granted"])


SCENARIOS: Final = [
    Scenario(
        name="reserve storm",
        injects="kill -9 of leaders with a hot standby, and of callers that reserve, settle, release and forget",
        play=_reserve_storm,
    )
]
