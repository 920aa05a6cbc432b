"""Facts about folding idle sessions when the rows run out."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.makers import packed, state_of
from token_actor.actor.fold import fold
from token_actor.core.columns import columns_of
from token_actor.core.ledger import Bounds, Ledger
from token_actor.core.queries import answer
from token_actor.core.series import OTHER, SeriesTable
from token_actor.core.sessions import reset_session
from token_actor.core.usage import Event, series_key
from token_actor.wire.batches import encode_batch

HOUR_MS = 3_600_000
START_MS = 500_000 * HOUR_MS
BOUNDS = Bounds(rows_max=40, recent_events_max=30)  # folds above 30 rows, down to 20


def use(ledger, session, *, hour, tokens=1, agent="a"):
    event = Event(series_key(None, None, None, agent, session), tokens)
    ledger.apply(columns_of([event], log_ms=[START_MS + hour * HOUR_MS], entries=[0]))


def sessions_of(ledger):
    return [ledger.series.names_of(row)["session"] for row in range(len(ledger.series))]


@pytest.fixture
def crowded():
    """A ledger with 31 sessions of 10 tokens each, the first one idle longest, in hour 0."""
    ledger = Ledger(BOUNDS)
    for number in range(31):
        event = Event(series_key(None, None, None, "a", f"s{number}"), 10)
        ledger.apply(columns_of([event], log_ms=[START_MS + number], entries=[0]))
    return ledger


def test_nothing_is_folded_within_an_hour(crowded):
    use(crowded, "s99", hour=0)
    assert OTHER not in sessions_of(crowded)


def test_a_new_hour_folds_the_sessions_that_were_idle_longest(crowded):
    use(crowded, "s30", hour=1)
    assert sessions_of(crowded) == [OTHER, *(f"s{number}" for number in range(11, 31))]


def test_what_was_folded_is_counted_under_other(crowded):
    use(crowded, "s30", hour=1)
    assert answer(crowded, "analytics", {"selector": {"session": OTHER}}, 0)["input_tokens"] == 110


def test_a_session_that_comes_back_gets_a_row_of_its_own_again(crowded):
    use(crowded, "s30", hour=1)
    use(crowded, "s0", hour=1, tokens=7)
    assert answer(crowded, "analytics", {"selector": {"session": "s0"}}, 0)["input_tokens"] == 7


def test_totals_and_books_stay_exact(crowded):
    use(crowded, "s30", hour=1)
    books = answer(crowded, "books", {}, 0)
    assert (books["total"]["input_tokens"], books["differences"]) == (311, [])


def test_events_without_a_session_are_never_folded(crowded):
    ledger = Ledger(BOUNDS)
    for number in range(31):
        use(ledger, None, hour=0, agent=f"agent{number}")
    use(ledger, None, hour=1, agent="agent0")
    assert len(ledger.series) == 31


def test_other_sums_follow_the_agents(crowded):
    ledger = Ledger(BOUNDS)
    for number in range(31):
        use(ledger, f"s{number}", hour=0, agent=f"agent{number % 2}")
    use(ledger, "s30", hour=1, agent="agent0")
    groups = answer(ledger, "analytics", {"group_by": ["agent"], "selector": {"session": OTHER}}, 0)["groups"]
    assert {group["agent"]: group["requests"] for group in groups} == {"agent0": 6, "agent1": 5}


def test_the_history_of_folded_sessions_goes_on_under_other(crowded):
    use(crowded, "s30", hour=1)
    history = answer(crowded, "history", {"selector": {"session": OTHER}, "limit": 100}, 0)["history"]
    assert [entry["timestamp"] for entry in history] == [(START_MS + number) / 1000 for number in range(10, 1, -1)]


def test_times_and_peaks_of_folded_sessions_are_kept(crowded):
    use(crowded, "s30", hour=1)
    answered = answer(crowded, "analytics", {"selector": {"session": OTHER}}, 0)
    times = (answered["first_seen"], answered["last_seen"], answered["peak_request_tokens"])
    assert times == (START_MS / 1000, (START_MS + 10) / 1000, 10)


def test_the_reset_of_a_folded_session_is_forgotten_and_of_another_kept(crowded):
    reset_session(crowded, tenant="default", session="s0")
    reset_session(crowded, tenant="default", session="s30")
    use(crowded, "s30", hour=1)
    assert list(crowded.resets) == [("default", "s30")]


def test_a_row_that_never_counted_anything_has_no_times_after_folding(crowded):
    key = series_key(None, None, None, "a", "never")
    crowded.series.row(key)
    use(crowded, "s30", hour=1)
    (row,) = crowded.series.select({"session": OTHER})
    assert crowded.first_ms[row] == START_MS


def test_a_folded_table_is_the_one_that_its_keys_make():
    rng = random.Random(7)
    table, again = SeriesTable(), SeriesTable()
    for number in range(300):
        table.row(series_key(rng.choice("tu"), None, None, f"a{rng.randrange(5)}", f"s{number % 97}"))
    for _ in range(2):  # the second time there is a session __other__ already
        old = [table.names_of(row) for row in range(len(table))]
        idle = np.array(sorted(rng.sample(range(len(table)), 60)))
        new_rows = table.fold_sessions(idle)
        folded = set(idle.tolist())
        for row, names in enumerate(old):
            assert table.names_of(new_rows[row]) == ({**names, "session": OTHER} if row in folded else names)
        again.replace(table.keys)
        assert (table.names, table.keys) == (again.names, again.keys)
        assert np.array_equal(table.codes, again.codes)
        for selector in ({"session": OTHER}, {"agent": "a1", "tenant": "t"}, {"session": "s5"}):
            assert table.select(selector).tolist() == again.select(selector).tolist()


def random_entries(rng, count):
    """Return log entries of four producers that resend and leave holes, over a few days."""
    entries, now_ms, next_seq = [], START_MS, {}
    for number in range(count):
        now_ms += rng.choice((0, 10, 60_000, 900_000))
        producer, events = bytes([rng.randrange(4)]) * 16, rng.randrange(1, 6)
        first_seq = max(0, next_seq.get(producer, 0) + rng.choice((0, 0, 0, -2, 2)))
        next_seq[producer] = max(next_seq.get(producer, 0), first_seq + events)
        batch = [
            Event(
                series_key(rng.choice("tu"), None, None, f"a{rng.randrange(3)}", f"s{number // 2 - rng.randrange(6)}"),
                input_tokens=rng.randrange(100),
                timestamp_ms=now_ms - rng.choice((0, 0, 10**7, 10**10)),
                message_id=rng.choice((None, f"id{rng.randrange(20)}")),
            )
            for _ in range(events)
        ]
        data = encode_batch(batch, producer=producer, epoch=0, first_seq=first_seq)
        entries.append((b"%d-%d" % (now_ms, number), [b"b", data]))
    return entries


def folded(entries, sizes):
    bounds = Bounds(rows_max=40, message_ids_max=7, recent_events_max=50, producers_max=3)
    ledger, dead = Ledger(bounds), []
    start = 0
    while start < len(entries):
        size = next(sizes)
        dead += fold(ledger, entries[start : start + size], epoch=1).dead
        start += size
    return ledger, packed(state_of(ledger)), dead


@pytest.mark.parametrize("seed", range(12))
def test_the_state_does_not_depend_on_how_the_log_was_cut_into_reads(seed):
    rng = random.Random(seed)
    entries = random_entries(rng, 120)
    ledger, one_by_one, dead = folded(entries, iter(lambda: 1, None))
    _, at_once, dead_at_once = folded(entries, iter(lambda: 1000, None))
    _, at_random, dead_at_random = folded(entries, iter(lambda: rng.randrange(1, 30), None))
    assert one_by_one == at_once == at_random
    assert dead == dead_at_once == dead_at_random
    assert OTHER in sessions_of(ledger)
    assert answer(ledger, "books", {}, 0)["differences"] == []
