"""Facts about the whole state: captured at once, made piece by piece, restored."""

from __future__ import annotations

import random

import pytest

from tests.core.quota import Quota
from tests.core.test_message_ids import block_size
from tests.makers import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    PRODUCER,
    START_MS,
    apply,
    ask,
    columns,
    event,
    packed,
    plain,
    state_of,
    tell,
    total,
    travelled,
)
from token_actor.core import answers, commands, dedupe, recent, rows, series, snapshot
from token_actor.core.columns import Run
from token_actor.core.commands import Command, execute
from token_actor.core.ledger import Bounds, Ledger
from token_actor.core.queries import QUESTIONS
from token_actor.core.snapshot import STATE_VERSION, Capture, restore
from token_actor.errors import SnapshotError
from token_actor.wire.codec import pack_tree

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


def test_a_snapshot_holds_these_parts():
    assert {name.partition("/")[0] for name in state_of(used())} == {
        "head", "series", "rows", "producers", "message_ids", "frames", "recent", "resets", "answers",
        "estimates",
    }  # fmt: skip
    assert set(state_of(Ledger())) == {"head"}


@pytest.mark.parametrize("make", [lambda: Ledger(BOUNDS), used], ids=["empty", "used"])
def test_a_restored_ledger_has_the_same_state(make):
    state = state_of(make())
    again = state_of(snapshot.restore(travelled(state), BOUNDS))
    assert plain(again) == plain(state)
    assert packed(again) == packed(state)


def test_a_restored_ledger_gives_the_same_answers():
    ledger = used()
    again = snapshot.restore(travelled(state_of(ledger)), BOUNDS)
    arguments = {
        "selector": {"session": "s"}, "window_ms": 200_000, "limit": 3, "group_by": ["session"],
        "producer": PRODUCER, "epochs": [3],
    }  # fmt: skip
    for kind, question in QUESTIONS.items():
        fitting = {name: value for name, value in arguments.items() if name in question.arguments}
        assert ask(again, kind, **fitting) == ask(ledger, kind, **fitting)


@pytest.mark.parametrize("make", [lambda: Ledger(BOUNDS), used], ids=["empty", "used"])
def test_a_restored_ledger_goes_on_like_the_captured_one(make):
    ledger = make()
    again = snapshot.restore(travelled(state_of(ledger)), BOUNDS)
    for each in (ledger, again):
        read = columns(event(1, agent="new"), event(2), event(4, session="s"), log_ms=START_MS + 9 * MINUTE_MS)
        read.runs = [Run(PRODUCER, 3, 4, 0, 3)]
        each.apply(read)
        apply(each, event(3, session="s", message_id="m3"), event(9, message_id="m2"), log_ms=START_MS + 9 * MINUTE_MS)
    assert packed(state_of(again)) == packed(state_of(ledger))


def test_a_restored_ledger_does_not_change_the_state_it_came_from():
    state = travelled(state_of(used()))
    before = plain(state)
    again = snapshot.restore(state, BOUNDS)
    apply(again, *(event(1, session=f"s{number}") for number in range(2000)))
    ask(again, "books")
    assert plain(state) == before
    assert total(again, "requests") == 2007


def test_the_next_numbers_of_the_producers_come_with_a_capture():
    ledger = used()
    capture = Capture(ledger)
    read = columns(event(1))
    read.runs = [Run(PRODUCER, 3, 0, 0, 1)]
    ledger.apply(read)
    assert {key: mark.next_seq for key, mark in capture.marks.items()} == {(PRODUCER, 3): 0}
    assert {key: mark.next_seq for key, mark in Capture(ledger).marks.items()} == {(PRODUCER, 3): 1}


def test_the_clock_comes_with_a_snapshot():
    """What a leader told, the leap that was cut since, and the resolutions that are not complete any more."""
    ledger = used()
    tell(ledger, START_MS + 3 * DAY_MS)
    ledger.tell(START_MS + 3 * DAY_MS, now_ms=START_MS + HOUR_MS, epoch=7)
    apply(ledger, event(1), log_ms=START_MS + 9 * DAY_MS)
    again = snapshot.restore(travelled(state_of(ledger)), BOUNDS)
    for each in (ledger, again):
        each.tell(START_MS + 9 * DAY_MS, now_ms=START_MS, epoch=6)
        apply(each, event(2), log_ms=START_MS + 9 * DAY_MS + MINUTE_MS)
    assert again.log_ms == START_MS + 2 * HOUR_MS + MINUTE_MS
    assert packed(state_of(again)) == packed(state_of(ledger))


# --- while the ledger goes on ---------------------------------------------------------------------


