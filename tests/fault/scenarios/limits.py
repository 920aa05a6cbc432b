"""Limits under a storm of callers, while leaders and callers are killed."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tests.fault.cast import Child, NotSeenError, until
from tests.fault.endings import TELLS, endings, without_answer
from tests.fault.grants import GrantBook, read_diary
from tests.fault.scenario import Scale, Scenario
from token_actor.actor.fold import fold
from token_actor.core.ledger import Ledger
from token_actor.core.limits import Limit
from token_actor.errors import TransportError
from token_actor.transport.ports import FIRST, Append
from token_actor.wire.messages import Answer

if TYPE_CHECKING:
    from tests.fault.checker import Verdict
    from tests.fault.stage import Stage
    from token_actor.transport.ports import Connection, Entry

PROCESSES: Final = (5, 8)  # short, long
THREADS: Final = (10, 25)  # of each: 50 callers, and 200
WINDOW: Final = Limit("storm", 3_000, seconds=2)
CALLS: Final = Limit("calls", 30, kind="concurrency")  # fewer than there are callers
ECHOES: Final = 20  # commands that come a second time after each kill, as from a network that repeats
ASKED_AGAIN: Final = 200  # commands that are sent once more when all is over
SETTINGS: Final[dict[str, Any]] = {  # rare enough for the checker to read the log before it is trimmed
    "snapshot_every_ms": 1_000,
    "snapshot_every_entries": 5_000,
}
REST_S: Final = 10.0  # ten times the longest reservation
SHOWN: Final = 3

Request: TypeAlias = "tuple[str, str]"  # client, request id
Told: TypeAlias = "dict[tuple[str, str], dict[str, Any]]"  # by operation and key: what came back at last


class LogWatch:
    """Read all of the log beside the actors, before it is trimmed."""

    def __init__(self, stage: Stage) -> None:
        """Begin; it ends with the stage."""
        self.entries: list[Entry] = []
        self._stage = stage
        self._connection: Connection = stage.server.connect()
        self._ended = threading.Event()
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        stage.at_end(self._connection.close)
        stage.at_end(thread.join)
        stage.at_end(self._ended.set)

    def _watch(self) -> None:
        key, after = self._stage.keys.log, FIRST
        while not self._ended.is_set():
            with suppress(TransportError):
                found = self._connection.read({key: after}, count=10_000, block_ms=50).get(key, [])
                if found:
                    after = found[-1][0]
                    self.entries += found

    def await_all(self) -> None:
        """Wait until it has read the log to its end."""
        state = self._stage.connection.stream_state(self._stage.keys.log)
        assert state is not None, "there is a log"
        until(lambda: self.entries and self.entries[-1][0] == state.last_id, "the log read to its end")

    def commands(self) -> list[Entry]:
        """Return what callers asked for, so far."""
        return [entry for entry in list(self.entries) if entry[1][0] == b"c"]


def _reserve_storm(stage: Stage, scale: Scale) -> None:
    """Kill leaders, standbys and callers, while all callers reserve under the same two limits."""
    stage.serve()
    watch = LogWatch(stage)
    gone: set[str] = set()  # killed processes of callers: number and life
    stage.check = lambda verdict: _check_grants(stage, watch, gone, verdict)
    leading = _start_actor(stage)
    leader = stage.await_serving(noted=False)
    for limit in (WINDOW, CALLS):
        stage.client.put_limit(limit)
    processes = scale.of(*PROCESSES)
    lives = dict.fromkeys(range(1, processes + 1), 0)
    for number in lives:
        stage.start_producer(number, role="caller", life=0, threads=scale.of(*THREADS))
    standby = _start_actor(stage)
    deadline = time.monotonic() + scale.minutes * 60
    for turn in range(1, scale.of(6, 200) + 1):
        _await_standby(standby)
        stage.await_entries(stage.random.randrange(200, 600))
        leading.kill()
        killed = time.monotonic()
        stage.faults += 1
        _echo(stage, watch, ECHOES)
        leader = stage.await_serving(after=leader, since=killed)
        leading, standby = standby, _start_actor(stage)
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


def _start_actor(stage: Stage) -> Child:
    return stage.start_actor(f"actor-{len(stage.actors) + 1}", **SETTINGS)


def _await_standby(actor: Child) -> None:
    until(lambda: "standing_by" in actor.actions(), "a hot standby", poll_s=0.02)


def _echo(stage: Stage, watch: LogWatch, count: int) -> None:
    """Append commands of earlier a second time, just as they were."""
    commands = watch.commands()
    again = stage.random.sample(commands, min(count, len(commands)))
    stage.connection.write([Append(key=stage.keys.log, fields=fields) for _, fields in again])


# --- what must be true afterwards ------------------------------------------------------------------


def _check_grants(stage: Stage, watch: LogWatch, killed: set[str], verdict: Verdict) -> None:
    """Compare what callers were told, what the log says, what a replay decides, and what the actor shows."""
    stage.drain()
    expired = _come_to_rest(stage, verdict)
    _echo(stage, watch, ASKED_AGAIN)
    stage.drain()
    watch.await_all()
    if (missed := stage.log_added() - len(watch.entries)) != 0:
        verdict.note("I6", f"the checker missed {missed} entries of the log, so it cannot tell")
        return
    told = _told(stage, killed, verdict)
    replayed = _replay(watch.entries)
    book = GrantBook(lambda request, key: _granted(told.get(("reserve", key)), replayed.get(request)))
    for entry in watch.entries:
        book.take(*entry)
    _compare(book, told, replayed, verdict)
    _check_inboxes(stage, replayed, verdict)
    _check_usage(stage, book, verdict)
    ended = _check_endings(book, replayed, expired, verdict)
    stage.notes.append(f"{book.grants} granted, {book.refusals} refused, fullest window {book.fullest}; {ended}")
    stage.notes.append(f"{len(told)} answers seen, {book.repeated} requests repeated, {len(killed)} processes killed")


def _come_to_rest(stage: Stage, verdict: Verdict) -> int:
    """Let the log come to where everything has expired: nothing may be reserved then. Return how many did, it says."""
    event = Append(key=stage.keys.log, fields=[b"j", b'{"agent":"rest","input_tokens":1}'])
    shown: dict[str, Any] = {}

    def is_at_rest() -> bool:
        stage.connection.write([event])
        shown.update(stage.client._engine.ask("limits", {}, tenant=None))
        held = sum(top["reserved"] for limit in shown["limits"] for top in limit["top"])
        return not held and not shown["open_reservations"]

    with suppress(NotSeenError):
        until(is_at_rest, "rest", REST_S, poll_s=0.1)
        return int(shown["expired_reservations"])
    verdict.note("I6", f"{shown['open_reservations']} reservations are open at rest: {shown['limits']}")
    return int(shown["expired_reservations"])


def _told(stage: Stage, killed: set[str], verdict: Verdict) -> Told:
    """Return what callers wrote down that they were told; it must be one thing for each request."""
    told: Told = {}
    for path in sorted(stage.directory.glob("producer-*.truth")):
        lines = read_diary(path)
        if unanswered := without_answer(lines, killed):
            verdict.note("I8", f"{len(unanswered)} requests were not answered, such as {unanswered[:SHOWN]}")
        for line in lines:
            if line.keys() & TELLS:
                request = (line.pop("op"), line.pop("key"))
                if request in told:
                    verdict.note("I8", f"{request} was answered twice: {told[request]}, {line}")
                told[request] = line
    return told


def _replay(entries: list[Entry]) -> dict[Request, Any]:
    """Return what a ledger that begins with nothing answers to every request; the same each time it comes."""
    ledger, left, replayed = Ledger(), entries, dict[Request, Any]()
    while left:
        folded = fold(ledger, left, epoch=0)
        for client, answer in folded.answers:
            replayed.setdefault((client, answer.request_id), _plain(answer))
        left = left[folded.entries :]
    return replayed


def _plain(answer: Answer) -> Any:
    return json.loads(json.dumps(answer.result if answer.problem is None else str(answer.problem)))


def _granted(told: dict[str, Any] | None, replayed: Any) -> bool | None:
    """Return whether a request was granted: as its caller was told, else as the log decides."""
    if told is not None:
        return "granted" in told
    return None if replayed is None else bool(replayed["granted"])


def _compare(book: GrantBook, told: Told, replayed: dict[Request, Any], verdict: Verdict) -> None:
    """Compare all answers to one request: that of its caller, of the replay, and of the book."""
    unknown = told.keys() - set(book.keys.values())
    wrong = [*book.wrong]
    for request, (operation, key) in book.keys.items():
        line, again, added = told.get((operation, key)), replayed[request], book.answers[request]
        if line is not None and not _is_same(line, again):
            wrong.append(f"{operation} {key}: the caller was told {line}, a replay says {again}")
        if operation == "settle":
            again = {**again, "debt": sum(again["debt"].values())}
        if any(again[name] != value for name, value in added.items()):
            wrong.append(f"{operation} {key}: a replay says {again}, brute force {added}")
    over = [
        *book.over,
        *(f"{key} of which the log knows nothing" for operation, key in unknown if operation == "reserve"),
    ]
    verdict.over_granted = len(over)
    verdict.lost += len(unknown)
    for invariant, found in (("I6", over), ("I8", wrong), ("I1", sorted(unknown))):
        if found:
            verdict.note(invariant, f"{len(found)} times, such as {found[:SHOWN]}")


def _is_same(line: dict[str, Any], again: Any) -> bool:
    if "refused" in line:
        return not again["granted"] and all(again[name] == value for name, value in line["refused"].items())
    if "granted" in line:
        return bool((line["granted"], line["expires_ms"]) == (again["reservation"], again["expires_ms"]))
    return bool(line["answer"] in (again, again.get("released")))


def _check_inboxes(stage: Stage, replayed: dict[Request, Any], verdict: Verdict) -> None:
    """Compare every answer that still lies in an inbox, also those that nobody waited for."""
    wrong, seen = [], 0
    for client in sorted({client for client, _ in replayed}):
        for _, fields in stage.connection.range(stage.keys.inbox(client), count=1_000):
            answer = Answer.decode(fields[1])
            if (client, answer.request_id) in replayed:  # a question has the same kind of answer
                seen += 1
                if _plain(answer) != replayed[client, answer.request_id]:
                    wrong.append(f"{client} {answer.request_id}: {answer.result}")
    if wrong or not seen:
        verdict.note("I8", f"{len(wrong)} of {seen} answers are not those of a replay: {wrong[:SHOWN]}")


def _check_endings(book: GrantBook, replayed: dict[Request, Any], expired: int, verdict: Verdict) -> str:
    """Compare how everything that was granted ended with what the actor says has expired; say how it did."""
    found = endings(book.keys, replayed)
    if found.wrong:
        verdict.note("I6", f"{len(found.wrong)} times, such as {found.wrong[:SHOWN]}")
    if not found.expired == book.expired == expired:
        verdict.note("I6", f"{found.expired} expired by all answers, {book.expired} by brute force, {expired} it says")
    return f"{found.settled} settled in time, {found.released} released, {found.expired} expired"


def _check_usage(stage: Stage, book: GrantBook, verdict: Verdict) -> None:
    """Compare what the actor counted with what was settled: each once."""
    verdict.events = book.requests
    answer = stage.client.analytics("agent")
    found = Counter({group["agent"]: group["input_tokens"] for group in answer["groups"]})
    if found != book.usage or answer["requests"] != book.requests:
        verdict.note("I4", f"counted {dict(found)}, settled {dict(book.usage)}; {answer['requests']}, {book.requests}")


SCENARIOS: Final = [
    Scenario(
        name="reserve storm",
        injects="kill -9 of leaders with a hot standby, and of callers that reserve, settle, release and forget",
        play=_reserve_storm,
    )
]
