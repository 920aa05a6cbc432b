"""Commands: what changes the state and is answered.

A command is an entry of the log, so it is decided at its place in the log by whoever folds it, and
always in the same way. A request id makes it idempotent: same id, same answer.

A new command is a function here, and a line in ``COMMANDS``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from token_actor.core.columns import Rejection, columns_of
from token_actor.core.sessions import reset_session
from token_actor.core.usage import check_name
from token_actor.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from token_actor.core.ledger import Ledger
    from token_actor.core.usage import Event

Carried: TypeAlias = "tuple[dict[str, Any], list[Rejection]]"  # the answer, and what could not be counted
ANSWERS_MAX: Final = 100_000  # request ids remembered with their answers; a retry comes within seconds
_REFUSED: Final = "refused"  # names a refusal among the answers remembered: field, problem, reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Hold one command: what to do, for whom, and the event that comes with it, if any."""

    operation: str
    request_id: str
    client: str
    arguments: Mapping[str, Any]
    event: Event | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Hold what a command came to: its answer, or why it is refused, and what of it could not be counted."""

    answer: dict[str, Any] | None = None
    problem: InvalidValue | None = None
    rejections: Sequence[Rejection] = ()


def execute(ledger: Ledger, command: Command, log_ms: int) -> Outcome:
    """Carry out a command whose entry's id says ``log_ms``; the outcome is the same for the same request id.

    So is a refusal: what somebody was told cannot be done must not be done later. What could not be
    counted is returned, and counted as dead, the first time only.
    """
    request = (command.client, command.request_id)
    known = ledger.answers.get(request)
    if known is not None:
        return _told(known)
    try:
        answer, rejections = _carry_out(ledger, command, log_ms)
    except InvalidValue as problem:
        answer = {_REFUSED: [problem.field, problem.problem, problem.reason]}
        rejections = [Rejection(0, None, problem.reason, str(problem))]
        ledger.reject(rejections)
    ledger.answers.add(request, answer, ANSWERS_MAX)
    return replace(_told(answer), rejections=rejections)


def _carry_out(ledger: Ledger, command: Command, log_ms: int) -> Carried:
    operation = COMMANDS.get(command.operation)
    if operation is None:
        raise InvalidValue("command", f"{command.operation!r} is not known", reason="unknown_command")
    ledger.tick(log_ms)
    return operation(ledger, command)


def _told(known: dict[str, Any]) -> Outcome:
    if _REFUSED not in known:
        return Outcome(answer=known)
    field, problem, reason = known[_REFUSED]
    return Outcome(problem=InvalidValue(field, problem, reason=reason))


def _record(ledger: Ledger, command: Command) -> Carried:
    """Count one event, and answer whether it was new."""
    if command.event is None:
        raise InvalidValue("event", "is missing", reason="decode")
    place = ledger.recent.next_place
    rejections = ledger.apply(columns_of([command.event], log_ms=[ledger.time.id_ms], entries=[0]))
    if rejections:
        return {"counted": False, "reason": rejections[0].reason}, rejections
    counted = ledger.recent.next_place > place
    return {"counted": counted, "reason": None if counted else "duplicate"}, []


def _reset(ledger: Ledger, command: Command) -> Carried:
    """Start a session anew."""
    names = {name: check_name(name, command.arguments.get(name)) for name in ("tenant", "session")}
    for name, value in names.items():
        if not value:
            raise InvalidValue(name, "must not be empty", reason="decode")
    reset_session(ledger, **names)
    return {"reset": True}, []


COMMANDS: Final[Mapping[str, Callable[[Ledger, Command], Carried]]] = {
    "record": _record,
    "reset": _reset,
}
