"""A ``clock`` entry: a leader tells the log what time it is, or only that time goes on."""

from __future__ import annotations

from typing import Final, NamedTuple

from token_actor.errors import BadEntry
from token_actor.wire.codec import pack, unpack_message
from token_actor.wire.entries import LOG_MS_MAX

CLOCK_FIELD: Final = b"t"
CLOCK_VERSION: Final = 1
_EPOCH_MAX: Final = 2**62


class ClockEntry(NamedTuple):
    """Hold the time of a leader in milliseconds since 1970, and its epoch.

    The time ``None`` says nothing new: its id is what somebody waits for.
    """

    now_ms: int | None
    epoch: int

    def encode(self) -> bytes:
        """Return the bytes of the field ``t``."""
        return pack({"v": CLOCK_VERSION, "now": self.now_ms, "epoch": self.epoch})

    @classmethod
    def decode(cls, data: bytes) -> ClockEntry:
        """Return the entry that the bytes are. Raises ``BadEntry``."""
        message = unpack_message(data)
        if message.get("v") != CLOCK_VERSION:
            raise BadEntry("version", f"clock version {message.get('v')!r}; this program reads {CLOCK_VERSION}")
        if message.keys() != {"v", "now", "epoch"}:
            raise BadEntry("decode", "must have the fields v, now and epoch")
        for field, most in (("now", LOG_MS_MAX), ("epoch", _EPOCH_MAX)):
            if field == "now" and message[field] is None:
                continue
            if type(message[field]) is not int or not 0 < message[field] <= most:
                raise BadEntry("decode", f"{field!r} must be an int from 1 to {most}")
        return cls(message["now"], message["epoch"])
