"""The loop: read everything there is, fold it, answer, write it all back; again.

One turn is one read and at most one write. There are no timers and no minimum batch: under load
the reads grow by themselves, and the cost per event falls. This is the only place that reads a clock.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from token_actor.actor.asked import Asked, AskedQuestions
from token_actor.actor.fold import Folded, fold
from token_actor.actor.leadership import Leadership
from token_actor.actor.recovery import check_partitions, recover, replay
from token_actor.actor.snapshots import Position, SnapshotWriter
from token_actor.core.queries import answer
from token_actor.errors import InvalidQuestion, InvalidValue, ServerRefused, ServerUnavailable
from token_actor.transport.ports import FIRST, Append, Connection, Entry, Expire, Operation, TrimBelow
from token_actor.wire.messages import ANSWER_FIELD, Answer, Question

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from token_actor.core.ledger import Bounds
    from token_actor.wire.keys import Keys

INBOX_TTL_MS: Final = 60_000  # an answer that nobody fetched within a minute has nobody waiting
INBOX_LENGTH_MAX: Final = 1_000
DEAD_LENGTH_MAX: Final = 10_000
_ENTRIES_MIN, _ENTRIES_MAX = 16, 4096  # per read: enough to amortise numpy, few enough to stay responsive
_ANSWERING_MS: Final = 50  # per turn: short against the lease
_RETRY_MS: Final = (50, 1_000)  # after a lost connection: the first wait, and the longest

_WITH_POSITION: Final = frozenset({"status", "books"})  # answers that say up to where the log was folded

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorSettings:
    """Hold the settings of an actor.

    ``lease_ms`` is how long the others wait for a leader that vanished; ``recovery_lease_ms`` while it
    restores or saves its state and may be busy for longer. ``block_ms`` is the longest an idle read
    waits, and so the longest until a stop is noticed. A snapshot is due after ``snapshot_every_ms`` or
    ``snapshot_every_entries`` of the log. ``events_per_turn`` is aimed at, not guaranteed.
    ``drain_ms`` bounds the work after a stop.
    ``partitions`` is how many the namespace has; it is written down once, and another number refused.
    """

    keys: Keys
    holder: str
    partitions: int = 1
    bounds: Bounds | None = None
    lease_ms: int = 2_000
    recovery_lease_ms: int = 30_000
    block_ms: int = 250
    events_per_turn: int = 32_768
    snapshot_every_ms: int = 60_000
    snapshot_every_entries: int = 1_000_000
    drain_ms: int = 3_000


class Clock:
    """Be the time as the loop sees it: ``now_ms`` for people, ``ticks_ms`` never jumps."""

    def __init__(self, now_ms: Callable[[], int], ticks_ms: Callable[[], int], wait: Callable[[float], bool]) -> None:
        """Take the clocks, and ``wait(seconds)``, which returns early with ``True`` when asked to stop."""
        self.now_ms = now_ms
        self.ticks_ms = ticks_ms
        self.wait = wait


class Actor:
    """Own one partition: wait for the lease, recover, and run until asked to stop."""

    def __init__(self, connection: Connection, settings: ActorSettings, clock: Clock) -> None:
        """Prepare; nothing is read or written yet."""
        self._connection = connection
        self._settings = settings
        self._keys = settings.keys
        self._clock = clock
        self._leadership = Leadership(connection, self._keys, holder=settings.holder)
        self._recovered = False
        self._unwritten: list[Operation] = []
        self._asked = AskedQuestions()
        self._ready: deque[Asked] = deque()
        self._ask_offset = FIRST
        self._entries_per_read = 256
        self._snapshot: Iterator[None] | None = None
        self._snapshots = SnapshotWriter(connection, self._keys, fenced=connection.write)
        self._snapshot_number = 1
        self._snapshot_position = Position(offset=FIRST, entries=0)
        self._snapshot_due_ms = 0
        self._lease_due_ms = 0
        self._standing_by = False

    def run(self) -> None:
        """Serve until asked to stop, through every loss of connection and of the lease.

        Raises ``SnapshotError`` when the state cannot be restored, ``SetupError`` when the namespace
        has another number of partitions, ``ServerRefused`` when the server does not let this process
        work at all.
        """
        wait_ms = _RETRY_MS[0]
        while not self._clock.wait(0):
            try:
                if self._leads_on() or self._setup():
                    wait_ms = _RETRY_MS[0]
                    self._running()
                    self._teardown()
                else:
                    self._stand_by()
            except ServerUnavailable as error:
                log.warning("The server is away", extra={"action": "server_away", "problem": str(error)})
                self._clock.wait(wait_ms / 1000)
                wait_ms = min(2 * wait_ms, _RETRY_MS[1])

    def _stand_by(self) -> None:
        """Wait a part of the lease: somebody leads, and this process has to be there soon after it is gone."""
        if not self._standing_by:
            self._standing_by = True
            log.info("Standing by", extra={"action": "standing_by"})
        self._clock.wait(self._settings.lease_ms / 4000)

    # --- setup ---------------------------------------------------------------------------------

    def _leads_on(self) -> bool:
        """Tell whether the state and the lease outlived the loss of a connection."""
        return self._recovered and bool(self._leadership.epoch) and self._leadership.renew(self._settings.lease_ms)

    def _setup(self) -> bool:
        """Become the leader and restore the state; tell whether that was possible."""
        self._recovered = False
        check_partitions(self._connection, self._keys, self._settings.partitions)
        if not self._leadership.acquire(self._settings.recovery_lease_ms):
            return False
        self._standing_by = False
        log.info("Leading", extra={"action": "leading", "epoch": self._leadership.epoch})
        self._unwritten, self._asked, self._snapshot = [], AskedQuestions(), None
        self._ready.clear()
        self._lease_due_ms = 0
        self._state = recover(self._connection, self._keys, self._settings.bounds)
        self._snapshot_position = self._state.position
        self._snapshots.forget()
        self._snapshot_number = 1
        self._snapshot_due_ms = self._clock.ticks_ms() + self._settings.snapshot_every_ms
        replay(self._connection, self._keys, self._state, epoch=self._leadership.epoch, on_read=self._replayed)
        log.info(
            "Recovered",
            extra={"action": "recovered", "offset": self._state.position.offset.decode(), "events": self._events},
        )
        self._recovered = True
        return True

    def _replayed(self, folded: Folded, entries: int) -> None:
        del entries
        self._tell(folded)
        self._write()
        self._keep_lease(self._settings.recovery_lease_ms)

    @property
    def _events(self) -> int:
        return self._state.ledger.recent.next_place

    # --- running -------------------------------------------------------------------------------

    def _running(self) -> None:
        while self._leadership.epoch and not self._clock.wait(0):
            self._turn(self._settings.block_ms)
            if self._keep_lease(self._settings.lease_ms):
                self._step_snapshot()

    def _turn(self, block_ms: int | None) -> int:
        """Read, fold, answer, write; return how many entries were read."""
        read = self._connection.read(
            {self._keys.log: self._state.position.offset, self._keys.ask: self._ask_offset},
            count=self._entries_per_read,
            block_ms=None if self._snapshot or self._ready else block_ms,
        )
        entries = read.get(self._keys.log, [])
        if entries:
            self._fold(entries)
        questions = read.get(self._keys.ask, [])
        if questions:
            self._ask_offset = questions[-1][0]
            self._asked.take(questions, self._clock.ticks_ms())
        self._ready.extend(self._asked.ready(self._state.position.offset, self._clock.ticks_ms()))
        self._answer_ready()
        if questions:
            self._unwritten.append(TrimBelow(key=self._keys.ask, entry_id=self._ask_offset))
        self._write()
        return len(entries) + len(questions) + len(self._ready)

    def _answer_ready(self) -> None:
        """Answer questions for a while; the rest is answered in the next turn, after the lease was renewed."""
        until_ms = self._clock.ticks_ms() + _ANSWERING_MS
        while self._ready:
            asked = self._ready.popleft()
            self._reply(asked.question.client, self._answer(asked.question, asked.asked_ms))
            if self._clock.ticks_ms() >= until_ms:
                return

    def _fold(self, entries: Sequence[Entry]) -> None:
        """Fold what is a good piece of work; the next read begins with the rest."""
        folded = fold(self._state.ledger, entries, epoch=self._leadership.epoch)
        count = self._state.position.entries + folded.entries
        self._state.position = Position(offset=entries[folded.entries - 1][0], entries=count)
        self._tell(folded)
        per_entry = max(1, folded.events // folded.entries)
        self._entries_per_read = max(_ENTRIES_MIN, min(_ENTRIES_MAX, self._settings.events_per_turn // per_entry))

    def _tell(self, folded: Folded) -> None:
        """Queue what a fold came to. A dead letter has the id of its entry, so it is written once."""
        for letter in folded.dead:
            self._unwritten.append(
                Append(
                    key=self._keys.dead,
                    fields=letter.fields(),
                    entry_id=letter.source,
                    length_max=DEAD_LENGTH_MAX,
                )
            )
        for client, reply in folded.answers:
            self._reply(client, reply)

    def _reply(self, client: str, reply: Answer) -> None:
        inbox = self._keys.inbox(client)
        fields = [ANSWER_FIELD, reply.encode()]
        self._unwritten.append(Append(key=inbox, fields=fields, length_max=INBOX_LENGTH_MAX))
        self._unwritten.append(Expire(key=inbox, ttl_ms=INBOX_TTL_MS))

    def _answer(self, question: Question, asked_ms: int) -> Answer:
        epoch = self._leadership.epoch
        try:
            result = answer(self._state.ledger, question.kind, question.arguments, asked_ms)
        except InvalidValue as problem:
            return Answer(request_id=question.request_id, epoch=epoch, problem=problem)
        except Exception:  # a question changes nothing, so a fault of ours in one must not stop the others
            log.exception("A question failed", extra={"action": "question_failed", "kind": question.kind})
            fault = InvalidQuestion("kind", "could not be answered; the actor's log says why", reason="internal")
            return Answer(request_id=question.request_id, epoch=epoch, problem=fault)
        if question.kind in _WITH_POSITION:
            result = {**result, **self._own_status()}
        return Answer(request_id=question.request_id, epoch=epoch, result=result)

    def _own_status(self) -> dict[str, Any]:
        return {
            "epoch": self._leadership.epoch,
            "holder": self._settings.holder,
            "offset": self._state.position.offset.decode(),
            "entries": self._state.position.entries,
            "snapshot_offset": self._snapshot_position.offset.decode(),
        }

    def _write(self) -> None:
        """Write what is queued. What the server has no room for stays queued; nothing else does."""
        if not self._unwritten:
            return
        outcomes = self._connection.write(self._unwritten)
        kept: list[Operation] = []
        for operation, outcome in zip(self._unwritten, outcomes, strict=True):
            if not isinstance(outcome, ServerRefused) or "equal or smaller" in str(outcome):
                continue  # done, or done before a restart
            log.error("The server refused a write", extra={"action": "write_refused", "problem": str(outcome)})
            if isinstance(operation, Append) and operation.key == self._keys.dead:
                kept.append(operation)
        self._unwritten = kept

    def _keep_lease(self, lease_ms: int) -> bool:
        """Renew the lease when it is time; tell whether it is still held."""
        ticks_ms = self._clock.ticks_ms()
        if ticks_ms >= self._lease_due_ms:
            self._lease_due_ms = ticks_ms + self._settings.lease_ms // 4
            if not self._leadership.renew(lease_ms):
                log.warning("Lost the lease", extra={"action": "lease_lost"})
        return bool(self._leadership.epoch)

    def _step_snapshot(self) -> None:
        """Do the next piece of a snapshot, if one is under way or due."""
        if self._snapshot is None:
            entries = self._state.position.entries - self._snapshot_position.entries
            due = self._clock.ticks_ms() >= self._snapshot_due_ms or entries >= self._settings.snapshot_every_entries
            if not due or self._unwritten or self._state.position == self._snapshot_position:
                return
            self._begin_snapshot()
        self._advance_snapshot()

    def _begin_snapshot(self) -> None:
        self._leadership.renew(self._settings.recovery_lease_ms)  # copying the state may take a while
        self._pending_position = self._state.position
        snapshot_id = f"{self._leadership.epoch}-{self._snapshot_number}".encode()
        self._snapshot_number += 1  # also when it fails: nobody knows how far it came
        self._snapshot = self._snapshots.write(
            self._state.ledger,
            snapshot_id=snapshot_id,
            position=self._pending_position,
            now_ms=self._clock.now_ms(),
        )

    def _advance_snapshot(self) -> bool:
        """Do one piece of the snapshot under way; tell whether there is more to do."""
        assert self._snapshot is not None
        snapshot, self._snapshot = self._snapshot, None  # whatever happens, the next one drops what came to nothing
        self._snapshot_due_ms = self._clock.ticks_ms() + self._settings.snapshot_every_ms
        try:
            next(snapshot)
        except StopIteration:
            self._snapshot_position = self._pending_position
            log.info("Snapshot taken", extra={"action": "snapshot", "offset": self._snapshot_position.offset.decode()})
        except ServerRefused as refused:
            log.warning("The snapshot was refused", extra={"action": "snapshot_refused", "problem": str(refused)})
        else:
            self._snapshot = snapshot
        return self._snapshot is not None

    # --- teardown ------------------------------------------------------------------------------

    def _teardown(self) -> None:
        """Drain the log, answer who still waits, take a snapshot, give the lease back."""
        if not self._leadership.epoch:
            return
        deadline_ms = self._clock.ticks_ms() + self._settings.drain_ms
        while self._turn(block_ms=None) and self._clock.ticks_ms() < deadline_ms:
            if not self._keep_lease(self._settings.recovery_lease_ms):
                return  # to whoever leads now, the rest of the log is theirs
        self._snapshot = None
        if self._state.position != self._snapshot_position and not self._unwritten:
            self._begin_snapshot()
            while self._advance_snapshot():
                if not self._keep_lease(self._settings.recovery_lease_ms):
                    return
        self._leadership.release()
        log.info("Stopped", extra={"action": "stopped", "offset": self._state.position.offset.decode()})
