"""Servers that misbehave on purpose."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Self

import redis

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

JOIN_S = 10.0  # a thread that is still there after this hangs


class Listener:
    """Accept connections on a port of this machine, each in a thread of its own, until the block ends."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._ended = False
        self.accepted = 0
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._ended = True
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(JOIN_S)
            assert not thread.is_alive()

    def cut(self) -> None:
        """Break every connection there is; new ones are welcome."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for each in sockets:
            with suppress(OSError):  # the other side was quicker
                each.shutdown(socket.SHUT_RDWR)

    def serve(self, client: socket.socket) -> None:
        """Serve one connection."""
        raise NotImplementedError

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._spawn(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            self._keep(client)
            self.serve(client)

    def _keep(self, each: socket.socket) -> None:
        with self._lock:
            self._sockets.append(each)
            if self._ended:
                each.shutdown(socket.SHUT_RDWR)

    def _spawn(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()


class TcpProxy(Listener):
    """Stand between a client and a server, and lose what the server says.

    While ``hold_replies`` is set, replies wait here. With ``reply_bytes_left`` set, the connection
    is cut after so many more bytes of replies.
    """

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port
        self.hold_replies = False
        self.reply_bytes_left: int | None = None
        self._released = threading.Event()

    def __exit__(self, *_: object) -> None:
        self.release()
        super().__exit__()

    def release(self) -> None:
        """Let the replies pass that were held, and those that follow."""
        self.hold_replies = False
        self._released.set()

    def serve(self, client: socket.socket) -> None:
        """Pass on what each side says."""
        with ExitStack() as stack:
            server = stack.enter_context(socket.create_connection(("127.0.0.1", self._port)))
            self._keep(server)
            requests = threading.Thread(target=self._pass_on, args=(client, server), daemon=True)
            requests.start()
            stack.callback(requests.join, JOIN_S)
            stack.callback(self._shut, client, server)
            with suppress(OSError):
                while (data := server.recv(65_536)) and self._say(client, data):
                    pass

    def _say(self, client: socket.socket, data: bytes) -> bool:
        if self.hold_replies:
            self._released.wait(JOIN_S)
        if self.reply_bytes_left is None:
            client.sendall(data)
            return True
        client.sendall(data[: self.reply_bytes_left])
        self.reply_bytes_left = max(0, self.reply_bytes_left - len(data))
        return self.reply_bytes_left > 0

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)

    @staticmethod
    def _shut(*both: socket.socket) -> None:
        for each in both:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def halting_connection(halfway: Callable[[], object]) -> type[redis.Connection]:
    """Return connections that call ``halfway`` before they send the last operation of a transaction, and its end."""

    class Halting(redis.Connection):
        def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            packed = b"".join(command)
            if b"EXEC" in packed:
                last = packed.rindex(b"*", 0, packed.rindex(b"*"))
                super().send_packed_command([packed[:last]], check_health)
                halfway()
                packed = packed[last:]
            super().send_packed_command([packed], check_health)

    return Halting


class ScriptedServer(Listener):
    """Answer whatever is said, write by write, with the next line of a script; one script per connection."""

    def __init__(self, *scripts: Sequence[bytes]) -> None:
        super().__init__()
        self._scripts = iter(scripts)

    def serve(self, client: socket.socket) -> None:
        """Play the next script, then hang up."""
        for answer in next(self._scripts, ()):
            if not client.recv(65_536):
                return
            client.sendall(answer)
