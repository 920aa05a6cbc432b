"""What an operator does: every finding of the doctor, dead letters of every kind, and the proof of the books."""

from __future__ import annotations

import threading

import pytest

from tests.actor.conftest import Stage
from tests.makers import columns, event
from token_actor import TokenClient
from token_actor.actor.manifests import list_manifests
from token_actor.actor.snapshots import SnapshotWriter
from token_actor.core.ledger import Ledger
from token_actor.errors import InvalidValue, ServerRefused, SnapshotError
from token_actor.operations import doctor, places, states, verify
from token_actor.operations.dead import find_dead, list_dead, readable
from token_actor.operations.server import server_findings
from token_actor.service import actor_settings, run_actor
from token_actor.transport.memory import MemoryServer
from token_actor.transport.ports import Append, Delete, DeleteEntries, Put, PutField, StreamState, TrimBelow
from token_actor.transport.redis import RedisConnector
from token_actor.wire.keys import Keys, partition_of

SOUND = {
    "redis_version": "7.2.4",
    "valkey_version": "9.1.2",
    "role": "master",
    "config:maxmemory": "0",
    "config:maxmemory-policy": "noeviction",
    "config:appendonly": "yes",
    "config:appendfsync": "always",
    "config:save": "",
    "aof_last_write_status": "ok",
    "rdb_last_bgsave_status": "ok",
}


def test_nothing_is_said_against_a_sound_server():
    assert {finding.level for finding in server_findings(SOUND, with_password=True)} == {"ok"}


@pytest.mark.parametrize(
    ("facts", "subject", "level", "said"),
    [
        ({"valkey_version": "7.2.0"}, "version", "problem", "Valkey 7.2.0 is too old"),
        ({"valkey_version": None, "redis_version": "6.2.1"}, "version", "problem", "Redis 6.2.1 is too old"),
        ({"valkey_version": None, "redis_version": "8.0.0"}, "version", "ok", "Redis 8.0.0"),
        ({"valkey_version": None, "redis_version": None}, "version", "warning", "does not tell"),
        ({"role": "slave"}, "role", "problem", "takes no writes"),
        ({"role": None}, "role", "warning", "does not tell its role"),
        ({"config:maxmemory-policy": "allkeys-lru"}, "eviction", "problem", "with a maxmemory, a full server"),
        ({"config:maxmemory-policy": "volatile-ttl"}, "eviction", "problem", "throws leases and answers away"),
        ({"config:maxmemory-policy": None}, "eviction", "warning", "does not tell what it does when it is full"),
        (
            {"config:maxmemory-policy": "allkeys-lru", "config:maxmemory": "1000000"},
            "eviction",
            "problem",
            "a full server throws the log away",
        ),
        ({"config:maxmemory-policy": None, "maxmemory_policy": "noeviction"}, "eviction", "ok", "refused"),
        ({"config:maxmemory": "1000", "used_memory": "950"}, "memory", "problem", "95% of maxmemory"),
        ({"config:appendfsync": "everysec"}, "persistence", "warning", "can lose the last second"),
        ({"config:appendfsync": "no"}, "persistence", "warning", "half minute"),
        ({"config:appendfsync": None}, "persistence", "warning", "does not tell"),
        ({"config:appendonly": "no"}, "persistence", "problem", "nothing is written to disk"),
        ({"config:appendonly": "no", "config:save": "3600 1"}, "persistence", "problem", "only dumps"),
        (
            {"config:appendonly": None, "config:save": None, "aof_enabled": "0"},
            "persistence",
            "problem",
            "there is no append-only file",
        ),
        ({"config:appendonly": None}, "persistence", "warning", "does not tell whether it has an append-only file"),
        ({"config:appendonly": None, "aof_enabled": "1"}, "persistence", "ok", "every acknowledged write"),
        ({"aof_last_write_status": "err"}, "disk", "problem", "last write to the append-only file failed"),
        ({"rdb_last_bgsave_status": "err"}, "disk", "problem", "the last dump failed"),
    ],
)
def test_what_endangers_the_log_is_found(facts, subject, level, said):
    merged = {name: value for name, value in {**SOUND, **facts}.items() if value is not None}
    (finding,) = [found for found in server_findings(merged, with_password=True) if found.subject == subject]
    assert finding.level == level
    assert said in finding.found
    assert (finding.advice is None) == (level == "ok")


