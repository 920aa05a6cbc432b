"""Blocks of quota, and how large the next one should be. No thread, no clock, no network.

A block is a reservation that the actor granted for several calls at once. What may still be taken of it, and
what was taken of it and not ended yet, is known here alone.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from token_actor.core.limits import Estimate
from token_actor.core.usage import COST_NANOUSD_MAX, NANO_PER_USD, TOKENS_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from token_actor.client.leases import Lease
    from token_actor.client.limits import Reservation
    from token_actor.core.limits import Limit

GROWTH: Final = 4  # times the block before: from one call to ten thousand in seven round trips
SHARE_MAX: Final = Fraction(1, 2)  # of what remains, so that one client cannot take it all

_ROUNDING: Final = 1e-6  # of an average of equal numbers
_SHORTEST_S: Final = 1e-6  # between two blocks; a clock may not have moved


class Amount(NamedTuple):
    """Hold what several calls may use together."""

    tokens: int = 0
    calls: int = 0
    nanousd: int = 0

    def at_least(self, other: Amount) -> Amount:
        """Return the larger of both, each for itself."""
        return Amount(*map(max, self, other))

    def at_most(self, other: Amount) -> Amount:
        """Return the smaller of both, each for itself."""
        return Amount(*map(min, self, other))

    def __add__(self, other: Amount) -> Amount:  # type: ignore[override] # sums, where a tuple would append
        """Return both together."""
        return Amount(*[mine + theirs for mine, theirs in zip(self, other, strict=True)])

    def __sub__(self, other: Amount) -> Amount:
        """Return how much more it is than another."""
        return Amount(*[mine - theirs for mine, theirs in zip(self, other, strict=True)])

    @property
    def as_call(self) -> dict[str, Any]:
        """Return it as arguments of ``reserve``."""
        cost: dict[str, Any] = {"cost_usd": Decimal(self.nanousd) / NANO_PER_USD} if self.nanousd else {}
        return {"tokens": self.tokens, "requests": self.calls, **cost}


NOTHING: Final = Amount()
_LARGEST: Final = Amount(TOKENS_MAX, TOKENS_MAX, COST_NANOUSD_MAX)  # that one reservation takes


class Block:
    """Hold what may still be taken of one reservation, and what was taken.

    Times are of the monotonic clock, counted from before it was asked for. It grants until ``until``; from
    ``low_at`` on, or with less than half left, the next one is asked for. The actor may let it expire at
    ``held_until``. ``open`` calls have not ended; ``left`` is what those were estimated at that ended without
    a word of what they used. Once it is ``ending``, nothing is taken of it; once it
    is ``gone``, it has expired on the actor, and is nobody's to give back.
    """

    __slots__ = (
        "calls",
        "ending",
        "gone",
        "held_until",
        "left",
        "low_at",
        "low_calls",
        "low_tokens",
        "nanousd",
        "open",
        "reservation",
        "tokens",
        "until",
        "whole",
    )

    def __init__(self, reservation: Reservation, whole: Amount, asked_at: float, ttl_s: float, held_s: float) -> None:
        """Begin with all of it."""
        self.reservation = reservation
        self.whole = whole
        self.tokens, self.calls, self.nanousd = whole
        self.low_tokens, self.low_calls = whole.tokens // 2, whole.calls // 2
        self.low_at, self.until, self.held_until = asked_at + ttl_s / 2, asked_at + ttl_s, asked_at + held_s
        self.open = 0
        self.ending = self.gone = False
        self.left = NOTHING

    def take(self, amount: Amount) -> None:
        """Take for one call what there is enough of."""
        self.tokens -= amount.tokens
        self.nanousd -= amount.nanousd
        self.calls -= 1
        self.open += 1

    @property
    def taken(self) -> Amount:
        """Return what has been taken of it."""
        return self.whole - Amount(self.tokens, self.calls, self.nanousd)

    def is_low(self, now: float) -> bool:
        """Tell whether the next one is due."""
        return now >= self.low_at or self.tokens < self.low_tokens or self.calls < self.low_calls

    def is_over(self, now: float) -> bool:
        """Tell whether nothing more will be taken of it."""
        return now >= self.until or not self.calls or (not self.tokens and self.whole.tokens > 0)


class Demand:
    """Know how many calls are taken per life of a block, and how large they are: moving averages.

    They are looked at when a block is asked for. ``seen`` is all that had been taken then.
    """

    def __init__(self, ttl_s: float) -> None:
        """Start with nothing known."""
        self.seen = NOTHING
        self._ttl_s = ttl_s
        self._calls = 0.0
        self._tokens = self._nanousd = 0.0  # of one call
        self._calls_before = 0  # of the last block
        self._looked_at: float | None = None

    def next_block(self, asked: Amount, taken: Amount, now: float) -> Amount:
        """Return how much to ask for at ``now``: as much as is taken per life, and at least ``asked``.

        ``taken`` is all that was ever taken. It is at most ``GROWTH`` times the last one, and the first one is
        what is asked.
        """
        if self._looked_at is not None:
            self._learn((taken - self.seen).at_least(NOTHING), max(now - self._looked_at, _SHORTEST_S) / self._ttl_s)
        self.seen, self._looked_at = taken, now
        calls = int(min(self._calls, GROWTH * self._calls_before))
        whole = Amount(calls * ceil(self._tokens - _ROUNDING), calls, calls * ceil(self._nanousd - _ROUNDING))
        return whole.at_least(asked).at_most(_LARGEST)

    def _learn(self, taken: Amount, lives: float) -> None:
        """Learn what was taken in so many lives of a block."""
        weight = 0.5 ** max(1.0, lives)  # what was taken long ago says little
        self._calls = weight * self._calls + (1 - weight) * taken.calls / lives
        if taken.calls:
            weight = weight if self._tokens or self._nanousd else 0.0
            self._tokens = weight * self._tokens + (1 - weight) * taken.tokens / taken.calls
            self._nanousd = weight * self._nanousd + (1 - weight) * taken.nanousd / taken.calls

    def granted(self, block: Amount) -> None:
        """Remember how large the last block was."""
        self._calls_before = block.calls


def share_left(remaining: int, amount: int) -> Fraction:
    """Return which share of the tightest limit is left, and of every other one at least."""
    return Fraction(remaining, max(1, amount))


def fitting(wanted: Amount, asked: Amount, covering: Sequence[Limit], left: Fraction) -> Amount:
    """Return as much of ``wanted`` as takes half of what is left of each limit, and at least ``asked``."""
    factor = Fraction(1)
    estimate = Estimate("", wanted.tokens, cost_nanousd=wanted.nanousd, requests=wanted.calls)
    for limit in covering:
        cost = limit.cost_of(estimate)
        if cost:
            factor = min(factor, SHARE_MAX * left * limit.capacity / cost)
    calls = int(wanted.calls * factor)  # whole calls, so that no rest is too small for one
    share = Fraction(calls, max(1, wanted.calls))
    return Amount(int(wanted.tokens * share), calls, int(wanted.nanousd * share)).at_least(asked)


class LeasedCall:
    """Hold quota for one call, taken from a lease, until it is settled or released.

    As a context manager, and when nobody holds it any more, it charges what was reserved if it was neither.
    Nothing of it waits for the network. Ending it again changes nothing.
    """

    __slots__ = ("_block", "_ended", "_lease", "_nanousd", "_tokens")

    def __init__(self, lease: Lease, block: Block, tokens: int, nanousd: int) -> None:
        """Stand for what was taken from a block of a lease."""
        self._lease = lease
        self._block = block
        self._tokens = tokens
        self._nanousd = nanousd
        self._ended = False

    @property
    def degraded(self) -> bool:
        """Tell whether its block was granted here, because the actor could not be reached."""
        return self._block.reservation.degraded

    def settle(self, input_tokens: int = 0, output_tokens: int = 0, **more: Any) -> None:  # noqa: ANN401
        """Record what the call used; keywords as for ``SyncFace.record``, and raises what that does.

        The call counts once, here; do not record it as well.
        """
        if self._end():
            try:
                self._lease.record({"input_tokens": input_tokens, "output_tokens": output_tokens, **more})
            except BaseException:
                self._ended = False  # it may be settled still
                raise
            self._lease.ended(self._block)

    def release(self) -> None:
        """Give it back, for a call that was not made."""
        if self._end():
            self._lease.ended(self._block, back=self._amount)

    def end(self) -> None:
        """Charge what was reserved, unless it was settled or released. Counts no call."""
        if self._end():
            self._lease.ended(self._block, left=self._amount)

    @property
    def _amount(self) -> Amount:
        return Amount(self._tokens, 1, self._nanousd)

    def _end(self) -> bool:
        """Tell whether this is the first end."""
        with self._lease.lock:
            first = not self._ended
            self._ended = True
        return first

    def __enter__(self) -> Self:
        """Return the call itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Charge what was reserved, unless it was settled or released."""
        self.end()

    def __del__(self) -> None:
        """Let the lease know, so that its block does not wait for ever."""
        if not self._ended:
            self._lease.drop(self)
