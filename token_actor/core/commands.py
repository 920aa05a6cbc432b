"""Commands: what changes the state and is answered.

A command is an entry of the log, so it is decided at its place in the log by whoever folds it, and
always in the same way. A request id makes it idempotent: same id, same answer.

A new command is a function here, and a line in ``COMMANDS``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from token_actor.core.arguments import check_arguments, identifier, whole
from token_actor.core.columns import Rejection, columns_of
from token_actor.core.escrow_commands import DRAWN, ESCROW_COMMANDS, note, skip, take
from token_actor.core.limits import estimate_of, limit_of
from token_actor.core.pauses import check_pause_ms, pause_limits, selecting
from token_actor.core.reservation_states import NONE, RELEASED
from token_actor.core.reservations import DUPLICATE, TTL_MS, TTL_MS_MAX
from token_actor.core.series import check_selector
from token_actor.core.sessions import reset_session
from token_actor.core.usage import check_name
from token_actor.core.waiting import WAIT_MS_MAX, Wish
from token_actor.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from token_actor.core.admission import Told
    from token_actor.core.ledger import Ledger
    from token_actor.core.limits import Limit
    from token_actor.core.usage import Event

Carried: TypeAlias = "tuple[dict[str, Any] | None, list[Rejection]]"  # the answer, and what could not be counted
ANSWERS_MAX: Final = 100_000  # request ids remembered with their answers; a retry comes within seconds
_REFUSED: Final = "refused"  # names a refusal among the answers remembered: field, problem, reason


class Command(NamedTuple):
    """Hold one command: what to do, for whom, and the event that comes with it, if any."""

    operation: str
    request_id: str
    client: str
    arguments: Mapping[str, Any]
    event: Event | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Hold what a command came to: its answer, or why it is refused, and what of it could not be counted.

    Neither of the two means that it waits: it will be told.
    """

    answer: dict[str, Any] | None = None
    problem: InvalidValue | None = None
    rejections: Sequence[Rejection] = ()
    is_silent: bool = False  # who asked for it knows already what it came to


def execute(ledger: Ledger, command: Command, log_ms: int) -> Outcome:
    """Carry out a command whose entry's id says ``log_ms``; the outcome is the same for the same request id.

    So is a refusal: what somebody was told cannot be done must not be done later. What could not be
    counted is returned, and counted as dead, the first time only.
    """
    request = (command.client, command.request_id)
    known = ledger.answers.get(request)
    if known is not None:
        skip(ledger, command.arguments)
        return replace(_told(known), is_silent=command.operation in ESCROW_COMMANDS)
    answer: dict[str, Any] | None
    try:
        answer, rejections = _carry_out(ledger, command, log_ms)
    except InvalidValue as problem:
        answer = {_REFUSED: [problem.field, problem.problem, problem.reason]}
        rejections = [Rejection(0, None, problem.reason, str(problem))]
        ledger.reject(rejections)
    if answer is None:
        return Outcome()
    ledger.answers.add(request, answer, ANSWERS_MAX)
    is_silent = DRAWN in answer or command.operation in ESCROW_COMMANDS
    return replace(_told(answer), rejections=rejections, is_silent=is_silent)


def _carry_out(ledger: Ledger, command: Command, log_ms: int) -> Carried:
    waits = _reservation_of(command) in ledger.admission.room.waiters
    operation = COMMANDS.get(command.operation)
    if operation is None and not waits:
        raise InvalidValue("command", f"{command.operation!r} is not known", reason="unknown_command")
    ledger.tick(log_ms)
    if operation is None or waits:  # it will be told; maybe its time has come just now
        skip(ledger, command.arguments)
        return None, []
    with ledger.limits.watch.step(ledger.log_ms):
        try:
            return operation(ledger, command)
        finally:  # also what is refused may have given up a call that it took
            ledger.admission.serve(ledger.log_ms)


def told_since(ledger: Ledger) -> list[Told]:
    """Return what is to be told to those who waited, and remember that it was."""
    told = ledger.admission.take_told()
    for client, request_id, answer in told:
        ledger.answers.add((client, request_id), answer, ANSWERS_MAX)
    return told


def _told(known: dict[str, Any]) -> Outcome:
    if _REFUSED not in known:
        return Outcome(answer=known)
    field, problem, reason = known[_REFUSED]
    return Outcome(problem=InvalidValue(field, problem, reason=reason))


def _record(ledger: Ledger, command: Command) -> Carried:
    """Count one event, and answer whether it was new."""
    if command.event is None:
        raise InvalidValue("event", "is missing", reason="decode")
    return _count(ledger, command.event)


def _count(ledger: Ledger, event: Event) -> tuple[dict[str, Any], list[Rejection]]:
    place = ledger.recent.next_place
    rejections = ledger.apply(columns_of([event], log_ms=[ledger.time.id_ms], entries=[0]))
    if rejections:
        return {"counted": False, "reason": rejections[0].reason}, rejections
    counted = ledger.recent.next_place > place
    return {"counted": counted, "reason": None if counted else DUPLICATE}, []


def _reset(ledger: Ledger, command: Command) -> Carried:
    """Start a session anew."""
    names = {name: check_name(name, command.arguments.get(name)) for name in ("tenant", "session")}
    for name, value in names.items():
        if not value:
            raise InvalidValue(name, "must not be empty", reason="decode")
    reset_session(ledger, **names)
    return {"reset": True}, []


