"""Bytes that are not what was written, streams that are not what they were, and disks that are full."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING, Final

import redis

from tests.fault.cast import until
from tests.fault.scenario import CannotRunError, Scale, Scenario
from token_actor.actor.manifests import list_manifests
from token_actor.actor.snapshots import SNAPSHOTS_KEPT
from token_actor.transport.ports import Delete, Put

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fault.stage import Stage

DISK_BYTES: Final = 12 << 20  # the data of a short run fits in it several times


def _begin(stage: Stage, *, spool: bool = False) -> None:
    stage.serve()
    for number in (1, 2):
        if spool:
            stage.start_spooling_producer(number)
        else:
            stage.start_producer(number)


def _damaged_snapshots(stage: Stage, scale: Scale) -> None:
    """Flip, tear or remove a chunk of the newest snapshots, but not of the oldest one, while nobody leads."""
    _begin(stage)
    damages: tuple[Callable[[bytes], bytes | None], ...] = (_flipped, _torn, _removed)
    for turn in scale.turns(stage, 6, 60):
        actor = stage.start_actor()
        stage.await_serving(noted=turn > 0)
        until(lambda: len(list_manifests(stage.connection, stage.keys)) >= SNAPSHOTS_KEPT, "enough snapshots")
        actor.kill()
        manifests = list_manifests(stage.connection, stage.keys)
        spared = {chunk.digest for chunk in manifests[-1].chunks}
        for manifest in manifests[: 1 + turn % (SNAPSHOTS_KEPT - 1)]:
            chunk = stage.random.choice([chunk for chunk in manifest.chunks if chunk.digest not in spared])
            key = stage.keys.chunk(chunk.snapshot_id, chunk.number)
            damaged = damages[turn % len(damages)](stage.connection.get(key) or b"")
            stage.connection.write([Delete(keys=[key]) if damaged is None else Put(key=key, value=damaged)])
            stage.faults += 1
    stage.await_snapshots(stage.start_actor(), SNAPSHOTS_KEPT)  # so that the rebuild of the checks has good ones


def _flipped(chunk: bytes) -> bytes:
    middle = len(chunk) // 2
    return chunk[:middle] + bytes([chunk[middle] ^ 0x10]) + chunk[middle + 1 :]


def _torn(chunk: bytes) -> bytes:
    return chunk[: len(chunk) // 3]


def _removed(_chunk: bytes) -> None:
    return None


def _every_snapshot_damaged(stage: Stage, scale: Scale) -> None:
    """Damage all snapshots after the log was trimmed: the actor must refuse to start, and say so."""
    del scale
    _begin(stage)
    actor = stage.start_actor()
    stage.await_serving(noted=False)
    until(lambda: _trimmed(stage), "a trimmed log")
    actor.kill()
    backups = {}
    for manifest in list_manifests(stage.connection, stage.keys):
        key = stage.keys.chunk(manifest.chunks[0].snapshot_id, manifest.chunks[0].number)
        if key in backups:
            continue
        backups[key] = stage.connection.get(key) or b""
        stage.connection.write([Put(key=key, value=_flipped(backups[key]))])
        stage.faults += 1
    refused = stage.start_actor("refused")
    if refused.wait() != 1 or "SnapshotError" not in refused.said()[-1]:
        stage.broken.append(f"I1: an actor without a state that fits the log did not refuse: {refused.said()[-2:]}")
    stage.connection.write([Put(key=key, value=chunk) for key, chunk in backups.items()])


def _trimmed(stage: Stage) -> bool:
    state = stage.connection.stream_state(stage.keys.log)
    return state is not None and state.entries_added > state.length


def _replaced(stage: Stage, scale: Scale) -> None:
    """Put a string in the place of the log, of the questions and of the snapshots, then take it away."""
    _begin(stage)
    stage.start_actor()
    stage.await_serving(noted=False)
    for key in (stage.keys.ask, stage.keys.snapshots)[: scale.of(2, 2)]:
        stage.await_entries(30)
        stage.server.command("RENAMENX", key, b"kept:" + key)
        stage.server.command("SET", key, "not a stream")
        stage.faults += 1
        stage.await_entries(30)
        stage.server.command("DEL", key)
        if stage.server.command("EXISTS", b"kept:" + key):
            stage.server.command("RENAME", b"kept:" + key, key)
        mended = time.monotonic()
        if not stage.actors[-1].alive:
            stage.notes.append("the actor ended, loudly, and was started again as a supervisor does")
            stage.start_actor()
        stage.await_serving(since=mended)


def _log_replaced(stage: Stage, scale: Scale) -> None:
    """Put a string in the place of the log while it is renamed away, then bring it back."""
    del scale
    _begin(stage)
    stage.start_actor()
    stage.await_serving(noted=False)
    stage.await_entries(30)
    stage.server.at_once(("RENAME", stage.keys.log, "kept"), ("SET", stage.keys.log, "not a stream"))
    stage.faults += 1
    until(lambda: any("WRONGTYPE" in line for line in stage.producers[1].said()), "a producer that says so")
    stage.server.command("RENAME", "kept", stage.keys.log)
    stage.await_serving(since=time.monotonic())


def _log_trimmed(stage: Stage, scale: Scale) -> None:
    """Trim the log above what the actor has counted."""
    del scale
    _begin(stage, spool=True)
    actor = stage.start_actor()
    stage.await_serving(noted=False)
    stage.await_entries(30)
    actor.pause()
    stage.await_entries(60)
    stage.server.command("XTRIM", stage.keys.log, "MAXLEN", "10")
    stage.faults += 1
    actor.resume()
    stage.await_serving(since=time.monotonic())


def _log_deleted(stage: Stage, scale: Scale) -> None:
    """Delete the log while there is something in it that the actor has not counted."""
    del scale
    _begin(stage, spool=True)
    actor = stage.start_actor()
    stage.await_serving(noted=False)
    stage.await_entries(30)
    actor.pause()
    stage.await_entries(60)
    stage.server.command("DEL", stage.keys.log)
    stage.faults += 1
    actor.resume()
    stage.await_entries(10)
    stage.await_serving(since=time.monotonic())


def _disk_full(stage: Stage, scale: Scale) -> None:
    """Fill the disk of the server's append-only file; make room; start the server again if it gave up."""
    disk = mount_small_disk(stage, "server", DISK_BYTES)
    _begin(stage)
    stage.start_actor()
    stage.await_serving(noted=False)
    ballast = disk / "ballast"
    for _ in scale.turns(stage, 2, 20):
        stage.await_entries(40)
        fill(ballast)
        until(lambda: not stage.server.alive or _aof_failed(stage), "a server that notices its full disk")
        stage.faults += 1
        ballast.unlink()
        freed = time.monotonic()
        if not stage.server.alive:
            stage.server.start()
        stage.await_serving(since=freed)
        stage.await_accepted(1, 20)


