"""Saving: when a leader takes a snapshot, and one small piece of it per turn."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from token_actor.actor.recovery import NOWHERE
from token_actor.actor.snapshots import SnapshotWriter
from token_actor.errors import ServerRefused
from token_actor.wire.entries import id_pair

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from token_actor.actor.follower import Follower
    from token_actor.actor.leadership import Leadership
    from token_actor.actor.manifests import Manifest
    from token_actor.actor.settings import ActorSettings, Clock
    from token_actor.core.dedupe import ProducerKey, ProducerMark
    from token_actor.transport.ports import Connection

_UNSAVED_MAX: Final = 10_000  # entries; who begins to lead with more took long to recover, and so would the next

log = logging.getLogger(__name__)


class Saving:
    """Take snapshots of a follower's state for as long as this process leads.

    ``position`` is that of the newest snapshot.
    """

    def __init__(
        self,
        connection: Connection,
        settings: ActorSettings,
        clock: Clock,
        follower: Follower,
        leadership: Leadership,
    ) -> None:
        """Prepare; ``begin`` comes with the lease."""
        self.position = NOWHERE
        self._connection = connection
        self._writer = SnapshotWriter(connection, settings.keys, fenced=leadership.write)
        self._settings = settings
        self._clock = clock
        self._follower = follower
        self._leadership = leadership
        self._number = 1
        self._due_ms = 0
        self._pending = NOWHERE
        self._pending_id = self._newest = (0, 0)
        self._lapses = 0
        self._steps: Iterator[None] | None = None

    def begin(self, manifest: Manifest | None) -> None:
        """Begin to lead; ``manifest`` is that of the newest snapshot."""
        self.position = NOWHERE if manifest is None else manifest.position
        self._newest = (0, 0) if manifest is None else id_pair(manifest.snapshot_id)
        self._number = 1
        self._steps = None
        self._writer.forget()
        if self.saved_all:  # by the leader before, so there may never be a reason to take one of our own
            _, self._writer.durable = self._follower.ledger.producers.capture()
        unsaved = self._follower.position.entries - self.position.entries
        wait_ms = 0 if unsaved >= _UNSAVED_MAX else self._settings.snapshot_every_ms
        self._due_ms = self._clock.ticks_ms() + wait_ms

    def forget(self) -> None:
        """Take a snapshot at once: what the server holds of earlier ones does not fit its log any more."""
        self.hurry()
        self.position = NOWHERE

    def check(self) -> None:
        """See whether the server still has the newest snapshot, and take another at once if it has not."""
        if self.position is not NOWHERE:
            stream = self._connection.stream_state(self._settings.keys.snapshots)
            if stream is None or id_pair(stream.last_id) < self._newest:
                log.error("The server has lost the snapshots", extra={"action": "snapshots_lost"})
                self.forget()

    def hurry(self) -> None:
        """Take a snapshot at once."""
        self._steps = None
        self._writer.forget()
        self._due_ms = self._clock.ticks_ms()

    @property
    def durable(self) -> Mapping[ProducerKey, ProducerMark]:
        """Return what the newest snapshot of this leader has seen of every producer."""
        return self._writer.durable

    @property
    def under_way(self) -> bool:
        """Tell whether a snapshot is being written."""
        return self._steps is not None

    @property
    def saved_all(self) -> bool:
        """Tell whether the newest snapshot holds everything that was folded."""
        return self.position == self._follower.position

    def step(self) -> None:
        """Do the next piece of a snapshot, if one is under way or due. Raises ``LeadershipLost``."""
        if self._steps is not None and self._lapses != self._leadership.lapses:
            self.hurry()  # the server may have lost what was written of it so far
        if self._steps is None:
            entries = self._follower.position.entries - self.position.entries
            due = self._clock.ticks_ms() >= self._due_ms or entries >= self._settings.snapshot_every_entries
            if not due or self.saved_all:
                return
            self._begin_snapshot()
        self._advance()

    def _begin_snapshot(self) -> None:
        self._pending = self._follower.position
        self._lapses = self._leadership.lapses
        self._pending_id = (self._leadership.epoch, self._number)
        snapshot_id = b"%d-%d" % self._pending_id
        self._number += 1  # also when it fails: nobody knows how far it came
        self._steps = self._writer.write(
            self._follower.ledger,
            snapshot_id=snapshot_id,
            position=self._pending,
            now_ms=self._clock.now_ms(),
        )

    def _advance(self) -> None:
        """Do one piece of the snapshot under way. One that a lost connection ends is begun anew, as it is still due."""
        assert self._steps is not None
        steps, self._steps = self._steps, None  # whatever happens, the next one drops what came to nothing
        next_ms = self._clock.ticks_ms() + self._settings.snapshot_every_ms
        try:
            next(steps)
        except StopIteration:
            self._due_ms = next_ms
            self.position, self._newest = self._pending, self._pending_id
            self._follower.replaced = False
            log.info("Snapshot taken", extra={"action": "snapshot", "offset": self.position.offset.decode()})
        except ServerRefused as refused:
            self._due_ms = next_ms
            log.warning("The snapshot was refused", extra={"action": "snapshot_refused", "problem": str(refused)})
        else:
            self._steps = steps
