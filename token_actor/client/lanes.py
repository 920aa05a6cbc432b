"""Lanes: the batches of one process on their way to one partition, numbered without a hole."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from token_actor.transport.ports import Append
from token_actor.wire.batches import encode_batch
from token_actor.wire.codec import BATCH_BYTES_MAX
from token_actor.wire.messages import BATCH_FIELD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from token_actor.core.usage import Event


class Batch(NamedTuple):
    """Hold an encoded batch until the log has taken it; a retry sends the same bytes."""

    data: bytes
    events: int


class Lane:
    """Number and encode the events for one partition, and keep them until they are acknowledged.

    ``last_id`` is the id of the last entry that the log has taken, ``None`` before the first.
    ``resend_share`` of the batches is appended twice, the first one among them.
    """

    def __init__(self, log_key: bytes, *, producer: bytes, resend_share: float = 0.0) -> None:
        """Start with the sequence number 0."""
        self.log_key = log_key
        self.last_id: bytes | None = None
        self.waiting: deque[Batch] = deque()
        self._producer = producer
        self._next_seq = 0
        self._resend_share = resend_share
        self._resends_owed = 1.0 - resend_share

    def add(self, events: Sequence[Event]) -> None:
        """Encode events as one batch, or as several when one would be too large for the wire."""
        data = encode_batch(events, producer=self._producer, epoch=0, first_seq=self._next_seq)
        if len(data) > BATCH_BYTES_MAX:
            middle = len(events) // 2  # one event always fits: each of its names is bounded
            self.add(events[:middle])
            self.add(events[middle:])
            return
        self._next_seq += len(events)
        self.waiting.append(Batch(data, len(events)))

    def appends(self, count: int) -> list[Append]:
        """Return the operations that append the first ``count`` waiting batches."""
        batches = list(self.waiting)[:count]
        return [Append(key=self.log_key, fields=[BATCH_FIELD, batch.data]) for batch in batches]

    def acknowledged(self, entry_id: bytes) -> Append | None:
        """Take note that the first waiting batch is in the log; return a repetition of it, if one is owed."""
        self.last_id = entry_id
        batch = self.waiting.popleft()
        self._resends_owed += self._resend_share
        if self._resend_share and self._resends_owed >= 1:
            self._resends_owed -= 1
            return Append(key=self.log_key, fields=[BATCH_FIELD, batch.data])
        return None
