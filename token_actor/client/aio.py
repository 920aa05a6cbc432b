"""The face of a client for asyncio: the same engine, waited for on its own threads.

``record`` stays a plain call, because it never waits. Everything else is a coroutine that runs the
method of the same name in a thread of the client's pool, so no event loop is ever blocked.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from token_actor.client.aio_notices import AsyncNotices
from token_actor.client.lease_aio import AsyncLease
from token_actor.client.lines import WAITING_LINES_MAX
from token_actor.client.sync import SyncFace
from token_actor.client.threads import Threads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from types import TracebackType

    from token_actor.client.engine import Engine
    from token_actor.client.limits import Reservation
    from token_actor.client.manager import SharedTokenManager
    from token_actor.client.questions import Moment
    from token_actor.core.analytics import Analytics, HistoryEntry
    from token_actor.core.limits import Limit
    from token_actor.core.provider_quotas import ProviderQuotas


class AsyncFace(AsyncNotices):
    """Record usage and ask questions from coroutines. See ``SyncFace`` for what each method does."""

    def __init__(self, engine: Engine) -> None:
        """Show the face of ``engine``."""
        self._engine = engine
        self._sync = SyncFace(engine)
        self.client_names = self._sync.client_names
        self._threads = Threads(engine.settings.lines_max)
        self._waiting = Threads(WAITING_LINES_MAX)  # for quota; what frees it needs no thread of these

    def record(
        self,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
        **more: Any,  # noqa: ANN401 - see SyncFace
    ) -> None:
        """Record one call. Never waits, so it is a plain call. Raises what ``SyncFace.record`` raises."""
        self._sync.record(input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens, **more)

    @property
    def pending(self) -> int:
        """Return how many recorded events are not known to be in the log."""
        return self._sync.pending

    async def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything recorded so far is in the log."""
        await self._threads.run(self._sync.flush, timeout_s)

    async def analytics(
        self,
        group_by: Sequence[str] = (),
        since: Moment = None,
        until: Moment = None,
        **more: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        """Return what was used, as a whole and by group."""
        return await self._threads.run(self._sync.analytics, group_by, since, until, **more)

    async def history(self, limit: int = 10, **more: Any) -> list[dict[str, Any]]:  # noqa: ANN401
        """Return the last events, newest first."""
        return await self._threads.run(self._sync.history, limit, **more)

    async def pages(self, limit: int | None = None, **selector: str) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield the events the actor still holds, newest first, a page at a time; ``None`` means all."""
        pages = self._sync.pages(limit, **selector)
        end: list[dict[str, Any]] = []
        while page := await self._threads.run(next, pages, end):
            yield page

    async def window_usage(self, window_seconds: float, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        """Return the tokens of the last ``window_seconds``, and whether they are exact."""
        return await self._threads.run(self._sync.window_usage, window_seconds, **more)

    async def tokens_in_window(self, window_seconds: float, **more: Any) -> int:  # noqa: ANN401
        """Return the tokens of all four kinds of the last ``window_seconds``."""
        return await self._threads.run(self._sync.tokens_in_window, window_seconds, **more)

    async def check_rate_limit(self, window_seconds: float, max_tokens: int, **more: Any) -> bool:  # noqa: ANN401
        """Tell whether what was selected used at most ``max_tokens`` in the last ``window_seconds``."""
        return await self._threads.run(self._sync.check_rate_limit, window_seconds, max_tokens, **more)

    async def session(self, session: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        """Return the figures of one session since its last reset, and its newest events."""
        return await self._threads.run(self._sync.session, session, **more)

    async def predict_overflow(
        self,
        session: str,
        estimated_tokens: float,
        **more: Any,  # noqa: ANN401
    ) -> tuple[bool, float]:
        """Return whether a session would overflow its context window, and its usage in per cent then."""
        return await self._threads.run(self._sync.predict_overflow, session, estimated_tokens, **more)

    async def export(self, export_format: str = "json", **more: Any) -> str:  # noqa: ANN401
        """Return analytics and events as one text."""
        return await self._threads.run(self._sync.export, export_format, **more)

    async def summary(self, **selector: str) -> str:
        """Return a page of text for people."""
        return await self._threads.run(self._sync.summary, **selector)

    async def status(self, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        """Return what the actor says of itself."""
        return await self._threads.run(self._sync.status, **more)

    async def books(self, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        """Return the totals added up in every way there is, and the differences."""
        return await self._threads.run(self._sync.books, **more)

    async def put_limit(self, limit: Limit, **more: Any) -> bool:  # noqa: ANN401
        """Put a limit in force for the whole fleet at once."""
        return await self._threads.run(self._sync.put_limit, limit, **more)

    async def delete_limit(self, name: str, **more: Any) -> bool:  # noqa: ANN401
        """Let go of a limit; return whether there was one."""
        return await self._threads.run(self._sync.delete_limit, name, **more)

    async def limits(self, **more: Any) -> list[dict[str, Any]]:  # noqa: ANN401
        """Return the limits in force, and what is taken of them."""
        return await self._threads.run(self._sync.limits, **more)

    async def explain(self, tokens: int | None = None, **call: Any) -> dict[str, Any]:  # noqa: ANN401
        """Return what a ``reserve`` of the same arguments would be told now."""
        return await self._threads.run(self._sync.explain, tokens, **call)

    async def observe_headers(self, headers: Mapping[str, str], **more: Any) -> ProviderQuotas:  # noqa: ANN401
        """Hold the whole fleet to what a provider says of its quotas."""
        return await self._threads.run(self._sync.observe_headers, headers, **more)

    async def reserve(self, tokens: int | None = None, **call: Any) -> AsyncReservation:  # noqa: ANN401
        """Take quota for one call; cancelled, it takes none. Raises ``RateLimited`` when a limit has no room."""
        threads = self._waiting if call.get("wait_s") else self._threads
        reserve = partial(self._sync.reserve, tokens, **call)
        taken = await threads.take(reserve, self._sync.release, back_on=self._threads)
        return AsyncReservation(taken, self._threads)

    def lease(self, **more: Any) -> AsyncLease:  # noqa: ANN401 - see SyncFace
        """Return what grants calls without the network. Waits for nothing, so it is a plain call."""
        return AsyncLease(self._sync.lease(**more), self._threads)

    async def settle(
        self,
        reservation: AsyncReservation | str,
        input_tokens: int = 0,
        output_tokens: int = 0,
        **more: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        """Count what a reserved call used."""
        return await self._threads.run(self._sync.settle, _plain(reservation), input_tokens, output_tokens, **more)

    async def settle_estimate(self, reservation: AsyncReservation | str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        """Charge what was reserved, for a call of which nobody knows what it used."""
        return await self._threads.run(self._sync.settle_estimate, _plain(reservation), **more)

    async def extend(self, reservation: AsyncReservation | str, ttl_s: float, **more: Any) -> bool:  # noqa: ANN401
        """Let a reservation expire ``ttl_s`` from now; return whether it was still open."""
        return await self._threads.run(self._sync.extend, _plain(reservation), ttl_s, **more)

    async def release(self, reservation: AsyncReservation | str, **more: Any) -> bool:  # noqa: ANN401
        """Give back all that a reservation holds; return whether it was open."""
        return await self._threads.run(self._sync.release, _plain(reservation), **more)

    def manager(self, session: str | None = None, **more: Any) -> AsyncTokenManager:  # noqa: ANN401
        """Return the methods of a ``TokenManager`` over one shared session, as coroutines."""
        return AsyncTokenManager(self._sync.manager(session, **more), self._threads)

    async def close(self, timeout_s: float | None = None) -> None:
        """Flush and let go of everything; closing twice is fine."""
        self._waiting.close()
        self._threads.close()  # calls under way end by themselves, and none of them may hold up this one
        await asyncio.to_thread(self._sync.close, timeout_s)

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the client."""
        await self.close()


class AsyncReservation:
    """Be a ``Reservation`` whose methods are coroutines, and an asynchronous context manager."""

    def __init__(self, reservation: Reservation, threads: Threads) -> None:
        """Speak for ``reservation``."""
        self.reservation = reservation
        self.id = reservation.id
        self.decision = reservation.decision
        self.degraded = reservation.degraded
        self.expires_at = reservation.expires_at
        self._threads = threads

    async def settle(self, input_tokens: int = 0, output_tokens: int = 0, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        """Count what the call used."""
        return await self._threads.run(self.reservation.settle, input_tokens, output_tokens, **more)

    async def extend(self, ttl_s: float, *, timeout_s: float | None = None) -> bool:
        """Let it expire ``ttl_s`` from now; return whether it was still open."""
        return await self._threads.run(self.reservation.extend, ttl_s, timeout_s=timeout_s)

    async def release(self, *, timeout_s: float | None = None) -> bool:
        """Give it all back; return whether it was still open."""
        return await self._threads.run(self.reservation.release, timeout_s=timeout_s)

    async def end(self) -> None:
        """Charge what was reserved, unless it was settled or released."""
        await self._threads.run(self.reservation.end)

    async def __aenter__(self) -> Self:
        """Return the reservation itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Charge what was reserved, unless it was settled or released."""
        await self.end()


def _plain(reservation: AsyncReservation | str) -> Reservation | str:
    return reservation if isinstance(reservation, str) else reservation.reservation


class AsyncTokenManager:
    """Be a ``SharedTokenManager`` whose methods are coroutines."""

    def __init__(self, manager: SharedTokenManager, threads: Threads) -> None:
        """Speak for the session of ``manager``."""
        self._manager = manager
        self._threads = threads

    async def update_tokens(
        self,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cache_read: int = 0,
        cache_write: int = 0,
        message_id: str | None = None,
    ) -> bool:
        """Count one call; return ``False`` when the message id was seen."""
        call = self._manager.update_tokens
        return await self._threads.run(call, input_tokens, output_tokens, cache_read, cache_write, message_id)

    async def get_context_usage_pct(self) -> float:
        """Return how much of the context window is used, in per cent."""
        return await self._threads.run(self._manager.get_context_usage_pct)

    async def predict_overflow(self, estimated_tokens: float) -> tuple[bool, float]:
        """Return whether ``estimated_tokens`` more would overflow, and the usage in per cent then."""
        return await self._threads.run(self._manager.predict_overflow, estimated_tokens)

    async def get_usage_history(self, limit: int = 10) -> list[HistoryEntry]:
        """Return the last calls, newest first."""
        return await self._threads.run(self._manager.get_usage_history, limit)

    async def check_rate_limit(self, window_seconds: float, max_tokens: int) -> bool:
        """Tell whether the session used at most ``max_tokens`` in the last ``window_seconds``."""
        return await self._threads.run(self._manager.check_rate_limit, window_seconds, max_tokens)

    async def get_analytics(self) -> Analytics:
        """Return every figure of the session by name."""
        return await self._threads.run(self._manager.get_analytics)

    async def export_metrics(self, export_format: str = "json") -> str:
        """Return analytics and history as text."""
        return await self._threads.run(self._manager.export_metrics, export_format)

    async def get_summary(self) -> str:
        """Return a few lines for people."""
        return await self._threads.run(self._manager.get_summary)

    async def reset(self) -> None:
        """Start the session anew for everybody."""
        await self._threads.run(self._manager.reset)