def mount_small_disk(stage: Stage, name: str, size_bytes: int) -> Path:
    """Return a folder of the stage that is a small disk of its own. Raises ``CannotRunError`` without the right to."""
    disk = stage.directory / name
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        raise CannotRunError(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    stage.at_end(lambda: subprocess.run(["umount", "-l", str(disk)], check=True))
    return disk


def fill(ballast: Path) -> None:
    """Write until nothing more fits."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096) == 4096:
                pass
        except OSError:
            return


def _aof_failed(stage: Stage) -> bool:
    try:
        persistence = stage.server.command("INFO", "persistence")
    except redis.ConnectionError:
        return False  # it has just given up
    return bool(persistence["aof_last_write_status"] != "ok")


SCENARIOS: Final = [
    Scenario(
        name="damaged snapshots",
        injects="chunks of the newest snapshots flipped, torn or gone",
        play=_damaged_snapshots,
        logs=frozenset({"snapshot_damaged"}),
    ),
    Scenario(
        name="all snapshots damaged",
        injects="no snapshot left that fits the trimmed log",
        play=_every_snapshot_damaged,
        logs=frozenset({"snapshot_damaged"}),
    ),
    Scenario(name="log replaced", injects="a string in the place of the log", play=_log_replaced),
    Scenario(name="streams replaced", injects="a string in the place of questions and snapshots", play=_replaced),
    Scenario(name="log trimmed", injects="XTRIM above what is counted", play=_log_trimmed),
    Scenario(name="log deleted", injects="DEL of the log", play=_log_deleted),
    Scenario(name="disk full", injects="a full disk under the server", play=_disk_full),
]
