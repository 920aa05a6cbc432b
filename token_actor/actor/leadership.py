"""Leadership: at most one actor acts for a partition, under an epoch that only grows.

The lease is a key with a time to live. Whoever sets it first leads; the others wait. The epoch
fences what a leader writes after its lease has run out: see ``snapshots``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from token_actor.errors import ServerRefused
from token_actor.transport.ports import Connection, Delete, Expire, Increment, Put

if TYPE_CHECKING:
    from token_actor.wire.keys import Keys


class Leadership:
    """Take, keep and give back the lease of one partition. ``epoch`` is 0 until it is held."""

    def __init__(self, connection: Connection, keys: Keys, *, holder: str) -> None:
        """Prepare to lead as ``holder``, which names this process for people and is unique."""
        self.epoch = 0
        self._connection = connection
        self._keys = keys
        self._holder = holder

    @property
    def _value(self) -> bytes:
        return f"{self.epoch}:{self._holder}".encode()

    def acquire(self, lease_ms: int) -> bool:
        """Try once to take the lease for ``lease_ms``; tell whether this process leads now. Does not wait."""
        held = self._connection.get(self._keys.leader)
        if held is not None:
            return held == self._value  # ours, when the reply to an earlier attempt was lost
        if not self._claim(lease_ms, only_if_absent=True):
            self.epoch = 0
            return False
        while self._connection.get(self._keys.epoch) != b"%d" % self.epoch:
            self._claim(lease_ms, only_if_absent=False)  # held up meanwhile: somebody may have led under a later epoch
        return True

    def _claim(self, lease_ms: int, *, only_if_absent: bool) -> bool:
        """Draw the next epoch, and write the lease under it; tell whether it is written."""
        (epoch,) = self._connection.write([Increment(key=self._keys.epoch)])
        if isinstance(epoch, ServerRefused):
            raise epoch
        assert isinstance(epoch, int), "a counter counts"
        self.epoch = epoch
        lease = Put(key=self._keys.leader, value=self._value, ttl_ms=lease_ms, only_if_absent=only_if_absent)
        (outcome,) = self._connection.write([lease])
        if isinstance(outcome, ServerRefused):
            raise outcome
        return outcome is not None

    def renew(self, lease_ms: int) -> bool:
        """Let the lease run for ``lease_ms`` from now; tell whether it is still this process's."""
        if self._connection.get(self._keys.leader) != self._value:
            self.epoch = 0
            return False
        self._connection.write([Expire(key=self._keys.leader, ttl_ms=lease_ms)])
        return True

    def release(self) -> None:
        """Give the lease back, so that the next actor need not wait for it to run out."""
        if self.epoch and self._connection.get(self._keys.leader) == self._value:
            self._connection.write([Delete(keys=[self._keys.leader])])
        self.epoch = 0
