"""The servers that the contract runs on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from token_actor.transport.ports import Connection, Connector

MEMORY, FAKEREDIS, VALKEY = "memory", "fakeredis", "valkey"


@dataclass
class Subject:
    """A server under test, and its connections, which close with the test."""

    name: str
    connector: Connector
    opened: list[Connection] = field(default_factory=list)

    def connect(self) -> Connection:
        """Open one more connection."""
        self.opened.append(self.connector.connect())
        return self.opened[-1]
