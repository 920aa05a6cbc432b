"""The program under test: the real command line in processes of its own, and what a test waits for.

Nothing here sleeps for a guess: every wait is for something that can be seen, and has a bound.
"""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import termios
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from token_actor.transport.redis import RedisConnector
from token_actor.wire.keys import Keys

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator

    from token_actor.transport.ports import Connection

COMMAND = [sys.executable, "-m", "token_actor"]
TIMEOUT_S = 60.0
POLL_S = 0.02
TRACE = Path(__file__).parents[3] / "shared" / "data" / "azure_llm_code_2023.csv"


def environment() -> dict[str, str]:
    """Return an environment in which nothing names a server, and nothing is coloured."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TOKEN_ACTOR_")}


def run(*words: str, timeout_s: float = TIMEOUT_S, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*COMMAND, *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment(),
        stdin=subprocess.DEVNULL,
        **more,
    )


def document(*words: str, code: int = 0, timeout_s: float = TIMEOUT_S) -> Any:
    """Run a command with ``--json`` and return the one document it prints, with the exit code expected."""
    done = run(*words, "--json", timeout_s=timeout_s)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a command said last on stderr: why it failed."""
    return done.stderr.strip().splitlines()[-1]


def until(seen: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
    """Wait until something is seen, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (found := seen()):
        assert time.monotonic() < deadline, "not seen in time"
        time.sleep(POLL_S)
    return found


def on_a_terminal(*words: str, columns: int) -> tuple[int, str]:
    """Run one command on a terminal of some width; return its exit code and everything it wrote there."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, columns))
    popen = subprocess.Popen(
        [*COMMAND, *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment(), "TERM": "xterm"},
    )
    os.close(theirs)
    written = b""
    while more := _read(ours):
        written += more
    os.close(ours)
    return popen.wait(TIMEOUT_S), written.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # how Linux says that nobody is at the other end any more
        return b""


class Program:
    """One command that runs until a test ends it; what it says on stderr is heard as it is said."""

    def __init__(self, *words: str) -> None:
        self.popen = subprocess.Popen(
            [*COMMAND, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self.said: list[str] = []
        self._changed = threading.Condition()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            with self._changed:
                self.said.append(line)
                self._changed.notify_all()

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return "".join(self.said)

    def hear(self, text: str, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until it has said something on stderr."""
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.stderr, timeout_s), f"{text!r} not in: {self.stderr}"

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.popen.send_signal(number)

    def end(self, timeout_s: float = TIMEOUT_S) -> tuple[int, str]:
        """Wait until it has ended; return its exit code and what it printed on stdout."""
        assert self.popen.stdout is not None
        printed = self.popen.stdout.read()
        code = self.popen.wait(timeout_s)
        self._listener.join(timeout_s)
        return code, printed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """End it if the test did not."""
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            pipe.close()
        self._listener.join(TIMEOUT_S)
        assert self.popen.stderr is not None
        self.popen.stderr.close()


@contextmanager
def serving(*words: str) -> Iterator[Program]:
    """Run an actor for as long as the block runs; it leads when the block begins."""
    with Program("serve", *words) as actor:
        actor.hear("Recovered")
        yield actor


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """Lend a connection to a server."""
    connection = RedisConnector(url).connect()
    try:
        yield connection
    finally:
        connection.close()


def leader_pid(url: str, namespace: str) -> int | None:
    """Return the process id of the actor that leads, as its lease tells."""
    with connected(url) as connection:
        lease = connection.get(Keys(namespace).leader)
    return None if lease is None else int(lease.decode().split("/")[1])


def log_length(url: str, namespace: str) -> int:
    """Return how many entries the log has."""
    with connected(url) as connection:
        state = connection.stream_state(Keys(namespace).log)
    return 0 if state is None else state.length


def children_of(pid: int) -> set[int]:
    """Return the processes that a process has started, and those have."""
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            children = {int(child) for child in task.read_text().split()}
            waiting += children - found
            found |= children
    return found


def alive(pids: set[int]) -> set[int]:
    """Return those of some processes that still run."""
    return {pid for pid in pids if _state(pid) not in ("", "Z")}


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except FileNotFoundError:
        return ""
