"""An entry of a stream, and what its id says."""

from __future__ import annotations

import re
from typing import Final, TypeAlias

Entry: TypeAlias = "tuple[bytes, list[bytes]]"  # its id, and its fields as name, value, name, value, ...

LAST_ID: Final = b"18446744073709551615-18446744073709551615"  # nothing can be appended to a stream that has it
LOG_MS_MAX: Final = 2**53  # an id may claim any 64 bits; times up to here fit wherever they are added or packed
_ENTRY_ID: Final = re.compile(rb"\d{1,20}-\d{1,20}")  # two numbers of at most 64 bits


def is_entry_id(value: object) -> bool:
    """Tell whether ``value`` is the id of an entry."""
    return type(value) is bytes and _ENTRY_ID.fullmatch(value) is not None


def log_ms_of(entry_id: bytes) -> int:
    """Return the log time of an entry: the millisecond part of its id."""
    return min(int(entry_id.partition(b"-")[0]), LOG_MS_MAX)


def id_pair(entry_id: bytes) -> tuple[int, int]:
    """Return an entry id as a pair of ints, which compare as the server does."""
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence or 0)
