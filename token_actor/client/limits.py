"""Limits and reservations as a client sees them: quota is taken before a call, and made right after it."""

from __future__ import annotations

from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from token_actor.client.drawing import Call
from token_actor.client.outage import Outage
from token_actor.client.questions import Questions, tenant_of
from token_actor.client.recording import make_event
from token_actor.client.report import amount_text, unit_text
from token_actor.core.escrow import measures_of
from token_actor.core.estimates import is_unmeasured
from token_actor.core.killing import is_killed, kill_limit
from token_actor.core.limits import CONCURRENCY, estimate_of
from token_actor.core.reservations import OPEN_MAX, TABLE_FULL, TTL_MS, TTL_MS_MAX
from token_actor.core.usage import DIMENSIONS, seconds_to_ms
from token_actor.core.waiting import WAIT_MS_MAX
from token_actor.errors import ActorUnavailable, InvalidValue, RateLimited

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from token_actor.client.engine import Engine
    from token_actor.core.limits import Estimate, Limit


class Limits(Questions):
    """Put limits in force, reserve under them, and settle.

    Every method waits for the actor and raises ``ActorUnavailable`` at its deadline; what it asked for
    may still be carried out then. A limit without a tenant covers all tenants, and can only be put
    where there is one partition.
    """

    def __init__(self, engine: Engine) -> None:
        """Use ``engine`` for everything."""
        super().__init__(engine)
        self.outage = Outage(engine)

    def put_limit(self, limit: Limit, *, timeout_s: float | None = None) -> bool:
        """Put a limit in force for the whole fleet at once; return whether it goes on with former counters.

        It does when a limit of that name counted the same things before. A new one begins with nothing
        used. Raises ``InvalidQuestion`` when there are too many.
        """
        arguments = {"limit": limit.as_map()}
        answer = self._engine.command("put_limit", arguments, tenant=limit.selector.get("tenant"), timeout_s=timeout_s)
        kept: bool = answer["counters_kept"]
        return kept

    def delete_limit(self, name: str, *, tenant: str | None = None, timeout_s: float | None = None) -> bool:
        """Let go of a limit; return whether there was one. ``tenant`` is the one its selector names."""
        answer = self._engine.command("delete_limit", {"name": name}, tenant=tenant, timeout_s=timeout_s)
        deleted: bool = answer["deleted"]
        return deleted

    def kill(self, *, timeout_s: float | None = None, **selector: str) -> str:
        """Refuse every reservation of what has all these names (``agent="a"``) until ``revive``; return the limit.

        A tenant is only what ``selector`` says. What is reserved already stays so, and what is used all the
        same is counted. Raises ``InvalidValue`` when nothing is named.
        """
        limit = kill_limit(selector)
        self.put_limit(limit, timeout_s=timeout_s)
        return limit.name

    def revive(self, *, timeout_s: float | None = None, **selector: str) -> bool:
        """End what ``kill`` of the same names began; return whether there was anything to end."""
        name = kill_limit(selector).name
        return self.delete_limit(name, tenant=selector.get("tenant"), timeout_s=timeout_s)

    def limits(
        self, *, top: int = 10, tenant: str | None = None, stale_ok: bool = False, timeout_s: float | None = None
    ) -> list[dict[str, Any]]:
        """Return the limits in force, in the order in which they were put.

        Each has the fields of ``Limit``, how often it ``refused``, the ``debt`` used beyond what was
        reserved, and under ``top`` the ``used``, ``reserved`` and ``remaining`` of those values of ``by``
        with most taken.
        """
        answer = self._ask("limits", {"top": top}, self._only_tenant(tenant), stale_ok=stale_ok, timeout_s=timeout_s)
        limits: list[dict[str, Any]] = answer["limits"]
        return limits

    def explain(self, tokens: int | None = None, *, timeout_s: float | None = None, **call: Any) -> dict[str, Any]:  # noqa: ANN401 - dimensions and counts
        """Return what a ``reserve`` of the same arguments would be told now, as a whole and by limit."""
        names, counts, _ = self._call(tokens, call)
        return self._ask("explain", {"selector": names, **counts}, names, stale_ok=False, timeout_s=timeout_s)

    def reserve(
        self,
        tokens: int | None = None,
        *,
        wait_s: float = 0,
        ttl_s: float = TTL_MS / 1000,
        timeout_s: float | None = None,
        **call: Any,  # noqa: ANN401 - dimensions and counts, checked
    ) -> Reservation:
        """Take quota for one call under every limit that covers it: all of it, or nothing.

        Where there is no room it waits its turn for ``wait_s`` at most, on top of ``timeout_s``.

        ``tokens`` is what it may use of any kind; better known counts are ``input_tokens``,
        ``output_tokens``, ``cache_read_tokens``, ``cache_write_tokens``, and ``cost_usd``. Without any of them
        it is what the last calls of this agent and model used; ``decision["estimate"]`` tells. Dimensions go
        before the client's own. What is not settled within ``ttl_s`` expires as each limit says. Raises
        ``RateLimited`` when a limit has no room, ``InvalidValue`` (a ``ValueError``) naming the argument.
        While the actor cannot be reached it is decided as ``on_outage`` of the limits says, and is ``degraded``.
        """
        names, counts, estimate = self._call(tokens, call)
        wait_ms = _whole_ms("wait_s", wait_s, 0, WAIT_MS_MAX)
        ttl_ms = check_ttl("ttl_s", ttl_s)
        arguments = {**names, **counts, "ttl_ms": ttl_ms, "wait_ms": wait_ms}
        taken = None
        if estimate.requests == 1:
            taken = Call(estimate, None if is_unmeasured(counts) else measures_of(estimate), ttl_ms)
        if timeout_s is None:
            timeout_s = self._engine.settings.timeout_s
        by_s = timeout_s + wait_ms / 1000

        def ask() -> Mapping[str, Any]:
            return self._engine.command(
                "reserve",
                arguments,
                tenant=names["tenant"],
                take_back=True,
                waits=wait_ms > 0,
                call=taken,
                timeout_s=by_s,
            )

        answer = self.outage.decide(ask, arguments)
        if not answer["granted"]:
            raise refusal(answer)
        return Reservation(self, answer, names)

    def settle(
        self,
        reservation: Reservation | str,
        input_tokens: int = 0,
        output_tokens: int = 0,
        *,
        timeout_s: float | None = None,
        **more: Any,  # noqa: ANN401 - see ``SyncFace.record``
    ) -> dict[str, Any]:
        """Count what a reserved call used; ``reservation`` may be an id that another process was given.

        The call counts once, here; do not record it as well. Further keywords are those of ``record``,
        other counts included. Never refused: the answer says ``debt`` by limit, which is what was used
        beyond what was reserved; whether it came ``late``; and whether the reservation was ``unknown``.
        Settling again changes nothing and has the same answer. Raises ``InvalidValue`` naming the argument.
        """
        names = self._names(reservation)
        given: dict[str, Any] = {"input_tokens": input_tokens, "output_tokens": output_tokens}
        given.update((name, value) for name, value in more.items() if value is not None)
        made = make_event(names, **given)
        if self.outage.holds(_id(reservation)):
            return self.outage.settle(_id(reservation), partial(self._engine.record, made))
        at_ms = made.timestamp_ms
        event = {**names, **given, "timestamp": (at_ms or 0) / 1000}
        if isinstance(event.get("cost_usd"), Decimal):
            event["cost_usd"] = str(event["cost_usd"])
        return self._tell("settle", reservation, {}, tenant_of(names, given.get("tenant")), timeout_s, event)

    def settle_estimate(self, reservation: Reservation | str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Charge what was reserved, for a call of which nobody knows what it used. Counts no call."""
        return self._tell("settle", reservation, {}, None, timeout_s)

    def extend(self, reservation: Reservation | str, ttl_s: float, *, timeout_s: float | None = None) -> bool:
        """Let a reservation expire ``ttl_s`` from now; return whether it was still open."""
        arguments = {"ttl_ms": check_ttl("ttl_s", ttl_s)}
        extended: bool = self._tell("extend", reservation, arguments, None, timeout_s)["extended"]
        return extended

    def release(self, reservation: Reservation | str, *, timeout_s: float | None = None) -> bool:
        """Give back all that a reservation holds, for a call that was not made; return whether it was open."""
        released: bool = self._tell("release", reservation, {}, None, timeout_s)["released"]
        return released

    def _names(self, reservation: Reservation | str) -> Mapping[str, str]:
        return reservation.names if isinstance(reservation, Reservation) else self.client_names

    def _tell(
        self,
        operation: str,
        reservation: Reservation | str,
        arguments: Mapping[str, Any],
        tenant: str | None,
        timeout_s: float | None,
        event: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Send a command about a reservation to where its tenant is, or here if it was granted here."""
        name = _id(reservation)
        if self.outage.holds(name):
            return self.outage.tell(operation, name, arguments)
        tenant = tenant_of(self._names(reservation), tenant)
        arguments = {**arguments, "reservation": name}
        try:
            return dict(self._engine.command(operation, arguments, tenant=tenant, event=event, timeout_s=timeout_s))
        except ActorUnavailable as error:
            error.args = (f"{error}; whether it was carried out is not known: {operation} again, which counts once",)
            raise

    def _call(self, tokens: int | None, call: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any], Estimate]:
        """Return the dimensions of a call, and what it may use, as given and estimated. Raises ``InvalidValue``."""
        given: dict[str, Any] = {name: value for name, value in call.items() if value is not None}
        if tokens is not None:
            given["tokens"] = tokens
        if isinstance(given.get("cost_usd"), Decimal):
            given["cost_usd"] = str(given["cost_usd"])
        named: dict[str, str] = {name: given.pop(name) for name in DIMENSIONS if name in given}
        names = {**self.client_names, **named}
        names["tenant"] = tenant_of(names, None)
        return names, given, estimate_of({**names, **given})