def test_a_server_without_a_password_is_a_warning():
    (access,) = [found for found in server_findings(SOUND, with_password=False) if found.subject == "access"]
    assert access.level == "warning"


class Deployment:
    """A server, a namespace, and an actor that runs until it is told to stop."""

    def __init__(self, url, namespace, partitions=1):
        self.connection = RedisConnector(url).connect()
        self.client = TokenClient(url, namespace=namespace, batch_events_max=10, timeout_s=2)
        self.namespace = namespace
        self.keys = Keys(namespace)
        self._connector = RedisConnector(url)
        self._partitions = partitions
        self._stop = threading.Event()
        self._threads = []

    def start(self):
        self._stop.clear()
        for partition in range(self._partitions):
            settings = actor_settings(self.namespace, partition=partition, partitions=self._partitions)
            arguments = (self._connector, settings, self._stop)
            self._threads.append(threading.Thread(target=run_actor, args=arguments))
            self._threads[-1].start()

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(10)
        self._threads.clear()

    def restart(self):
        self.stop()
        self.start()

    def save(self):
        """Let another actor take a snapshot, between two that do not."""
        self.stop()
        stage = Stage(self._connector, self.namespace)
        stage.saved()
        stage.close()
        self.start()

    def close(self):
        self.stop()
        self.client.close()
        self.connection.close()

    def append(self, *fields, key=None):
        (entry_id,) = self.connection.write([Append(key=key or self.keys.log, fields=fields)])
        return entry_id

    def findings(self, now_ms=0):
        found = doctor.partition_findings(self.client, self.connection, self.keys, tenant="default", now_ms=now_ms)
        return {finding.subject: finding for finding in found}


@pytest.fixture
def deployment(server_url, namespace):
    deployed = Deployment(server_url, namespace)
    deployed.start()
    yield deployed
    deployed.close()


def test_a_deployment_that_does_nothing_wrong_is_sound(deployment):
    deployment.client.record(1)
    deployment.client.analytics()
    findings = deployment.findings()
    assert {finding.level for finding in findings.values()} == {"ok"}
    assert "up to date, 1 event counted" in findings["lag"].found


def test_every_partition_is_looked_at(server_url, namespace):
    deployed = Deployment(server_url, namespace, partitions=3)
    deployed.start()
    try:
        while places.partition_count(deployed.connection, namespace) is None:
            pass
        found = doctor.diagnose(deployed.client, deployed.connection, namespace, with_password=False, now_ms=0)
        subjects = [finding.subject for finding in found]
        assert [subject for subject in subjects if subject.startswith("leader")] == [f"leader of {p}" for p in range(3)]
        assert [found.balanced for found in verify.verify(deployed.client, deployed.connection, namespace)] == [
            True
        ] * 3
    finally:
        deployed.close()


def test_a_namespace_that_nobody_served_is_said(server_url, namespace):
    deployed = Deployment(server_url, namespace)
    found = doctor.diagnose(
        TokenClient(server_url, namespace=namespace, timeout_s=0.1),
        deployed.connection,
        namespace,
        with_password=False,
        now_ms=0,
    )
    by_subject = {finding.subject: finding for finding in found}
    assert "no actor has ever served" in by_subject["namespace"].found
    assert by_subject["leader"].level == "problem"
    assert "token-actor serve" in by_subject["leader"].advice
    deployed.close()


def test_a_leader_that_does_not_answer_is_named(server_url, namespace):
    deployed = Deployment(server_url, namespace)
    deployed.client = TokenClient(server_url, namespace=namespace, timeout_s=0.1)
    deployed.connection.write([Put(key=deployed.keys.leader, value=b"7:host/1/x")])
    assert "7:host/1/x leads and does not answer" in deployed.findings()["leader"].found
    deployed.close()


