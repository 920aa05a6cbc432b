"""The spool: what was recorded outlives the process, a torn file, a full disk and a server that forgot."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.client.harness import ROOT, run_script, start_script, wait_until
from token_actor.actor.saving import Saving
from token_actor.client import slots
from token_actor.client.slots import Slot
from token_actor.client.spool import open_spool
from token_actor.client.store import Batch, BatchKey
from token_actor.errors import BufferFull, ClosedError, LogUnavailable, SetupError, SpoolError, SpoolFull
from token_actor.operations.spools import look_into
from token_actor.transport.ports import Delete

LONG_MS = 60_000
WHERE = {"namespace": "ns", "address": "redis://somewhere"}


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "spool")


@pytest.fixture
def saves(monkeypatch):
    """Let no actor take a snapshot before ``saves`` is set."""
    may_save = threading.Event()
    step = Saving.step
    monkeypatch.setattr(Saving, "step", lambda saving: step(saving) if may_save.is_set() else None)
    return may_save


def batch(first_seq=0, events=1, data=b"data", producer=b"p" * 16):
    return Batch(BatchKey(0, producer, 0, first_seq), events, len(data), data)


def commit(store, *added):
    store.commit(added=added, acknowledged=(), removed=())


def files(folder, ending):
    return sorted(path.name for path in Path(folder).iterdir() if path.name.endswith(ending))


def leave(folder, *batches):
    """Leave batches behind, as a process that was killed."""
    store = open_spool(folder, **WHERE)
    commit(store, *batches)
    store.close()
    (name,) = files(folder, ".spool")
    return Path(folder, name)


def leave_by_kill(folder, count):
    """Leave batches behind, one commit each, by a process that is really killed, its log not yet in the file."""
    text = """
import os, sys
from tests.client.test_spool import WHERE, batch, commit
from token_actor.client.spool import open_spool
store = open_spool(sys.argv[1], **WHERE)
for n in range(int(sys.argv[2])):
    commit(store, batch(n, data=b"%d" % n * 100))
