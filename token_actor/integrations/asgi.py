"""Limits in front of an ASGI application, under any server that runs on asyncio.

::

    app.add_middleware(RateLimitMiddleware, client=client, estimate=lambda scope: {"tokens": 4000, "agent": "web"})

Every request of kind ``http`` for which ``estimate`` returns something takes quota before the application
runs. One that is refused is answered here. WebSockets pass: what they use is known message by message, so
the endpoint reserves for itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from token_actor.client.aio import AsyncFace, AsyncReservation
from token_actor.client.lines import WAITING_LINES_MAX
from token_actor.client.questions import tenant_of
from token_actor.client.threads import Threads
from token_actor.core.limit_headers import decision_of, limits_covering, rate_limit_headers, vendor_headers
from token_actor.core.usage import DIMENSIONS, RESERVED_PREFIX
from token_actor.errors import ActorUnavailable, InvalidValue, RateLimited, TokenActorError

if TYPE_CHECKING:
    from token_actor.client.limits import Reservation
    from token_actor.client.sync import SyncFace

Scope: TypeAlias = "MutableMapping[str, Any]"
Message: TypeAlias = "MutableMapping[str, Any]"
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

RESERVATION: Final = "token_actor.reservation"  # the key of the scope; with a framework, request.state.reservation
HEADERS: Final = ("ietf", "vendor", "both")
ON_UNAVAILABLE: Final = ("refuse", "allow")
UNAVAILABLE_RETRY_S: Final = 3  # within which another actor takes over
ENDS_MAX: Final = 32  # reservations ended at once, for a client without coroutines
LIMITS_TIMEOUT_S: Final = 1.0  # headers are not worth a longer wait
TENANTS_MAX: Final = 1_000  # whose limits are remembered for the policy
QUOTA_EXCEEDED: Final = "https://iana.org/assignments/http-problem-types#quota-exceeded"  # the draft's
UNAVAILABLE: Final = {"type": "about:blank", "title": "Rate limits cannot be checked now", "status": 503}

log = logging.getLogger(__name__)


class RateLimitMiddleware:
    """Reserve before a request is answered, refuse it where there is no room, and tell of the limits in headers.

    ``client`` is a ``TokenClient``, which is waited for in threads, or an ``AsyncTokenClient``. ``estimate`` is
    given the scope of a request, and returns the arguments of ``reserve``, or ``None`` for a request that no
    limit is about. ``headers`` are those of the IETF draft (``ietf``), of providers (``vendor``), or ``both``.

    The endpoint finds its reservation in ``scope["token_actor.reservation"]`` and ``scope["state"]["reservation"]``
    (``request.state.reservation``), and settles it. If it does not, the estimate is charged; when it raises
    before it has begun to answer, all of it is given back. A request that is cancelled is charged the estimate:
    nobody knows what it used.

    A refused request is answered with 429; without an actor with 503, or with ``on_unavailable`` ``allow`` it
    goes on with ``None`` for a reservation. Raises ``InvalidValue`` naming the argument that is wrong.
    """

    def __init__(
        self,
        app: App,
        client: SyncFace | AsyncFace,
        *,
        estimate: Callable[[Scope], Mapping[str, Any] | None],
        headers: str = "ietf",
        on_unavailable: str = "refuse",
    ) -> None:
        """Stand before ``app``; nothing is asked yet."""
        for name, value, known in (("headers", headers, HEADERS), ("on_unavailable", on_unavailable, ON_UNAVAILABLE)):
            if value not in known:
                raise InvalidValue(name, f"must be one of {', '.join(known)}, not {value!r}")
        self._app = app
        self._calls = _Calls(client)
        self._estimate = estimate
        self._headers = headers
        self._on_unavailable = on_unavailable

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or let the application answer it."""
        arguments = self._estimate(scope) if scope["type"] == "http" else None
        if arguments is None:
            await self._app(scope, receive, send)
            return
        try:
            reservation = await self._calls.reserve(arguments)
        except RateLimited as error:
            decision = decision_of(error)
            await _answer(send, 429, _refusal(error), await self._told(decision, arguments))
        except ActorUnavailable as error:
            log.warning("No actor decides", extra={"action": "limits_unavailable", "problem": str(error)})
            if self._on_unavailable == "allow":
                _hand_over(scope, None)
                await self._app(scope, receive, send)
            else:
                await _answer(send, 503, UNAVAILABLE, {"Retry-After": str(UNAVAILABLE_RETRY_S)})
        else:
            _hand_over(scope, reservation)
            await self._run(reservation, arguments, scope, receive, _Answer(send))

    async def _run(
        self,
        reservation: Reservation | AsyncReservation,
        arguments: Mapping[str, Any],
        scope: Scope,
        receive: Receive,
        answer: _Answer,
    ) -> None:
        """Let the application answer, and end its reservation however that goes."""
        try:
            answer.add(await self._told(reservation.decision, arguments))
            await self._app(scope, receive, answer)
        except Exception:
            if not answer.begun:
                await self._calls.end(reservation, give_back=True)
            raise
        finally:
            await self._calls.end(reservation)

    async def _told(self, decision: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, str]:
        """Return the headers of a decision."""
        limits = await self._calls.limits(decision, arguments)
        ietf = rate_limit_headers(decision, limits) if self._headers != "vendor" else {}
        return ietf | (vendor_headers(decision, limits) if self._headers != "ietf" else {})


