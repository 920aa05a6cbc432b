"""Leadership: at most one actor acts for a partition, under an epoch that only grows.

The lease is a key with a time to live that its holder renews. Whether the holder is still there is
judged by the *watcher's* own clock: it takes over once the lease was not renewed, nor given back,
for ``lease_ms`` of watching. The time to live alone decides nothing, because the server's clock may
jump. What a leader writes is guarded by the lease, so a leader of the past changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from token_actor.errors import LeadershipLost, ServerRefused, ServerUnavailable, TransportError
from token_actor.transport.ports import Connection, Delete, Expire, Increment, Outcome, Put
from token_actor.wire.entries import id_pair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from token_actor.transport.ports import Operation
    from token_actor.wire.keys import Keys

_GONE: Final = (b"", None)
_TTL_LEASES: Final = 5  # the key outlives a turn on a slow link: watchers go by their own clock, not by its end
_LOOKS_PER_LEASE: Final = 4  # one look counts for no more of the lease than this part: a watcher may have been paused


class Leadership:
    """Watch, take, keep and give back the lease of one partition. ``epoch`` is 0 until it is held.

    ``lapses`` counts how often the lease had vanished and was written again: the server may have lost its keys.
    """

    def __init__(self, connection: Connection, keys: Keys, *, holder: str, lease_ms: int) -> None:
        """Prepare to lead as ``holder``, which names this process for people and is unique."""
        self.epoch = 0
        self.lapses = 0
        self._connection = connection
        self._keys = keys
        self._holder = holder
        self._lease_ms = lease_ms
        self._seen: tuple[bytes, int | None] | None = None  # the lease as it was last there, and when it runs out
        self._looked_ms: int | None = None
        self._silent_ms = 0
        self._highest = 0  # of the epochs seen: the server may lose their counter

    @property
    def _value(self) -> bytes:
        return f"{self.epoch}:{self._holder}".encode()

    @property
    def _ttl_ms(self) -> int:
        return _TTL_LEASES * self._lease_ms

    # --- standing by ---------------------------------------------------------------------------

    def contend(self, ticks_ms: int) -> bool:
        """Look at the lease, and take it if nobody holds it any more; tell whether this process leads now.

        ``ticks_ms`` is the watcher's own clock, which never jumps. Does not wait.
        """
        held = self._connection.get(self._keys.leader)
        epoch, _, holder = (held or b"").partition(b":")
        if epoch.isdigit():
            self._highest = max(self._highest, int(epoch))
        try:
            if epoch.isdigit() and holder == self._holder.encode():
                return self._resume(held, int(epoch))  # ours, when the reply to an earlier attempt was lost
            return self._is_free(held, ticks_ms) and self._claim(held)
        except TransportError:
            self.epoch = 0  # also when the lease may be ours: the next look tells
            raise

    def _resume(self, held: bytes | None, epoch: int) -> bool:
        if self._connection.get(self._keys.epoch) != b"%d" % epoch:
            return self._claim(held)  # somebody may have led under a later epoch
        self.epoch = epoch
        self._seen = None
        return self.renew()

    def is_free(self, ticks_ms: int) -> bool:
        """Look at the lease, and tell whether nobody holds it any more; ``ticks_ms`` as for ``contend``."""
        return self._is_free(self._connection.get(self._keys.leader), ticks_ms)

    def _is_free(self, held: bytes | None, ticks_ms: int) -> bool:
        """Tell whether the lease was given back, never held, or not renewed for as long as we watched."""
        since_ms = 0 if self._looked_ms is None else ticks_ms - self._looked_ms
        self._looked_ms = ticks_ms
        if held is None and self._seen is None:
            if self._connection.get(self._keys.epoch) is None:  # nobody has ever led
                return True
            self._seen, self._silent_ms = _GONE, 0  # it may have vanished when the server's clock jumped
            return False
        if held is not None:
            if is_given_back(held):
                return True
            seen = (held, self._connection.expires_at_ms(self._keys.leader))
            if seen != self._seen:
                self._seen, self._silent_ms = seen, 0
                return False
        self._silent_ms += min(since_ms, self._lease_ms // _LOOKS_PER_LEASE)
        return self._silent_ms >= self._lease_ms

    def _claim(self, held: bytes | None) -> bool:
        """Draw an epoch and write the lease under it, unless somebody was quicker."""
        self._draw_epoch()
        claimed = self._put(held)
        while claimed and self._connection.get(self._keys.epoch) != b"%d" % self.epoch:
            drawn = self._value
            self._draw_epoch()  # held up meanwhile: somebody may have led under a later epoch
            claimed = self._put(drawn)
        if not claimed:
            self.epoch = 0
            return False
        self._seen, self._silent_ms, self._looked_ms = None, 0, None
        return True

    def _draw_epoch(self) -> None:
        """Take the next epoch: above every one drawn before, also when the server has lost their counter."""
        (drawn,) = _done(self._connection.write([Increment(key=self._keys.epoch)]))
        assert isinstance(drawn, int), "a counter counts"
        snapshots = self._connection.stream_state(self._keys.snapshots)
        least = 1 + max(self._highest, 0 if snapshots is None else id_pair(snapshots.last_id)[0])
        if drawn < least:
            drawn = least
            _done(self._connection.write([Put(key=self._keys.epoch, value=b"%d" % drawn)]))
        self.epoch = self._highest = drawn

    def _put(self, held: bytes | None) -> bool:
        lease = Put(key=self._keys.leader, value=self._value, ttl_ms=self._ttl_ms)
        outcomes = self._connection.write_if(self._keys.leader, held, [lease])
        if outcomes is not None:
            _done(outcomes)
        return outcomes is not None

    # --- leading -------------------------------------------------------------------------------

    def renew(self) -> bool:
        """Let the lease run anew; tell whether it is still this process's. Works on a full server too.

        A lease that has vanished though nobody else has led since is written again: the server's clock
        has jumped, or the server has lost its keys.
        """
        renewal = Expire(key=self._keys.leader, ttl_ms=self._ttl_ms)
        if self._connection.write_if(self._keys.leader, self._value, [renewal]) is not None:
            return True
        if self._connection.get(self._keys.epoch) not in (None, b"%d" % self.epoch):
            self.epoch = 0
            return False
        counter = Put(key=self._keys.epoch, value=b"%d" % self.epoch)
        lease = Put(key=self._keys.leader, value=self._value, ttl_ms=self._ttl_ms)
        outcomes = self._connection.write_if(self._keys.leader, None, [lease, counter])
        if outcomes is None:
            self.epoch = 0
            return False
        _done(outcomes)
        self.lapses += 1
        return True

    def write(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Carry out ``operations`` if this process leads.

        Raises ``LeadershipLost``, and ``ServerUnavailable`` when the lease had vanished; then nothing was done.
        """
        outcomes = self._connection.write_if(self._keys.leader, self._value, operations)
        if outcomes is not None:
            return outcomes
        if self.renew():  # what is written next may rest on what the server has just lost
            raise ServerUnavailable("the lease had vanished, and was written again")
        raise LeadershipLost("somebody else leads this partition now")

    def release(self) -> None:
        """Give the lease back, so that the next actor need not wait for it to run out."""
        if self.epoch:
            given_back = Put(key=self._keys.leader, value=b"%d:" % self.epoch)  # for whoever comes, whenever
            outcomes = self._connection.write_if(self._keys.leader, self._value, [given_back])
            if outcomes is not None and isinstance(outcomes[0], ServerRefused):  # full: then it has to be missed
                self._connection.write_if(self._keys.leader, self._value, [Delete(keys=[self._keys.leader])])
        self.epoch = 0


def is_given_back(lease: bytes) -> bool:
    """Tell whether a lease names nobody, because its holder has given it back."""
    return lease.endswith(b":")


def _done(outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    for outcome in outcomes:
        if isinstance(outcome, ServerRefused):
            raise outcome
    return outcomes
