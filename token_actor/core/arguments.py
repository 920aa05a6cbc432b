"""Arguments of commands, checked: each of these raises ``InvalidValue`` naming the one that is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from token_actor.errors import InvalidValue

if TYPE_CHECKING:
    from token_actor.core.commands import Command

RESERVATION_ID_MAX: Final = 129  # client id, colon, request id


def check_arguments(command: Command, *known: str) -> None:
    """Refuse arguments that a command does not have."""
    for name in command.arguments:
        if name not in known:
            raise InvalidValue(str(name), f"is not an argument of {command.operation!r}", reason="decode")


def whole(name: str, value: object, least: int, most: int) -> int:
    """Return an int within bounds."""
    if type(value) is not int:
        raise InvalidValue(name, "must be an int", reason="type")
    if not least <= value <= most:
        raise InvalidValue(name, f"must be between {least} and {most}, not {value}")
    return value


def identifier(command: Command, name: str, *, of: str) -> str:
    """Return an id of something, which an answer has told."""
    value = command.arguments.get(name)
    if type(value) is not str:
        raise InvalidValue(name, f"must be {of}", reason="type")
    if not 0 < len(value) <= RESERVATION_ID_MAX:
        raise InvalidValue(name, f"must have 1 to {RESERVATION_ID_MAX} characters", reason="bad_name")
    return value
