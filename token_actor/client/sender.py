"""The sender: the one thread of a client that writes to the log.

``put`` never waits for the network: it appends to a list. The thread takes the list, cuts it into
batches, and sends them until the log has acknowledged every one. A batch that may or may not have
arrived is sent again with the same sequence numbers, which the ledger recognises.

A sender ends in two steps: closed, it takes no more events and its thread ends when all are sent;
given up, the thread ends as soon as it can.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Final

from token_actor.client.lanes import Lane
from token_actor.core.usage import SEPARATOR
from token_actor.errors import BufferFull, ClosedError, LogUnavailable, ServerRefused, TransportError
from token_actor.transport.ports import PutField
from token_actor.wire.keys import Keys, partition_of

if TYPE_CHECKING:
    from token_actor.client.deadline import Deadline
    from token_actor.client.settings import ClientSettings
    from token_actor.core.usage import Event
    from token_actor.transport.ports import Append, Connection, Connector

BATCHES_PER_WRITE: Final = 16  # of at most 64 KiB each: about a megabyte under way
_RETRY_S: Final = (0.05, 2.0)  # between attempts: the first wait, and the longest
_LOG_EVERY_S: Final = 10.0
_KEPT: Final = "are kept and sent again"
_GIVEN_UP: Final = "are given up"

log = logging.getLogger("token_actor.client")
retired: set[Sender] = set()  # without a client, but not without events; see Sender.retire


class Sender:
    """Bring events to the log, in order and without losing one while this process lives."""

    def __init__(self, connector: Connector, settings: ClientSettings) -> None:
        """Prepare; the thread starts with the first event."""
        self._connector = connector
        self._settings = settings
        self._changed = threading.Condition()
        self._buffer: list[Event] = []
        self._oldest_at = 0.0
        self._recorded = 0
        self._acknowledged = 0
        self._flush_to = 0
        self._closed = False
        self._given_up = False
        self._ended = False
        self._thread: threading.Thread | None = None
        self._producer = uuid.uuid4().bytes
        self._lanes: dict[int, Lane] = {}
        self._partitions: int | None = None
        self._failure = ""
        self._logged_at = -_LOG_EVERY_S

    @property
    def pending(self) -> int:
        """Return how many events are not known to be in the log."""
        return self._recorded - self._acknowledged

    def put(self, event: Event) -> None:
        """Take one event. Does not wait.

        Raises ``BufferFull`` when too many events already wait for the log, ``ClosedError``, and
        ``LogUnavailable`` when a fault has ended the thread that sends.
        """
        with self._changed:
            if self._closed:
                raise ClosedError("the client is closed")
            if self._ended:
                message = f"{self._failure}; this event was not recorded, and {self.pending} before it {_GIVEN_UP}"
                raise LogUnavailable(message, timeout_s=0, pending=self.pending)
            if self.pending >= self._settings.buffer_events_max:
                raise BufferFull(
                    f"{self.pending} events wait for the log, which is the bound: {self._failure or 'it is too slow'}; "
                    "this event was not recorded",
                    pending=self.pending,
                )
            if self._thread is None:
                self._start()
            self._recorded += 1
            self._buffer.append(event)
            waiting = len(self._buffer)
            if waiting == 1:
                self._oldest_at = time.monotonic()
            if waiting in {1, self._settings.batch_events_max}:
                self._changed.notify_all()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="token-actor-sender", daemon=True)
        thread.start()  # the system may refuse; then the next event tries again
        self._thread = thread

    def flush(self, deadline: Deadline) -> None:
        """Wait until everything put so far is in the log. Raises ``LogUnavailable``; nothing is dropped."""
        self._await_log(deadline, otherwise=_KEPT)

    def _await_log(self, deadline: Deadline, *, otherwise: str) -> None:
        with self._changed:
            target = self._recorded
            self._flush_to = max(self._flush_to, target)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._acknowledged >= target or self._ended, deadline.left_s)
            if self._acknowledged < target:
                raise LogUnavailable(
                    f"{self.pending} events are not in the log of {self._connector.address} yet "
                    f"({self._failure or 'it did not answer in time'}); they {_GIVEN_UP if self._ended else otherwise}",
                    timeout_s=deadline.timeout_s,
                    pending=self.pending,
                )

    def last_id(self, partition: int) -> bytes | None:
        """Return the id of this process's last entry in the log of a partition, ``None`` if it has none."""
        lane = self._lanes.get(partition)
        return None if lane is None else lane.last_id

    def close(self, deadline: Deadline) -> None:
        """Flush, then end the thread. Raises ``LogUnavailable`` when events had to be given up."""
        with self._changed:
            self._closed = True  # before the flush: an event taken during it would be in nobody's care
        try:
            self._await_log(deadline, otherwise=_GIVEN_UP)
        finally:
            with self._changed:
                self._given_up = True
                self._changed.notify_all()
            if self._thread is not None:
                self._thread.join(max(0.1, deadline.left_s))

    def retire(self) -> None:
        """End when everything is sent, because nobody is left who could put or flush. Does not wait.

        Until then it is among ``retired``, so that the end of the interpreter can wait for it.
        """
        with self._changed:
            self._closed = True
            if self.pending and not self._ended:
                retired.add(self)
            self._changed.notify_all()

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with closing(self._connector.connect()) as connection:
                while events := self._take():
                    self._send(connection, events)
        except Exception as error:
            self._failure = f"the sender failed: {error!r}"
            log.exception("The sender failed", extra={"action": "sender_failed", "pending": self.pending})
        finally:
            with self._changed:
                self._ended = True
                retired.discard(self)
                self._changed.notify_all()

    def _take(self) -> list[Event]:
        """Wait until there is something to send, and a reason to send it now; empty means the end."""
        with self._changed:
            while not self._given_up:
                if self._buffer:
                    wait_s = self._oldest_at + self._settings.batch_age_ms / 1000 - time.monotonic()
                    if wait_s <= 0 or self._is_due():
                        events, self._buffer = self._buffer, []
                        return events
                    self._changed.wait(wait_s)
                elif self._closed:
                    break
                else:
                    self._changed.wait()
            return []

    def _is_due(self) -> bool:
        """Tell whether somebody waits for the events, or a batch is full."""
        full = len(self._buffer) >= self._settings.batch_events_max
        return full or self._closed or self._flush_to > self._acknowledged

    def _send(self, connection: Connection, events: list[Event]) -> None:
        """Send events until all of them are in the log, or they are given up."""
        wait_s = _RETRY_S[0]
        queued = False
        while not self._given_up:
            try:
                if not queued:
                    self._queue(connection, events)
                    queued = True
                while any(lane.waiting for lane in self._lanes.values()):
                    for lane in self._lanes.values():
                        self._write(connection, lane)
                self._failure = ""
            except TransportError as error:
                self._note_failure(error)
                with self._changed:
                    self._changed.wait_for(lambda: self._given_up, wait_s)
                wait_s = min(2 * wait_s, _RETRY_S[1])
            else:
                return

    def _queue(self, connection: Connection, events: list[Event]) -> None:
        """Cut events into batches, each in the lane of its tenant's partition."""
        partitions = self.partitions(connection) or self._begin_with_one(connection)
        by_partition: dict[int, list[Event]] = {}
        if partitions == 1:
            by_partition[0] = events
        else:
            for event in events:
                tenant = event.series.partition(SEPARATOR)[0]
                by_partition.setdefault(partition_of(tenant, partitions), []).append(event)
        size = self._settings.batch_events_max
        for partition, of_partition in by_partition.items():
            for start in range(0, len(of_partition), size):
                self._lane(partition).add(of_partition[start : start + size])

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

    def _lane(self, partition: int) -> Lane:
        lane = self._lanes.get(partition)
        if lane is None:
            key = Keys(self._settings.namespace, partition).log
            lane = Lane(key, producer=self._producer, resend_share=self._settings.resend_share)
            self._lanes[partition] = lane
        return lane

    def _write(self, connection: Connection, lane: Lane) -> None:
        """Append the first waiting batches of a lane. Raises ``TransportError`` for the first that failed."""
        appends = lane.appends(BATCHES_PER_WRITE)
        if not appends:
            return
        repetitions: list[Append] = []
        outcomes = connection.write(appends)
        for outcome in outcomes:
            if isinstance(outcome, ServerRefused):
                raise outcome
            assert isinstance(outcome, bytes), "an append returns an id"
            self._acknowledge(lane, outcome, repetitions)
        if repetitions:
            connection.write(repetitions)

    def _acknowledge(self, lane: Lane, entry_id: bytes, repetitions: list[Append]) -> None:
        count = lane.waiting[0].events
        repetition = lane.acknowledged(entry_id)
        if repetition is not None:
            repetitions.append(repetition)
        with self._changed:
            self._acknowledged += count
            self._changed.notify_all()

    def _note_failure(self, error: TransportError) -> None:
        self._failure = str(error)
        if time.monotonic() - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = time.monotonic()
            log.warning(
                "Usage cannot be sent; it is kept and sent again",
                extra={"action": "send_failed", "pending": self.pending, "problem": str(error)},
            )
