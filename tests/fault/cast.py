"""Who plays: real processes that can be killed, paused and asked to stop, and real servers with options of a test."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import redis

from token_actor.embedded import HOST, PORT_FIRST, PORT_LAST, _binary
from token_actor.transport.redis import RedisConnector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from token_actor.transport.redis import RedisConnection

ROOT: Final = Path(__file__).parents[2]
TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.005
FAKETIMES: Final = (  # where distributions and people put it
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
    "/usr/local/lib/faketime/libfaketimeMT.so.1",
)
ALONE: Final = (  # a process that is no fork, because what is loaded before it starts is its fault
    "import json, sys; from tests.fault.forkserver import ROLES, hold_signals; hold_signals();"
    "sys.exit(ROLES[sys.argv[1]](json.loads(sys.argv[2])))"
)
SERVER_OPTIONS: Final = {
    "bind": HOST,
    "daemonize": "no",
    "appendonly": "yes",
    "appendfsync": "always",
    "save": '""',
    "maxmemory-policy": "noeviction",
    "repl-diskless-sync-delay": "0",
    "enable-debug-command": "yes",
}


class NotSeenError(AssertionError):
    """Say what did not happen in time."""


def until(seen: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S, poll_s: float = POLL_S) -> Any:
    """Wait until something is seen, and return it. Raises ``NotSeenError`` naming ``what``."""
    deadline = time.monotonic() + timeout_s
    while not (found := seen()):
        if time.monotonic() > deadline:
            raise NotSeenError(f"{what}: not seen within {timeout_s:g} s")
        time.sleep(poll_s)
    return found


class Child:
    """Be one process of the fork server."""

    def __init__(self, pid: int, said: Path) -> None:
        """Know a process by its id, and where what it says goes."""
        self.pid = pid
        self.said_in = said
        self._ended = threading.Event()
        self._code: int | None = None

    @property
    def alive(self) -> bool:
        """Tell whether it has not ended."""
        return not self._ended.is_set()

    def ended(self, code: int) -> None:
        """Take note that it has ended."""
        self._code = code
        self._ended.set()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it with SIGKILL, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self.wait()

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Wait until it has ended; return its exit code, below 0 for a signal."""
        if not self._ended.wait(timeout_s):
            raise NotSeenError(
                f"the end of process {self.pid}: not seen within {timeout_s:g} s; it said {self.said()[-5:]}"
            )
        assert self._code is not None
        return self._code

    def pause(self) -> None:
        """Stop it in the middle of whatever it does; returns when it stands still."""
        self.send(signal.SIGSTOP)
        until(lambda: self.state() in "TtZ", f"process {self.pid} stopped")

    def resume(self) -> None:
        """Let it go on."""
        self.send(signal.SIGCONT)

    def state(self) -> str:
        """Return the state letter of the process; ``Z`` when it is gone."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2][:1]
        except (FileNotFoundError, ProcessLookupError):
            return "Z"

    def said(self) -> list[str]:
        """Return the lines that it and its predecessors under the same name have said."""
        return self.said_in.read_text(errors="replace").splitlines() if self.said_in.exists() else []

    def actions(self) -> list[str]:
        """Return the actions it has logged."""
        found = []
        for line in self.said():
            with suppress(ValueError):
                found.append(json.loads(line).get("action") or "")
        return found

    def rss_bytes(self) -> int:
        """Return its resident memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        """Return how many files and sockets it has open."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())


class ForkServer:
    """Start processes from a warm one; all of them go when this goes."""

    def __init__(self) -> None:
        """Start the warm process; the first fork waits for its imports."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TOKEN_ACTOR_")},
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "workers"), os.environ.get("PYTHONPATH", "")]),
            "OPENBLAS_NUM_THREADS": "1",  # threads would not survive the fork
        }
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.forkserver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
        )
        self._changed = threading.Condition()
        self._started: dict[int, int] = {}
        self._children: dict[int, Child] = {}
        self._early: dict[int, int] = {}  # ended before its start was looked at
        self._numbers = 0
        self._listener = threading.Thread(target=self._listen, name="fork-server", daemon=True)
        self._listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the warm process, and with it all others."""
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        self._popen.wait(TIMEOUT_S)
        self._listener.join(TIMEOUT_S)
        assert self._popen.stdout is not None
        self._popen.stdout.close()

    def start(self, said: Path, *, env: Mapping[str, str] | None = None, **request: Any) -> Child:
        """Fork a process: ``role`` and ``spec``, or ``argv`` and ``cwd`` of a program."""
        assert self._popen.stdin is not None
        with self._changed:
            self._numbers += 1
            number = self._numbers
            line = json.dumps({"id": number, "said": str(said), "env": dict(env or {}), **request})
            self._popen.stdin.write(line.encode() + b"\n")
            self._popen.stdin.flush()
            if not self._changed.wait_for(lambda: number in self._started, TIMEOUT_S):
                raise NotSeenError("the fork server did not fork")
            pid = self._started.pop(number)
            child = Child(pid, said)
            if pid in self._early:
                child.ended(self._early.pop(pid))
            else:
                self._children[pid] = child
        return child

    def start_alone(
        self, said: Path, role: str, spec: Mapping[str, Any], *, env: Mapping[str, str], under: Sequence[str] = ()
    ) -> Child:
        """Start a process of a role that loads everything itself, ``under`` another program if need be."""
        argv = [*under, sys.executable, "-c", ALONE, role, json.dumps(spec)]
        path = os.pathsep.join([str(ROOT), str(ROOT / "workers"), os.environ.get("PYTHONPATH", "")])
        return self.start(said, env={"PYTHONPATH": path, **env}, argv=argv, cwd=str(ROOT))

    def _listen(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            message = json.loads(line)
            with self._changed:
                if "started" in message:
                    self._started[message["started"]] = message["pid"]
                elif (child := self._children.pop(message["exited"], None)) is not None:
                    child.ended(message["code"])
                else:
                    self._early[message["exited"]] = message["code"]
                self._changed.notify_all()


class Server:
    """Run a real Valkey with the options of a test; port and data stay over kills and restarts."""

    def __init__(self, forks: ForkServer, data_dir: Path, **options: str) -> None:
        """Prepare. ``options`` are settings of the server, with ``_`` for ``-``."""
        self._forks = forks
        self.data_dir = data_dir
        self.options = {**SERVER_OPTIONS, **{name.replace("_", "-"): value for name, value in options.items()}}
        self.env: dict[str, str] = {}
        self.under: Sequence[str] = ()  # a program that runs it
        self.port = _free_port()
        self.process: Child | None = None

    @property
    def url(self) -> str:
        """Return the address of the server itself."""
        return f"redis://{HOST}:{self.port}/0"

    def start(self, timeout_s: float = TIMEOUT_S) -> Self:
        """Start it, and wait until it answers with its data loaded."""
        self.launch()
        until(self._ready, f"the server on {self.data_dir} answers", timeout_s)
        return self

    def launch(self) -> Child:
        """Start it; does not wait."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        config = "".join(f"{name} {value}\n" for name, value in {**self.options, "port": str(self.port)}.items())
        (self.data_dir / "valkey.conf").write_text(config)
        argv = [*self.under, str(_binary()), "valkey.conf"]
        self.process = self._forks.start(
            self.data_dir.with_suffix(".log"), env=self.env, argv=argv, cwd=str(self.data_dir)
        )
        return self.process

    @property
    def alive(self) -> bool:
        """Tell whether it runs."""
        return self.process is not None and self.process.alive

    def _ready(self) -> bool:
        assert self.process is not None
        if not self.process.alive:
            raise NotSeenError(f"the server ended: {self.process.said()[-5:]}")
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def kill(self) -> None:
        """End it with SIGKILL."""
        assert self.process is not None
        self.process.kill()

    def stop(self) -> None:
        """Ask it to stop, and wait until it has."""
        assert self.process is not None
        self.process.send(signal.SIGTERM)
        self.process.wait()

    def connect(self) -> RedisConnection:
        """Return a connection to it for the test itself."""
        return RedisConnector(self.url, connect_timeout_s=2.0).connect()

    def keys_like(self, pattern: bytes) -> Iterator[bytes]:
        """Yield the keys that there are of a pattern."""
        with redis.Redis(host=HOST, port=self.port, socket_timeout=10) as raw:
            yield from raw.scan_iter(match=pattern, count=1_000)

    def at_once(self, *commands: tuple[str | bytes, ...]) -> None:
        """Send commands between which nobody else gets a turn."""
        with redis.Redis(host=HOST, port=self.port, socket_timeout=10) as raw, raw.pipeline(transaction=True) as pipe:
            for words in commands:
                pipe.execute_command(*words)
            pipe.execute()

    def command(self, *words: str | bytes) -> Any:
        """Send one command and return its reply, however the product would use it."""
        with redis.Redis(host=HOST, port=self.port, socket_timeout=10) as raw:
            return raw.execute_command(*words)


def _free_port() -> int:
    while True:
        port = PORT_FIRST + secrets.randbelow(PORT_LAST - PORT_FIRST + 1)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
