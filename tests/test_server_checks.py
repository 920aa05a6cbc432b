"""What an actor asks of its server before it starts: told by a real server with each setting, and by doubles."""

from __future__ import annotations

import pytest
import redis

from tests.acceptance.program import Program, last_line, run
from tests.test_operations import SOUND
from token_actor.embedded import EmbeddedServer
from token_actor.errors import SetupError
from token_actor.operations.server import check_server
from token_actor.transport.memory import MemoryServer
from token_actor.transport.redis import RedisConnector


@pytest.fixture(scope="module")
def own_server():
    """A server whose settings these tests may change."""
    with EmbeddedServer(appendfsync="always") as server:
        yield server


@pytest.fixture
def configured(own_server):
    """Set something on the server for one test."""
    with redis.Redis.from_url(own_server.url) as client:
        before = client.config_get()

        def configure(**settings):
            for name, value in settings.items():
                client.config_set(name.replace("_", "-"), value)

        yield configure
        client.replicaof("NO", "ONE")
        for name in ("maxmemory", "maxmemory-policy", "appendonly", "appendfsync", "save"):
            client.config_set(name, before[name])


def facts(server):
    connection = RedisConnector(server.url).connect()
    try:
        return connection.server_facts()
    finally:
        connection.close()


def check(server, **more):
    return check_server(facts(server), with_password=True, **more)


def test_a_server_with_safe_settings_is_fine(own_server):
    assert check(own_server) == []


UNSAFE = {
    "an eviction policy": (
        {"maxmemory": 10**9, "maxmemory_policy": "allkeys-lru"},
        "throws the log away",
        "noeviction",
    ),
    "an eviction policy that has no bound yet": (
        {"maxmemory_policy": "allkeys-random"},
        "with a maxmemory",
        "noeviction",
    ),
    "an eviction policy of what has a time to live": ({"maxmemory_policy": "volatile-lru"}, "leases", "noeviction"),
    "no append-only file and no dumps": (
        {"appendonly": "no", "save": ""},
        "nothing is written to disk",
        "appendonly yes",
    ),
    "dumps only": ({"appendonly": "no", "save": "3600 1"}, "a crash loses all since the last one", "appendonly yes"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_a_server_that_can_lose_the_log_is_refused_with_what_to_change(own_server, configured, name):
    settings, danger, change = UNSAFE[name]
    configured(**settings)
    with pytest.raises(SetupError) as refused:
        check(own_server)
    assert danger in str(refused.value)
    assert change in str(refused.value)
    assert "\n" not in str(refused.value)
    (warning,) = check(own_server, accept_data_loss=True)
    assert danger in warning.found


def test_a_replica_is_refused(own_server, configured):
    with redis.Redis.from_url(own_server.url) as client:
        client.replicaof("127.0.0.1", "1")
    with pytest.raises(SetupError, match="role is slave: it takes no writes .name its primary with --redis"):
        check(own_server)


def test_everything_that_has_to_change_is_said_at_once(own_server, configured):
    configured(maxmemory_policy="allkeys-lfu", appendonly="no")
    with pytest.raises(SetupError) as refused:
        check(own_server)
    assert "maxmemory-policy noeviction" in str(refused.value)
    assert "appendonly yes" in str(refused.value)


@pytest.mark.parametrize(("fsync", "loss"), [("everysec", "the last second"), ("no", "half minute or more")])
def test_a_server_that_is_late_to_its_disk_is_worth_a_warning(own_server, configured, fsync, loss):
    configured(appendfsync=fsync)
    (warning,) = check(own_server)
    assert (warning.subject, loss in warning.found) == ("persistence", True)


def test_a_server_without_a_password_is_worth_a_warning(own_server):
    (warning,) = check_server(facts(own_server), with_password=False)
    assert warning.subject == "access"


# --- what cannot be started here --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"valkey_version": "7.2.0"}, "Valkey 7.2.0 is too old"),
        ({"valkey_version": None, "redis_version": "6.2.14"}, "Redis 6.2.14 is too old"),
        ({"config:appendonly": None, "config:save": None, "aof_enabled": "0"}, "no append-only file"),
    ],
)
def test_a_server_that_is_too_old_or_hides_its_settings_is_refused(told, said):
    merged = {name: value for name, value in {**SOUND, **told}.items() if value is not None}
    with pytest.raises(SetupError, match=said):
        check_server(merged, with_password=True)


@pytest.mark.parametrize("told", [{"aof_last_write_status": "err"}, {"config:maxmemory": "10", "used_memory": "10"}])
def test_a_full_disk_or_server_is_worth_a_warning_because_it_passes(told):
    (warning,) = check_server({**SOUND, **told}, with_password=True)
    assert warning.level == "problem"


def test_a_server_that_tells_nothing_is_worth_warnings():
    warnings = check_server({}, with_password=True)
    assert [warning.subject for warning in warnings] == ["version", "role", "eviction", "persistence"]
    assert {warning.level for warning in warnings} == {"warning"}


def test_a_server_in_this_process_is_as_safe_as_the_process():
    assert check_server(MemoryServer().connect().server_facts(), with_password=False) == []


# --- the command ------------------------------------------------------------------------------------


def test_an_actor_refuses_to_start_where_the_log_is_not_safe(own_server, configured, namespace):
    configured(maxmemory_policy="allkeys-lru")
    done = run("serve", "--redis", own_server.url, "--namespace", namespace)
    assert (done.returncode, done.stdout) == (1, "")
    assert "CONFIG SET maxmemory-policy noeviction" in last_line(done)
    assert "--accept-data-loss" in last_line(done)
    with redis.Redis.from_url(own_server.url) as client:
        assert client.keys(f"*{namespace}*") == []


def test_an_actor_starts_there_when_the_loss_is_accepted_and_says_what_it_risks(own_server, configured, namespace):
    configured(maxmemory_policy="allkeys-lru")
    words = ("serve", "--redis", own_server.url, "--namespace", namespace, "--accept-data-loss")
    with Program(*words) as actor:
        actor.hear("Recovered")
        assert "subject=eviction" in actor.stderr


def test_the_demo_runs_on_any_server_because_it_removes_what_it_counts(own_server, configured):
    configured(appendonly="no", save="")
    done = run("demo", "--redis", own_server.url, "--seconds", "1")
    assert done.returncode == 0, done.stderr


def test_a_replay_says_why_its_actor_does_not_start(own_server, configured, namespace, tmp_path):
    configured(appendonly="no", save="")
    (tmp_path / "calls.jsonl").write_text('{"input_tokens": 1}')
    words = ("replay", str(tmp_path / "calls.jsonl"), "--format", "jsonl", "--redis", own_server.url)
    done = run(*words, "--namespace", namespace)
    assert done.returncode == 1
    assert "the log is not safe on this server" in last_line(done)
    assert "appendonly yes" in last_line(done)
