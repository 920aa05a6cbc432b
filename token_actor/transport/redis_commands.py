"""The commands of the real server, as redis-py's packing takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, assert_never

from token_actor.transport.ports import (
    AddToField,
    Append,
    Delete,
    DeleteEntries,
    DeleteFields,
    Expire,
    Increment,
    Operation,
    Put,
    PutField,
    TrimBelow,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

Command: TypeAlias = "tuple[bytes | int, ...]"


def xread(after: Mapping[bytes, bytes], *, count: int, block_ms: int | None) -> Command:
    """Return the command that reads streams after an id each."""
    assert after, "a read names at least one stream"
    block = (b"BLOCK", block_ms) if block_ms else ()  # BLOCK 0 would wait for ever
    return (b"XREAD", b"COUNT", count, *block, b"STREAMS", *after.keys(), *after.values())


def command(operation: Operation) -> Command:  # noqa: C901, PLR0911 - a case and a return per operation
    """Return the command that carries out one operation."""
    match operation:
        case Append(key=key, fields=fields, entry_id=entry_id, length_max=length_max):
            bound = () if length_max is None else (b"MAXLEN", b"~", length_max)
            return (b"XADD", key, *bound, entry_id, *fields)
        case AddToField(key=key, field=field, amount=amount):
            return (b"HINCRBY", key, field, amount)
        case Expire(key=key, ttl_ms=ttl_ms):
            return (b"PEXPIRE", key, ttl_ms)
        case TrimBelow(key=key, entry_id=entry_id):
            return (b"XTRIM", key, b"MINID", entry_id)
        case DeleteEntries(key=key, entry_ids=entry_ids):
            return (b"XDEL", key, *entry_ids)
        case Put(key=key, value=value, ttl_ms=ttl_ms, only_if_absent=only_if_absent):
            life = () if ttl_ms is None else (b"PX", ttl_ms)
            return (b"SET", key, value, *life, *((b"NX",) if only_if_absent else ()))
        case PutField(key=key, field=field, value=value):
            return (b"HSETNX", key, field, value)
        case DeleteFields(key=key, fields=fields):
            return (b"HDEL", key, *fields)
        case Delete(keys=keys):
            return (b"DEL", *keys)
        case Increment(key=key):
            return (b"INCR", key)
        case _:
            assert_never(operation)