def test_a_server_that_refuses_is_said_with_what_to_check():
    class Refusing:
        def server_facts(self):
            raise ServerRefused("NOAUTH Authentication required.")

    (finding,) = doctor.diagnose(None, Refusing(), "default", with_password=False, now_ms=0)
    assert finding.level == "problem"
    assert "user, password" in finding.advice


def test_holes_and_dead_letters_are_warnings(deployment):
    client = deployment.client
    client.record(1)
    client.flush()
    deployment.append(b"j", b"{")
    client.analytics()
    findings = deployment.findings()
    assert findings["dead letters"].level == "warning"
    assert "token-actor dead list" in findings["dead letters"].advice


@pytest.mark.parametrize(
    ("status", "subject"),
    [({"missing": 3, "folded_events": 0}, "missing"), ({"missing": 0, "folded_events": 9}, "cardinality")],
)
def test_what_never_arrived_and_what_was_folded_are_warnings(status, subject):
    (finding,) = doctor._losses(status)
    assert (finding.subject, finding.level) == (subject, "warning")


def test_an_actor_that_is_far_behind_is_a_warning():
    stream = StreamState(length=5, last_id=b"1-1", first_id=b"1-1", entries_added=100_000)
    assert doctor._lag(stream, {"entries": 5, "events": 5}).level == "warning"


def test_an_old_snapshot_is_a_warning_only_when_there_is_more_to_take(deployment):
    deployment.client.record(1)
    deployment.client.analytics()
    deployment.save()
    later_ms = 10**14
    assert deployment.findings(now_ms=later_ms)["snapshots"].level == "ok"
    deployment.client.record(1)
    deployment.client.analytics()
    snapshots = deployment.findings(now_ms=later_ms)["snapshots"]
    assert snapshots.level == "warning"
    assert "1 entry before the end of the log" in snapshots.found


def test_a_long_log_without_a_snapshot_is_a_warning():
    stream = StreamState(length=200_000, last_id=b"1-1", first_id=b"1-1", entries_added=200_000)
    assert doctor._snapshots(MemoryServer().connect(), Keys(), stream, 0).level == "warning"


def test_dead_letters_are_listed_newest_first_with_their_total(deployment):
    first = deployment.append(b"j", b"{")
    second = deployment.append(b"b", b"\xff\x00")
    deployment.append(b"j", b'{"model": "fine"}')
    assert deployment.client.analytics()["requests"] == 1
    found, total = list_dead(deployment.connection, deployment.namespace, limit=1)
    assert total == 2
    assert [quarantined.letter.source for quarantined in found] == [second]
    document = found[0].document()
    assert (document["raw"], document["raw_form"], document["raw_bytes"]) == ("ff00", "hex", 2)
    older = find_dead(deployment.connection, deployment.namespace, first.decode())
    assert (older.letter.reason, older.document()["raw"]) == ("decode", "{")
    assert find_dead(deployment.connection, deployment.namespace, "1-1") is None


def test_an_entry_that_is_no_dead_letter_is_shown_as_unreadable(deployment):
    deployment.append(b"surprise", b"\x00", key=deployment.keys.dead)
    (found,), _ = list_dead(deployment.connection, deployment.namespace, limit=10)
    document = found.document()
    assert (document["reason"], document["field"], document["raw"]) == ("unreadable", "surprise", "00")


@pytest.mark.parametrize("entry_id", ["", "1", "1-", "a-1", "1-1-1", "१-1"])
def test_an_id_that_is_none_is_refused(deployment, entry_id):
    with pytest.raises(InvalidValue, match="must be an entry id"):
        find_dead(deployment.connection, deployment.namespace, entry_id)


@pytest.mark.parametrize(
    ("raw", "shown"), [(b"text", ("text", "text")), (b"\n", ("hex", "0a")), (b"\xff", ("hex", "ff"))]
)
def test_only_what_a_terminal_can_show_is_text(raw, shown):
    assert readable(raw) == shown


def test_the_books_are_proved_while_usage_goes_on(deployment):
    done = threading.Event()

    def report():
        while not done.is_set():
            deployment.client.record(3, agent="busy")
            done.wait(0.0005)

    thread = threading.Thread(target=report)
    thread.start()
    try:
        for _ in range(5):
            (found,) = verify.verify(deployment.client, deployment.connection, deployment.namespace)
            assert found.differences == ()
            assert found.problem is None
    finally:
        done.set()
        thread.join()


