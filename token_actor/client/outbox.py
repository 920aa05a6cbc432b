"""The outbox: what waits for the log, and, with a store, what waits to be safe there.

The rules of this file: no thread, no clock, no network. ``client.sender`` drives it and carries out
what it says; a simulator can do the same. With a store, the way of a batch is

    added → saved (durable on disk) → waiting → acknowledged → counted in a snapshot → removed

and it goes back from acknowledged to waiting when the actor has passed its entry without seeing it, or
reads another log by now. Without a store it is forgotten when it is acknowledged.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from token_actor.client.lanes import Lane
from token_actor.client.store import UNPLACED
from token_actor.client.watermark import Progress, Watermark, batches_to_resend, safe_batches
from token_actor.core.usage import SEPARATOR
from token_actor.errors import SpoolError
from token_actor.wire.codec import BATCH_BYTES_MAX, unpack
from token_actor.wire.keys import Keys, partition_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from token_actor.client.store import Batch, Store
    from token_actor.core.usage import Event
    from token_actor.transport.ports import Append

BATCHES_PER_WRITE: Final = 16  # of at most 64 KiB each: about a megabyte under way
EPOCHS_PER_QUESTION: Final = 64  # what one list of a message may hold
QUESTIONS_PER_POLL: Final = 64  # of a host whose clients crash all the time; the others come next
HELD_BYTES_MAX: Final = 8 * 1024 * 1024  # of data in memory that is on disk as well: spares reading it back

_Producer: TypeAlias = "tuple[int, bytes]"  # partition and producer: what one question asks about


class Outbox:
    """Number events, keep them as long as needed, and say what to send and what to ask."""

    def __init__(
        self,
        namespace: str,
        *,
        producer: bytes,
        batch_events_max: int = 500,
        resend_share: float = 0.0,
        store: Store | None = None,
        store_bytes_max: int = 0,
    ) -> None:
        """Start empty; ``adopt`` takes over what is in the store."""
        self.lanes: dict[int, Lane] = {}
        self.stored_bytes = 0
        self._namespace = namespace
        self._producer = producer
        self._batch_events_max = batch_events_max
        self._resend_share = resend_share
        self._store = store
        self._store_bytes_max = store_bytes_max
        self._held_bytes = 0
        self._unsaved: list[Batch] = []
        self._unplaced: deque[Batch] = deque()
        self._unplaced_lanes: dict[str, Lane] = {}
        self._lost: list[Batch] = []
        self._noted: dict[int, Batch] = {}  # by identity: acknowledged since the last commit
        self._removed: list[Batch] = []
        self._kept: dict[_Producer, dict[int, dict[int, Batch]]] = {}
        self._generations: dict[int, int | None] = {}

    # --- taking --------------------------------------------------------------------------------

    def adopt(self) -> int:
        """Take over what others left in the store; return how many events. Raises ``SpoolError``."""
        assert self._store is not None
        adopted = self._store.adopt()
        for batch in adopted:
            self._keep(batch)
        return sum(batch.events for batch in adopted)

    def add(self, events: Sequence[Event], partitions: int | None) -> None:
        """Cut events into batches, each in the lane of its tenant's partition.

        ``partitions`` ``None`` means that nobody knows the number yet. Then each tenant has a lane, and
        numbers, of its own, whatever its partition turns out to be in ``place``; that takes a store.
        """
        for lane, of_lane in self._by_lane(events, partitions):
            for start in range(0, len(of_lane), self._batch_events_max):
                batches = lane.cut(of_lane[start : start + self._batch_events_max])
                (lane.waiting if self._store is None else self._unsaved).extend(batches)

    def _by_lane(self, events: Sequence[Event], partitions: int | None) -> Iterable[tuple[Lane, Sequence[Event]]]:
        if partitions == 1:
            return [(self._lane(0), events)]
        by_lane: dict[Lane, list[Event]] = {}
        for event in events:
            tenant = event.series.partition(SEPARATOR)[0]
            lane = self._unplaced_lane(tenant) if partitions is None else self._lane(partition_of(tenant, partitions))
            by_lane.setdefault(lane, []).append(event)
        return by_lane.items()

    def _unplaced_lane(self, tenant: str) -> Lane:
        lane = self._unplaced_lanes.get(tenant)
        if lane is None:
            epoch = 1 + len(self._unplaced_lanes)  # 0 is that of the lanes with a partition
            lane = Lane(b"", producer=self._producer, partition=UNPLACED, epoch=epoch)
            self._unplaced_lanes[tenant] = lane
        return lane

    def place(self, partitions: int) -> None:
        """Let what was saved before the number of partitions was known wait for its place. Raises ``SpoolError``."""
        while self._unplaced:
            batch = self._unplaced[0]
            data = self._data_of(batch)
            self._unplaced.popleft()
            if data is not None:
                tenant = unpack(data, bytes_max=BATCH_BYTES_MAX)["k"][0].partition(SEPARATOR)[0]
                batch.partition = partition_of(tenant, partitions)
                self._enter(batch)

    @property
    def unsaved_events(self) -> int:
        """Return how many events are not on disk yet."""
        return sum(batch.events for batch in self._unsaved)

    @property
    def has_notes(self) -> bool:
        """Tell whether the disk does not know everything yet that it should."""
        return bool(self._unsaved or self._noted or self._removed)

    def save(self) -> bool:
        """Commit everything to the store; tell whether there was room for all of it.

        What was new waits for the log from then on. Raises ``SpoolError``: it can be tried again.
        """
        assert self._store is not None
        fitting = self._fitting()
        if fitting or self._noted or self._removed:
            try:
                self._commit(fitting)
            except SpoolError:
                if fitting and self._removed:
                    self._commit([])  # makes room, perhaps
                raise
        return not self._unsaved

    def _fitting(self) -> list[Batch]:
        """Return the first unsaved batches, as many as there is room for; one always fits into an empty store."""
        room = self._store_bytes_max - self.stored_bytes
        fitting: list[Batch] = []
        for batch in self._unsaved:
            room -= batch.stored_bytes
            if room < 0 and (fitting or self.stored_bytes):
                break
            fitting.append(batch)
        return fitting

    def _commit(self, fitting: list[Batch]) -> None:
        assert self._store is not None
        self._store.commit(added=fitting, acknowledged=list(self._noted.values()), removed=self._removed)
        self._noted.clear()
        self._removed.clear()
        del self._unsaved[: len(fitting)]
        for batch in fitting:
            self._hold(batch)
            self._keep(batch)

    def _keep(self, batch: Batch) -> None:
        self.stored_bytes += batch.stored_bytes
        if batch.partition == UNPLACED:
            self._unplaced.append(batch)
        else:
            self._enter(batch)

    def _enter(self, batch: Batch) -> None:
        """Take a stored batch with a partition into the books."""
        of_producer = self._kept.setdefault((batch.partition, batch.key.producer), {})
        of_producer.setdefault(batch.key.epoch, {})[batch.key.first_seq] = batch
        if batch.waiting:
            self._lane(batch.partition).waiting.append(batch)

    def _hold(self, batch: Batch) -> None:
        """Keep the data in memory until it is sent, unless that is too much."""
        self._held_bytes += batch.data_bytes
        if self._held_bytes > HELD_BYTES_MAX:
            self._release(batch)

    def _release(self, batch: Batch) -> None:
        if batch.data is not None:
            batch.data = None
            self._held_bytes -= batch.data_bytes

    # --- sending -------------------------------------------------------------------------------

    @property
    def is_waiting(self) -> bool:
        """Tell whether there is anything to send."""
        return bool(self._unplaced) or any(lane.waiting for lane in self.lanes.values())

    def _lane(self, partition: int) -> Lane:
        lane = self.lanes.get(partition)
        if lane is None:
            key = Keys(self._namespace, partition).log
            lane = Lane(key, producer=self._producer, partition=partition, resend_share=self._resend_share)
            self.lanes[partition] = lane
        return lane

    def appends(self, lane: Lane) -> list[Append]:
        """Return the operations that append the first waiting batches of a lane. Raises ``SpoolError``."""
        for batch in list(islice(lane.waiting, BATCHES_PER_WRITE)):
            if self._data_of(batch) is None:
                lane.waiting.remove(batch)
        return lane.appends(BATCHES_PER_WRITE)

    def _data_of(self, batch: Batch) -> bytes | None:
        """Return the data of a stored batch. When the disk has lost it, it is no longer this outbox's business."""
        if batch.data is None:
            assert self._store is not None
            batch.data = self._store.read(batch)
            if batch.data is None:
                self._forget(batch)
                self._lost.append(batch)
            else:
                self._held_bytes += batch.data_bytes
        return batch.data

    def take_lost(self) -> tuple[int, int]:
        """Return how many events the disk has lost since the last call, and how many of them were this client's."""
        lost, self._lost = self._lost, []
        return sum(batch.events for batch in lost), sum(batch.events for batch in lost if batch.own)

    def acknowledged(self, lane: Lane, entry_id: bytes) -> tuple[int, Append | None]:
        """Take note that the first waiting batch of a lane is in the log.

        Return how many events of this client it holds, and a repetition of it if one is owed.
        """
        batch = lane.waiting[0]
        repetition = lane.acknowledged(entry_id)
        own = batch.events if batch.own else 0
        batch.own = False  # to send it again is to acknowledge nothing new
        if self._store is not None:
            batch.generation = self._generations.get(batch.partition)
            self._noted[id(batch)] = batch
            self._release(batch)
        return own, repetition

    # --- the watermark -------------------------------------------------------------------------

    @property
    def is_kept(self) -> bool:
        """Tell whether there is anything in the store that was sent."""
        return bool(self._kept)

    def questions(self) -> list[Watermark]:
        """Return what to ask the actors, for the next poll."""
        producers = list(islice(self._kept, QUESTIONS_PER_POLL))
        asked = [
            Watermark(*key, epochs=list(self._kept[key])[start : start + EPOCHS_PER_QUESTION])
            for key in producers
            for start in range(0, len(self._kept[key]), EPOCHS_PER_QUESTION)
        ]
        for key in producers:
            self._kept[key] = self._kept.pop(key)  # to the end: the others are next
        return asked

    def answered(self, asked: Watermark, answer: Mapping[str, Any]) -> None:
        """Take an answer to ``producer``: forget what is safe, and let wait again what the actor will not see."""
        progress = Progress.of(answer)
        self._generations[asked.partition] = progress.generation
        for epoch, seen in answer["epochs"].items():
            batches = self._kept.get((asked.partition, asked.producer), {}).get(int(epoch), {})
            for batch in safe_batches(batches, seen):
                self._remove(batch)
            for batch in batches_to_resend(batches, seen, progress):
                batch.waiting = True
                self._lane(asked.partition).waiting.append(batch)

    def _remove(self, batch: Batch) -> None:
        self._forget(batch)
        self._noted.pop(id(batch), None)
        self._removed.append(batch)

    def _forget(self, batch: Batch) -> None:
        self._release(batch)
        self.stored_bytes -= batch.stored_bytes
        epochs = self._kept.get((batch.partition, batch.key.producer))
        if epochs is None:  # it was not placed yet
            return
        del epochs[batch.key.epoch][batch.key.first_seq]
        if not epochs[batch.key.epoch]:
            del epochs[batch.key.epoch]
        if not epochs:
            del self._kept[batch.partition, batch.key.producer]
