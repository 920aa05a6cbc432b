"""A server that dies, is full, forgets, or is replaced."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Final

from tests.fault.cast import until
from tests.fault.scenario import Scale, Scenario
from token_actor.embedded import HOST

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fault.cast import Server
    from tests.fault.stage import Stage


def _begin(stage: Stage, *, spool: bool = False, **options: str) -> None:
    stage.serve(**options)
    stage.start_actor()
    stage.await_serving(noted=False)
    for number in (1, 2):
        if spool:
            stage.start_spooling_producer(number)
        else:
            stage.start_producer(number)


def _killed(stage: Stage, scale: Scale) -> None:
    """Kill the server, which has every acknowledged write on its disk, and start it again."""
    _begin(stage, appendfsync="always")
    for _ in scale.turns(stage, 8, 100):
        stage.await_entries(stage.random.randrange(5, 80))
        stage.server.kill()
        killed = time.monotonic()
        stage.server.start()
        stage.await_serving(since=killed)
        stage.faults += 1
        stage.await_accepted(1, 20)


def _torn_aof(stage: Stage, scale: Scale) -> None:
    """Kill the server, and leave half a command at the end of its append-only file, as a crash in a write does."""
    _begin(stage, appendfsync="always")
    for _ in scale.turns(stage, 4, 50):
        stage.await_entries(stage.random.randrange(5, 80))
        stage.server.kill()
        killed = time.monotonic()
        with newest_aof(stage.server).open("ab") as aof:
            aof.write(b"*5\r\n$4\r\nXADD\r\n$13\r\n{fault:0}"[: stage.random.randrange(1, 30)])
        stage.server.start()
        stage.await_serving(since=killed)
        stage.faults += 1
        stage.await_accepted(1, 20)


def _full(stage: Stage, scale: Scale) -> None:
    """Fill the server's memory, so that it refuses what would grow; then make room."""
    _begin(stage)
    for _ in scale.turns(stage, 3, 30):
        stage.await_entries(60)
        used = int(stage.server.command("INFO", "memory")["used_memory"])
        stage.server.command("CONFIG", "SET", "maxmemory", str(used))
        until(lambda: "write_refused" in stage.actors[-1].actions() or _refuses(stage), "a refused write")
        stage.faults += 1
        stage.server.command("CONFIG", "SET", "maxmemory", "0")
        stage.await_accepted(1, 20)
        stage.await_serving()


def _refuses(stage: Stage) -> bool:
    before = stage.log_added()
    refused = int(stage.server.command("INFO", "errorstats").get("errorstat_OOM", {"count": 0})["count"])
    return refused > 0 and stage.log_added() == before


def newest_aof(server: Server) -> Path:
    """Return the file that a server appends to."""
    return max((server.data_dir / "appendonlydir").glob("*.incr.aof"), key=lambda path: path.stat().st_mtime_ns)


def _truncated_aof(stage: Stage, scale: Scale) -> None:
    """Cut the last part off the append-only file: a disk that lied about what it had."""
    _begin(stage, spool=True, appendfsync="no")
    for _ in scale.turns(stage, 3, 30):
        stage.await_entries(60)
        stage.actors[-1].pause()
        stage.await_entries(20)
        stage.server.kill()
        stage.actors[-1].resume()
        killed = time.monotonic()
        aof = newest_aof(stage.server)
        with aof.open("r+b") as file:
            file.truncate(max(0, aof.stat().st_size - stage.random.randrange(1_000, 20_000)))
        stage.server.start()
        stage.await_serving(since=killed)
        stage.faults += 1
        stage.await_accepted(1, 20)


def _old_backup(stage: Stage, scale: Scale) -> None:
    """Put a backup in the place of the server's data, from before much of what was acknowledged."""
    _begin(stage, spool=True, appendfsync="always")
    for _ in scale.turns(stage, 1, 10):
        stage.await_entries(60)
        stage.server.stop()
        backup = stage.directory / "backup"
        shutil.rmtree(backup, ignore_errors=True)
        shutil.copytree(stage.server.data_dir, backup)
        stage.server.start()
        stage.await_accepted(1, 100)
        stage.server.kill()
        killed = time.monotonic()
        shutil.rmtree(stage.server.data_dir)
        shutil.copytree(backup, stage.server.data_dir)
        stage.server.start()
        stage.await_serving(since=killed)
        stage.faults += 1
        stage.await_accepted(1, 20)


def _lagging_replica(stage: Stage, scale: Scale) -> None:
    """Cut a replica off, go on, then lose the primary and make the replica the primary."""
    del scale
    primary = stage.serve("primary")
    link, everyone = stage.link(primary), stage.link(primary)
    replica = stage.serve("replica", replicaof=f"{HOST} {link.url.rpartition(':')[2].partition('/')[0]}")
    stage.start_actor(url=everyone.url)
    stage.await_serving(noted=False)
    for number in (1, 2):
        stage.start_spooling_producer(number, url=everyone.url)
    stage.await_entries(60)
    until(lambda: _replicated(stage, replica) > 0, "a replica with entries")
    link.black_hole()
    stage.await_accepted(1, 200)
    primary.kill()
    lost = time.monotonic()
    replica.command("REPLICAOF", "NO", "ONE")
    stage.server, everyone.port = replica, replica.port
    everyone.cut()
    stage.forget_connections()
    stage.await_serving(since=lost)
    stage.faults += 1
    stage.await_accepted(1, 20)


def _replicated(stage: Stage, replica: Server) -> int:
    return int(replica.command("XLEN", stage.keys.log))


def _flushed(stage: Stage, scale: Scale) -> None:
    """Delete everything there is on the server, under everybody's feet."""
    _begin(stage, spool=True)
    for _ in scale.turns(stage, 1, 10):
        stage.await_accepted(1, 100)
        stage.server.command("FLUSHALL")
        flushed = time.monotonic()
        stage.faults += 1
        stage.await_accepted(1, 20)
        stage.await_serving(since=flushed)


SCENARIOS: Final = [
    Scenario(name="server killed", injects="kill -9 of the server, appendfsync always", play=_killed),
    Scenario(name="torn AOF", injects="kill -9 of the server in the middle of a write", play=_torn_aof),
    Scenario(name="server full", injects="maxmemory reached, then raised", play=_full),
    Scenario(name="truncated AOF", injects="a disk that lost its tail", play=_truncated_aof),
    Scenario(name="old backup", injects="a backup in the place of the data", play=_old_backup),
    Scenario(name="lagging replica", injects="failover to a replica that was cut off", play=_lagging_replica),
    Scenario(name="flushed", injects="FLUSHALL", play=_flushed),
]
