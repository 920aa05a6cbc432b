"""Facts about the whole state as a tree of plain values and arrays."""

from __future__ import annotations

import pytest

from tests.makers import MINUTE_MS, PRODUCER, START_MS, apply, ask, columns, event, plain, total
from token_actor.core import snapshot
from token_actor.core.columns import Run
from token_actor.core.commands import Command, execute
from token_actor.core.ledger import Bounds, Ledger
from token_actor.core.queries import QUESTIONS
from token_actor.errors import SnapshotError
from token_actor.wire.codec import pack_state, unpack_state

BOUNDS = Bounds(recent_events_max=4, message_ids_max=3, producers_max=2)


def used(bounds=BOUNDS):
    """Return a ledger in which everything that has state has some."""
    ledger = Ledger(bounds)
    read = columns(event(1, 2, message_id="a", tags={"t": "u"}), event(4, session="s", cost_nanousd=8, flags=1))
    read.runs = [Run(PRODUCER, 3, 5, 0, 2)]
    ledger.apply(read)
    apply(ledger, event(1, 2, message_id="a"), event(9, message_id="a"), log_ms=START_MS + MINUTE_MS)
    for number in range(4):
        apply(ledger, event(number, session="s", message_id=f"m{number}"), log_ms=START_MS + number * MINUTE_MS)
    reset = Command(operation="reset", request_id="r", client="c", arguments={"tenant": "default", "session": "s"})
    execute(ledger, reset, START_MS + 4 * MINUTE_MS)
    apply(ledger, event(16, session="s"), log_ms=START_MS + 5 * MINUTE_MS)
    return ledger


def travelled(state):
    """Return a state as it comes back from the server: in parts, each packed and unpacked."""
    return {name: unpack_state(pack_state({"value": part}))["value"] for name, part in state.items()}


def test_a_dump_holds_these_parts():
    assert set(snapshot.dump(Ledger())) == {
        "version", "log_ms", "series", "counters", "first_ms", "last_ms", "peak_tokens", "producers", "message_ids",
        "frames", "recent", "dead", "resets", "answers",
    }  # fmt: skip


@pytest.mark.parametrize("make", [lambda: Ledger(BOUNDS), used], ids=["empty", "used"])
def test_a_restored_ledger_dumps_the_same_state(make):
    state = snapshot.dump(make())
    again = snapshot.dump(snapshot.restore(travelled(state), BOUNDS))
    assert plain(again) == plain(state)


def test_a_restored_ledger_gives_the_same_answers():
    ledger = used()
    again = snapshot.restore(travelled(snapshot.dump(ledger)), BOUNDS)
    arguments = {"selector": {"session": "s"}, "window_ms": 200_000, "limit": 3, "group_by": ["session"]}
    for kind, question in QUESTIONS.items():
        fitting = {name: value for name, value in arguments.items() if name in question.arguments}
        assert ask(again, kind, **fitting) == ask(ledger, kind, **fitting)


@pytest.mark.parametrize("make", [lambda: Ledger(BOUNDS), used], ids=["empty", "used"])
def test_a_restored_ledger_goes_on_like_the_dumped_one(make):
    ledger = make()
    again = snapshot.restore(travelled(snapshot.dump(ledger)), BOUNDS)
    for each in (ledger, again):
        read = columns(event(1, agent="new"), event(2), event(4, session="s"), log_ms=START_MS + 9 * MINUTE_MS)
        read.runs = [Run(PRODUCER, 3, 4, 0, 3)]
        each.apply(read)
        apply(each, event(3, session="s", message_id="m3"), event(9, message_id="m2"), log_ms=START_MS + 9 * MINUTE_MS)
    assert plain(snapshot.dump(again)) == plain(snapshot.dump(ledger))


def test_a_dump_does_not_change_when_the_ledger_goes_on():
    ledger = used()
    state = snapshot.dump(ledger)
    before = plain(state)
    apply(ledger, *(event(1, session=f"s{number}", message_id=f"x{number}") for number in range(50)))
    reset = Command(operation="reset", request_id="r2", client="c", arguments={"tenant": "default", "session": "s"})
    execute(ledger, reset, START_MS)
    ask(ledger, "books")
    assert plain(state) == before


def test_a_restored_ledger_does_not_change_the_state_it_came_from():
    state = travelled(snapshot.dump(used()))
    before = plain(state)
    again = snapshot.restore(state, BOUNDS)
    apply(again, *(event(1, session=f"s{number}") for number in range(2000)))
    ask(again, "books")
    assert plain(state) == before
    assert total(again, "requests") == 2007


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_a_state_of_another_version_is_refused(version):
    state = {**snapshot.dump(Ledger()), "version": version}
    with pytest.raises(SnapshotError, match="this program reads 1"):
        snapshot.restore(state)


@pytest.mark.parametrize("events_max", [1, 3, 5, 100])
def test_a_snapshot_can_be_restored_with_another_bound_of_recent_events(events_max):
    ledger = used()
    again = snapshot.restore(travelled(snapshot.dump(ledger)), Bounds(recent_events_max=events_max))
    kept = min(events_max, 4)
    newest = ask(ledger, "history", limit=kept)["history"]
    assert ask(again, "history", limit=100)["history"] == newest
    for number in range(120):
        apply(again, event(number, session="s"), log_ms=START_MS + 9 * MINUTE_MS)
    assert len(ask(again, "history", limit=200)["history"]) == events_max
    assert ask(again, "books")["differences"] == []