os.kill(os.getpid(), 9)
"""
    child = subprocess.run([sys.executable, "-c", text, folder, str(count)], cwd=ROOT, check=False)
    assert child.returncode == -signal.SIGKILL
    (name,) = files(folder, ".spool")
    return Path(folder, name)


def seqs(batches):
    return [found.key.first_seq for found in batches]


class TestTheFolder:
    def test_what_was_committed_is_adopted_by_the_next_one_as_it_was(self, folder):
        leave(folder, batch(0, 3, b"one"), batch(3, 2, b"two"))
        heir = open_spool(folder, **WHERE)
        adopted = heir.adopt()
        assert [(b.key, b.events, b.data, b.own, b.waiting) for b in adopted] == [
            (BatchKey(0, b"p" * 16, 0, 0), 3, None, False, True),
            (BatchKey(0, b"p" * 16, 0, 3), 2, None, False, True),
        ]
        assert [heir.read(b) for b in adopted] == [b"one", b"two"]
        heir.close()

    def test_every_opening_is_another_producer(self, folder):
        assert len({open_spool(folder, **WHERE).producer for _ in range(3)}) == 3

    def test_acknowledgements_are_kept(self, folder):
        store = open_spool(folder, **WHERE)
        kept = batch()
        commit(store, kept)
        kept.entry_id, kept.generation = b"5-1", 7
        store.commit(added=(), acknowledged=[kept], removed=())
        store.close()
        (adopted,) = open_spool(folder, **WHERE).adopt()
        assert (adopted.entry_id, adopted.generation, adopted.waiting) == (b"5-1", 7, False)

    def test_what_somebody_alive_owns_is_left_alone(self, folder):
        alive, other = open_spool(folder, **WHERE), open_spool(folder, **WHERE)
        commit(alive, batch())
        assert other.adopt() == []
        alive.close()
        assert len(other.adopt()) == 1
        assert other.adopt() == []
        other.close()

    @pytest.mark.parametrize("other", [{"namespace": "ns2"}, {"address": "redis://elsewhere"}])
    def test_what_is_for_another_namespace_or_server_is_left_alone(self, folder, other):
        leave(folder, batch())
        assert open_spool(folder, **{**WHERE, **other}).adopt() == []
        assert len(open_spool(folder, **WHERE).adopt()) == 1

    def test_an_adopted_file_goes_when_nothing_in_it_is_needed_any_more(self, folder):
        leave(folder, batch(0), batch(1))
        heir = open_spool(folder, **WHERE)
        first, second = heir.adopt()
        heir.commit(added=(), acknowledged=(), removed=[first])
        assert len(files(folder, ".spool")) == 1
        heir.commit(added=(), acknowledged=(), removed=[second])
        assert files(folder, "") == []
        heir.close()

    def test_a_spool_in_which_nothing_is_left_leaves_no_file(self, folder):
        store = open_spool(folder, **WHERE)
        kept = batch()
        commit(store, kept)
        store.commit(added=(), acknowledged=(), removed=[kept])
        store.close()
        store.close()
        assert files(folder, "") == []

    def test_a_large_file_of_ones_own_goes_when_it_is_empty_and_is_made_again(self, folder):
        store = open_spool(folder, **WHERE)
        large = [batch(n, data=bytes(60_000)) for n in range(30)]
        commit(store, *large)
        store.commit(added=(), acknowledged=(), removed=large)
        assert files(folder, "") == []
        commit(store, batch(99))
        assert len(files(folder, ".spool")) == 1
        store.close()

    def test_a_lock_without_a_file_is_cleared_away(self, folder):
        path = leave(folder, batch())
        path.unlink()
        assert open_spool(folder, **WHERE).adopt() == []
        assert files(folder, "") == []

    def test_a_file_that_was_never_written_to_is_cleared_away(self, folder):
        path = leave(folder, batch())
        for each in Path(folder).iterdir():
            os.truncate(each, 0)
        assert open_spool(folder, **WHERE).adopt() == []
        assert not path.exists()
        assert files(folder, "") == []

    def test_a_repeated_commit_stores_nothing_twice(self, folder):
        store = open_spool(folder, **WHERE)
        commit(store, batch())
        commit(store, batch())
        store.close()
        assert len(open_spool(folder, **WHERE).adopt()) == 1

    def test_a_folder_that_cannot_be_used_is_refused_at_once(self, tmp_path, memory_fleet, monkeypatch):
        (tmp_path / "file").write_text("")
        with pytest.raises(SetupError, match="spool_dir .* cannot be made"):
            memory_fleet.client(spool_dir=str(tmp_path / "file"))
        monkeypatch.setattr(os, "access", lambda *_: False)
        with pytest.raises(SetupError, match="not to be written to"):
            memory_fleet.client(spool_dir=str(tmp_path))


class TestATornFile:
    @pytest.fixture(params=["truncated", "flipped", "log truncated", "log flipped", "log gone", "no database"])
    def torn(self, folder, request):
        path = leave_by_kill(folder, 40)
        if "log" not in request.param:
            fresh = slots._connect(path)
            fresh.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            fresh.close()
            target = path
        else:
            target = Path(f"{path}-wal")
        size = target.stat().st_size
        if request.param.endswith("truncated"):
            os.truncate(target, size // 2)
        elif request.param.endswith("flipped"):
            with target.open("r+b") as file:
                place = file.read().index(b"20" * 90)  # in the data of a batch
                file.seek(place)
                file.write(b"\xff" * 64)
        elif request.param == "log gone":
            target.unlink()
        else:
            target.write_bytes(b"This is no database. " * 100)
        return path

    def test_it_is_noticed_put_aside_reported_and_what_is_readable_is_adopted(self, folder, torn, caplog):
        heir = open_spool(folder, **WHERE)
        adopted = heir.adopt()
        (line,) = [record for record in caplog.records if record.action == "spool_damaged"]
        assert line.levelno == logging.ERROR
        assert line.events == len(adopted) < 40
        assert [heir.read(b) for b in adopted] == [b"%d" % b.key.first_seq * 100 for b in adopted]
        assert any(".damaged-1" in name for name in files(folder, ""))
        assert not torn.exists()
        heir.close()
        again = open_spool(folder, **WHERE)
        assert seqs(again.adopt()) == seqs(adopted)
        again.close()

    def test_one_flipped_bit_in_a_batch_costs_that_batch_only(self, folder):
        path = leave(folder, *[batch(n, data=b"<%d>" % n * 50) for n in range(10)])
        content = path.read_bytes()
        path.write_bytes(content.replace(b"<7><7>", b"<7>>7>", 1))
        assert seqs(open_spool(folder, **WHERE).adopt()) == [0, 1, 2, 3, 4, 5, 6, 8, 9]

    def test_a_file_of_another_format_is_put_aside(self, folder, caplog):
        path = leave(folder, batch())
        database = slots._connect(path)
        database.execute("UPDATE about SET format = 2")
        database.close()
        heir = open_spool(folder, **WHERE)
        assert len(heir.adopt()) == 1
        assert "it has format 2; this program reads 1" in caplog.records[-1].problem
        heir.close()

    def test_a_batch_that_changes_on_disk_later_is_not_sent(self, folder):
        path = leave(folder, batch(0), batch(1))
        heir = open_spool(folder, **WHERE)
        first, second = heir.adopt()
        database = slots._connect(path)
        database.execute("UPDATE batches SET data = x'00' WHERE first_seq = 0")
        database.execute("DELETE FROM batches WHERE first_seq = 1")
        database.close()
        assert (heir.read(first), heir.read(second)) == (None, None)
        assert heir.read(batch(99)) is None
        heir.close()

    @pytest.mark.parametrize("seed", range(30))
    def test_whatever_bytes_there_are_nothing_false_is_adopted_and_nothing_fails(self, folder, seed):
        path = leave_quickly(folder, seed)
        heir = open_spool(folder, **WHERE)
        for found in heir.adopt():
            assert heir.read(found) == b"<%d>" % found.key.first_seq * 30
        commit(heir, batch(999))
        heir.close()
        assert not path.exists() or files(folder, ".spool")


def leave_quickly(folder, seed):
    """Leave a file with some of its bytes changed at random."""
    chance = random.Random(seed)
    path = leave(folder, *[batch(n, data=b"<%d>" % n * 30) for n in range(50)])
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 3, 30, 1000])):
        content[chance.randrange(len(content))] = chance.randrange(256)
    if chance.random() < 0.3:
        del content[chance.randrange(len(content)) :]
    if chance.random() < 0.1:
        content = bytearray(chance.randbytes(9_000))
    path.write_bytes(content)
    if chance.random() < 0.2:
        Path(f"{path}-wal").write_bytes(chance.randbytes(5_000))
    return path


@contextmanager
def small_disk(path, size):
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small disk takes a mount: {done.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(store):
    """Store large batches until the disk is full; return how many it took."""
    for stored in range(100):
        try:
            commit(store, batch(stored, data=bytes(50_000)))
        except SpoolError as full:
            assert "full" in str(full)  # noqa: PT017 - it is the end of the loop
            return stored
    return 100


class TestAFullDisk:
    @pytest.fixture
    def disk(self, tmp_path):
        with small_disk(tmp_path / "disk", "1m") as disk:
            yield disk

    def test_it_is_an_error_that_changes_nothing_and_room_made_elsewhere_helps(self, disk):
        store = open_spool(str(disk), **WHERE)
        stored = fill(store)
        assert 5 < stored < 99
        store.close()
        heir = open_spool(str(disk), **WHERE)
        assert seqs(heir.adopt()) == list(range(stored))
        heir.close()

    def test_what_is_safe_can_be_forgotten_although_nothing_can_be_written(self, disk):
        store = open_spool(str(disk), **WHERE)
        kept = [batch(n) for n in range(fill(store))]
        store.commit(added=(), acknowledged=(), removed=kept)
        commit(store, batch(999))
        store.close()
        assert seqs(open_spool(str(disk), **WHERE).adopt()) == [999]

    def test_a_disk_without_any_room_lets_no_file_begin(self, disk):
        (disk / "ballast").write_bytes(bytes(1024 * 1024))
        store = open_spool(str(disk), **WHERE)
        with pytest.raises(SpoolError):
            commit(store, batch())
        (disk / "ballast").unlink()
        commit(store, batch())
        store.close()

    def test_a_damaged_file_waits_until_there_is_room_for_what_is_readable(self, disk, caplog):
        path = leave(str(disk), *[batch(n, data=b"<%d>" % n * 5000) for n in range(20)])
        content = path.read_bytes()
        path.write_bytes(content.replace(b"<7><7>", b"<7>>7>", 1))
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        heir = open_spool(str(disk), **WHERE)
        assert heir.adopt() == []
        assert caplog.records[-1].action == "spool_waits"
        assert path.exists()
        ballast.unlink()
        assert len(heir.adopt()) == 19
        heir.close()

    def test_a_client_records_on_in_memory_says_so_and_loses_nothing(self, disk, memory_fleet, caplog):
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(1024 * 1024))
        memory_fleet.actor()
        client = memory_fleet.client(spool_dir=str(disk), spool_full="raise", batch_age_ms=1)
        client.record(1)
        wait_until(lambda: client._engine._sender._delivery.full)
        with pytest.raises(SpoolFull, match="the spool is full: .*this event was not recorded$"):
            client.record(1)
        with pytest.raises(LogUnavailable, match="full"):
            client.flush(0.05)
        ballast.unlink()
        client.flush()
        assert client.analytics()["requests"] == 1
        assert "spool_failed" in {record.action for record in caplog.records}


class TestAClient:
    def test_what_is_recorded_is_on_disk_and_counted_once(self, fleet, folder):
        fleet.actor()
        client = fleet.client(spool_dir=folder, batch_events_max=10)
        for _ in range(100):
            client.record(1)
        client.flush()
        assert client.analytics()["requests"] == 100
        client.close()
        assert sum(found.events for found in adopt_of(fleet, folder)) == 100

    def test_what_a_snapshot_covers_is_deleted(self, fleet, folder, saves):
        fleet.actor(snapshot_every_ms=0)
        client = fleet.client(spool_dir=folder)
        client.record(1)
        client.flush()
        saves.set()
        wait_until(lambda: not client._engine._sender._delivery._outbox.is_kept)
        client.close()
        assert files(folder, "") == []

    def test_what_is_recorded_while_the_server_is_away_is_on_disk_at_once(self, fleet, folder):
        fleet.go_away()
        client = fleet.client(spool_dir=folder, batch_age_ms=1)
        for _ in range(50):
            client.record(1)
        wait_until(lambda: client._engine._sender._delivery.saved == 50)
        with pytest.raises(LogUnavailable, match="50 events .*; kept in the spool, and sent when it is"):
            client.close(0.05)
        client._engine._sender._thread.join()
        fleet.come_back()
        fleet.actor()
        heir = fleet.client(spool_dir=folder)
        wait_until(lambda: heir.analytics()["requests"] == 50)
        assert heir.status()["missing"] == 0

    def test_a_close_in_an_outage_saves_what_was_still_in_memory(self, fleet, folder):
        fleet.go_away()
        client = fleet.client(spool_dir=folder, batch_age_ms=LONG_MS)
        for _ in range(50):
            client.record(1)
        with pytest.raises(LogUnavailable):
            client.close(0)
        client._engine._sender._thread.join()
        assert sum(found.events for found in adopt_of(fleet, folder)) == 50

    def test_a_log_that_was_replaced_gets_everything_that_no_snapshot_covers(self, fleet, folder):
        actor = fleet.actor()
        client = fleet.client(spool_dir=folder, batch_events_max=10)
        for _ in range(100):
            client.record(1)
        client.flush()
        assert client.analytics()["requests"] == 100
        keys = fleet.keys()
        actor.stop()
        fleet.connect().write([Delete(keys=[keys.log, keys.snapshots])])
        fleet.actor()
        wait_until(lambda: client.analytics()["requests"] == 100)
        assert client.status()["missing"] == 0

    def test_two_clients_share_a_folder(self, fleet, folder):
        fleet.actor()
        clients = [fleet.client(spool_dir=folder) for _ in range(2)]
        for client in clients:
            for _ in range(10):
                client.record(1)
            client.flush()
        assert len(files(folder, ".spool")) == 2
        assert clients[0].analytics()["requests"] == 20

    def test_a_full_spool_blocks_until_there_is_room(self, fleet, folder, saves):
        fleet.actor(snapshot_every_ms=0)
        client = fleet.client(spool_dir=folder, spool_bytes_max=2_000, batch_events_max=1)
        recorded = []

        def work():
            for n in range(15):
                client.record(1)
                recorded.append(n)

        thread = threading.Thread(target=work)
        thread.start()
        wait_until(lambda: client._engine._sender._delivery.full)
        assert thread.is_alive() or len(recorded) == 15
        saves.set()
        thread.join(20)
        assert not thread.is_alive()
        client.flush(20)
        answer = client.analytics()
        assert answer["requests"] == 15

    def test_whoever_waits_for_room_is_released_by_a_close(self, memory_fleet, folder, caplog):
        client = memory_fleet.client(spool_dir=folder, spool_bytes_max=1, batch_age_ms=0)
        client.record(1)
        client.flush()
        client.record(1)
        wait_until(lambda: client._engine._sender._delivery.full)
        ended = []

        def work():
            try:
                client.record(1)
            except ClosedError:
                ended.append(True)

        thread = threading.Thread(target=work)
        thread.start()
        wait_until(lambda: "spool_full" in {record.action for record in caplog.records})
        with pytest.raises(LogUnavailable):
            client.close(0.05)
        thread.join(20)
        assert ended == [True]

    def test_a_full_spool_raises_where_that_is_wanted(self, memory_fleet, folder):
        client = memory_fleet.client(spool_dir=folder, spool_bytes_max=1, batch_age_ms=0, spool_full="raise")
        client.record(1)
        client.flush()
        client.record(1)
        wait_until(lambda: client._engine._sender._delivery.full)
        with pytest.raises(SpoolFull, match="it holds [0-9,]+ bytes, which is the bound") as full:
            client.record(1)
        assert full.value.pending == 1
        assert isinstance(full.value, BufferFull)

    def test_without_an_actor_nothing_is_deleted_and_nothing_waits(self, fleet, folder):
        client = fleet.client(spool_dir=folder)
        client.record(1)
        client.flush()
        client.close()
        assert len(adopt_of(fleet, folder)) == 1

    def test_a_file_left_behind_later_is_adopted_by_a_client_that_lives(self, fleet, folder, monkeypatch):
        monkeypatch.setattr("token_actor.client.delivery._ADOPT_S", 0.02)
        fleet.actor()
        client = fleet.client(spool_dir=folder)
        fleet.go_away()
        dead = fleet.client(spool_dir=folder)
        dead.record(1)
        wait_until(lambda: dead._engine._sender._delivery.saved == 1)
        with pytest.raises(LogUnavailable):
            dead.close(0)
        fleet.come_back()
        wait_until(lambda: client.analytics()["requests"] == 1)


def adopt_of(fleet, folder):
    store = open_spool(folder, namespace=fleet.namespace, address=fleet.client_connector.address)
    try:
        return store.adopt()
    finally:
        store.close()


KILLED = """
import os, signal, sys
from token_actor import TokenClient
from token_actor.client.{module} import {kind}

