"""What storms of callers share: who reads the log beside the actors, and what must be true of every answer.

Four accounts of each request are compared: what its caller wrote down, what a replay of the log decides, what a book
finds by brute force, and what the actor shows when all is over.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import msgpack

from tests.fault.cast import Child, NotSeenError, until
from tests.fault.endings import TELLS, endings, without_answer
from tests.fault.grants import read_diary
from token_actor.actor.fold import fold
from token_actor.core.ledger import Ledger
from token_actor.errors import TransportError
from token_actor.transport.ports import FIRST, AddToField, Append
from token_actor.wire.messages import Answer

if TYPE_CHECKING:
    from tests.fault.checker import Verdict
    from tests.fault.stage import Stage
    from token_actor.transport.ports import Connection, Entry

LEADER: Final = "leader"  # the client that leaders command as
SETTINGS: Final[dict[str, Any]] = {  # rare enough for the checker to read the log before it is trimmed
    "snapshot_every_ms": 1_000,
    "snapshot_every_entries": 5_000,
}
REST_S: Final = 10.0  # ten times the longest reservation, and twice as long as an escrow that nobody takes from is kept
SHOWN: Final = 3

Request: TypeAlias = "tuple[str, str]"  # client, request id
Told: TypeAlias = "dict[tuple[str, str], dict[str, Any]]"  # by operation and key: what came back at last


class Book(Protocol):
    """Be what a book has found out from the log by brute force, as ``GrantBook`` has."""

    answers: dict[Request, Any]
    keys: dict[Request, tuple[str, str]]
    over: list[str]
    wrong: list[str]
    expired: int
    usage: Counter[str]
    requests: int


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

    def commands(self) -> list[tuple[Entry, dict[str, Any]]]:
        """Return what callers asked for, so far, as entries and what is in them."""
        commands = [(each, msgpack.unpackb(each[1][1])) for each in list(self.entries) if each[1][0] == b"c"]
        return [(entry, command) for entry, command in commands if command["client"] != LEADER]


def start_actor(stage: Stage) -> Child:
    """Start an actor that leaves the log to be read."""
    return stage.start_actor(f"actor-{len(stage.actors) + 1}", **SETTINGS)


def await_standby(actor: Child) -> None:
    """Wait until an actor stands by."""
    until(lambda: "standing_by" in actor.actions(), "a hot standby", poll_s=0.02)


def echo(stage: Stage, watch: LogWatch, count: int) -> None:
    """Do what callers did earlier a second time, just as it was: also the taking of a call, which nobody gets then."""
    commands = watch.commands()
    for (_, fields), command in stage.random.sample(commands, min(count, len(commands))):
        again: list[AddToField | Append] = [Append(key=stage.keys.log, fields=fields)]
        if escrow := command["args"].get("escrow"):
            again.insert(0, AddToField(key=stage.keys.escrow, field=escrow.encode(), amount=-1))
        stage.connection.write_together(again)


# --- what must be true afterwards ------------------------------------------------------------------


def come_to_rest(stage: Stage, verdict: Verdict) -> int:
    """Let the log come to where everything has expired: nothing may be reserved then, nor set aside.

    Return how many did, the actor says.
    """
    event = Append(key=stage.keys.log, fields=[b"j", b'{"agent":"rest","input_tokens":1}'])
    shown: dict[str, Any] = {}

    def is_at_rest() -> bool:
        stage.connection.write([event])
        shown.update(stage.client._engine.ask("limits", {}, tenant=None))
        shown["set_aside"] = stage.client.status()["set_aside_calls"]
        held = sum(top["reserved"] for limit in shown["limits"] for top in limit["top"])
        return not (held or shown["open_reservations"] or shown["set_aside"])

    with suppress(NotSeenError):
        until(is_at_rest, "rest", REST_S, poll_s=0.1)
        return int(shown["expired_reservations"])
    open_ones, aside = shown["open_reservations"], shown["set_aside"]
    verdict.note("I6", f"{open_ones} reservations are open and {aside} calls set aside at rest: {shown['limits']}")
    return int(shown["expired_reservations"])


def told_by_diaries(stage: Stage, killed: set[str], verdict: Verdict) -> Told:
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


def replay(entries: list[Entry]) -> dict[Request, Any]:
    """Return what a ledger that begins with nothing answers to every request; the same each time it comes.

    What nobody has to be told, because its caller knows, is what the ledger remembers.
    """
    ledger, left, replayed = Ledger(), entries, dict[Request, Any]()
    while left:
        folded = fold(ledger, left, epoch=0)
        for client, answer in folded.answers:
            replayed.setdefault((client, answer.request_id), _plain(answer))
        for _, fields in left[: folded.entries]:
            if fields[0] == b"c":
                command = msgpack.unpackb(fields[1])
                request = (command["client"], command["id"])
                if request not in replayed and (known := ledger.answers.get(request)) is not None:
                    replayed[request] = json.loads(json.dumps(known))
        left = left[folded.entries :]
    return replayed


def _plain(answer: Answer) -> Any:
    return json.loads(json.dumps(answer.result if answer.problem is None else str(answer.problem)))


def compare(book: Book, told: Told, replayed: dict[Request, Any], verdict: Verdict) -> None:
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
        granted = (line["granted"], line["expires_ms"], line["drawn"])
        return bool(granted == (again["reservation"], again["expires_ms"], again.get("drawn")))
    return bool(line["answer"] in (again, again.get("released")))


def check_inboxes(stage: Stage, replayed: dict[Request, Any], verdict: Verdict) -> None:
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


def check_endings(book: Book, replayed: dict[Request, Any], expired: int, verdict: Verdict) -> str:
    """Compare how everything that was granted ended with what the actor says has expired; say how it did."""
    found = endings(book.keys, replayed)
    if found.wrong:
        verdict.note("I6", f"{len(found.wrong)} times, such as {found.wrong[:SHOWN]}")
    if not found.expired == book.expired == expired:
        verdict.note("I6", f"{found.expired} expired by all answers, {book.expired} by brute force, {expired} it says")
    return f"{found.settled} settled in time, {found.released} released, {found.expired} expired"


def check_usage(stage: Stage, book: Book, verdict: Verdict) -> None:
    """Compare what the actor counted with what was settled: each once."""
    verdict.events = book.requests
    answer = stage.client.analytics("agent")
    found = Counter({group["agent"]: group["input_tokens"] for group in answer["groups"]})
    if found != book.usage or answer["requests"] != book.requests:
        verdict.note("I4", f"counted {dict(found)}, settled {dict(book.usage)}; {answer['requests']}, {book.requests}")


def seen_whole(stage: Stage, watch: LogWatch, again: int, verdict: Verdict) -> bool:
    """Repeat commands once more when all is over, and tell whether the watch has the whole log then."""
    echo(stage, watch, again)
    stage.drain()
    watch.await_all()
    missed = stage.log_added() - len(watch.entries)
    if missed:
        verdict.note("I6", f"the checker missed {missed} entries of the log, so it cannot tell")
    return not missed


def follow(book: Any, watch: LogWatch, told: Any, replayed: Any, verdict: Verdict) -> None:
    """Let a book follow the log, and compare it with what anybody was told."""
    for entry in watch.entries:
        book.take(*entry)
    compare(book, told, replayed, verdict)
