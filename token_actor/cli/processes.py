"""Processes: the actor and the workers that a command starts, and takes with it when it ends.

Each child reads its standard input from us and ends when that does, so that it goes when we go, also
by kill -9. Each is in a session of its own: Ctrl-C in the terminal is for us, and we stop workers
before the actor, and that before the server.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Self

from token_actor.errors import TokenActorError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

STOP_TIMEOUT_S: Final = 5.0  # an actor drains and takes its snapshot within this
RESTARTS_MAX: Final = 20  # an actor that dies that often dies of something
SAID_BYTES: Final = 4_096


class Child:
    """Be one process that this one started: ``python -m MODULE ARGUMENTS``."""

    def __init__(self, name: str, module: str, arguments: Sequence[str], lines: SimpleQueue[tuple[Child, str]]) -> None:
        """Start it; what it prints comes into ``lines``, and an empty line when it prints no more."""
        self.name = name
        self.ended = False
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - kept as long as the child, to say why it ended
        self._process = subprocess.Popen(  # noqa: S603 - our own modules
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
        )
        self._lines = lines
        threading.Thread(target=self._read, name=f"read-{name}", daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as printed:
            for line in printed:
                self._lines.put((self, line.decode("utf-8", "replace")))
        self._process.wait()
        self._lines.put((self, ""))

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Return its exit code, negative for a signal, ``None`` while it runs."""
        return self._process.poll()

    def order(self, content: Mapping[str, Any]) -> None:
        """Send it one line of JSON; one that has ended gets nothing, and its end is noticed elsewhere."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(content).encode() + b"\n")
            self._process.stdin.flush()

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def wait(self, timeout_s: float) -> None:
        """Wait until it has ended; kills it after ``timeout_s`` seconds."""
        try:
            self._process.wait(max(0.0, timeout_s))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def end_text(self) -> str:
        """Say how it ended, and why, if it was not a signal: the last line it said on stderr."""
        code = self.code
        if code is None:
            return f"{self.name} is running"
        if code < 0:
            return f"{self.name} was ended by {signal.Signals(-code).name}"
        self._stderr.seek(0, 2)
        self._stderr.seek(max(0, self._stderr.tell() - SAID_BYTES))
        said = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
        why = f": {said[-1].removeprefix('token-actor: ')}" if said else ""
        return f"{self.name} ended with status {code}{why}"

    def close(self) -> None:
        """Let go of the pipes of a child that has ended."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it ended with something unread
            self._process.stdin.close()
        self._stderr.close()


class Children:
    """Start children, hear what they say, and stop all of them in the end."""

    def __init__(self) -> None:
        """Start with none."""
        self._lines: SimpleQueue[tuple[Child, str]] = SimpleQueue()
        self._children: list[Child] = []

    def start(self, name: str, module: str, arguments: Sequence[str]) -> Child:
        """Start one child."""
        child = Child(name, module, arguments, self._lines)
        self._children.append(child)
        return child

    def next_line(self, timeout_s: float) -> tuple[Child, str] | None:
        """Return the next line of any child, an empty one at its end; ``None`` after ``timeout_s`` seconds."""
        try:
            child, line = self._lines.get(timeout=max(0.0, timeout_s))
        except Empty:
            return None
        child.ended = child.ended or not line
        return child, line

    def stop(self) -> None:
        """Ask all that still run to end, and wait for them; kills what does not end in time."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for child in self._children:
            child.terminate()
        for child in self._children:
            child.wait(deadline - time.monotonic())
            child.close()
        self._children.clear()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop all."""
        self.stop()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does: everything that was started is stopped first."""
    signals = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in signals}
    try:
        yield
    except KeyboardInterrupt:
        raise TokenActorError("interrupted; everything that was started has been stopped") from None
    finally:
        for number, action in before.items():
            signal.signal(number, action or signal.SIG_DFL)
