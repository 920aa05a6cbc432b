"""The sender: the one thread of a client that writes to the log.

``put`` never waits for the network: it appends to a list. The thread takes the list, cuts it into
batches, and sends them until the log has acknowledged every one. A batch that may or may not have
arrived is sent again with the same sequence numbers, which the ledger recognises.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from typing import TYPE_CHECKING, Final

from token_actor.client.lanes import Lane
from token_actor.core.usage import SEPARATOR
from token_actor.errors import BufferFull, ClosedError, LogUnavailable, ServerRefused, TransportError
from token_actor.wire.keys import Keys, partition_of

if TYPE_CHECKING:
    from token_actor.client.settings import ClientSettings
    from token_actor.core.usage import Event
    from token_actor.transport.ports import Append, Connection, Connector

BATCHES_PER_WRITE: Final = 16  # of at most 64 KiB each: about a megabyte under way
_RETRY_S: Final = (0.05, 2.0)  # between attempts: the first wait, and the longest
_LOG_EVERY_S: Final = 10.0

log = logging.getLogger("token_actor.client")


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
        self._closing = False
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

        Raises ``BufferFull`` when too many events already wait for the log, ``ClosedError``.
        """
        with self._changed:
            if self._closing:
                raise ClosedError("the client is closed")
            if self.pending >= self._settings.buffer_events_max:
                raise BufferFull(
                    f"{self.pending} events wait for the log, which is the bound: {self._failure or 'it is too slow'}; "
                    "this event was not recorded",
                    pending=self.pending,
                )
            self._recorded += 1
            self._buffer.append(event)
            waiting = len(self._buffer)
            if waiting == 1:
                self._oldest_at = time.monotonic()
            if waiting in {1, self._settings.batch_events_max}:
                if self._thread is None:
                    self._start()
                self._changed.notify_all()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="token-actor-sender", daemon=True)
        self._thread.start()

    def flush(self, deadline: float) -> None:
        """Wait until everything put so far is in the log.

        ``deadline`` is by the monotonic clock. Raises ``LogUnavailable`` at it; nothing is dropped.
        """
        with self._changed:
            target = self._recorded
            self._flush_to = max(self._flush_to, target)
            self._changed.notify_all()
            while self._acknowledged < target:
                timeout_s = deadline - time.monotonic()
                if timeout_s <= 0 or not self._changed.wait(timeout_s):
                    self._raise_unavailable()

    def _raise_unavailable(self) -> None:
        reason = self._failure or "it did not answer in time"
        raise LogUnavailable(
            f"{self.pending} events are not in the log of {self._connector.address} yet ({reason}); "
            "they are kept and sent again",
            timeout_s=self._settings.timeout_s,
            pending=self.pending,
        )

    def last_id(self, partition: int) -> bytes | None:
        """Return the id of this process's last entry in the log of a partition, ``None`` if it has none."""
        lane = self._lanes.get(partition)
        return None if lane is None else lane.last_id

    def close(self, deadline: float) -> None:
        """Flush, then end the thread. Raises ``LogUnavailable`` when events had to be given up."""
        try:
            self.flush(deadline)
        finally:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            if self._thread is not None:
                self._thread.join(max(0.1, deadline - time.monotonic()))

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        connection = self._connector.connect()
        try:
            while events := self._take():
                self._send(connection, events)
        finally:
            connection.close()

    def _take(self) -> list[Event]:
        """Wait until there is something to send, and a reason to send it now; empty means the end."""
        with self._changed:
            while not self._closing:
                if not self._buffer:
                    self._changed.wait()
                    continue
                ready = len(self._buffer) >= self._settings.batch_events_max or self._flush_to > self._acknowledged
                wait_s = self._oldest_at + self._settings.batch_age_ms / 1000 - time.monotonic()
                if ready or wait_s <= 0:
                    events, self._buffer = self._buffer, []
                    return events
                self._changed.wait(wait_s)
            return []

    def _send(self, connection: Connection, events: list[Event]) -> None:
        """Send events until all of them are in the log, or the client is closed."""
        wait_s = _RETRY_S[0]
        queued = False
        while not self._closing:
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
                    self._changed.wait_for(lambda: self._closing, wait_s)
                wait_s = min(2 * wait_s, _RETRY_S[1])
            else:
                return

    def _queue(self, connection: Connection, events: list[Event]) -> None:
        """Cut events into batches, each in the lane of its tenant's partition."""
        partitions = self.partitions(connection)
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

    def partitions(self, connection: Connection) -> int:
        """Return the number of partitions of the namespace; 1 until an actor has said otherwise."""
        if self._partitions is None:
            fields = connection.get_fields(Keys(self._settings.namespace).meta)
            if b"partitions" not in fields:
                return 1
            self._partitions = int(fields[b"partitions"])
        return self._partitions

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
