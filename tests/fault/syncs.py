"""What strace saw of writes and syncs: whether what was promised was on the disk by then, as a power loss would show.

A kill -9 shows nothing of it: the kernel keeps what a dead process has written.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from tests.fault.scenario import CannotRunError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CALL: Final = re.compile(r"^(\d+) +(?:<\.\.\. )?(\w+)(?:\(| resumed)(.*)")
_PLACE: Final = re.compile(r"\d+<([^>]*)>")
_WRITES: Final = {"write", "pwrite64", "writev", "sendto", "sendmsg"}
_SYNCS: Final = {"fsync", "fdatasync"}
_ATTEMPT, _PROMISE = r'"\1\0', r'"\2\0'  # how the records of a producer's journal begin, as strace writes them


def tracing(trace: Path) -> list[str]:
    """Return the beginning of a command line that traces its rest. Raises ``CannotRunError`` if it cannot."""
    strace = shutil.which("strace")
    if strace is None:
        raise CannotRunError("strace is not installed")
    if subprocess.run([strace, "-qq", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode:
        raise CannotRunError("strace may not trace here")
    calls = ",".join(sorted(_WRITES | _SYNCS))
    return [strace, "-D", "-f", "-qq", "-y", "-s", "4", "-e", f"trace={calls}", "-e", "signal=none", "-o", str(trace)]


def _calls(trace: Path) -> Iterator[tuple[str, str, str]]:
    """Yield name, file and arguments of every call, a write when it begins and a sync when it is done."""
    begun: dict[tuple[str, str], str] = {}
    for line in trace.read_text(errors="replace").splitlines():
        found = _CALL.match(line)
        if found is None:
            continue
        thread, name, rest = found.groups()
        place = _PLACE.search(rest)
        where = place.group(1) if place else begun.pop((thread, name), "")
        if "<unfinished" in line:
            begun[thread, name] = where
        is_resumed = "resumed" in line
        if (name in _SYNCS and "<unfinished" not in line) or (name in _WRITES and not is_resumed):
            yield name, where, rest


def promises(trace: Path) -> tuple[int, int]:
    """Return how many promises a producer made, and for how many of them its spool was synced after it was written."""
    made = synced = 0
    state = "nothing"
    for name, where, arguments in _calls(trace):
        if where.endswith(".truth") and _ATTEMPT in arguments:
            state = "nothing"
        elif where.endswith(".truth") and _PROMISE in arguments:
            made += 1
            synced += state == "synced"
        elif where.endswith(".spool-wal"):
            if name in _WRITES and state == "nothing":
                state = "written"
            elif name in _SYNCS and state == "written":
                state = "synced"
    return made, synced


def replies(trace: Path) -> tuple[int, int]:
    """Return how many replies a server sent after it wrote to its file, and how many of them after it synced that."""
    sent = synced = 0
    state = "nothing"
    for name, where, _ in _calls(trace):
        if where.endswith(".incr.aof"):
            state = "synced" if name in _SYNCS else "written"
        elif where.startswith(("socket:", "TCP:")) and state != "nothing":
            sent += 1
            synced += state == "synced"
            if state == "synced":
                state = "nothing"
    return sent, synced
