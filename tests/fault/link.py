"""A link between two processes that can be slow, silent, one-sided or forgetful, on command."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

from tests.contract.doubles import JOIN_S, Listener
from token_actor.embedded import HOST

if TYPE_CHECKING:
    from collections.abc import Callable

READ_BYTES = 65_536


class Link(Listener):
    """Pass on what both sides say to a server's port, as well as it is allowed to.

    ``latency_ms`` delays each direction. ``lost_replies`` is the share of replies after whose request the
    connection breaks: the server has done it, and the client never learns.
    """

    def __init__(self, port: int, *, seed: int = 0) -> None:
        super().__init__()
        self.port = port
        self.latency_ms = 0.0
        self.lost_replies = 0.0
        self.replies_lost = 0
        self._random = Random(seed)
        self._servers: list[socket.socket] = []
        self._open = threading.Event()
        self._open.set()
        self._cut_off = threading.Event()

    def __exit__(self, *_: object) -> None:
        self._cut_off.set()
        self.heal()
        super().__exit__()

    def black_hole(self) -> None:
        """Swallow everything from now on, in both directions; connections stay and new ones are taken."""
        self._open.clear()

    def heal(self) -> None:
        """Pass on what was held, and what follows."""
        self._open.set()

    def half_open(self) -> None:
        """Break every connection on the server's side only, and let the clients go on talking to nobody."""
        self.black_hole()
        with self._lock:
            servers, self._servers = self._servers, []
        for server in servers:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)

    def serve(self, client: socket.socket) -> None:
        """Connect to the server, and pass on what each side says."""
        with socket.create_connection((HOST, self.port)) as server:
            self._keep(server)
            with self._lock:
                self._servers.append(server)
            requests = threading.Thread(target=self._pump, args=(client, server, lambda: True), daemon=True)
            requests.start()
            self._pump(server, client, self._keeps_reply)
            for each in (client, server):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            requests.join(JOIN_S)

    def _keeps_reply(self) -> bool:
        if self._random.random() >= self.lost_replies:
            return True
        self.replies_lost += 1
        return False

    def _pump(self, source: socket.socket, target: socket.socket, passes: Callable[[], bool]) -> None:
        with suppress(OSError):
            while (data := source.recv(READ_BYTES)) and passes():
                if self.latency_ms:
                    self._cut_off.wait(self.latency_ms / 1000)
                self._open.wait()
                target.sendall(data)
