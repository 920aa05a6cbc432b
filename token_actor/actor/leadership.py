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

    def __init__(self, connection: Connection, keys: Keys, *, holder: str, lease_ms: int) -> None:
        """Prepare to lead as ``holder``, which names this process for people and is unique."""
        self.epoch = 0
        self._connection = connection
        self._keys = keys
        self._holder = holder
        self._lease_ms = lease_ms

    @property
    def _value(self) -> bytes:
        return f"{self.epoch}:{self._holder}".encode()

    def acquire(self) -> bool:
        """Try once to take the lease; tell whether this process leads now. Does not wait."""
        if self._connection.get(self._keys.leader) is not None:
            return False
        (epoch,) = self._connection.write([Increment(key=self._keys.epoch)])
        if isinstance(epoch, ServerRefused):
            raise epoch
        assert isinstance(epoch, int), "a counter counts"
        self.epoch = epoch
        lease = Put(key=self._keys.leader, value=self._value, ttl_ms=self._lease_ms, only_if_absent=True)
        (outcome,) = self._connection.write([lease])
        if isinstance(outcome, ServerRefused):
            raise outcome
        if outcome is None:
            self.epoch = 0
        return outcome is not None

    def renew(self) -> bool:
        """Extend the lease; tell whether it is still this process's."""
        if self._connection.get(self._keys.leader) != self._value:
            self.epoch = 0
            return False
        self._connection.write([Expire(key=self._keys.leader, ttl_ms=self._lease_ms)])
        return True

    def release(self) -> None:
        """Give the lease back, so that the next actor need not wait for it to run out."""
        if self.epoch and self._connection.get(self._keys.leader) == self._value:
            self._connection.write([Delete(keys=[self._keys.leader])])
        self.epoch = 0
