"""The face of a client for threads: every method returns when it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from token_actor.client.lease_keeper import Keeper
from token_actor.client.lease_lender import Terms
from token_actor.client.leases import LEASE_S, Lease
from token_actor.client.limits import check_ttl
from token_actor.client.manager import SharedTokenManager
from token_actor.client.notices import Notices
from token_actor.client.observed import ObservedLimits
from token_actor.client.questions import tenant_of
from token_actor.client.recording import make_event
from token_actor.core.analytics import SessionRules
from token_actor.core.reservations import TTL_MS
from token_actor.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal
    from types import TracebackType

    from token_actor.client.engine import Engine
    from token_actor.client.questions import Moment, Questions


class SyncFace(ObservedLimits, Notices):
    """Record usage, ask questions, and reserve quota. Safe to share between threads, and across a fork."""

    def __init__(self, engine: Engine) -> None:
        """Show the face of ``engine``."""
        super().__init__(engine)
        self._keeper = Keeper()
        engine.before_close.append(self._keeper.close)

    def record(
        self,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
        *,
        message_id: str | None = None,
        timestamp: Moment = None,
        cost_usd: Decimal | float | str | None = None,
        tags: Mapping[str, str] | None = None,
        exactness: str | None = None,
        **dimensions: str | None,
    ) -> None:
        """Record one call. Never waits for the network.

        ``timestamp`` is unix seconds, ISO 8601 with a zone or an aware datetime, ``None`` means now;
        ``cost_usd`` ``None`` means that nobody knows the price. ``dimensions`` go before the client's
        own. Raises ``InvalidValue`` (a ``ValueError``) naming the argument, ``BufferFull`` when too much
        already waits for the log, ``ClosedError``, and ``LogUnavailable`` when nothing can be sent any more.
        """
        self._engine.record(
            make_event(
                self.client_names,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                cache_read_tokens=cache_read_tokens,
                cache_write_tokens=cache_write_tokens,
                reasoning_tokens=reasoning_tokens,
                message_id=message_id,
                timestamp=timestamp,
                cost_usd=cost_usd,
                tags=tags,
                exactness=exactness,
                **dimensions,
            )
        )

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything recorded so far is in the log.

        ``None`` means the client's deadline. Raises ``LogUnavailable`` at it; nothing is dropped.
        """
        self._engine.flush(timeout_s)

    @property
    def pending(self) -> int:
        """Return how many recorded events are not known to be in the log."""
        return self._engine.pending

    def lease(self, *, ttl_s: float = LEASE_S, held_s: float = TTL_MS / 1000, **dimensions: str) -> Lease:
        """Return what grants calls of these dimensions without the network; see ``Lease``. Waits for nothing.

        No decision is older than ``ttl_s``. What it holds when this process dies expires after ``held_s``, as
        each limit says. Raises ``InvalidValue`` naming the argument.
        """
        ttl_ms, held_ms = check_ttl("ttl_s", ttl_s), check_ttl("held_s", held_s)
        if held_ms < ttl_ms:
            raise InvalidValue("held_s", f"must be at least ttl_s, not {held_s!r}")
        names, _, _ = self._call(0, dimensions)
        terms = Terms(names, ttl_ms / 1000, held_ms / 1000, self._engine.settings.timeout_s)
        lease = Lease(self, self._keeper, terms)
        self._keeper.add(lease)
        return lease

    def manager(
        self,
        session: str | None = None,
        *,
        context_window_limit: int = 200_000,
        history_size: int = 100,
        overflow_warning_threshold: float = 80.0,
        **dimensions: str,
    ) -> SharedTokenManager:
        """Return the methods of a ``TokenManager`` over the shared state of one session.

        ``session`` ``None`` means the client's own. Raises ``InvalidValue`` when there is none.
        """
        rules = SessionRules(
            context_window_limit=context_window_limit,
            overflow_warning_threshold=overflow_warning_threshold,
            history_size=history_size,
        )
        return SharedTokenManager(self._engine, self, session_names(self, session, dimensions), rules)

    def close(self, timeout_s: float | None = None) -> None:
        """Flush and let go of everything; closing twice is fine.

        Raises ``LogUnavailable`` when events could not be brought to the log by the deadline.
        """
        self._engine.close(timeout_s)

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the client."""
        self.close()


def session_names(face: Questions, session: str | None, dimensions: dict[str, str]) -> dict[str, str]:
    """Return the dimensions that a session's manager records under. Raises ``InvalidValue``."""
    names = {**face.client_names, **dimensions}
    if session is not None:
        names["session"] = session
    names["tenant"] = tenant_of(face.client_names, names.get("tenant"))
    make_event(names)  # refuses a name that could not be recorded, now rather than later
    if not names.get("session"):
        raise InvalidValue("session", "must be named, here or when the client is made", reason="bad_name")
    return names