def test_dead_letters_duplicates_and_resets_are_part_of_the_proof(deployment):
    client = deployment.client
    client.record(1, message_id="a", session="s")
    client.flush()
    client.record(1, message_id="a", session="s")
    client.record(2, message_id="a", session="s")
    client.flush()
    client.manager(session="s").reset()
    deployment.save()
    client.record(5)
    (found,) = verify.verify(client, deployment.connection, deployment.namespace)
    assert found.balanced
    assert found.snapshot == "2-1"
    assert found.replayed == 1
    assert found.total["requests"] == 2


def test_a_snapshot_that_overtakes_the_answer_is_asked_about_again(deployment, monkeypatch):
    client = deployment.client
    client.record(1)
    stale = client.books()
    answers = [stale]

    def books(**more):
        if not answers:
            return type(client).books(client, **more)
        deployment.save()
        return answers.pop()

    client.record(1)
    client.flush()
    monkeypatch.setattr(client, "books", books)
    (found,) = verify.verify(client, deployment.connection, deployment.namespace)
    assert found.balanced
    assert found.total["requests"] == 2


def test_a_log_that_was_trimmed_under_the_rebuild_is_read_again(deployment, monkeypatch):
    deployment.client.record(1)
    deployment.client.analytics()
    deployment.save()
    lists = [[]]
    real = verify.list_manifests
    monkeypatch.setattr(verify, "list_manifests", lambda *keys: lists.pop() if lists else real(*keys))
    (found,) = verify.verify(deployment.client, deployment.connection, deployment.namespace)
    assert found.balanced
    assert lists == []


def test_a_proof_that_is_overtaken_again_and_again_is_given_up(deployment, monkeypatch):
    deployment.client.record(1)
    deployment.client.analytics()
    deployment.save()
    monkeypatch.setattr(verify, "list_manifests", lambda *keys: [])
    with pytest.raises(SnapshotError, match="faster than they could be read"):
        verify.verify(deployment.client, deployment.connection, deployment.namespace)


def state_of_snapshots(deployment):
    (found,) = verify.verify(deployment.client, deployment.connection, deployment.namespace)
    return found


def with_snapshots(deployment, count):
    for _ in range(count):
        deployment.client.record(1, message_id=None, session="s")
        deployment.client.analytics()
        deployment.save()


def test_without_a_snapshot_there_is_no_state_hash(deployment):
    deployment.client.record(1)
    found = state_of_snapshots(deployment)
    assert found.balanced
    assert (found.state_hash, found.state_hash_replayed) == (None, None)
    assert found.state_source == "nothing to compare: there is no snapshot yet"


@pytest.mark.parametrize(("count", "source"), [(1, "the whole log"), (2, "snapshot 2-1 and the log")])
def test_the_newest_snapshot_is_what_the_log_comes_to(deployment, count, source):
    with_snapshots(deployment, count)
    found = state_of_snapshots(deployment)
    assert found.balanced
    assert found.state_source == source
    assert found.state_hash == found.state_hash_replayed != None  # noqa: E711 - and there is one


def test_with_one_snapshot_and_a_log_that_was_trimmed_there_is_nothing_to_compare_with(deployment):
    with_snapshots(deployment, 1)
    deployment.connection.write([TrimBelow(key=deployment.keys.log, entry_id=b"9999999999999-0")])
    found = state_of_snapshots(deployment)
    assert (found.state_hash_replayed, len(found.state_hash)) == (None, 32)
    assert "nothing to compare with: there is one snapshot of this log, and the log no longer" in found.state_source