class Reservation:
    """Hold quota for one call until it is settled, released, or expires.

    As a context manager it charges what was reserved if it is left without either. ``id`` can be given
    to another process, ``decision`` is what the actor answered: the tightest limit with its figures.
    """

    def __init__(self, limits: Limits, decision: Mapping[str, Any], names: Mapping[str, str]) -> None:
        """Stand for the reservation that ``decision`` granted to a call of these dimensions."""
        self.id: str = decision["reservation"]
        self.decision = decision
        self.names = names
        self._limits = limits
        self._ended = False

    @property
    def degraded(self) -> bool:
        """Tell whether it was granted here, because the actor could not be reached."""
        return bool(self.decision["degraded"])

    @property
    def expires_at(self) -> float:
        """Return the unix time, by the log, at which it expires unless it is extended."""
        expires_at: float = self.decision["expires_ms"] / 1000
        return expires_at

    def settle(self, input_tokens: int = 0, output_tokens: int = 0, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        """Count what the call used; see ``Limits.settle``."""
        answer = self._limits.settle(self, input_tokens, output_tokens, **more)
        self._ended = True
        return answer

    def extend(self, ttl_s: float, *, timeout_s: float | None = None) -> bool:
        """Let it expire ``ttl_s`` from now; return whether it was still open."""
        return self._limits.extend(self, ttl_s, timeout_s=timeout_s)

    def release(self, *, timeout_s: float | None = None) -> bool:
        """Give it all back, for a call that was not made; return whether it was still open."""
        released = self._limits.release(self, timeout_s=timeout_s)
        self._ended = True
        return released

    def end(self) -> None:
        """Charge what was reserved, unless it was settled or released."""
        if not self._ended:
            self._limits.settle_estimate(self)
            self._ended = True

    def __enter__(self) -> Self:
        """Return the reservation itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Charge what was reserved, unless it was settled or released."""
        self.end()

    def __repr__(self) -> str:
        """Name the reservation."""
        return f"Reservation({self.id!r})"


def _id(reservation: Reservation | str) -> str:
    return reservation.id if isinstance(reservation, Reservation) else reservation


def refusal(answer: Mapping[str, Any]) -> RateLimited:
    """Return the error that says what refused a call, and when to try again."""
    wait_ms = answer["retry_after_ms"]
    return RateLimited(
        _why(answer),
        retry_after_s=None if wait_ms is None else wait_ms / 1000,
        limit=answer["limit"],
        used=answer["used"],
        reserved=answer["reserved"],
        remaining=answer["remaining"],
        degraded=answer["degraded"],
    )


def _why(answer: Mapping[str, Any]) -> str:
    name, wait_ms = answer["limit"], answer["retry_after_ms"]
    when = "it can never fit" if wait_ms is None else f"try again in {wait_ms / 1000:g} s"
    if name == TABLE_FULL:
        return f"{OPEN_MAX:,} reservations are open, and no more can be; {when}"
    if is_killed(name, answer["amount"]):
        return f"killed ({name!r}): refused until 'token-actor revive', or client.revive, of the same names"
    scope = ", ".join(f"{dimension} {value or '-'}" for dimension, value in answer["scope"].items())
    cost, left, amount = (amount_text(answer[part], answer["unit"]) for part in ("cost", "remaining", "amount"))
    asked = f"{cost}{unit_text(answer['unit'])} asked, " if answer["unit"] != CONCURRENCY else ""
    of = f"{amount} at once" if answer["unit"] == CONCURRENCY else amount
    return f"limit {name!r}{f' ({scope})' if scope else ''}: {asked}{left} of {of} left; {when}"


def check_ttl(field: str, ttl_s: object) -> int:
    """Return how long a reservation lasts in ms. Raises ``InvalidValue`` naming ``field``."""
    return _whole_ms(field, ttl_s, 1, TTL_MS_MAX)


def _whole_ms(field: str, seconds: object, least_ms: int, most_ms: int) -> int:
    milliseconds = seconds_to_ms(field, seconds)
    if not least_ms <= milliseconds <= most_ms:
        least = "above" if least_ms else "at least"
        raise InvalidValue(field, f"must be {least} 0, at most {most_ms // 1000}, not {seconds!r}")
    return milliseconds