@pytest.fixture
def small_blocks(monkeypatch):
    """Let a segment hold four of everything."""
    for module, name in (
        (answers, "_ANSWER_BITS"), (dedupe, "_MARK_BITS"), (recent, "_PLACE_BITS"), (rows, "_ROW_BITS"),
        (series, "_KEY_BITS"), (snapshot, "_RESET_BITS"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, 2)
    block_size(monkeypatch, 2)


def go_on(ledger, rng, hour):
    """Let many things happen: new and old series, ids, producers, duplicates, resets, answers, and time move back."""
    at_ms = START_MS + hour * HOUR_MS
    made = [
        event(
            rng.randrange(9), session=f"s{rng.randrange(40)}", message_id=rng.choice([None, f"id{rng.randrange(50)}"])
        )
        for _ in range(rng.randrange(1, 12))
    ]
    read = columns(*made, log_ms=at_ms)
    read.runs = [Run(bytes([rng.randrange(9)]) * 16, 0, rng.randrange(30), 0, len(made))]
    ledger.apply(read)
    scope = {"tenant": "default", "session": f"s{rng.randrange(40)}"}
    request = Command(operation="reset", request_id=f"r{rng.random()}", client="c", arguments=scope)
    execute(ledger, request, at_ms)
    if rng.random() < 0.2:
        now_ms = at_ms + rng.choice((0, -HOUR_MS, HOUR_MS, 2 * DAY_MS))
        ledger.tell(at_ms, now_ms=now_ms, epoch=1)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rows_max", [1000, 40])
def test_a_capture_stays_as_it_was_whatever_the_ledger_does_next(small_blocks, monkeypatch, seed, rows_max):
    """The ring of 10 is overwritten many times over, ids and producers run out, and sessions are folded."""
    monkeypatch.setattr(commands, "ANSWERS_MAX", 10)
    rng = random.Random(seed)
    bounds = Bounds(recent_events_max=10, message_ids_max=9, producers_max=5, rows_max=rows_max)
    ledger = Ledger(bounds)
    for hour in range(12):
        go_on(ledger, rng, hour)
    expected = state_of(ledger)
    capture, made = Capture(ledger), {}
    for hour, segment in enumerate(capture.segments(), start=12):
        if rng.random() < 0.7:
            go_on(ledger, rng, hour)
        made[segment.name] = list(segment.make())
    assert packed(made) == packed(expected)
    again = snapshot.restore(travelled(made), bounds)
    assert ask(again, "books")["differences"] == []


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rows_max", [1000, 40])
def test_a_token_that_stays_the_same_stands_for_the_same_bytes(small_blocks, monkeypatch, seed, rows_max):
    monkeypatch.setattr(commands, "ANSWERS_MAX", 10)
    rng = random.Random(seed)
    ledger = Ledger(Bounds(recent_events_max=10, message_ids_max=9, producers_max=5, rows_max=rows_max))
    known, stayed = {}, set()
    for hour in range(40):
        go_on(ledger, rng, hour // 4)
        for segment in Capture(ledger).segments():
            token, data = known.get(segment.name, (None, b""))
            made = b"".join(map(pack_tree, segment.make()))
            if segment.token is not None and token == segment.token:
                assert made == data
                stayed.add(segment.name.partition("/")[0])
            known[segment.name] = (segment.token, made)
    assert stayed >= {"rows", "series", "recent", "message_ids", "frames", "answers"}


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, 0, STATE_VERSION - 1, STATE_VERSION + 1, str(STATE_VERSION)])
def test_a_state_of_another_version_is_refused(version):
    state = state_of(Ledger())
    state["head"][0]["version"] = version
    with pytest.raises(
        SnapshotError, match=f"^the snapshot has version {version!r}, this program reads {STATE_VERSION}$"
    ):
        snapshot.restore(state)


def test_an_event_of_a_series_that_is_not_there_is_refused():
    ledger = Ledger()
    apply(ledger, event(1))
    state = state_of(ledger)
    (name,) = [name for name in state if name.startswith("recent/")]
    state[name][0]["row"] = state[name][0]["row"] + 1
    with pytest.raises(SnapshotError, match="a series that it has not"):
        snapshot.restore(state)


def test_a_state_without_its_head_is_refused():
    with pytest.raises(SnapshotError, match="^the snapshot has version None"):
        snapshot.restore({})


def test_a_state_without_one_of_its_segments_is_refused():
    state = state_of(used())
    for name in state:
        if name != "head":
            with pytest.raises(SnapshotError, match=f"^the snapshot has no segment '{name}'$"):
                snapshot.restore({other: state[other] for other in state if other != name})


@pytest.mark.parametrize("events_max", [1, 3, 5, 100])
def test_a_snapshot_can_be_restored_with_another_bound_of_recent_events(events_max):
    ledger = used()
    again = snapshot.restore(travelled(state_of(ledger)), Bounds(recent_events_max=events_max))
    kept = min(events_max, 4)
    newest = ask(ledger, "history", limit=kept)["history"]
    assert ask(again, "history", limit=100)["history"] == newest
    for number in range(120):
        apply(again, event(number, session="s"), log_ms=START_MS + 9 * MINUTE_MS)
    assert len(ask(again, "history", limit=200)["history"]) == events_max
    assert ask(again, "books")["differences"] == []


def test_the_numbers_and_the_version_of_limits_that_are_all_gone_come_back():
    quota = Quota(amount=100)
    quota.run("delete_limit", {"name": "l"})
    again = restore(travelled(state_of(quota.ledger)))
    assert again.limits.version == quota.ledger.limits.version == 2
    assert plain(again.limits.dump()) == plain(quota.ledger.limits.dump())
