"""How an actor is asked to stop: once for an orderly end, twice for any."""

from __future__ import annotations

import signal
import threading
from queue import SimpleQueue

import pytest

from token_actor.cli import serve
from token_actor.cli.serve import facts_of, run_until_asked, stop_requests
from token_actor.errors import ServerUnavailable, SetupError, TokenActorError
from token_actor.service import actor_settings
from token_actor.transport.memory import MemoryConnection, MemoryServer
from token_actor.wire.keys import Keys


def fine(facts):
    assert facts


def test_the_first_request_ends_the_actor_in_order():
    requests = SimpleQueue()
    requests.put("SIGTERM")
    run_until_asked(MemoryServer(), actor_settings("default"), requests, fine)
    assert requests.empty()


def test_a_second_request_that_comes_with_the_first_is_the_same_one():
    requests = SimpleQueue()
    requests.put("SIGTERM")
    requests.put("SIGTERM")
    run_until_asked(MemoryServer(), actor_settings("default"), requests, fine)
    assert requests.empty()


def test_the_second_request_ends_it_at_once(monkeypatch):
    monkeypatch.setattr(serve, "TOGETHER_S", 0.0)
    requests = SimpleQueue()
    requests.put("SIGINT")
    requests.put("SIGINT")
    with pytest.raises(TokenActorError, match="ended at once, by a second request"):
        run_until_asked(MemoryServer(), actor_settings("default"), requests, fine)


def test_what_ends_the_actor_is_raised_where_it_was_started():
    class Nowhere(MemoryServer):
        def connect(self):
            raise ServerUnavailable("gone")

    with pytest.raises(ServerUnavailable, match="gone"):
        run_until_asked(Nowhere(), actor_settings("default"), SimpleQueue(), fine)


def test_signals_become_requests_and_are_given_back():
    before = signal.getsignal(signal.SIGINT)
    with stop_requests(supervised=False) as requests:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert [requests.get(), requests.get()] == ["SIGINT", "SIGTERM"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_server_that_is_not_there_yet_is_waited_for(monkeypatch, caplog):
    monkeypatch.setattr(serve, "AWAY_S", 0.001)
    caplog.set_level("WARNING", "token_actor")
    server = MemoryServer()
    looks = iter([True, True, False])

    class Starting(MemoryConnection):
        def server_facts(self):
            if next(looks):
                raise ServerUnavailable("LOADING")
            return super().server_facts()

    connection = server.connect()
    connection.__class__ = Starting
    monkeypatch.setattr(server, "connect", lambda: connection)
    assert facts_of(server, threading.Event())["server_name"] == "memory"
    assert [record.action for record in caplog.records] == ["server_away"]


def test_a_stop_ends_the_wait_for_a_server():
    server = MemoryServer()
    server.go_away()
    stop = threading.Event()
    stop.set()
    assert facts_of(server, stop) is None


def test_an_actor_does_not_start_on_a_server_that_a_check_refuses():
    def refuse(facts):
        raise SetupError("not on this one")

    server = MemoryServer()
    with pytest.raises(SetupError, match="not on this one"):
        run_until_asked(server, actor_settings("default"), SimpleQueue(), refuse)
    assert server.connect().get_fields(Keys().meta) == {}
