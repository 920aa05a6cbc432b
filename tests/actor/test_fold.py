"""Facts about the fold: the one way in which entries of the log become numbers."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    OTHER_PRODUCER,
    PRODUCER,
    START_MS,
    ask,
    batch_entry,
    clock_entry,
    command_entry,
    entry,
    event,
    examples,
    fields_of,
    json_entry,
    packed,
    plain,
    single_entry,
    state_of,
    total,
    travelled,
)
from token_actor.actor.fold import fold
from token_actor.core import commands, snapshot
from token_actor.core.ledger import Bounds, Ledger
from token_actor.core.series import NAMES_MAX, OTHER
from token_actor.core.usage import TOKENS_MAX, UNPRICED, Event
from token_actor.wire import reads


@pytest.fixture
def ledger():
    return Ledger()


def folded(ledger, *entries, epoch=1):
    return fold(ledger, list(entries), epoch=epoch)


def dead(ledger, *entries):
    """Return the dead letters of entries as (source, reason, events)."""
    return [(letter.source, letter.reason, letter.events) for letter in folded(ledger, *entries).dead]


def answers(ledger, *entries):
    return [(client, answer.request_id, answer.result) for client, answer in folded(ledger, *entries).answers]


# --- numbers --------------------------------------------------------------------------------------


def test_entries_of_every_form_are_counted(ledger):
    entries = [single_entry(input_tokens=1), json_entry(input_tokens=10), batch_entry(event(100), event(1000))]
    assert dead(ledger, *entries, command_entry("record", event={"input_tokens": 10_000})) == []
    assert (total(ledger), total(ledger, "requests")) == (11_111, 5)


def test_what_was_folded_is_said_so_that_the_rest_can_follow(ledger, monkeypatch):
    monkeypatch.setattr(reads, "EVENTS_PER_READ", 2)
    entries = [batch_entry(event(1), event(2)), single_entry(input_tokens=4)]
    result = folded(ledger, *entries)
    assert (result.entries, result.events, total(ledger)) == (1, 2, 3)


def test_nothing_changes_nothing(ledger):
    result = folded(ledger)
    assert (result.answers, result.dead, ledger.log_ms) == ([], [], 0)


def test_a_clock_entry_moves_log_time_and_counts_nothing(ledger):
    told = clock_entry(START_MS - HOUR_MS, at_ms=START_MS, seq=1)
    assert dead(ledger, single_entry(input_tokens=1), told) == []
    assert (ledger.log_ms, total(ledger)) == (START_MS - HOUR_MS, 1)


def test_a_clock_entry_that_cannot_be_read_is_a_dead_letter_and_moves_nothing(ledger):
    bad = entry(b"late", b"t", at_ms=START_MS + HOUR_MS)
    assert dead(ledger, single_entry(input_tokens=1), bad) == [(bad[0], "decode", [])]
    assert ledger.log_ms == START_MS


# --- answers --------------------------------------------------------------------------------------


def test_a_command_is_answered_to_its_client_with_the_epoch(ledger):
    ((client, answer),) = folded(ledger, command_entry("record", event={}, request_id="9"), epoch=5).answers
    assert (client, answer.request_id, answer.epoch, answer.result) == ("c", "9", 5, {"counted": True, "reason": None})


def test_a_command_is_decided_at_its_place_in_the_log(ledger):
    told = answers(
        ledger,
        command_entry("record", event={"message_id": "m"}, request_id="1"),
        single_entry(message_id="n"),
        command_entry("record", event={"message_id": "n"}, request_id="2"),
        command_entry("record", event={"message_id": "m"}, request_id="3"),
    )
    assert [result["counted"] for _, _, result in told] == [True, False, False]


def test_a_command_that_comes_again_has_the_same_answer_and_counts_once(ledger):
    again = command_entry("record", event={"input_tokens": 5, "message_id": "m"})
    assert answers(ledger, again, again)[0] == answers(ledger, again)[0]
    assert total(ledger) == 5


def test_a_reset_divides_what_comes_before_it_from_what_comes_after(ledger):
    scope = {"tenant": "default", "session": "s"}
    folded(
        ledger,
        single_entry(input_tokens=1, session="s"),
        command_entry("reset", scope),
        single_entry(input_tokens=10, session="s"),
    )
    assert ask(ledger, "session", selector=scope)["figures"]["input_tokens"] == 10


def test_a_command_that_cannot_be_carried_out_is_answered_and_quarantined(ledger):
    result = folded(ledger, command_entry("explode"))
    ((_, answer),) = result.answers
    assert answer.problem is not None
    assert (answer.problem.field, answer.result) == ("command", None)
    assert [letter.reason for letter in result.dead] == ["unknown_command"]
    assert ledger.dead == {"unknown_command": 1}


def test_a_record_in_conflict_is_answered_and_quarantined_once(ledger):
    conflict = command_entry("record", event={"input_tokens": 2, "message_id": "m"}, seq=7)
    result = folded(ledger, single_entry(input_tokens=1, message_id="m"), conflict, conflict)
    assert [answer.result for _, answer in result.answers] == [{"counted": False, "reason": "id_conflict"}] * 2
    assert [(letter.source, letter.reason, letter.events) for letter in result.dead] == [
        (b"%d-7" % START_MS, "id_conflict", [])
    ]
    assert ledger.dead == {"id_conflict": 1}


# --- dead letters ---------------------------------------------------------------------------------


def test_a_bad_entry_is_quarantined_as_it_came_and_the_next_one_is_counted(ledger):
    result = folded(ledger, entry(b"junk", b"j", seq=3), json_entry(input_tokens=5))
    (letter,) = result.dead
    assert (letter.source, letter.name, letter.raw, letter.reason) == (b"%d-3" % START_MS, b"j", b"junk", "decode")
    assert (total(ledger), ledger.dead) == (5, {"decode": 1})


def test_dead_letters_come_in_the_order_of_the_log(ledger):
    entries = [
        batch_entry(event(1, message_id="m"), seq=1),
        batch_entry(event(2, message_id="m"), seq=2, first_seq=1),
        entry(b"junk", b"j", seq=3),
        command_entry("explode", seq=4),
        batch_entry(event(TOKENS_MAX + 1), seq=5, first_seq=2),
        entry(b"", b"x", seq=6),
    ]
    assert [(source[-1:], reason) for source, reason, _ in dead(ledger, *entries)] == [
        (b"2", "id_conflict"), (b"3", "decode"), (b"4", "unknown_command"), (b"5", "range"), (b"6", "decode"),
    ]  # fmt: skip


def test_the_bad_events_of_a_batch_share_one_dead_letter_and_the_others_count(ledger):
    bad = batch_entry(event(1), event(TOKENS_MAX + 1), event(4), Event("no key"), event(16, message_id="m"))
    folded(ledger, single_entry(input_tokens=3, message_id="m"))
    ((_, reason, events),) = dead(ledger, bad)
    assert reason == "range"
    assert [(position, why) for position, why, _ in events] == [(1, "range"), (3, "decode"), (4, "id_conflict")]
    assert (total(ledger), ledger.producers.missing) == (8, 0)


def test_a_bad_batch_that_comes_again_is_quarantined_once(ledger):
    bad = batch_entry(event(1), event(TOKENS_MAX + 1))
    assert len(dead(ledger, bad, bad)) == 1
    assert dead(ledger, bad) == []


def test_what_is_quarantined_is_counted_by_reason_as_often_as_it_is_listed(ledger):
    letters = folded(
        ledger,
        batch_entry(event(TOKENS_MAX + 1), Event("no key"), event(TOKENS_MAX + 2)),
        entry(b"", b"b"),
        json_entry(input_tokens=True),
    ).dead
    listed = [why for letter in letters for why in ([event[1] for event in letter.events] or [letter.reason])]
    assert sorted(listed) == sorted(reason for reason, count in ledger.dead.items() for _ in range(count))


# --- the cuts of the log ----------------------------------------------------------------------------

SMALL = Bounds(
    rows_max=24,
    names_max={**NAMES_MAX, "model": 3, "agent": 4},
    producers_max=2,
    message_ids_max=5,
    recent_events_max=7,
    retention_ms={"minute": 10 * MINUTE_MS, "hour": 3 * HOUR_MS, "day": 48 * HOUR_MS},
)

NAMES = {
    "tenant": st.sampled_from(["", "t", "u"]),
    "session": st.integers(0, 40).map(lambda number: f"s{number}"),
    "model": st.sampled_from("mnopq"),
    "agent": st.sampled_from(["", "a", "b"]),
}


@st.composite
def events(draw, at_ms, *, timed=True):
    names = {dimension: draw(name) for dimension, name in NAMES.items()}
    back_ms = draw(st.sampled_from([0, 0, MINUTE_MS, 2 * HOUR_MS, 40 * 24 * HOUR_MS, -MINUTE_MS, -HOUR_MS]))
    message_id = draw(st.sampled_from([None, None, *"abcdefgh"]))
    return event(draw(st.integers(0, 2)), 1, at_ms=at_ms - back_ms if timed else None, message_id=message_id, **names)


@st.composite
def entry_lists(draw):
    entries: list[Any] = []
    at_ms, next_seq = START_MS, 0
    for seq in range(draw(st.integers(1, 14))):
        at_ms += draw(st.sampled_from([0, 1, 1, 30_000, 4 * MINUTE_MS, 50 * MINUTE_MS, 5 * HOUR_MS]))
        kind = draw(
            st.sampled_from(["batch", "batch", "batch", "single", "json", "bad", "record", "reset", "again", "clock"])
        )
        if kind == "batch":
            timed = draw(st.booleans())
            made = draw(st.lists(events(at_ms, timed=timed), min_size=1, max_size=6))
            if draw(st.booleans()):
                made[-1] = Event("no key", 0, 0, 0, 0, 0, 0, UNPRICED, made[-1].timestamp_ms)
            first_seq = max(0, next_seq + draw(st.sampled_from([0, 0, -3, 2])))
            next_seq = first_seq + len(made)
            producer = draw(st.sampled_from([PRODUCER, PRODUCER, OTHER_PRODUCER, b"x" * 16]))
            entries.append(batch_entry(*made, at_ms=at_ms, seq=seq, producer=producer, first_seq=first_seq))
        elif kind == "again" and entries:
            entries.append((b"%d-%d" % (at_ms, seq), draw(st.sampled_from(entries))[1]))
        elif kind in {"single", "json"}:
            form = single_entry if kind == "single" else json_entry
            entries.append(form(at_ms, seq, **fields_of(draw(events(at_ms)))))
        elif kind == "record":
            request_id = draw(st.sampled_from("1234"))
            fields = fields_of(draw(events(at_ms)))
            entries.append(command_entry("record", event=fields, request_id=request_id, at_ms=at_ms, seq=seq))
        elif kind == "clock":
            now_ms = at_ms + draw(st.sampled_from([0, 3000, -9000, HOUR_MS, -HOUR_MS, 50 * HOUR_MS, -50 * HOUR_MS]))
            entries.append(clock_entry(now_ms, epoch=draw(st.integers(1, 2)), at_ms=at_ms, seq=seq))
        elif kind == "reset":
            scope = {"tenant": "default", "session": draw(NAMES["session"])}
            entries.append(
                command_entry("reset", scope, request_id=draw(st.sampled_from("5678")), at_ms=at_ms, seq=seq)
            )
        else:
            entries.append(draw(st.sampled_from([
                entry(b"junk", b"b", at_ms=at_ms, seq=seq), single_entry(at_ms, seq, input_tokens=-1),
                command_entry("explode", at_ms=at_ms, seq=seq), (b"%d-%d" % (at_ms, seq), []),
            ])))  # fmt: skip
    return entries


def outcome(entries, cuts, *, restart=False):
    """Fold entries in reads that end at ``cuts``; return the state, the answers and the dead letters."""
    ledger = Ledger(SMALL)
    told, letters = [], []
    ends = [*sorted(cuts), len(entries)]
    start = 0
    while start < len(entries):
        result = fold(ledger, entries[start : next(end for end in ends if end > start)], epoch=1)
        start += result.entries
        told += [(client, answer.encode()) for client, answer in result.answers]
        letters += result.dead
        if restart:
            ledger = snapshot.restore(travelled(state_of(ledger)), SMALL)
    assert ask(ledger, "books")["differences"] == []
    state = state_of(ledger)
    return plain(state), told, letters, packed(state)  # what a snapshot would hold, to the last byte


@given(st.data())
@examples(200)
def test_the_fold_does_not_depend_on_how_the_log_is_cut_into_reads(data):
    entries = data.draw(entry_lists())
    cuts = data.draw(st.sets(st.integers(1, len(entries))))
    at_once = outcome(entries, [])
    assert outcome(entries, range(1, len(entries))) == at_once
    assert outcome(entries, cuts) == at_once
    assert outcome(entries, cuts, restart=True) == at_once
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reads, "EVENTS_PER_READ", data.draw(st.integers(1, 9)))
        assert outcome(entries, cuts) == at_once


@pytest.mark.parametrize("seed", range(4))
def test_nor_does_the_fold_of_a_long_log_in_which_every_bound_is_met(seed, monkeypatch):
    """600 entries in which names, rows, ids, producers, recent events, frames and answers run out."""
    monkeypatch.setattr(commands, "ANSWERS_MAX", 20)
    rng = random.Random(seed)
    entries: list[Any] = []
    at_ms = START_MS
    for seq in range(600):
        at_ms += rng.choice((0, 1, 1000, MINUTE_MS, 20 * MINUTE_MS, 2 * HOUR_MS if seq % 50 == 0 else 0))
        made = [
            event(
                rng.randrange(3),
                1,
                message_id=rng.choice((None, f"id{rng.randrange(12)}")),
                tenant=rng.choice(("", "t")),
                model=rng.choice("mnopq"),
                agent=rng.choice(("", *"abcdef")),
                session=f"s{seq // 20 - rng.randrange(5)}",
            )
            for _ in range(rng.randrange(1, 4))
        ]
        if rng.random() < 0.2:
            fields = fields_of(made[0])
            entries.append(
                command_entry("record", event=fields, request_id=str(rng.randrange(200)), at_ms=at_ms, seq=seq)
            )
        elif rng.random() < 0.05:
            now_ms = at_ms + rng.choice((0, 0, -9000, HOUR_MS, 2 * DAY_MS, -2 * DAY_MS))
            entries.append(clock_entry(now_ms, epoch=rng.randrange(1, 4), at_ms=at_ms, seq=seq))
        elif rng.random() < 0.1:
            scope = {"tenant": rng.choice(("default", "t")), "session": f"s{seq // 20 - rng.randrange(5)}"}
            entries.append(command_entry("reset", scope, request_id=f"r{seq}", at_ms=at_ms, seq=seq))
        else:
            producer = bytes([rng.randrange(4)]) * 16
            first_seq = max(0, seq + rng.choice((0, 0, -4, 3)))
            entries.append(batch_entry(*made, at_ms=at_ms, seq=seq, producer=producer, first_seq=first_seq))
    at_once = outcome(entries, [])
    state, _, letters, _ = at_once
    assert OTHER in state["series/0"][0]["keys"]
    assert any(any(sums) for _, _, sums in state["head"][0]["frames"]["dropped"])
    known = {"answers": "answers", "producers": "marks", "message_ids": "ids"}
    counts = {part: sum(len(state[name][0][field]) for name in state if part in name) for part, field in known.items()}
    assert counts == {"answers": 20, "producers": 2, "message_ids": 5}
    assert letters
    for cuts in (range(1, 600), [300], sorted(rng.sample(range(1, 600), 60))):
        assert outcome(entries, cuts) == at_once
    assert outcome(entries, sorted(rng.sample(range(1, 600), 40)), restart=True) == at_once


@given(entry_lists())
@examples(50)
def test_an_event_is_counted_once_however_often_the_whole_log_is_read_again(entries):
    ledger = Ledger()
    batches = [each for each in entries if each[1][:1] == [b"b"]]
    fold(ledger, batches, epoch=1)
    counted, letters = ledger.total(), ledger.dead.get("id_conflict", 0)
    fold(ledger, batches, epoch=1)
    again = ledger.total()
    assert {name: again[name] for name in again if name != "duplicates"} == {
        name: counted[name] for name in counted if name != "duplicates"
    }
    assert ledger.dead.get("id_conflict", 0) == letters
