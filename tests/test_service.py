"""The composition root: addresses, the environment, and actors that come and go with who needs them."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from tests.client.harness import RunningActor, run_script, wait_until
from token_actor import AsyncTokenClient, TokenClient, service
from token_actor.errors import ActorUnavailable, InvalidValue, LogUnavailable, SetupError
from token_actor.service import actor_settings, connector_of, run_actor


def memory_actors():
    return [thread for thread in threading.enumerate() if thread.name == "token-actor-memory"]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for variable in service.ENVIRONMENT:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def served(server_url, namespace):
    """The address of a real server with an actor for the namespace of the test."""
    actor = RunningActor(connector_of(server_url), actor_settings(namespace))
    yield server_url
    actor.stop()


class TestAddresses:
    def test_a_real_server_is_reached_by_its_address(self, served, namespace):
        with TokenClient(served, namespace=namespace) as client:
            client.record(5)
            assert client.analytics()["input_tokens"] == 5

    def test_coroutines_reach_it_too(self, served, namespace):
        async def ask():
            async with AsyncTokenClient(served, namespace=namespace) as client:
                client.record(5)
                return (await client.analytics())["input_tokens"]

        assert asyncio.run(ask()) == 5

    @pytest.mark.parametrize("url", ["", None])
    def test_the_environment_names_the_server_where_nothing_else_does(self, served, namespace, monkeypatch, url):
        monkeypatch.setenv("TOKEN_ACTOR_REDIS", served)
        with TokenClient(url, namespace=namespace) as client:
            client.record(5)
            assert client.analytics()["input_tokens"] == 5

    def test_an_address_that_is_given_goes_before_the_environment(self, served, namespace, monkeypatch):
        monkeypatch.setenv("TOKEN_ACTOR_REDIS", "redis://127.0.0.1:9/0")
        with TokenClient(served, namespace=namespace) as client:
            assert client.analytics()["requests"] == 0

    def test_without_any_address_it_is_this_host(self):
        assert service.default_url() == "redis://127.0.0.1:6379/0"

    @pytest.mark.parametrize("url", ["http://x", "redis", "redis://x?nonsense=1", "memory:/x"])
    def test_what_is_no_address_is_refused_at_once(self, url):
        with pytest.raises(SetupError):
            TokenClient(url)

    def test_nothing_is_connected_before_the_first_use(self):
        client = TokenClient("redis://127.0.0.1:9/0")
        client.close()

    def test_a_server_that_is_not_there_is_reported_with_its_address_and_no_password(self):
        client = TokenClient("redis://me:secret@127.0.0.1:9/0", timeout_s=0.2)
        client.record(1)
        with pytest.raises(LogUnavailable, match="redis://127.0.0.1:9/0") as late:
            client.flush()
        assert "secret" not in str(late.value)
        with pytest.raises(ActorUnavailable, match="redis://127.0.0.1:9/0") as nobody:
            client.analytics(stale_ok=True)
        assert "secret" not in str(nobody.value)
        with pytest.raises(LogUnavailable):
            client.close(0)


class TestNamespaces:
    def test_the_environment_names_the_namespace_where_nothing_else_does(self, monkeypatch):
        monkeypatch.setenv("TOKEN_ACTOR_NAMESPACE", "mine")
        assert TokenClient("memory://")._engine.settings.namespace == "mine"
        assert TokenClient("memory://", namespace="other")._engine.settings.namespace == "other"

    def test_without_any_it_is_the_default(self):
        assert TokenClient("memory://")._engine.settings.namespace == "default"

    def test_namespaces_on_one_server_are_apart(self):
        with TokenClient("memory://apart", namespace="a") as a, TokenClient("memory://apart", namespace="b") as b:
            a.record(1)
            assert (a.analytics()["requests"], b.analytics()["requests"]) == (1, 0)


class TestOptions:
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("namespace", "a b"),
            ("tenant", "a\n"),
            ("agent", 5),
            ("model", "__other__"),
            ("batch_events_max", 0),
            ("batch_age_ms", -1),
            ("buffer_events_max", 0),
            ("timeout_s", 0),
            ("lines_max", 0),
            ("resend_share", 2),
            ("spool_bytes_max", 0),
            ("spool_full", "drop"),
        ],
    )
    @pytest.mark.parametrize("face", [TokenClient, AsyncTokenClient])
    def test_an_option_that_cannot_work_is_named_at_once(self, face, option, value):
        with pytest.raises(InvalidValue) as wrong:
            face("memory://", **{option: value})
        assert wrong.value.field == option

    def test_an_option_that_does_not_exist_is_named(self):
        with pytest.raises(TypeError, match="colour"):
            TokenClient("memory://", colour="red")

    def test_options_that_are_none_are_not_given(self):
        options = dict.fromkeys(service.ClientOptions.__annotations__)
        client = TokenClient("memory://", **options)
        assert client._engine.settings.names == {}
        assert client._engine.settings.timeout_s == 5.0

    def test_dimensions_are_the_defaults_of_every_record(self):
        with TokenClient("memory://", tenant="t", agent="a") as client:
            client.record(1)
            assert client.analytics(tenant="t", agent="a")["requests"] == 1


class TestSpools:
    def test_a_folder_that_is_given_goes_before_the_environment(self, monkeypatch, tmp_path):
        monkeypatch.setenv("TOKEN_ACTOR_SPOOL_DIR", str(tmp_path / "environment"))
        with TokenClient("memory://", spool_dir=str(tmp_path / "given")) as client:
            client.record(1)
            client.flush()
        assert [path.name for path in tmp_path.iterdir()] == ["given"]

    def test_the_environment_names_the_folder_where_nothing_else_does(self, monkeypatch, tmp_path):
        monkeypatch.setenv("TOKEN_ACTOR_SPOOL_DIR", str(tmp_path / "environment"))
        with TokenClient("memory://", spool_bytes_max=1_000_000, spool_full="raise") as client:
            client.record(1)
            client.flush()
        assert [path.name for path in tmp_path.iterdir()] == ["environment"]

    def test_an_empty_name_means_none_whatever_the_environment_says(self, monkeypatch, tmp_path):
        monkeypatch.setenv("TOKEN_ACTOR_SPOOL_DIR", str(tmp_path / "environment"))
        with TokenClient("memory://", spool_dir="") as client:
            client.record(1)
            client.flush()
        assert list(tmp_path.iterdir()) == []

    def test_without_any_nothing_is_kept_on_disk(self):
        assert TokenClient("memory://")._engine.settings.spool_dir is None


class TestInMemory:
    def test_a_server_without_a_name_is_private(self):
        with TokenClient("memory://") as one, TokenClient("memory://") as other:
            one.record(1)
            assert (one.analytics()["requests"], other.analytics()["requests"]) == (1, 0)

    def test_a_server_with_a_name_is_shared(self):
        with TokenClient("memory://shared") as one, TokenClient("memory://shared") as other:
            one.record(1)
            one.flush()
            assert other.analytics()["requests"] == 1

    def test_one_actor_serves_a_shared_namespace(self):
        clients = [TokenClient("memory://one") for _ in range(5)]
        epochs = {client.status()["epoch"] for client in clients}
        assert epochs == {1}

    def test_a_shared_server_goes_with_its_last_client(self):
        first = TokenClient("memory://going")
        first.record(1)
        first.flush()
        second = TokenClient("memory://going")
        first.close()
        del first
        gc.collect()
        assert second.analytics()["requests"] == 1
        second.close()
        del second
        gc.collect()
        assert TokenClient("memory://going").analytics()["requests"] == 0

    @pytest.mark.parametrize("face", [TokenClient, AsyncTokenClient])
    def test_the_actor_of_a_dropped_client_stops(self, face):
        wait_until(lambda: not memory_actors())
        clients = [face("memory://") for _ in range(5)]
        for client in clients:
            client.record(1)
        assert len(memory_actors()) == 5
        del client, clients
        gc.collect()
        wait_until(lambda: not memory_actors())

    def test_the_actor_of_a_closed_and_dropped_client_stops(self):
        wait_until(lambda: not memory_actors())
        with TokenClient("memory://") as client:
            client.record(1)
            client.analytics()
        del client
        gc.collect()
        wait_until(lambda: not memory_actors())

    def test_an_open_client_keeps_its_actor(self):
        client = TokenClient("memory://")
        client.record(1)
        gc.collect()
        assert client.analytics()["requests"] == 1


FORKED_MEMORY = """
import json, os, sys
from token_actor import TokenClient, ActorUnavailable, LogUnavailable

