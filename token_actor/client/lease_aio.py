"""A lease for coroutines: a decision from what is held is a plain call; only waiting for the actor is awaited."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from token_actor.errors import ClosedError

if TYPE_CHECKING:
    from types import TracebackType

    from token_actor.client.lease_blocks import LeasedCall
    from token_actor.client.leases import Lease
    from token_actor.client.threads import Threads


class AsyncLease:
    """Be a ``Lease`` whose methods that may wait are coroutines, and an asynchronous context manager."""

    def __init__(self, lease: Lease, threads: Threads) -> None:
        """Speak for ``lease``."""
        self.lease = lease
        self._threads = threads

    def try_reserve(self, tokens: int, **more: Any) -> LeasedCall | None:  # noqa: ANN401
        """Take quota for one call from what is held here, without waiting; ``None`` when that is not enough."""
        return self.lease.try_reserve(tokens, **more)

    async def reserve(self, tokens: int, *, timeout_s: float | None = None, **more: Any) -> LeasedCall:  # noqa: ANN401
        """Take quota for one call; waits for the actor only when what is held here is not enough."""
        call = self.lease.taken(tokens, **more)
        if call is not None:
            return call
        take = partial(self.lease.reserve, tokens, timeout_s=timeout_s, **more)
        return await self._threads.take(take, lambda taken: taken.release(), back_on=self._threads)

    async def close(self, timeout_s: float | None = None) -> None:
        """Take no more calls, and give back what is held, as far as no call is open."""
        with suppress(ClosedError):  # the client's: it has closed its leases
            await self._threads.run(self.lease.close, timeout_s)

    async def __aenter__(self) -> Self:
        """Return the lease itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the lease."""
        await self.close()
