"""Commands: what changes the state and is answered.

A command is an entry of the log, so it is decided at its place in the log by whoever folds it, and
always in the same way. A request id makes it idempotent: same id, same answer.

A new command is a function here, and a line in ``COMMANDS``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from token_actor.core.columns import columns_of
from token_actor.core.sessions import reset_session
from token_actor.core.usage import check_name
from token_actor.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from token_actor.core.columns import Rejection
    from token_actor.core.ledger import Ledger
    from token_actor.core.usage import Event

Outcome: TypeAlias = "tuple[dict[str, Any], list[Rejection]]"  # the answer, and what could not be counted
ANSWERS_MAX: Final = 100_000  # request ids remembered with their answers; a retry comes within seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Hold one command: what to do, for whom, and the event that comes with it, if any."""

    operation: str
    request_id: str
    client: str
    arguments: Mapping[str, Any]
    event: Event | None = None


def execute(ledger: Ledger, command: Command, log_ms: int) -> Outcome:
    """Carry out a command at log time ``log_ms`` and return its answer, the same for the same request id.

    What of it could not be counted is returned too, the first time.

    Raises ``InvalidValue`` when the command or an argument is not known.
    """
    known = ledger.answers.get((command.client, command.request_id))
    if known is not None:
        return known, []
    operation = COMMANDS.get(command.operation)
    if operation is None:
        raise InvalidValue("command", f"{command.operation!r} is not known", reason="unknown_command")
    ledger.advance(log_ms)
    answer, rejections = operation(ledger, command)
    ledger.answers.add((command.client, command.request_id), answer, ANSWERS_MAX)
    return answer, rejections


def _record(ledger: Ledger, command: Command) -> Outcome:
    """Count one event, and answer whether it was new."""
    if command.event is None:
        raise InvalidValue("event", "is missing", reason="decode")
    place = ledger.recent.next_place
    rejections = ledger.apply(columns_of([command.event], log_ms=[ledger.log_ms], entries=[0]))
    if rejections:
        return {"counted": False, "reason": rejections[0].reason}, rejections
    counted = ledger.recent.next_place > place
    return {"counted": counted, "reason": None if counted else "duplicate"}, []


def _reset(ledger: Ledger, command: Command) -> Outcome:
    """Start a session anew."""
    names = {name: check_name(name, command.arguments.get(name)) for name in ("tenant", "session")}
    for name, value in names.items():
        if not value:
            raise InvalidValue(name, "must not be empty", reason="decode")
    reset_session(ledger, **names)
    return {"reset": True}, []


COMMANDS: Final[Mapping[str, Callable[[Ledger, Command], Outcome]]] = {
    "record": _record,
    "reset": _reset,
}
