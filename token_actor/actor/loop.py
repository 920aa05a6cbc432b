"""The loop: an actor stands by or leads, and either way folds the log; again and again.

One turn of a leader is one read and at most one write. There are no timers and no minimum batch:
under load the reads grow by themselves, and the cost per event falls. This is the only place that
reads a clock.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from token_actor.actor.desk import Desk
from token_actor.actor.escrow import EscrowKeeper
from token_actor.actor.follower import Follower
from token_actor.actor.leadership import Leadership
from token_actor.actor.letters import Mail
from token_actor.actor.manifests import newest_manifest
from token_actor.actor.recovery import check_partitions
from token_actor.actor.saving import Saving
from token_actor.actor.standing import standing_of
from token_actor.actor.succession import is_better, knows_more, name_of
from token_actor.actor.timekeeping import Timekeeper
from token_actor.actor.trouble import Trouble
from token_actor.errors import LeadershipLost, ServerRefused, ServerUnavailable, SnapshotError
from token_actor.transport.ports import FIRST, Append, Delete
from token_actor.wire.clock import CLOCK_FIELD, ClockEntry
from token_actor.wire.entries import LAST_ID, id_pair, log_ms_of

if TYPE_CHECKING:
    from token_actor.actor.fold import Folded
    from token_actor.actor.settings import ActorSettings, Clock
    from token_actor.transport.ports import Connection

_RETRY_MS: Final = (50, 1_000)  # after a lost connection or a refusal: the first wait, and the longest
_RENEWALS_PER_LEASE, _LOOKS_PER_LEASE = 4, 20
log = logging.getLogger(__name__)


class Actor:
    """Own one partition: follow its log, lead when nobody else does, and run until asked to stop."""

    def __init__(self, connection: Connection, settings: ActorSettings, clock: Clock) -> None:
        """Prepare; nothing is read or written yet."""
        self._connection = connection
        self._settings = settings
        self._keys = settings.keys
        self._clock = clock
        self._leadership = Leadership(connection, self._keys, holder=settings.holder, lease_ms=settings.lease_ms)
        self._follower = Follower(connection, settings)
        self._letters = Mail(connection, self._keys)
        self._saving = Saving(connection, settings, clock, self._follower, self._leadership)
        self._desk = self._new_desk()
        self._escrows = EscrowKeeper(connection, settings, clock, self._follower, self._leadership)
        self._timekeeper = Timekeeper(clock)
        self._answers_from = FIRST
        self._hears_questions = True
        self._deaf = False
        self._due_ms = 0
        self._standing_by = False
        self._known_snapshot: tuple[bytes, int] | None = None
        self._trouble = Trouble()
        self._awaits_snapshot = False

    def run(self) -> None:
        """Serve until asked to stop, through every loss of connection and of the lease.

        Raises ``SnapshotError`` when the state cannot be restored, ``SetupError`` when the namespace
        has another number of partitions, ``ServerRefused`` when the server does not let this process
        work at all.
        """
        wait_ms = _RETRY_MS[0]
        while not self._clock.wait(0):
            try:
                self.step()
            except LeadershipLost:
                log.warning("Lost the lease", extra={"action": "lease_lost"})
                self._due_ms = 0
            except (ServerUnavailable, ServerRefused) as error:
                self._trouble.note(error)
                self._due_ms = 0
                self._clock.wait(wait_ms / 1000)
                wait_ms = min(2 * wait_ms, _RETRY_MS[1])
            else:
                wait_ms = _RETRY_MS[0]
                self._trouble.end()
        self._hand_over()

    def step(self) -> None:
        """Do one piece of work: a turn of a leader, or of one who stands by. Waits a little for the log."""
        if not self._leadership.epoch:
            self._stand_by()
        elif self._desk.epoch == self._leadership.epoch:
            self._lead()
        else:
            self._take_over()

    def _is_due(self, times_per_lease: int) -> bool:
        """Tell whether it is time again for what is done so many times per lease."""
        ticks_ms = self._clock.ticks_ms()
        if ticks_ms < self._due_ms:
            return False
        self._due_ms = ticks_ms + self._settings.lease_ms // times_per_lease
        return True

    # --- standing by ---------------------------------------------------------------------------

    def _stand_by(self) -> None:
        """Follow the log, and lead when nobody does."""
        if self._follower.recovered:
            self._fold_standing_by()
        else:
            self._recover()
        if not (self._follower.recovered and self._is_due(_LOOKS_PER_LEASE)):
            return
        if not self._goes_on():
            self._follower.forget()
            return
        if self._leadership.contend(self._clock.ticks_ms()):
            self._take_over()
            return
        if not self._standing_by:
            self._standing_by = True
            log.info("Standing by", extra={"action": "standing_by"})
        self._letters.drop_written()

    def _recover(self) -> None:
        check_partitions(self._connection, self._keys, self._settings.partitions)
        manifest = newest_manifest(self._connection, self._keys)
        self._known_snapshot = name_of(manifest)
        self._letters.forget()
        alone = self._leadership.is_free(self._clock.ticks_ms())
        try:
            recovered = self._follower.recover(alone=alone)
        except SnapshotError as error:
            if alone:
                raise
            self._await_snapshot(error)
            return
        self._awaits_snapshot = False
        for folded in recovered:
            self._letters.add(folded)
        log.info("Recovered", extra={"action": "recovered", "offset": self._follower.position.offset.decode()})
        self._due_ms = 0

    def _await_snapshot(self, error: SnapshotError) -> None:
        """Wait for the leader to save what it has and the log has not."""
        if not self._awaits_snapshot:
            extra = {"action": "snapshot_awaited", "problem": str(error)}
            log.warning("The leader has to take a snapshot before this process can stand by", extra=extra)
        self._awaits_snapshot = True
        self._clock.wait(_RETRY_MS[1] / 1000)

    def _fold_standing_by(self) -> None:
        """Read and fold; waits for as long as a leader may need to give the lease back."""
        entries = self._follower.read({}, block_ms=self._settings.standby_block_ms).get(self._keys.log)
        if entries:
            self._letters.add(self._follower.fold(entries, epoch=0))

    def _goes_on(self) -> bool:
        """Tell whether the state is the one that the log and the leader go on from.

        One that the leader's will differ from is kept until the leader has saved its own: it may be the
        only one there is.
        """
        manifest = newest_manifest(self._connection, self._keys)
        is_new = name_of(manifest) != self._known_snapshot
        self._known_snapshot = name_of(manifest)
        if is_better(self._connection, self._keys.log, self._follower, manifest, is_new=is_new):
            return False
        found = self._follower.find_break()
        if found is None or not found.replaced:
            return found is None
        if knows_more(self._follower, newest_manifest(self._connection, self._keys)):
            return False
        for folded in self._follower.rejoin(epoch=0):
            self._letters.add(folded)
        return True

    def _take_over(self) -> None:
        """Begin to lead, with the state that was followed so far; when the server goes away, the next turn does."""
        if not self._leadership.renew():
            raise LeadershipLost("the lease is somebody else's")
        if not (self._follower.recovered and self._goes_on()):  # the leader before has saved more; maybe just now
            self._follower.forget()
            self._leadership.release()
            return
        newest = self._connection.range(self._keys.log, count=1, newest_first=True)
        self._answers_from = newest[0][0] if newest else FIRST
        self._timekeeper = Timekeeper(self._clock)
        self._escrows.forget()
        self._saving.begin(newest_manifest(self._connection, self._keys))
        if self._follower.replaced or self._follower.position.generation == 0:
            self._begin_generation()
        self._standing_by = False
        self._due_ms = 0
        self._desk = self._new_desk()
        log.info("Leading", extra={"action": "leading", "epoch": self._leadership.epoch})

    def _begin_generation(self) -> None:
        """Count the log as a new one, so that clients send again what it may lack; save what was counted."""
        self._escrows.forget()
        position = self._follower.position
        self._follower.position = replace(position, generation=max(position.generation + 1, self._clock.now_ms()))
        if self._follower.replaced:
            self._saving.forget()

    # --- leading -------------------------------------------------------------------------------

    def _lead(self) -> None:
        """Take one turn: keep the lease, read, fold, answer, write, and do a piece of a snapshot."""
        if self._is_due(_RENEWALS_PER_LEASE):
            self._keep_lease()
        self._turn(None if self._saving.under_way or self._desk.busy else self._settings.block_ms)
        if not self._letters:  # a snapshot says that everything up to it is done
            self._saving.step()

    def _keep_lease(self) -> None:
        """Renew the lease, and see whether the log is still the one we read."""
        if not self._leadership.renew():
            raise LeadershipLost("the lease is somebody else's")
        check_partitions(self._connection, self._keys, self._settings.partitions)
        self._look_after_questions()
        self._saving.check()
        found = self._follower.find_break()
        if found is not None and found.replaced:
            for folded in self._follower.rejoin(epoch=self._leadership.epoch):
                self._tell(folded)
            self._answers_from = FIRST
            self._begin_generation()
        elif found is not None:
            self._follower.accept_loss(found)
            self._begin_generation()
            self._saving.hurry()  # until it is saved, nobody else can go on from here
            log.error(
                "Entries of the log were removed before they could be counted",
                extra={"action": "log_trimmed", "lost": found.lost},
            )
        if self._follower.position.offset == LAST_ID and self._saving.saved_all:
            self._leadership.write([Delete(keys=[self._keys.log])])  # nothing can be appended after that id
            self._follower.begin_anew()
            self._answers_from = FIRST
            self._begin_generation()

    def _look_after_questions(self) -> None:
        """Let go of the questions that were taken; begin anew when the server has lost their stream."""
        self._hears_questions = True
        try:
            stream = None if self._desk.offset == FIRST else self._connection.stream_state(self._keys.ask)
        except ServerRefused as refused:
            self._stop_hearing(refused)
            self._desk.offset = FIRST
            return
        if stream is None or id_pair(stream.last_id) < id_pair(self._desk.offset):
            self._desk.offset = FIRST
        elif stream.last_id == LAST_ID and self._desk.offset == LAST_ID:
            self._leadership.write([Delete(keys=[self._keys.ask])])  # nothing can be asked after that id
            self._desk.offset = FIRST
        else:
            self._leadership.write([self._desk.trim()])

    def _stop_hearing(self, refused: ServerRefused) -> None:
        """Leave questions alone until the next look, because their key holds something else; the log goes on."""
        if refused.code != "WRONGTYPE":
            raise refused
        self._hears_questions = False
        if not self._deaf:
            log.warning("Questions cannot be read", extra={"action": "questions_unread", "problem": str(refused)})
        self._deaf = True

    def _turn(self, block_ms: int | None) -> None:
        """Read, fold, answer, write."""
        questions = {self._keys.ask: self._desk.offset} if self._answers and self._hears_questions else {}
        waking_ms = self._follower.ledger.admission.waking_ms
        if block_ms is not None and waking_ms is not None:
            block_ms = min(block_ms, self._timekeeper.until_ms(waking_ms)) or None
        try:
            read = self._follower.read(questions, block_ms=block_ms)
        except ServerRefused as refused:
            if not questions:
                raise
            self._stop_hearing(refused)  # if it is the log that cannot be read, the next turn says so
            return
        self._deaf = self._deaf and not questions
        if entries := read.get(self._keys.log):
            self._tell(self._follower.fold(entries, epoch=self._leadership.epoch))
        self._keep_time(anything_read=bool(entries))
        if asked := read.get(self._keys.ask):
            self._desk.take(asked, self._timekeeper)
        self._desk.answer_ready()
        self._escrows.step()  # before anybody is told what the limits are now
        self._letters.write(self._leadership)
        self._desk.send()

    def _keep_time(self, *, anything_read: bool) -> None:
        """Tell the log what time it is, if it does not know; let time go on for those who wait for it."""
        id_ms = log_ms_of(self._follower.position.offset) if anything_read else None
        told_ms = self._timekeeper.look(
            id_ms=id_ms,
            log_ms=0 if id_ms is None else self._follower.ledger.time.of(id_ms),
            all_read=self._follower.all_read or not anything_read,
        )
        if told_ms is not None:
            log.info("Telling the log the time", extra={"action": "clock", "now_ms": told_ms})
        elif not self._timekeeper.nudges(self._follower.ledger.admission.waking_ms):
            return
        clock = ClockEntry(told_ms, self._leadership.epoch)
        self._leadership.write([Append(key=self._keys.log, fields=[CLOCK_FIELD, clock.encode()])])

    @property
    def _answers(self) -> bool:
        """Tell whether everything that was in the log when this process began to lead is folded."""
        return id_pair(self._follower.reached) >= id_pair(self._answers_from)

    def _tell(self, folded: Folded) -> None:
        """Queue what a fold came to."""
        self._letters.add(folded)
        self._escrows.note(folded.decided, folded.taken)
        for client, reply in folded.answers:
            self._desk.reply(client, reply)

    def _new_desk(self) -> Desk:
        return Desk(
            self._connection,
            self._keys,
            self._follower,
            epoch=self._leadership.epoch,
            clock=self._clock,
            standing=standing_of(self._connection, self._settings, self._leadership, self._follower, self._saving),
        )

    # --- the end -------------------------------------------------------------------------------

    def _hand_over(self) -> None:
        """Answer who still waits and give the lease back; the next leader goes on from the log."""
        if not self._leadership.epoch:
            return
        try:
            if self._desk.epoch == self._leadership.epoch:
                until_ms = self._clock.ticks_ms() + self._settings.lease_ms // _RENEWALS_PER_LEASE
                self._turn(None)
                while self._desk.busy and self._clock.ticks_ms() < until_ms:
                    self._turn(None)
            self._leadership.release()
        except (ServerUnavailable, ServerRefused, LeadershipLost) as error:
            log.warning("Stopped without a word to the next", extra={"action": "stopped", "problem": str(error)})
            return
        log.info("Stopped", extra={"action": "stopped", "offset": self._follower.position.offset.decode()})
