"""An entry of a stream, and what its id says."""

from __future__ import annotations

from typing import TypeAlias

Entry: TypeAlias = "tuple[bytes, list[bytes]]"  # its id, and its fields as name, value, name, value, ...


def log_ms_of(entry_id: bytes) -> int:
    """Return the log time of an entry: the millisecond part of its id."""
    return int(entry_id.partition(b"-")[0])


def id_pair(entry_id: bytes) -> tuple[int, int]:
    """Return an entry id as a pair of ints, which compare as the server does."""
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence or 0)
