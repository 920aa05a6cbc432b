"""A namespace that an actor of this process serves, on a server in memory: the whole way in, without the wait."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from token_actor import TokenClient
from token_actor.operations.dead import list_dead
from token_actor.service import connector_of
from token_actor.transport.ports import Append
from token_actor.wire.keys import Keys
from token_actor.wire.messages import DeadLetter

if TYPE_CHECKING:
    from collections.abc import Sequence

_numbers = itertools.count()


class Served:
    """A client, a connection of its own, and the actor that both reach."""

    def __init__(self) -> None:
        self.url = f"memory://served{next(_numbers)}"
        self.client = TokenClient(self.url)
        self.connection = connector_of(self.url).connect()
        self.keys = Keys()

    def append(self, name: bytes, value: bytes, *more: bytes, key: bytes | None = None) -> str:
        """Append an entry as anybody may, wait until the actor has seen it, and return its id."""
        (entry_id,) = self.connection.write([Append(key=key or self.keys.log, fields=[name, value, *more])])
        assert isinstance(entry_id, bytes)
        assert self.client.status()
        return entry_id.decode()

    def letter(self, entry_id: str) -> DeadLetter | None:
        """Return the dead letter of an entry, if it has one."""
        place = entry_id.encode()
        found = self.connection.range(self.keys.dead, start=place, end=place, count=1)
        return DeadLetter.read(*found[0]) if found else None

    def outcome(self, name: bytes, value: bytes) -> str | None:
        """Append an entry, and return why it is quarantined; ``None`` when it is counted."""
        letter = self.letter(self.append(name, value))
        return None if letter is None else letter.reason

    def letters(self) -> Sequence[DeadLetter]:
        """Return the dead letters, newest first."""
        found, _ = list_dead(self.connection, "default", limit=1_000)
        return [each.letter for each in found]

    def total(self, figure: str = "input_tokens") -> Any:
        """Return one figure of everything."""
        return self.client.analytics()[figure]

    def close(self) -> None:
        """Close both; the actor goes with the server."""
        self.client.close()
        self.connection.close()
