"""The sender: the one thread of a client that writes to the log.

``put`` never waits for the network: it appends to a list. The thread takes the list, has it cut into
batches, saved to the spool if there is one, and sends them until the log has acknowledged every one. A
batch that may or may not have arrived is sent again with the same sequence numbers, which the ledger
recognises. What is to be sent is decided in ``client.outbox``.

A sender ends in two steps: closed, it takes no more events and its thread ends when all are sent;
given up, the thread ends as soon as it can. What is in the spool then stays there.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

from token_actor.client.delivery import NEVER, Delivery
from token_actor.core.texts import counted
from token_actor.errors import BufferFull, ClosedError, LogUnavailable, SpoolFull

if TYPE_CHECKING:
    from token_actor.client.deadline import Deadline
    from token_actor.client.settings import ClientSettings
    from token_actor.core.usage import Event
    from token_actor.transport.ports import Connection, Connector

_LOG_EVERY_S: Final = 10.0
_KEPT: Final = "kept and sent again"
_GIVEN_UP: Final = "given up"
_LEFT: Final = "kept in the spool, and sent when it is opened again"

log = logging.getLogger("token_actor.client")
retired: set[Sender] = set()  # without a client, but not without events; see Sender.retire


class Sender:
    """Bring events to the log, in order and without losing one while this process lives."""

    def __init__(self, connector: Connector, settings: ClientSettings) -> None:
        """Prepare; the thread starts with the first event, or with ``start``."""
        self._connector = connector
        self._settings = settings
        self._changed = threading.Condition()
        self._buffer: list[Event] = []
        self._oldest_at = 0.0
        self._recorded = 0
        self._flush_to = 0
        self._closed = False
        self._given_up = False
        self._ended = False
        self._thread: threading.Thread | None = None
        self._delivery = Delivery(settings, self._changed)

    @property
    def pending(self) -> int:
        """Return how many events are not known to be in the log."""
        return self._recorded - self._delivery.acknowledged

    def put(self, event: Event) -> None:
        """Take one event. Waits for nothing but room in a spool that is full, unless it is to raise ``SpoolFull``.

        Raises ``BufferFull`` when too many events already wait in memory, ``ClosedError``, ``SetupError``
        when the spool cannot be opened, and ``LogUnavailable`` when a fault has ended the thread that sends.
        """
        with self._changed:
            self._await_room()
            if self._closed:
                raise ClosedError("the client is closed")
            if self._ended:
                message = (
                    f"{self._delivery.failure}; this event was not recorded, and those before it "
                    f"({self.pending:,}) are {self._fate}"
                )
                raise LogUnavailable(message, timeout_s=0, pending=self.pending)
            if (
                self._recorded - max(self._delivery.saved, self._delivery.acknowledged)
                >= self._settings.buffer_events_max
            ):
                raise BufferFull(
                    f"{counted(self.pending, 'event')} waiting for the log is the bound: "
                    f"{self._problem or 'it is too slow'}; this event was not recorded",
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

    def _await_room(self) -> None:
        """Wait until the spool has room, or the client ends. Raises ``SpoolFull`` where that is wanted instead."""
        if self._delivery.full and self._settings.spool_full == "raise" and not self._closed:
            raise SpoolFull(
                f"the spool is full: {self._delivery.full}; this event was not recorded", pending=self.pending
            )
        while self._delivery.full and not self._closed and not self._ended:
            self._delivery.warn("spool_full", "The spool is full; recording waits", self._delivery.full)
            self._changed.wait(_LOG_EVERY_S)

    def start(self) -> None:
        """Open the spool and begin, although nothing has been recorded. Raises ``SetupError``."""
        with self._changed:
            if self._thread is None:
                self._start()

    def _start(self) -> None:
        if self._settings.spool_dir is not None and not self._delivery.has_spool:
            self._delivery.open_spool(self._settings.spool_dir, self._connector.address)
        thread = threading.Thread(target=self._run, name="token-actor-sender", daemon=True)
        thread.start()  # the system may refuse; then the next event tries again
        self._thread = thread

    def flush(self, deadline: Deadline) -> None:
        """Wait until everything put so far is in the log. Raises ``LogUnavailable``; nothing is dropped."""
        if not self._is_in_log(deadline):
            raise self._late(deadline, self._fate if self._ended else _KEPT)

    def _is_in_log(self, deadline: Deadline) -> bool:
        """Wait until everything put so far is in the log; tell whether it is."""
        if self._delivery.acknowledged >= self._recorded:  # as it mostly is, for whoever only asks
            return True
        with self._changed:
            target = self._recorded
            self._flush_to = max(self._flush_to, target)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._delivery.acknowledged >= target or self._ended, deadline.left_s)
            return self._delivery.acknowledged >= target

    def _late(self, deadline: Deadline, fate: str) -> LogUnavailable:
        return LogUnavailable(
            f"{counted(self.pending, 'event')} not yet in the log: "
            f"{self._problem or f'{self._connector.address} did not answer in time'}; {fate}",
            timeout_s=deadline.timeout_s,
            pending=self.pending,
        )

    @property
    def _problem(self) -> str:
        return self._delivery.failure or self._delivery.full

    @property
    def _fate(self) -> str:
        """Say what becomes of the events that were recorded, once the thread has ended."""
        return _LEFT if self._delivery.saved == self._recorded else _GIVEN_UP

    def last_id(self, partition: int) -> bytes | None:
        """Return the id of this process's last entry in the log of a partition, ``None`` if it has none."""
        return self._delivery.last_id(partition)

    def partitions(self, connection: Connection) -> int | None:
        """Return the number of partitions of the namespace; ``None`` until somebody has written it down."""
        return self._delivery.partitions(connection)

    def close(self, deadline: Deadline) -> None:
        """Flush, then end the thread. Raises ``LogUnavailable`` when events were given up, or stay in the spool."""
        with self._changed:
            self._closed = True  # before the flush: an event taken during it would be in nobody's care
        arrived = False
        try:
            arrived = self._is_in_log(deadline)
        finally:
            with self._changed:
                self._given_up = True
                self._changed.notify_all()
            if self._thread is not None:
                self._thread.join(max(0.1, deadline.left_s))
        if not arrived:
            raise self._late(deadline, self._fate)

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
                while (events := self._take()) is not None:
                    self._delivery.work(connection, events)
        except Exception as error:
            self._delivery.failure = f"the sender failed: {error!r}"
            log.exception("The sender failed", extra={"action": "sender_failed", "pending": self.pending})
        finally:
            with self._changed:
                events, self._buffer = self._buffer, []
            self._delivery.leave(events)
            with self._changed:
                self._ended = True
                retired.discard(self)
                self._changed.notify_all()

    def _take(self) -> list[Event] | None:
        """Wait until there is something to do, and return the events that are due; ``None`` means the end."""
        with self._changed:
            while not self._given_up:
                now = time.monotonic()
                due_at = self._buffer_due_at()
                if due_at <= now:
                    events, self._buffer = self._buffer, []
                    return events
                if self._closed and not self.pending:
                    break
                due_at = min(due_at, self._delivery.due_at)
                if due_at <= now:
                    return []
                self._changed.wait(None if due_at == NEVER else due_at - now)
            return None

    def _buffer_due_at(self) -> float:
        """Return when the events of the buffer are to be taken: they are old, many, or somebody waits for them."""
        if not self._buffer or not self._delivery.has_place:
            return NEVER
        full = len(self._buffer) >= self._settings.batch_events_max
        if full or self._closed or self._flush_to > self._delivery.acknowledged:
            return 0.0
        return self._oldest_at + self._settings.batch_age_ms / 1000
