"""What the acceptance tests share: an actor with something counted, for all tests that only look."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.acceptance.program import connected, serving
from token_actor import TokenClient
from token_actor.cli.app import main
from token_actor.transport.ports import Append
from token_actor.wire.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Iterator

EVENTS = 30


@pytest.fixture
def call(capsys, monkeypatch):
    """Call the command line in this process, where what is looked at does not need one of its own."""
    monkeypatch.delenv("TOKEN_ACTOR_REDIS", raising=False)
    monkeypatch.delenv("TOKEN_ACTOR_NAMESPACE", raising=False)

    def called(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["token-actor", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return called


@pytest.fixture
def ask(call):
    """Call a reading command in this process, and return the one document it prints."""

    def asked(*words: str, code: int = 0) -> Any:
        ended, printed, said = call(*words, "--json")
        assert ended == code, said
        return json.loads(printed)

    return asked


class Fleet(NamedTuple):
    """A namespace that an actor serves, with events of a few agents, and two dead letters: ``dead_id`` is the newer."""

    where: tuple[str, ...]
    totals: dict[str, int]
    dead_id: str


@pytest.fixture(scope="session")
def fleet(server_url: str) -> Iterator[Fleet]:
    """One fleet for all tests that change nothing."""
    where = ("--redis", server_url, "--namespace", "looked-at")
    with serving(*where):
        with TokenClient(server_url, namespace="looked-at") as client:
            for number in range(EVENTS):
                client.record(
                    1_000 * number,
                    10 * number,
                    cache_read_tokens=5_000 * number,
                    agent=f"agent-{number % 3}",
                    model=("priced", "unpriced")[number % 2],
                    session=f"session-{number % 5}",
                    cost_usd=None if number % 2 else "0.25",
                    message_id=f"message-{number}",
                )
            client.flush()
            client.record(7, message_id="message-0")  # of other numbers than before: the only bad event of its batch
            client.flush()
            with connected(server_url) as connection:
                malformed = Append(key=Keys("looked-at").log, fields=[b"j", b'{"input_tokens": -1, "model": "m"}'])
                (dead_id,) = connection.write([malformed])
            client.record(model="last")
            assert client.analytics()["requests"] == EVENTS + 1
        assert isinstance(dead_id, bytes)
        each = sum(range(EVENTS))
        totals = {"requests": EVENTS + 1, "input_tokens": 1_000 * each, "output_tokens": 10 * each}
        yield Fleet(where, {**totals, "cache_read_tokens": 5_000 * each}, dead_id.decode())
