"""What the in-memory server refuses with: the words of a real one, and what it will not even begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from token_actor.errors import ServerRefused
from token_actor.transport.ports import Append, Delete, DeleteEntries, DeleteFields

if TYPE_CHECKING:
    from token_actor.transport.ports import Operation

# As Redis 7 and Valkey 9 say them.
WRONG_TYPE: Final = "WRONGTYPE Operation against a key holding the wrong kind of value"
ID_NOT_ABOVE: Final = "ERR The ID specified in XADD is equal or smaller than the target stream top item"
ID_ZERO: Final = "ERR The ID specified in XADD must be greater than 0-0"
ID_EXHAUSTED: Final = "ERR The stream has exhausted the last possible ID, unable to add more items"
ID_INVALID: Final = "ERR Invalid stream ID specified as stream command argument"
START_INVALID: Final = "ERR invalid start ID for the interval"
END_INVALID: Final = "ERR invalid end ID for the interval"
NOT_AN_INTEGER: Final = "ERR value is not an integer or out of range"
FIELD_NOT_AN_INTEGER: Final = "ERR hash value is not an integer"
OVERFLOW: Final = "ERR increment or decrement would overflow"
EXPIRE_INVALID: Final = "ERR invalid expire time in 'set' command"
ABORTED: Final = "EXECABORT Transaction discarded because of previous errors."
ARGUMENTS: Final = "ERR wrong number of arguments for '{}' command"


def refusal_to_begin(operation: Operation) -> ServerRefused | None:
    """Return what a server says at once of an operation that lacks arguments; ``None`` when it lacks none."""
    match operation:
        case Append(fields=[]):
            return ServerRefused(ARGUMENTS.format("xadd"))
        case DeleteEntries(entry_ids=[]):
            return ServerRefused(ARGUMENTS.format("xdel"))
        case DeleteFields(fields=[]):
            return ServerRefused(ARGUMENTS.format("hdel"))
        case Delete(keys=[]):
            return ServerRefused(ARGUMENTS.format("del"))
    return None