def die(*_args, **_more):
    os.kill(os.getpid(), signal.SIGKILL)

url, namespace, folder, count = sys.argv[1:]
client = TokenClient(url, namespace=namespace, spool_dir=folder, batch_events_max=10, batch_age_ms=60000)
{kind}.{method} = die
for _ in range(int(count)):
    client.record(1)
client.flush(30)
"""

HONEST = """
import sys
from token_actor import TokenClient
url, namespace, folder = sys.argv[1:]
client = TokenClient(url, namespace=namespace, spool_dir=folder, batch_events_max=10)
while True:
    for _ in range(7):
        client.record(1)
    client.flush(30)
    print(7, flush=True)
"""

FORKED = """
import json, os, sys
from token_actor import TokenClient
url, namespace, folder = sys.argv[1:]
client = TokenClient(url, namespace=namespace, spool_dir=folder)
for _ in range(10):
    client.record(1)
child = os.fork()
for _ in range(5):
    client.record(1)
client.close()
if not child:
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
print(json.dumps(sorted(name for name in os.listdir(folder) if name.endswith(".spool"))))
"""


class TestAProcessThatIsKilled:
    @pytest.mark.parametrize(
        "place",
        [("delivery", "Delivery", "_write"), ("outbox", "Outbox", "acknowledged")],
        ids=["between disk and log", "between log and acknowledgement"],
    )
    def test_everything_on_its_disk_is_counted_once(self, valkey_fleet, server_url, folder, place, saves):
        valkey_fleet.actor(snapshot_every_ms=0)
        text = KILLED.format(**dict(zip(("module", "kind", "method"), place, strict=True)))
        child = start_script(text, server_url, valkey_fleet.namespace, folder, "35")
        child.communicate(timeout=60)
        assert child.returncode == -signal.SIGKILL
        (left,) = look_into(folder, namespace=valkey_fleet.namespace, address=server_url).slots
        assert left.events >= 10
        heir = direct_client(valkey_fleet, server_url, spool_dir=folder)
        wait_until(lambda: heir.analytics()["requests"] == left.events)
        saves.set()
        wait_until(lambda: not heir._engine._sender._delivery._outbox.is_kept)
        assert (heir.analytics()["requests"], heir.status()["missing"]) == (left.events, 0)
        heir.close()

    def test_at_any_moment_nothing_that_was_flushed_is_lost_and_nothing_is_counted_twice(
        self, valkey_fleet, server_url, folder
    ):
        valkey_fleet.actor()
        chance = random.Random(5)
        flushed = 0
        for _ in range(4):
            child = start_script(HONEST, server_url, valkey_fleet.namespace, folder)
            for _ in range(chance.randrange(1, 30)):
                flushed += int(child.stdout.readline())
            child.kill()
            rest = child.communicate()[0].split("\n")
            flushed += sum(map(int, filter(None, rest)))
        heir = direct_client(valkey_fleet, server_url, spool_dir=folder)
        wait_until(lambda: not heir._engine._sender._delivery._outbox.is_waiting)
        wait_until(lambda: heir.status()["missing"] == 0)
        counted = heir.analytics()["requests"]
        seen = {(b["p"], b["o"], b["q"]): b["n"] for b in valkey_fleet.batches()}
        assert flushed <= counted == sum(seen.values()) <= flushed + 4 * 7
        heir.close()


def direct_client(fleet, url, **options):
    """Return a client that goes straight to the server, as those in other processes do."""
    from token_actor import TokenClient

    return TokenClient(url, namespace=fleet.namespace, **options)


class TestAFork:
    def test_the_child_has_a_spool_of_its_own_and_both_are_counted(self, valkey_fleet, server_url, folder):
        valkey_fleet.actor()
        names = run_script(FORKED, server_url, valkey_fleet.namespace, folder)
        assert len(names) == 2
        assert direct_client(valkey_fleet, server_url).analytics()["requests"] == 20

    def test_a_child_that_records_nothing_neither_keeps_nor_breaks_what_is_the_parents(self, folder):
        store = open_spool(folder, **WHERE)
        commit(store, batch(0))
        end_read, end_write = os.pipe()
        child = os.fork()
        if not child:
            os.close(end_write)
            os.read(end_read, 1)
            os._exit(0)
        os.close(end_read)
        commit(store, batch(1))
        store.close()
        heir = open_spool(folder, **WHERE)
        assert seqs(heir.adopt()) == [0, 1]
        heir.close()
        os.close(end_write)
        assert os.waitpid(child, 0)[1] == 0


def test_a_lock_is_not_taken_on_a_file_that_is_gone(folder):
    path = leave(folder, batch())
    first = Slot.claim(path)
    assert first is not None
    assert Slot.claim(path) is None
    first.close()


def test_a_lock_let_go_is_free_although_a_child_forked_just_now_still_has_it_open(folder):
    path = leave(folder, batch())
    first = Slot.claim(path)
    of_the_child = os.dup(first._lock)  # what a fork shares, until the child has run its first lines
    first.close()
    second = Slot.claim(path)
    assert second is not None
    second.close()
    os.close(of_the_child)


def test_names_of_servers_are_told_apart():
    assert slots.digest_of("redis://a") != slots.digest_of("redis://b")
