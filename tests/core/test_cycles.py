"""What a ledger remembers has no cycles: an actor's process looks for them rarely, and relies on it."""

from __future__ import annotations

import gc

from tests.makers import START_MS
from token_actor.core.commands import Command, execute
from token_actor.core.ledger import Ledger
from token_actor.core.limits import Limit
from token_actor.core.usage import Event, series_key


def test_decisions_and_their_ends_leave_no_cycle_behind():
    ledger = Ledger()
    sent = 0

    def do(operation, event=None, **arguments):
        nonlocal sent
        sent += 1
        command = Command(operation=operation, request_id=str(sent), client="c", arguments=arguments, event=event)
        return execute(ledger, command, START_MS + sent).answer

    def rounds(count):
        for _ in range(count):
            granted = do("reserve", tokens=10, user="u", ttl_ms=20)
            event = Event(series_key(user="u"), 7)
            do("settle", event=event, reservation=granted["reservation"])
            do("reserve", tokens=10_000, user="u")
            do("release", reservation=do("reserve", tokens=10, user="u", ttl_ms=1)["reservation"])
            do("reserve", tokens=1, user="u", unknown=1)

    do("put_limit", limit=Limit("l", 9_000, by=("user",)).as_map())
    rounds(10)
    gc.collect()
    gc.disable()
    try:
        rounds(100)
        found = gc.collect()
    finally:
        gc.enable()
    assert found < 100, "that is less than one object a round"
