"""The delivery: what the sender's thread does with events that were taken from its buffer.

It saves, sends and asks, each when it is due, and tries again later what fails. What is to be done is
decided in ``client.outbox``; here are the clock, the disk and the network.
"""

from __future__ import annotations

import logging
import time
import uuid
from typing import TYPE_CHECKING, Final

from token_actor.client.outbox import Outbox
from token_actor.client.poll import Poll
from token_actor.client.spool import open_spool
from token_actor.errors import BadEntry, ServerRefused, SpoolError, TransportError
from token_actor.transport.ports import PutField
from token_actor.wire.keys import Keys

if TYPE_CHECKING:
    import threading

    from token_actor.client.lanes import Lane
    from token_actor.client.settings import ClientSettings
    from token_actor.client.store import Store
    from token_actor.core.usage import Event
    from token_actor.transport.ports import Append, Connection

NEVER: Final = float("inf")
_RETRY_S: Final = (0.05, 2.0)  # between attempts: the first wait, and the longest
_POLL_S: Final = (1.0, 5.0)  # between questions for the watermark: while they are answered, and the longest
_ADOPT_S: Final = 30.0  # between looks for spools that others left behind
_LOG_EVERY_S: Final = 10.0

log = logging.getLogger("token_actor.client")


class Delivery:
    """Save and send events, for one thread.

    Others may look, holding ``changed``: at ``acknowledged`` and ``saved``, how many of the events taken
    are in the log and on disk, at ``full``, why the disk takes no more, and at ``failure``, why the log
    does not. ``changed`` is told whenever one of them is another.
    """

    def __init__(self, settings: ClientSettings, changed: threading.Condition) -> None:
        """Start with nothing taken, and without a spool."""
        self.acknowledged = 0
        self.saved = 0
        self.full = ""
        self.failure = ""
        self.producer = uuid.uuid4().bytes
        self._settings = settings
        self._changed = changed
        self._store: Store | None = None
        self._outbox = self._new_outbox()
        self._poll = Poll(settings.namespace)
        self._partitions: int | None = None
        self._uncut: list[Event] = []
        self._taken = 0
        self._logged_at: dict[str, float] = {}
        self._retry = _Backoff(*_RETRY_S)
        self._save_retry = _Backoff(*_RETRY_S)
        self._poll_retry = _Backoff(*_POLL_S)
        self._adopt_at = NEVER

    def _new_outbox(self) -> Outbox:
        settings = self._settings
        return Outbox(
            settings.namespace,
            producer=self.producer,
            batch_events_max=settings.batch_events_max,
            resend_share=settings.resend_share,
            store=self._store,
            store_bytes_max=settings.spool_bytes_max,
        )

    def open_spool(self, folder: str, address: str) -> None:
        """Keep events in a spool from now on. Raises ``SetupError``."""
        self._store = open_spool(folder, namespace=self._settings.namespace, address=address)
        self.producer = self._store.producer
        self._outbox = self._new_outbox()
        self._adopt_at = 0.0

    @property
    def has_spool(self) -> bool:
        """Tell whether events outlive the process."""
        return self._store is not None

    @property
    def has_place(self) -> bool:
        """Tell whether events can be taken: not as long as those before them have no place.

        So their number is bounded, and batches get full.
        """
        return not self.full if self.has_spool else not (self._uncut or self._outbox.is_waiting)

    @property
    def due_at(self) -> float:
        """Return when there is something to do without new events; ``NEVER`` if there will not be."""
        save_at = self._save_retry.at if self.full else NEVER
        send_at = self._retry.at if self._uncut or self._outbox.is_waiting else NEVER
        poll_at = max(self._poll_retry.at, self._retry.at) if self._outbox.is_kept else NEVER
        return min(save_at, send_at, poll_at, self._adopt_at)

    def last_id(self, partition: int) -> bytes | None:
        """Return the id of this process's last entry in the log of a partition, ``None`` if it has none."""
        lane = self._outbox.lanes.get(partition)
        return None if lane is None else lane.last_id

    def work(self, connection: Connection, events: list[Event]) -> None:
        """Take events, and do what is due: save, send, ask. What fails is tried again later."""
        self._uncut += events
        self._taken += len(events)
        try:
            if self._store is not None:
                self._save_what_is_due()
            if self._retry.at <= time.monotonic():
                self._bring(connection)
        except TransportError as error:
            self.failure = str(error)
            self._retry.later()
            self.warn("send_failed", "Usage cannot be sent; it is kept and sent again", self.failure)
        except SpoolError as error:
            self._retry.later()
            self.warn("spool_failed", "The spool cannot be read; it is tried again", str(error))

    def _save_what_is_due(self) -> None:
        now = time.monotonic()
        if self._adopt_at <= now:
            self._adopt_at = now + _ADOPT_S
            adopted = self._outbox.adopt()
            if adopted:
                log.info("Took over what others had left", extra={"action": "spool_adopted", "events": adopted})
        if self._uncut:
            self._outbox.add(self._uncut, self._partitions)
            self._uncut = []
            self._save()
        elif self.full and self._save_retry.at <= now:
            self._save()

    def _save(self) -> None:
        """Bring what is new to the disk, and what became of the rest."""
        try:
            full = "" if self._outbox.save() else f"it holds {self._outbox.stored_bytes:,} bytes, which is the bound"
        except SpoolError as error:
            full = str(error)
        if full:
            self._save_retry.later()
            self.warn("spool_failed", "The spool takes nothing more; what is recorded waits in memory", full)
        else:
            self._save_retry.reset()
        with self._changed:
            self.saved = self._taken - self._outbox.unsaved_events
            self.full = full if self._outbox.unsaved_events else ""
            self._changed.notify_all()

    def _bring(self, connection: Connection) -> None:
        """Send some of what waits, and ask what has become of the rest."""
        partitions = self.partitions(connection)
        if self._uncut or self._outbox.is_waiting:
            partitions = partitions or self._begin_with_one(connection)
            self._outbox.place(partitions)
            if self._uncut:
                self._outbox.add(self._uncut, partitions)
                self._uncut = []
            for lane in list(self._outbox.lanes.values()):
                self._write(connection, lane)
        if self.failure:
            self.failure = ""
            self._poll_retry.reset()  # nobody knows what the server has lost
        self._retry.reset()
        if self._outbox.is_kept and self._poll_retry.at <= time.monotonic():
            self._ask(connection)

    def _ask(self, connection: Connection) -> None:
        """Ask the actors what they have counted. An actor that is away, or does not understand, costs a moment."""
        try:
            for asked, answer in self._poll.ask(connection, self._outbox.questions()):
                self._outbox.answered(asked, answer)
                self._poll_retry.reset()
        except (ServerRefused, BadEntry) as error:
            self.warn("poll_failed", "Nobody tells what is safe; the spool keeps it", str(error))
        self._poll_retry.later()
        if self._outbox.has_notes:
            self._save()

    def leave(self, events: list[Event]) -> None:
        """Take the last events, save what is not saved yet, and let the next one have the spool."""
        if self._store is None:
            return
        self._uncut += events
        self._taken += len(events)
        if self._uncut:
            self._outbox.add(self._uncut, self._partitions)
            self._uncut = []
        if self._outbox.has_notes:
            self._save()
        self._store.close()

    def partitions(self, connection: Connection) -> int | None:
        """Return the number of partitions of the namespace; ``None`` until somebody has written it down."""
        if self._partitions is None:
            fields = connection.get_fields(Keys(self._settings.namespace).meta)
            if b"partitions" in fields:
                self._partitions = int(fields[b"partitions"])
        return self._partitions

    def _begin_with_one(self, connection: Connection) -> int:
        """Write down that there is one partition, or learn that somebody else was quicker.

        From the first entry on, tenants have their places: an actor that wants more partitions has to hear of it.
        """
        meta = Keys(self._settings.namespace).meta
        (outcome,) = connection.write([PutField(key=meta, field=b"partitions", value=b"1")])
        if isinstance(outcome, ServerRefused):
            raise outcome
        partitions = self.partitions(connection)
        assert partitions is not None, "it has just been written"
        return partitions

    def _write(self, connection: Connection, lane: Lane) -> None:
        """Append the first waiting batches of a lane. Raises ``TransportError`` for the first that failed."""
        appends = self._outbox.appends(lane)
        self._note_lost()
        if not appends:
            return
        repetitions: list[Append] = []
        for outcome in connection.write(appends):
            if isinstance(outcome, ServerRefused):
                raise outcome
            assert isinstance(outcome, bytes), "an append returns an id"
            own, repetition = self._outbox.acknowledged(lane, outcome)
            if repetition is not None:
                repetitions.append(repetition)
            with self._changed:
                self.acknowledged += own
                self._changed.notify_all()
        if repetitions:
            connection.write(repetitions)

    def _note_lost(self) -> None:
        lost, own = self._outbox.take_lost()
        if lost:
            log.error("The disk has not kept a batch as it was written", extra={"action": "spool_lost", "events": lost})
            with self._changed:
                self.acknowledged += own  # nobody can wait for them any more
                self._changed.notify_all()

    def warn(self, action: str, message: str, problem: str) -> None:
        """Warn, but of one thing not more often than people read."""
        if time.monotonic() - self._logged_at.get(action, -_LOG_EVERY_S) >= _LOG_EVERY_S:
            self._logged_at[action] = time.monotonic()
            log.warning(
                message, extra={"action": action, "pending": self._taken - self.acknowledged, "problem": problem}
            )


class _Backoff:
    """Say when to try again: soon at first, then twice as late each time, up to a bound."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        """Begin with the first wait."""
        self._first_s, self._longest_s = first_s, longest_s
        self.reset()

    def reset(self) -> None:
        """Try at once."""
        self.at = 0.0
        self._wait_s = self._first_s

    def later(self) -> None:
        """Try after a while."""
        self.at = time.monotonic() + self._wait_s
        self._wait_s = min(2 * self._wait_s, self._longest_s)
