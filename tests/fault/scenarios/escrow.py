"""Quota that is set aside under a storm of callers who take it by themselves, while leaders and callers are killed."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import msgpack

from tests.fault import storms
from tests.fault.cast import NotSeenError, until
from tests.fault.escrow_book import Decision, EscrowBook
from tests.fault.grants import read_diary
from tests.fault.scenario import Scale, Scenario
from token_actor.core.limits import Limit
from token_actor.errors import ActorUnavailable, RateLimited

if TYPE_CHECKING:
    from tests.fault.cast import Child
    from tests.fault.checker import Verdict
    from tests.fault.stage import Stage
    from token_actor.transport.ports import Entry

PROCESSES: Final = (4, 6)  # short, long
THREADS: Final = (6, 7)  # of each: 20 callers and 4 greedy ones, 36 and 6
TILLS: Final = ("till0", "till1", "till2")  # all callers share these names
HOUR: Final = Limit("hour", 0, seconds=3_600)  # longer than the run; raised when it is full
RAISE: Final = (16_000, 40_000)  # tokens: enough for two turns or more
FULL: Final = 60  # tokens left: not everybody finds room
CALLS: Final = (110, 240)  # as many as are open when all callers are forgetful
ENTRIES: Final = (400, 1_400)  # of one turn
TURN_S: Final = 10.0  # that a turn takes at the most
ECHOES: Final = 20  # commands that come a second time after each kill
ASKED_AGAIN: Final = 200  # and when all is over
LOST_REPLIES: Final = 0.002  # of one process: nobody knows then whether a call was taken
DRAWN_MIN: Final = 0.15  # share of the grants that must have been taken from escrow, else nothing was shown
AT_ONCE_S: Final = 3.0  # for a reservation of all that is left at rest: nobody is in the way


@dataclass(slots=True)
class _Storm:
    """Hold what one storm has done: what the amount of its window is, which life each process lives, who was killed."""

    stage: Stage
    watch: storms.LogWatch
    step: int  # by which its window is raised
    amount: int = HOUR.amount
    lives: dict[int, int] = field(default_factory=dict)
    killed: set[str] = field(default_factory=set)

    def left(self) -> int:
        """Return how many tokens the actor says can still be granted."""
        ((shown,),) = [limit["top"] for limit in self.stage.client.limits() if limit["name"] == HOUR.name]
        return int(shown["remaining"])

    def raise_window(self) -> None:
        """Let callers go on for a while."""
        self.amount += self.step
        self.stage.client.put_limit(replace(HOUR, amount=self.amount))

    def await_entries(self, more: int) -> None:
        """Wait until the log has so many entries more; not long, because what holds callers up is for the check."""
        target = self.stage.log_added() + more
        with suppress(NotSeenError):
            until(lambda: self.stage.log_added() >= target, f"{more} more entries of the log", TURN_S)

    def kill_callers(self, turn: int) -> None:
        """Kill one process of callers, and start it again."""
        number = self.stage.random.choice(sorted(self.lives))
        self.stage.producers[number].kill()
        self.stage.faults += 1
        self.killed.add(f"{number}.{self.lives[number]}")
        self.lives[number] = turn
        self.stage.start_producer(number, life=turn)


def _escrow_storm(stage: Stage, scale: Scale) -> None:
    """Kill leaders and callers, while all callers take what is set aside for the same few names."""
    stage.serve()
    storm = _Storm(stage, storms.LogWatch(stage), scale.of(*RAISE))
    stage.check = lambda verdict: _check(storm, verdict)
    leading = storms.start_actor(stage)
    leader = stage.await_serving(noted=False)
    storm.raise_window()
    stage.client.put_limit(Limit("calls", scale.of(*CALLS), kind="concurrency"))
    forgetful = stage.link(stage.server)
    forgetful.lost_replies = LOST_REPLIES
    for number in range(1, scale.of(*PROCESSES) + 1):
        storm.lives[number] = 0
        url = forgetful.url if number == 1 else stage.server.url
        stage.start_producer(number, role="caller", life=0, threads=scale.of(*THREADS), tills=TILLS, url=url)
    standby = storms.start_actor(stage)
    for turn in scale.turns(stage, 4, 200):
        leader, leading, standby = _turn(storm, turn, leader, leading, standby)
    with suppress(NotSeenError):
        until(lambda: storm.left() < FULL, "a full window", TURN_S, poll_s=0.05)
    storm.await_entries(300)


def _turn(storm: _Storm, turn: int, leader: str, leading: Child, standby: Child) -> tuple[str, Child, Child]:
    """Raise the window if it is full, kill who leads, and callers every other time; return who leads now."""
    stage = storm.stage
    storms.await_standby(standby)
    if storm.left() < FULL:
        storm.raise_window()
    storm.await_entries(stage.random.randrange(*ENTRIES))
    leading.kill()
    killed = time.monotonic()
    stage.faults += 1
    if turn % 2:
        storm.kill_callers(turn)
    storms.echo(stage, storm.watch, ECHOES)
    leader = stage.await_serving(after=leader, since=killed)
    return leader, standby, storms.start_actor(stage)


# --- what must be true afterwards ------------------------------------------------------------------


def _check(storm: _Storm, verdict: Verdict) -> None:
    """Compare what callers were told, what the log says, what a replay decides, and what the actor shows."""
    stage, watch = storm.stage, storm.watch
    stage.drain()
    expired = storms.come_to_rest(stage, verdict)
    _take_all(storm, verdict)
    if not storms.seen_whole(stage, watch, ASKED_AGAIN, verdict):
        return
    told = storms.told_by_diaries(stage, storm.killed, verdict)
    replayed = storms.replay(watch.entries)
    keys = _keys(stage, watch.entries, verdict)
    book = EscrowBook(
        lambda request, key: _decision(told.get(("reserve", key)), replayed.get(request)),
        lambda request: keys.get(request, ":".join(request)),
    )
    storms.follow(book, watch, told, replayed, verdict)
    storms.check_inboxes(stage, replayed, verdict)
    storms.check_usage(stage, book, verdict)
    ended = storms.check_endings(book, replayed, expired, verdict)
    _check_worth(book, verdict)
    stage.notes += [
        f"{book.drawn} taken, {book.decided} decided ({book.waited} waited), {book.refusals} refused; {ended}",
        f"{book.recalled} calls recalled, at most {book.fullest:.2%} of the window and {book.most_open} calls taken",
        f"{len(told)} answers seen, {book.repeated} requests repeated ({book.forfeited} took a call for nobody)",
        f"{len(storm.killed)} processes killed",
    ]


def _take_all(storm: _Storm, verdict: Verdict) -> None:
    """Reserve all that is left, at once: nothing may be kept back for anybody."""
    storm.raise_window()
    tokens = storm.left()
    try:
        reservation = storm.stage.client.reserve(tokens, agent="rest", timeout_s=AT_ONCE_S)
    except (RateLimited, ActorUnavailable) as error:
        verdict.note("I6", f"all that was left at rest, {tokens} tokens, was not granted: {error}")
        return
    reservation.release()


def _keys(stage: Stage, entries: list[Entry], verdict: Verdict) -> dict[storms.Request, str]:
    """Return what callers call their reserves: each client has one thread, so they are in the log in its order."""
    callers: dict[str, str] = {}  # by client
    tokens: dict[str, int] = {}  # by key
    for path in sorted(stage.directory.glob("producer-*.truth")):
        for line in read_diary(path):
            if line["op"] == "begin":
                callers[line["client"]] = line["key"]
            elif line["op"] == "reserve" and "asked" in line:
                tokens[line["key"]] = line["tokens"]
    keys: dict[storms.Request, str] = {}
    counts = dict.fromkeys(callers.values(), 0)
    for _, fields in entries:
        command: dict[str, Any] = msgpack.unpackb(fields[1]) if fields[0] == b"c" else {"op": None}
        caller = command["op"] == "reserve" and callers.get(command["client"].rpartition("-")[0])
        if caller and (request := (command["client"], command["id"])) not in keys:
            keys[request] = key = f"{caller}/{counts[caller]}"
            counts[caller] += 1
            if tokens[key] != command["args"]["tokens"]:
                verdict.note("I3", f"{key} asked for {tokens[key]}, and the log has {command['args']}")
    return keys


def _decision(told: dict[str, Any] | None, replayed: Any) -> Decision | None:
    """Return what a request came to: as its caller was told, else as the log decides."""
    if replayed is None:
        return None
    if told is None or "refused" in told:
        granted = told is None and replayed["granted"]
        return Decision(granted, replayed["expires_ms"], replayed.get("drawn"), replayed["waited_ms"])
    return Decision(True, told["expires_ms"], told["drawn"])


def _check_worth(book: EscrowBook, verdict: Verdict) -> None:
    """Check that this has shown anything: that much was taken from escrow, and that the limits were reached."""
    granted = book.drawn + book.decided
    if book.drawn < DRAWN_MIN * granted:
        verdict.note("I6", f"this shows nothing: {book.drawn} of {granted} grants were taken from escrow")
    if not book.refusals:
        verdict.note("I6", "this shows nothing: nobody was refused")
    if book.span_ms >= book.window_ms:
        verdict.note("I6", "this shows nothing: the run was longer than the window")


SCENARIOS: Final = [
    Scenario(
        name="escrow storm",
        injects="kill -9 of leaders with a hot standby, and of callers that take what is set aside for a few names",
        play=_escrow_storm,
    )
]
