"""Leases: quota that a client holds for a short while, so that it decides in a microsecond, without the network.

A lease is built of *blocks*. A block is an ordinary reservation for several calls at once: the actor charges it
when it grants it, so whatever dies, the fleet has never been granted more than its limits. Rules of this file:

* A decision takes from a block under one lock, and asks nobody. A block grants for ``ttl_s``, counted from
  before it was asked for: no decision is older than that.
* Blocks are as large as what is taken per life, and take at most half of what remains of a limit. One thread per
  client asks for the next one ahead of need; who takes nothing is given no new one, and the last goes back.
* What a call used is recorded, and counts like any usage. Its block goes back when all calls taken from it have
  ended and the log has what they used: in between both count, so never too little does.
* Where calls were left without a word, as much as they were estimated at is reserved anew and charged before
  their block goes back; without room, the block is charged. While calls are open, their block is extended.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from contextlib import AbstractContextManager, suppress
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Final

from token_actor.client.deadline import Deadline
from token_actor.client.lease_blocks import NOTHING, Amount, Block, Demand, LeasedCall
from token_actor.client.lease_lender import Lender
from token_actor.core.usage import TOKENS_MAX, check_count, cost_to_nanousd
from token_actor.errors import ActorUnavailable, ClosedError, RateLimited, TokenActorError

if TYPE_CHECKING:
    from decimal import Decimal
    from types import TracebackType

    from token_actor.client.lease_keeper import Keeper
    from token_actor.client.lease_lender import Terms
    from token_actor.client.sync import SyncFace

LEASE_S: Final = 1.0  # how late a decision may be; a hundred round trips, and what a client takes in it is little
RETRY_S: Final = 1.0  # after the actor did not answer
LOOK_S: Final = 5.0  # how late it may be known that nobody holds a call any more

log = logging.getLogger("token_actor.client")


class Lease(AbstractContextManager["Lease"]):
    """Decide about calls of the same dimensions from quota that this process holds. Safe to share between threads.

    Leaving it as a context manager, or ``close``, gives back what it holds; open calls may still be settled.
    After a fork a child begins with nothing; a call is settled by the process that reserved it.
    """

    def __init__(self, face: SyncFace, keeper: Keeper, terms: Terms) -> None:
        """Begin without quota."""
        self._lender = Lender(face, terms)
        self.record = self._lender.record  # what a call used
        self._keeper = keeper
        _, self._ttl_s, self._held_s, self._timeout_s = terms
        self._closed = False
        self.begin()

    def begin(self) -> None:
        """Begin with nothing, also in a child after a fork."""
        self.lock = threading.Lock()
        self._fetching = threading.Lock()  # one block at a time is asked for
        self._returning = threading.Lock()
        self._returned = 0  # blocks, so far
        self._blocks: list[Block] = []  # the oldest first: it is used up before the next
        self._ending: list[Block] = []
        self._dropped: deque[LeasedCall] = deque()
        self.drop = self._dropped.append  # the collector's, which must not wait for a lock
        self._demand = Demand(self._ttl_s)
        self._taken_before = NOTHING  # of blocks that are over
        self._wanting = False
        self._missed = NOTHING  # the most that was tried for in vain since a block was last asked for
        self._again_at = 0.0  # after a failure, nobody is asked for anything earlier than this
        self._renew_at = 0.0  # after a refusal, no block is asked for ahead of need earlier than this

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline.after(self._timeout_s if timeout_s is None else timeout_s)

    # --- deciding ----------------------------------------------------------------------------------

    def try_reserve(self, tokens: int, *, cost_usd: Decimal | float | str | None = None) -> LeasedCall | None:
        """Take quota for one call from what is held here, without waiting; ``None`` when that is not enough.

        Then as much is asked for in the background. ``tokens`` is what it may use of any kind. Raises
        ``InvalidValue`` naming the argument, ``ClosedError``.
        """
        call = self.taken(tokens, cost_usd=cost_usd)
        if call is None:
            with self.lock:
                self._missed = self._missed.at_least(Amount(tokens, 1, cost_to_nanousd(cost_usd) or 0))
                if not self._wanting:
                    self._wanting = True
                    self._keeper.look_after(self)
        return call

    def taken(self, tokens: int, *, cost_usd: Decimal | float | str | None = None) -> LeasedCall | None:
        """Do what ``try_reserve`` does, but ask for nothing."""
        if type(tokens) is not int or not 0 <= tokens <= TOKENS_MAX:
            check_count("tokens", tokens)
        nanousd = 0 if cost_usd is None else cost_to_nanousd(cost_usd) or 0
        with self.lock:  # what follows is on the way of every call, and is written out for that
            now = monotonic()
            for block in self._blocks:
                if tokens <= block.tokens and block.calls and nanousd <= block.nanousd and now < block.until:
                    block.tokens = left = block.tokens - tokens
                    block.calls = calls = block.calls - 1
                    if nanousd:
                        block.nanousd -= nanousd
                    block.open += 1
                    if left < block.low_tokens or calls < block.low_calls or now >= block.low_at:
                        self._want(block)
                    return LeasedCall(self, block, tokens, nanousd)
            if self._closed:
                raise ClosedError("the lease is closed")
            return None

    def _want(self, low: Block) -> None:
        """Have the next block asked for, if this is the newest and nobody has; the caller has the lock."""
        if not self._wanting and low is self._blocks[-1]:
            self._wanting = True
            self._keeper.wake()

    def reserve(
        self, tokens: int, *, cost_usd: Decimal | float | str | None = None, timeout_s: float | None = None
    ) -> LeasedCall:
        """Take quota for one call; waits for the actor only when what is held here is not enough.

        Raises what ``try_reserve`` does, ``RateLimited`` when a limit has no room, ``ActorUnavailable`` at the
        deadline, and ``InvalidValue`` where a limit of concurrent calls covers them: a block is no call.
        """
        call = self.taken(tokens, cost_usd=cost_usd)
        if call is not None:
            return call
        deadline = self._deadline(timeout_s)
        if not self._fetching.acquire(timeout=max(0.0, deadline.left_s)):
            message = f"no block of quota within {deadline.timeout_s:g} s: others wait for one"
            raise ActorUnavailable(message, timeout_s=deadline.timeout_s)
        try:
            call = self.taken(tokens, cost_usd=cost_usd)  # whoever was before may have brought enough
            return call or self._reserve_anew(Amount(tokens, 1, cost_to_nanousd(cost_usd) or 0), deadline)
        finally:
            self._fetching.release()

    def _reserve_anew(self, asked: Amount, deadline: Deadline) -> LeasedCall:
        returned = self._returned
        try:
            block = self._fetch(asked, deadline)
        except RateLimited as refused:
            if refused.retry_after_s is None:  # nothing that is given back could help
                raise
            self._give_back_all(deadline)
            if self._returned == returned:
                raise
            block = self._granted(asked, deadline)  # what was held here may have been what was missing
        assert block is not None, "somebody asked for it"
        with self.lock:
            self._publish(block)
            block.take(asked)
            return LeasedCall(self, block, asked.tokens, asked.nanousd)

    # --- asking for blocks ---------------------------------------------------------------------------

    def _fetch(self, asked: Amount, deadline: Deadline) -> Block | None:
        """Return a block as large as the demand, at least ``asked``; ``None`` when there is no demand.

        Raises ``RateLimited`` when a limit has no room, for what was asked if that is anything.
        """
        with self.lock:
            wanted = self._demand.next_block(asked, self._taken(), monotonic())
        wanted = self._lender.fitting(wanted, asked)
        if not wanted.calls:
            return None
        try:
            return self._granted(wanted, deadline)
        except RateLimited:
            if asked in {wanted, NOTHING}:
                raise
            return self._granted(asked, deadline)

    def _granted(self, amount: Amount, deadline: Deadline) -> Block:
        block = self._lender.grant(amount, deadline)
        self._demand.granted(amount)
        return block

    def _taken(self) -> Amount:
        """Return what was ever taken; the caller has the lock."""
        return sum((block.taken for block in self._blocks), self._taken_before)

    def _publish(self, block: Block) -> None:
        """Let decisions take from a block, and somebody look after it. The caller has the lock."""
        self._blocks.append(block)
        self._wanting = False
        self._keeper.look_after(self)

    # --- what the thread does --------------------------------------------------------------------------

    def tend(self) -> float:
        """Do what is due, over the network; return when something is due again, ``inf`` when nothing is held."""
        try:
            self._retire()
            self._end_blocks(self._deadline(None))
            self._extend()
            self._renew()
        except ClosedError:  # the client's: its blocks expire by themselves
            with self.lock:
                self._blocks, self._ending = [], []
        return self._due_at()

    def _retire(self, *, everything: bool = False) -> None:
        """Take no more from blocks whose life is over, and count what was dropped as left."""
        with suppress(IndexError):  # until there are no more
            while True:
                self._dropped.popleft().end()
        with self.lock:
            now = monotonic()
            over = [block for block in self._blocks if everything or block.is_over(now)]
            for block in over:
                block.ending = True
                self._taken_before += block.taken
            self._blocks = [block for block in self._blocks if not block.ending]
            self._ending += over

    def _end_blocks(self, deadline: Deadline) -> None:
        """End the blocks that no call is open of; one thread at a time does."""
        if self._returning.acquire(timeout=max(0.0, deadline.left_s)):
            try:
                self._end_ready(deadline)
            finally:
                self._returning.release()

    def _end_ready(self, deadline: Deadline) -> None:
        with self.lock:
            ready = deque(block for block in self._ending if not block.open)
            self._ending = [block for block in self._ending if block.open]
        try:
            while ready and monotonic() >= self._again_at:
                if not ready[0].gone and monotonic() < ready[0].held_until:  # else it has expired
                    self._lender.end(ready[0], max(0.0, deadline.left_s))
                ready.popleft()
                self._returned += 1
        except ClosedError:
            raise
        except TokenActorError as problem:
            self._put_off("A block of quota could not be given back; it is tried again until it expires", problem)
        with self.lock:
            self._ending += ready

    def _extend(self) -> None:
        """Let blocks live on that calls are open of."""
        with self.lock:
            middle = monotonic() + self._held_s / 2
            due = [block for block in [*self._blocks, *self._ending] if block.open and block.held_until < middle]
        try:
            for block in due:
                self._lender.extend(block)
        except ActorUnavailable as problem:
            self._put_off("A block of quota could not be extended; it is tried again", problem)

    def _renew(self) -> None:
        """Ask for the next block ahead of need, or for what was tried for in vain."""
        with self.lock:
            now = monotonic()
            newest = self._blocks[-1] if self._blocks else None
            self._wanting = (
                not self._closed
                and (self._taken().calls > self._demand.seen.calls + 1 or self._missed != NOTHING)  # one call is none
                and (newest is None or newest.is_low(now) or self._missed != NOTHING)
            )
            if not self._wanting or now < max(self._again_at, self._renew_at):
                return
            if not self._fetching.acquire(blocking=False):
                self._wanting = False  # somebody asks for one already
                return
            missed, self._missed = self._missed, NOTHING
        try:
            block = self._fetch(missed, self._deadline(None))
        except RateLimited as refused:
            self._renew_at = monotonic() + min(self._ttl_s, refused.retry_after_s or self._ttl_s)
        except ClosedError:
            raise
        except TokenActorError as problem:
            self._put_off("The next block of quota could not be had; it is tried again", problem)
        else:
            with self.lock:
                self._wanting = False
                if block is not None:
                    self._publish(block)
        finally:
            self._fetching.release()

    def _put_off(self, message: str, problem: TokenActorError) -> None:
        self._again_at = monotonic() + RETRY_S
        log.warning(message, extra={"action": "lease_failed", "problem": str(problem)})

    def _due_at(self) -> float:
        with self.lock:
            now = monotonic()
            times = [block.until for block in self._blocks]
            times += [block.low_at for block in self._blocks[-1:] if block.low_at > now]
            held_until = [block.held_until for block in [*self._blocks, *self._ending] if block.open]
            times += [max(self._again_at, at - self._held_s / 2) for at in held_until]
            times += [self._again_at for block in self._ending if not block.open]
            if self._wanting:
                times.append(max(self._again_at, self._renew_at))
            if held_until or self._ending:
                times.append(now + LOOK_S)  # whether a call was dropped
            return min(times, default=inf)

    # --- the end of calls, and of the lease ------------------------------------------------------------

    def ended(self, block: Block, *, left: Amount = NOTHING, back: Amount = NOTHING) -> None:
        """Know that a call has ended: ``left`` without a word, or not made at all, so that it is ``back``."""
        with self.lock:
            block.open -= 1
            block.left += left
            block.tokens += back.tokens
            block.calls += back.calls
            block.nanousd += back.nanousd
            ready = not block.open and (block.ending or block.is_over(monotonic()))
        if ready:
            self._keeper.wake()

    def _give_back_all(self, deadline: Deadline) -> None:
        self._retire(everything=True)
        self._end_blocks(deadline)

    def close(self, timeout_s: float | None = None) -> None:
        """Take no more calls, and give back what is held, as far as no call is open; closing twice is fine.

        What cannot be given back by the deadline is given back later, or expires.
        """
        with self.lock:
            self._closed = True
        deadline = self._deadline(timeout_s)
        self._again_at = 0.0
        if self._fetching.acquire(timeout=max(0.0, deadline.left_s)):  # a block that is under way is to go back too
            self._fetching.release()
        with suppress(ClosedError):  # the client's: what it held went back before, or expires
            self._give_back_all(deadline)
        self._keeper.wake()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the lease."""
        self.close()
