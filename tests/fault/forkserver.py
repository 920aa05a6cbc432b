"""A warm process that has imported everything and forks: an actor starts in milliseconds, as a real process.

Reads one JSON object per line from stdin, says one per line on stdout. It has no threads, so a fork is
safe; when stdin ends, so do all children, however the owner went.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import traceback
from typing import Any

from tests.fault import actor_process, caller_process, producer_process

ROLES = {"actor": actor_process.main, "producer": producer_process.main, "caller": caller_process.main}


def hold_signals() -> None:
    """Let requests to stop wait until a process is ready to take them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])


def main() -> None:
    """Serve requests to fork until stdin ends."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    hold_signals()
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: set[int] = set()
    pending = b""
    while True:
        ready, _, _ = select.select([0, wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            _reap(children)
        if 0 in ready:
            received = os.read(0, 65_536)
            if not received:
                break
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    os.close(wake_read)
                    os.close(wake_write)
                    _child(request)
                children.add(pid)
                _say({"started": request["id"], "pid": pid})
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _reap(children: set[int]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        children.discard(pid)
        _say({"exited": pid, "code": os.waitstatus_to_exitcode(status)})


def _say(message: dict[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")  # below PIPE_BUF: in one piece


def _child(request: dict[str, Any]) -> None:
    """Be the process that was asked for, and end."""
    code = 70  # a fault of the test's own code
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        null, said = os.open(os.devnull, os.O_RDWR), os.open(request["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for standard, here in ((0, null), (1, said), (2, said)):
            os.dup2(here, standard)
        os.environ.update(request.get("env", {}))
        if "argv" in request:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            os.chdir(request["cwd"])
            os.execve(request["argv"][0], request["argv"], os.environ)
        code = ROLES[request["role"]](request["spec"])
    except BaseException:  # noqa: BLE001 - a forked child must never run on in its parent's code
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
