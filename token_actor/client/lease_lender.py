"""What a lease asks of the actor: to grant a block, to extend one, and to take one back."""

from __future__ import annotations

from fractions import Fraction
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from token_actor.client.lease_blocks import NOTHING, Amount, Block, fitting, share_left
from token_actor.core.limits import CONCURRENCY
from token_actor.errors import ActorUnavailable, InvalidValue, RateLimited

if TYPE_CHECKING:
    from collections.abc import Mapping

    from token_actor.client.deadline import Deadline
    from token_actor.client.sync import SyncFace


class Terms(NamedTuple):
    """Hold what a lease is for: the dimensions of its calls; how long a block grants, and is held; a deadline."""

    names: dict[str, Any]
    ttl_s: float
    held_s: float
    timeout_s: float


class Lender:
    """Speak to the actor for one lease; each method waits for it, and raises ``ActorUnavailable``."""

    def __init__(self, face: SyncFace, terms: Terms) -> None:
        """Know nothing of the limits yet."""
        self._face = face
        self._terms = terms
        self._left = Fraction(1)  # of the tightest limit, by the last decision

    def fitting(self, wanted: Amount, asked: Amount) -> Amount:
        """Return as much of ``wanted`` as leaves others their part, by the last decision. Waits for nothing."""
        return fitting(wanted, asked, self._face.outage.covering(self._terms.names), self._left)

    def grant(self, amount: Amount, deadline: Deadline) -> Block:
        """Return a block. Raises ``RateLimited``, and ``InvalidValue`` where no block can be had at all."""
        names, ttl_s, held_s, _ = self._terms
        asked_at, left_s = monotonic(), max(0.0, deadline.left_s)
        try:
            reservation = self._face.reserve(timeout_s=left_s, ttl_s=held_s, **amount.as_call, **names)
        except RateLimited as refused:
            if refused.used is not None:  # a table that is full refuses where no limit covers the call, too
                self._left = share_left(refused.remaining, refused.used + refused.reserved + refused.remaining)
            raise
        covering = {limit.name: limit for limit in self._face.outage.covering(names)}
        for limit in covering.values():
            if limit.kind == CONCURRENCY:
                reservation.release()
                message = f"cannot be had under {limit.name!r}, a limit of concurrent calls: a block is no call"
                raise InvalidValue("lease", message)
        decision = reservation.decision
        if decision["limit"] in covering:  # else it refuses nothing
            self._left = share_left(decision["remaining"], decision["amount"])
        return Block(reservation, amount, asked_at, ttl_s, held_s)

    def extend(self, block: Block) -> None:
        """Let a block live on, unless it has expired: then there is nothing to give back any more."""
        asked_at = monotonic()
        block.gone = not self._face.extend(block.reservation, self._terms.held_s)
        block.held_until = inf if block.gone else asked_at + self._terms.held_s

    def end(self, block: Block, timeout_s: float) -> None:
        """Give a block back, but for what the calls that were left without a word were estimated at."""
        face, reservation = self._face, block.reservation
        if block.left == block.whole:
            face.settle_estimate(reservation, timeout_s=timeout_s)
            return
        if block.left.calls:
            try:
                kept = face.reserve(timeout_s=timeout_s, **block.left.as_call, **self._terms.names)
            except RateLimited:
                face.settle_estimate(reservation, timeout_s=timeout_s)
                return
            if kept.degraded and not reservation.degraded:
                kept.release()
                raise ActorUnavailable("the actor does not answer", timeout_s=timeout_s)
            face.settle_estimate(kept, timeout_s=timeout_s)
            block.left = NOTHING
        face.release(reservation, timeout_s=timeout_s)

    def record(self, names_and_counts: Mapping[str, Any]) -> None:
        """Record what a call used. Waits for nothing; raises what ``SyncFace.record`` does."""
        self._face.record(**{**self._terms.names, **names_and_counts})
