"""Lanes: the batches of one process on their way to one partition, numbered without a hole."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from token_actor.client.store import Batch, BatchKey
from token_actor.transport.ports import Append
from token_actor.wire.batches import encode_batch
from token_actor.wire.codec import BATCH_BYTES_MAX
from token_actor.wire.messages import BATCH_FIELD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from token_actor.core.usage import Event


class Lane:
    """Number and encode the events for one partition, and keep them until they are acknowledged.

    ``last_id`` is the id of the last entry that the log has taken, ``None`` before the first.
    ``resend_share`` of the batches is appended twice, the first one among them.
    """

    def __init__(
        self, log_key: bytes, *, producer: bytes, epoch: int = 0, partition: int = 0, resend_share: float = 0.0
    ) -> None:
        """Start with the sequence number 0."""
        self.log_key = log_key
        self.last_id: bytes | None = None
        self.waiting: deque[Batch] = deque()
        self._producer = producer
        self._epoch = epoch
        self._partition = partition
        self._next_seq = 0
        self._resend_share = resend_share
        self._resends_owed = 1.0 - resend_share

    def add(self, events: Sequence[Event]) -> None:
        """Let events wait as one batch, or as several when one would be too large for the wire."""
        self.waiting.extend(self.cut(events))

    def cut(self, events: Sequence[Event]) -> Iterator[Batch]:
        """Return events, numbered, as one batch, or as several when one would be too large for the wire."""
        key = BatchKey(self._partition, self._producer, self._epoch, self._next_seq)
        data = encode_batch(events, producer=self._producer, epoch=self._epoch, first_seq=self._next_seq)
        if len(data) > BATCH_BYTES_MAX:
            middle = len(events) // 2  # one event always fits: each of its names is bounded
            yield from self.cut(events[:middle])
            yield from self.cut(events[middle:])
            return
        self._next_seq += len(events)
        yield Batch(key, len(events), len(data), data)

    def appends(self, count: int) -> list[Append]:
        """Return the operations that append the first ``count`` waiting batches."""
        batches = list(self.waiting)[:count]
        return [self._append(batch) for batch in batches]

    def acknowledged(self, entry_id: bytes) -> Append | None:
        """Take note that the first waiting batch is in the log; return a repetition of it, if one is owed."""
        self.last_id = entry_id
        batch = self.waiting.popleft()
        batch.waiting = False
        batch.entry_id = entry_id
        self._resends_owed += self._resend_share
        if self._resend_share and self._resends_owed >= 1:
            self._resends_owed -= 1
            return self._append(batch)
        return None

    def _append(self, batch: Batch) -> Append:
        assert batch.data is not None, "it is read from its store before it is sent"
        return Append(key=self.log_key, fields=[BATCH_FIELD, batch.data])