def _put_limit(ledger: Ledger, command: Command) -> Carried:
    """Put a limit in force; what it counted before under the same name still counts if it can."""
    check_arguments(command, "limit")
    limit = _limit(command, "limit")
    kept = ledger.limits.put(limit, ledger.log_ms)
    return {"limit": limit.as_map(), "counters_kept": kept}, []


def _delete_limit(ledger: Ledger, command: Command) -> Carried:
    """Let go of a limit, and answer whether there was one."""
    check_arguments(command, "name")
    name = check_name("name", command.arguments.get("name"))
    return {"deleted": ledger.limits.delete(name)}, []


def _pause_limit(ledger: Ledger, command: Command) -> Carried:
    """Let limits grant nothing for a while: the one named, or all that cover just what is selected.

    Where there is none of those, the limit ``otherwise`` is put in force and paused, if it is given.
    """
    check_arguments(command, "name", "selector", "for_ms", "otherwise")
    for_ms = check_pause_ms(command.arguments.get("for_ms"))
    name, selector = check_name("name", command.arguments.get("name")), command.arguments.get("selector")
    if (not name) == (selector is None):
        raise InvalidValue("name", "or selector must be given, and not both", reason="decode")
    names = [name] if selector is None else selecting(ledger.limits, check_selector(selector))
    if not names and command.arguments.get("otherwise") is not None:
        limit = _limit(command, "otherwise")
        if limit.name not in ledger.limits.meters:  # somebody's own limit of that name is not ours to change
            ledger.limits.put(limit, ledger.log_ms)
        names = [limit.name]
    return pause_limits(ledger.limits, names, ledger.log_ms, for_ms), []


def _limit(command: Command, argument: str) -> Limit:
    fields = command.arguments.get(argument)
    if not isinstance(fields, dict):
        raise InvalidValue(argument, "must be a map", reason="decode")
    return limit_of(fields)


def _reserve(ledger: Ledger, command: Command) -> Carried:
    """Decide over all limits that cover a call, and hold what it may use; or hold what it took by itself."""
    arguments = dict(command.arguments)
    taken = take(ledger, arguments)
    reservation = _reservation_of(command)
    ttl_ms = whole("ttl_ms", arguments.pop("ttl_ms", TTL_MS), 1, TTL_MS_MAX)
    wait_ms = whole("wait_ms", arguments.pop("wait_ms", 0), 0, WAIT_MS_MAX)
    estimate = estimate_of(arguments)
    if ledger.reservations.state_of(reservation) != NONE:  # reserved once more, what it holds would never come back
        raise InvalidValue("request_id", "was used before, and what was answered is forgotten")
    names, now_ms = ledger.series.counted_as(estimate.series), ledger.log_ms
    if taken is None:
        for_money = ledger.limits.counts_money
        estimate, source = ledger.requests.completed(names, estimate, arguments, for_money=for_money)
    else:
        estimate, source = taken[1].completed(estimate, arguments)
    who = (reservation, command.client, command.request_id)
    wish = Wish(*who, tuple(names), estimate, ttl_ms, now_ms, now_ms + wait_ms, source)
    if taken is not None:
        return {**ledger.admission.take(wish, now_ms), DRAWN: taken[0]}, []
    answer = ledger.admission.ask(wish, now_ms)
    if answer is not None:
        note(ledger, answer, wish)
    return answer, []


def _settle(ledger: Ledger, command: Command) -> Carried:
    """Count what a reserved call used, and make its reservation right. Never refused for want of quota."""
    check_arguments(command, "reservation")
    reservation = _reservation(command)
    known = ledger.reservations.settled_answer(reservation)
    if known is not None:
        return known, []
    event, names, rejections = command.event, list[str](), list[Rejection]()
    counted: dict[str, Any] = {"counted": False, "reason": None}
    if event is not None:
        names = ledger.series.counted_as(event.series)
        counted, rejections = _count(ledger, event)
        event = event if counted["counted"] else None
    return ledger.reservations.settle(reservation, names, event, ledger.log_ms, counted), rejections


def _extend(ledger: Ledger, command: Command) -> Carried:
    """Let an open reservation expire later."""
    check_arguments(command, "reservation", "ttl_ms")
    ttl_ms = whole("ttl_ms", command.arguments.get("ttl_ms", TTL_MS), 1, TTL_MS_MAX)
    return ledger.reservations.extend(_reservation(command), ledger.log_ms, ttl_ms), []


def _release(ledger: Ledger, command: Command) -> Carried:
    """Give back what an open reservation holds, or let go of one that is waited for."""
    check_arguments(command, "reservation")
    reservation = _reservation(command)
    if ledger.admission.give_up(reservation, ledger.log_ms):
        return {"released": True, "state": RELEASED}, []
    return ledger.reservations.release(reservation, ledger.log_ms), []


def reservation_id(client: str, request_id: str) -> str:
    """Return the id of the reservation that a ``reserve`` of a client makes."""
    return f"{client}:{request_id}"


def _reservation(command: Command) -> str:
    return identifier(command, "reservation", of="the id that a reserve was answered with")


def _reservation_of(command: Command) -> str:
    return reservation_id(command.client, command.request_id)


COMMANDS: Final[Mapping[str, Callable[[Ledger, Command], Carried]]] = {
    "record": _record,
    "reset": _reset,
    "put_limit": _put_limit,
    "delete_limit": _delete_limit,
    "pause_limit": _pause_limit,
    "reserve": _reserve,
    "settle": _settle,
    "extend": _extend,
    "release": _release,
    **ESCROW_COMMANDS,
}