def test_a_snapshot_that_the_log_does_not_come_to_is_found_out_by_its_segments(deployment):
    with_snapshots(deployment, 1)
    wrong = Ledger()
    entry_id, _ = deployment.connection.range(deployment.keys.snapshots, count=1)[0]
    first = list_manifests(deployment.connection, deployment.keys)[0]
    wrong.apply(columns(event(7, session="invented")))
    writer = SnapshotWriter(deployment.connection, deployment.keys, fenced=deployment.connection.write)
    for _ in writer.write(wrong, snapshot_id=entry_id + b"1", position=first.position, now_ms=0):
        pass
    found = state_of_snapshots(deployment)
    figures = {difference.figure for difference in found.differences}
    assert figures >= {"segment series/0", "segment rows/0", "segment recent/0", "segment head"}
    assert found.state_hash != found.state_hash_replayed
    assert {d.way for d in found.differences if "segment" in d.figure} == {
        "state rebuilt from snapshot 2-1 and the log"
    }


def test_an_entry_that_was_removed_between_two_snapshots_is_found_out(deployment):
    with_snapshots(deployment, 2)
    *_, (entry_id, _) = deployment.connection.range(deployment.keys.log, count=10)
    deployment.connection.write([DeleteEntries(key=deployment.keys.log, entry_ids=[entry_id])])
    found = state_of_snapshots(deployment)
    assert ("entries", 2, 1) in {(d.figure, d.actor, d.other) for d in found.differences}


def test_snapshots_that_are_gone_meanwhile_are_not_compared(deployment, monkeypatch):
    with_snapshots(deployment, 2)
    kept = list_manifests(deployment.connection, deployment.keys)
    monkeypatch.setattr(states, "list_manifests", lambda *_: kept[:1])
    assert states.compare_states(deployment.connection, deployment.keys, kept).overtaken
    with pytest.raises(SnapshotError, match="faster than they could be read"):
        state_of_snapshots(deployment)


def test_books_that_the_actor_itself_finds_wrong_are_a_difference(deployment, monkeypatch):
    books = deployment.client.books()
    wrong = {"way": "series by model", "counter": "requests", "total": 2, "found": 1}
    monkeypatch.setattr(deployment.client, "books", lambda **more: {**books, "differences": [wrong]})
    (found,) = verify.verify(deployment.client, deployment.connection, deployment.namespace)
    assert not found.balanced
    (difference,) = found.document()["differences"]
    assert difference == {"figure": "requests", "actor": 2, "other": 1, "way": "series by model"}


def test_a_tenant_is_found_for_every_partition():
    assert places.tenant_in(0, 1) == "default"
    assert [partition_of(places.tenant_in(partition, 7), 7) for partition in range(7)] == list(range(7))


def test_a_namespace_is_removed_with_everything_in_it(deployment):
    deployment.client.record(1)
    deployment.append(b"j", b"{")
    deployment.client.analytics()
    deployment.save()
    deployment.stop()
    connection, keys = deployment.connection, deployment.keys
    assert places.leader_of(connection, keys) is None
    assert connection.get(keys.chunk(b"2-1", 0)) is not None
    places.remove_namespace(connection, deployment.namespace)
    assert places.partition_count(connection, deployment.namespace) is None
    assert places.end_of_log(connection, keys) == b"0-0"
    assert connection.get(keys.chunk(b"2-1", 0)) is None


def test_a_removal_that_is_refused_is_raised():
    class Refusing(type(MemoryServer().connect())):
        def write(self, operations):
            if any(isinstance(operation, Delete) for operation in operations):
                return [ServerRefused("NOPERM no")]
            return super().write(operations)

    server = MemoryServer()
    connection = server.connect()
    connection.write([PutField(key=Keys().meta, field=b"partitions", value=b"1")])
    connection.__class__ = Refusing
    with pytest.raises(ServerRefused):
        places.remove_namespace(connection, "default")


def test_counted_up_to_compares_ids_as_numbers(deployment):
    deployment.client.record(1)
    deployment.client.analytics()
    end = places.end_of_log(deployment.connection, deployment.keys)
    assert places.counted_up_to(deployment.client, end, timeout_s=5)
    assert not places.counted_up_to(deployment.client, b"99999999999999-0", timeout_s=5)


def test_nobody_leads_once_the_lease_is_given_back(deployment):
    deployment.client.status()
    assert places.leader_of(deployment.connection, deployment.keys).startswith("1:")
    deployment.stop()
    assert places.leader_of(deployment.connection, deployment.keys) is None