client = TokenClient("memory://here", timeout_s=1.0)
client.record(1)
assert client.analytics()["requests"] == 1
read, write = os.pipe()
if os.fork() == 0:
    found = []
    client.record(1)
    for call in (client.flush, lambda: client.analytics(stale_ok=True)):
        try:
            call()
        except (ActorUnavailable, LogUnavailable) as error:
            found.append(str(error))
    with TokenClient("memory://here") as new:
        new.record(7)
        found.append(new.analytics()["input_tokens"])
    os.write(write, json.dumps(found).encode())
    os._exit(0)
assert os.wait()[1] == 0
print(json.dumps([*json.loads(os.read(read, 65_536)), client.analytics()["requests"]]))
"""


def test_after_a_fork_an_in_memory_server_is_the_parents_alone():
    environment = {"PYTHONWARNINGS": "ignore::DeprecationWarning"}
    lost, nobody, new, requests = run_script(f"import logging; logging.disable()\n{FORKED_MEMORY}", **environment)
    assert "memory:// ends at a fork: processes need a real server to share" in lost
    assert "memory:// ends at a fork: processes need a real server to share" in nobody
    assert (new, requests) == (7, 1)


class TestActors:
    def test_its_name_says_where_it_runs_and_is_unique(self):
        names = {actor_settings("n").holder for _ in range(10)}
        assert len(names) == 10
        assert all(len(name.split("/")) == 3 for name in names)

    def test_it_serves_the_partition_it_is_told(self):
        settings = actor_settings("n", partition=1, partitions=2)
        assert (settings.keys.log, settings.partitions) == (b"{n:1}:log", 2)

    def test_it_lets_go_of_its_connection_when_it_ends(self):
        closed = []

        class Connector:
            address = "here"

            def connect(self):
                connection = service.MemoryServer().connect()
                connection.close, close = lambda: (closed.append(True), close()), connection.close
                return connection

        stop = threading.Event()
        stop.set()
        run_actor(Connector(), actor_settings("n"), stop)
        assert closed == [True]