class _Answer:
    """Be the ``send`` of an application: add headers to its answer, and remember that it has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._headers: list[tuple[bytes, bytes]] = []
        self.begun = False

    def add(self, headers: Mapping[str, str]) -> None:
        """Say which headers to add."""
        self._headers += _encoded(headers)

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            own = list(message.get("headers", ()))
            names = {bytes(name).lower() for name, _ in own}  # what the application says itself goes first
            added = [(name, value) for name, value in self._headers if name not in names]
            message = {**message, "headers": [*own, *added]}
        await self._send(message)


class _Calls:
    """Wait for a client of either face without blocking the event loop."""

    def __init__(self, client: SyncFace | AsyncFace) -> None:
        self._client = client
        self._waits, self._threads = Threads(WAITING_LINES_MAX), Threads(ENDS_MAX)  # of a client without coroutines
        self._known: dict[str, tuple[int | None, list[dict[str, Any]]]] = {}  # by tenant, with the table's version
        self._ending: set[asyncio.Task[Any]] = set()

    async def reserve(self, arguments: Mapping[str, Any]) -> Reservation | AsyncReservation:
        """Take quota. Raises ``RateLimited``, ``ActorUnavailable``, and ``InvalidValue`` for a wrong estimate."""
        if isinstance(self._client, AsyncFace):
            return await self._client.reserve(**arguments)
        reserve = partial(self._client.reserve, **arguments)
        return await self._waits.take(reserve, self._client.release, back_on=self._threads)

    async def end(self, reservation: Reservation | AsyncReservation, *, give_back: bool = False) -> None:
        """Charge what was reserved, unless it has ended already; with ``give_back`` charge nothing.

        It is carried out even if whoever waits is cancelled. What fails is logged: the reservation then expires.
        """
        task = asyncio.ensure_future(self._end(reservation, give_back=give_back))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        await asyncio.shield(task)

    async def _end(self, reservation: Reservation | AsyncReservation, *, give_back: bool) -> None:
        try:
            if isinstance(reservation, AsyncReservation):
                await (reservation.release() if give_back else reservation.end())
            else:
                await self._threads.run(reservation.release if give_back else reservation.end)
        except TokenActorError as error:
            extra = {"action": "reservation_left", "reservation": reservation.id, "problem": str(error)}
            log.warning("A reservation was not ended; it expires as its limits say", extra=extra)

    async def limits(self, decision: Mapping[str, Any], arguments: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return the limits that cover a call; asked for again when a decision tells that they have changed."""
        names = {**self._client.client_names, **{name: arguments[name] for name in DIMENSIONS if arguments.get(name)}}
        tenant = names["tenant"] = tenant_of(names, None)
        version = decision.get("limits_version")
        known, limits = self._known.get(tenant, (None, []))
        if version not in {None, known} or not _has(limits, decision["limit"]):
            try:
                limits = await self._ask(tenant)
            except ActorUnavailable as error:
                log.warning("Headers lack the policy", extra={"action": "limits_unavailable", "problem": str(error)})
                return []
            if len(self._known) >= TENANTS_MAX:
                self._known.clear()
            self._known[tenant] = (version, limits)
        return limits_covering(limits, names)

    async def _ask(self, tenant: str) -> list[dict[str, Any]]:
        if isinstance(self._client, AsyncFace):
            return await self._client.limits(top=0, tenant=tenant, stale_ok=True, timeout_s=LIMITS_TIMEOUT_S)
        ask = partial(self._client.limits, top=0, tenant=tenant, stale_ok=True, timeout_s=LIMITS_TIMEOUT_S)
        return await self._threads.run(ask)


def _hand_over(scope: Scope, reservation: Reservation | AsyncReservation | None) -> None:
    """Put the reservation where the endpoint finds it."""
    scope[RESERVATION] = reservation
    scope.setdefault("state", {})["reservation"] = reservation


def _has(limits: Sequence[Mapping[str, Any]], name: str | None) -> bool:
    """Tell whether a limit is known, as far as it has a policy that could be."""
    return name is None or name.startswith(RESERVED_PREFIX) or any(limit["name"] == name for limit in limits)


def _refusal(error: RateLimited) -> dict[str, Any]:
    """Return the body of an answer that refuses a request, a problem of RFC 9457."""
    return {
        "type": QUOTA_EXCEEDED,
        "title": "A limit has no room for this request",
        "status": 429,
        "detail": str(error),
        "violated-policies": [error.limit],
        "remaining": error.remaining,
        "retry_after_s": error.retry_after_s,
    }


async def _answer(send: Send, status: int, problem: Mapping[str, Any], headers: Mapping[str, str]) -> None:
    body = json.dumps(problem).encode()
    own = {"content-type": "application/problem+json", "content-length": str(len(body))}
    await send({"type": "http.response.start", "status": status, "headers": _encoded({**own, **headers})})
    await send({"type": "http.response.body", "body": body})


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
