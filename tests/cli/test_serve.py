"""How an actor is asked to stop: once for an orderly end, twice for any."""

from __future__ import annotations

import signal
from queue import SimpleQueue

import pytest

from token_actor.cli.serve import run_until_asked, stop_requests
from token_actor.errors import ServerUnavailable, TokenActorError
from token_actor.service import actor_settings
from token_actor.transport.memory import MemoryServer


def test_the_first_request_ends_the_actor_in_order():
    requests = SimpleQueue()
    requests.put("SIGTERM")
    run_until_asked(MemoryServer(), actor_settings("default"), requests)
    assert requests.empty()


def test_the_second_request_ends_it_at_once():
    requests = SimpleQueue()
    requests.put("SIGINT")
    requests.put("SIGINT")
    with pytest.raises(TokenActorError, match="ended at once, by a second request"):
        run_until_asked(MemoryServer(), actor_settings("default"), requests)


def test_what_ends_the_actor_is_raised_where_it_was_started():
    class Nowhere(MemoryServer):
        def connect(self):
            raise ServerUnavailable("gone")

    with pytest.raises(ServerUnavailable, match="gone"):
        run_until_asked(Nowhere(), actor_settings("default"), SimpleQueue())


def test_signals_become_requests_and_are_given_back():
    before = signal.getsignal(signal.SIGINT)
    with stop_requests(supervised=False) as requests:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert [requests.get(), requests.get()] == ["SIGINT", "SIGTERM"]
    assert signal.getsignal(signal.SIGINT) is before
