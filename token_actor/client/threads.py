"""Threads: where the blocking calls of a client run that coroutines wait for."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from token_actor.client.deadline import made_at
from token_actor.errors import ClosedError, TokenActorError

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("token_actor.client")


class Threads:
    """Run blocking calls of one client for coroutines; the threads start with the first call.

    A call may have to wait for a thread, and its deadline counts from before that.
    """

    def __init__(self, threads_max: int) -> None:
        """Use at most ``threads_max`` threads, one for each line of the client."""
        self._threads_max = threads_max
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._pool = ThreadPoolExecutor(max_workers=self._threads_max, thread_name_prefix="token-actor-aio")

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what ``call`` returns, without blocking the event loop. Raises ``ClosedError``."""
        return await asyncio.wrap_future(self._started(partial(call, *args, **kwargs)))

    async def take(self, call: Callable[[], T], give_back: Callable[[T], object], *, back_on: Threads) -> T:
        """Return what ``call`` returns, as ``run`` does; when nobody waits any more, give it back on other threads."""
        future = self._started(call)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(partial(back_on._hand_back, give_back))
            raise

    def _hand_back(self, give_back: Callable[[T], object], taken: Future[T]) -> None:
        """Give back what nobody waited for; in a thread of its own, because this may be that of the event loop."""
        if not taken.cancelled() and taken.exception() is None:
            with suppress(RuntimeError):  # the client was closed: it expires
                self._pool.submit(_given_back, give_back, taken.result())

    def _started(self, call: Callable[[], T]) -> Future[T]:
        if self._closed:
            raise ClosedError("the client is closed")
        if self._pid != os.getpid():
            self._begin()  # after a fork, the pool believes in threads that are not here
        return self._pool.submit(made_at, time.monotonic(), call)

    def close(self) -> None:
        """Let the threads end."""
        self._closed = True
        self._pool.shutdown(wait=False)


def _given_back(give_back: Callable[[T], object], taken: T) -> None:
    try:
        give_back(taken)
    except TokenActorError as error:  # it expires
        log.warning("Not given back", extra={"action": "not_given_back", "problem": str(error)})
