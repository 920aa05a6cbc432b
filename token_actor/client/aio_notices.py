"""Notices and the kill switch for coroutines: what ``AsyncFace`` has of ``client.notices``."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from token_actor.client.notices import Watch, beginning

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from token_actor.client.engine import Engine
    from token_actor.client.notices import NoticeMap
    from token_actor.client.sync import SyncFace
    from token_actor.client.threads import Threads


class AsyncNotices:
    """Be told what budgets have reached. See ``client.notices.Notices`` for what each method does."""

    _engine: Engine
    _sync: SyncFace
    _threads: Threads

    async def kill(self, **more: Any) -> str:  # noqa: ANN401
        """Refuse every reservation of what has all these names, until ``revive``."""
        return await self._threads.run(self._sync.kill, **more)

    async def revive(self, **more: Any) -> bool:  # noqa: ANN401
        """End what ``kill`` of the same names began."""
        return await self._threads.run(self._sync.revive, **more)

    async def notices(self, after: str | None = None, limit: int = 100, **more: Any) -> list[NoticeMap]:  # noqa: ANN401
        """Return what budgets have reached, the oldest first."""
        return await self._threads.run(self._sync.notices, after, limit, **more)

    async def on_notice(
        self,
        callback: Callable[[NoticeMap], object],
        after: str | None = None,
        **more: Any,  # noqa: ANN401
    ) -> Watch:
        """Call ``callback`` for every notice, in a thread of its own; ``watch_notices`` tells coroutines."""
        return await self._threads.run(self._sync.on_notice, callback, after, **more)

    async def watch_notices(
        self, after: str | None = None, *, tenant: str | None = None, timeout_s: float | None = None
    ) -> AsyncIterator[NoticeMap]:
        """Yield every notice from now on, or behind the id ``after``, until the client is closed."""
        told: asyncio.Queue[NoticeMap | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(notice: NoticeMap | None = None) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(told.put_nowait, notice)

        where = await self._threads.run(beginning, self._engine, after, tenant, timeout_s)
        watch = Watch(*where, tell, tell)
        self._engine.follow(watch)
        try:
            while (notice := await told.get()) is not None:
                yield notice
        finally:
            watch.leave()
