"""Trouble with the server: what passes or somebody has to mend, and what ends an actor."""

from __future__ import annotations

import logging
from typing import Final

from token_actor.errors import ServerRefused, ServerUnavailable

# The server is full, or its disk is, its replicas are away, it is a replica, it runs somebody's script, or a key of
# ours holds something else.
PASSING: Final = frozenset({"OOM", "MISCONF", "NOREPLICAS", "READONLY", "BUSY", "WRONGTYPE", "EXECABORT"})

log = logging.getLogger(__name__)


class Trouble:
    """Log that the server cannot be worked with, once, and that it can again."""

    def __init__(self) -> None:
        """Begin without any."""
        self._lasts = False

    def note(self, error: ServerUnavailable | ServerRefused) -> None:
        """Take note of an error. Raises it when it will not pass."""
        if isinstance(error, ServerRefused) and error.code not in PASSING:
            raise error
        if not self._lasts:
            action = "server_away" if isinstance(error, ServerUnavailable) else "server_refuses"
            log.warning("The server cannot be used", extra={"action": action, "problem": str(error)})
        self._lasts = True

    def end(self) -> None:
        """Take note that the server was of use."""
        if self._lasts:
            log.warning("The server can be used again", extra={"action": "server_back"})
        self._lasts = False
