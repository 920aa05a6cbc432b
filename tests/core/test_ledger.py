"""Facts about the ledger: what a read of the log does to the numbers."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from tests.makers import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    OTHER_PRODUCER,
    PRODUCER,
    START_MS,
    apply,
    ask,
    columns,
    event,
    tell,
    total,
)
from token_actor.core.columns import Run, joined
from token_actor.core.ledger import COUNTERS, FUTURE_MS_MAX, PAST_MS_MAX, Bounds, Ledger
from token_actor.core.series import NAMES_MAX
from token_actor.core.sessions import reset_session, session_figures
from token_actor.core.usage import EXACTNESS, UNPRICED, Event
from token_actor.errors import InvalidValue


@pytest.fixture
def ledger():
    return Ledger()


def send(ledger, *events, first_seq=0, producer=PRODUCER, log_ms=START_MS, bad=()):
    """Apply events as a batch of a producer; those at the places ``bad`` have a problem."""
    read = columns(*events, log_ms=log_ms)
    read.entry[:] = 0
    read.runs = [Run(producer, 0, first_seq, 0, len(events))]
    read.problems = {place: InvalidValue("input_tokens", "is wrong") for place in bad}
    return ledger.apply(read)


# --- counting -------------------------------------------------------------------------------------


def test_a_new_ledger_has_counted_nothing(ledger):
    assert ledger.total() == dict.fromkeys(COUNTERS, 0)
    assert (ledger.log_ms, ledger.dead, len(ledger.series)) == (0, {}, 0)


def test_every_kind_of_token_is_counted_apart(ledger):
    apply(ledger, event(1, 2, counts=(3, 4, 1), cost_nanousd=6, flags=0))
    apply(ledger, event(10, 20, counts=(30, 40, 10), cost_nanousd=60, flags=0))
    counted = {name: count for name, count in ledger.total().items() if count}
    assert counted == {
        "input_tokens": 11,
        "output_tokens": 22,
        "cache_read_tokens": 33,
        "cache_write_tokens": 44,
        "reasoning_tokens": 11,
        "requests": 2,
        "cost_nanousd": 66,
    }


def test_an_event_of_nothing_is_a_request(ledger):
    apply(ledger, event())
    assert total(ledger, "requests") == 1


def test_events_of_one_series_in_one_read_are_added_up(ledger):
    apply(ledger, event(1, agent="a"), event(2, agent="b"), event(4, agent="a"))
    assert len(ledger.series) == 2
    assert ledger.total(ledger.series.select({"agent": "a"}))["input_tokens"] == 5


def test_more_series_fit_than_at_first(ledger):
    apply(ledger, *(event(number, session=f"s{number}") for number in range(2500)))
    assert len(ledger.series) == 2500
    assert total(ledger) == sum(range(2500))
    assert ledger.total(ledger.series.select({"session": "s2499"}))["input_tokens"] == 2499


@pytest.mark.parametrize("index", range(1, len(EXACTNESS)))
def test_what_is_not_exact_is_counted_and_flagged(ledger, index):
    apply(ledger, event(5, flags=index), event(5, flags=0))
    assert (total(ledger), total(ledger, EXACTNESS[index])) == (10, 1)


def test_what_nobody_knows_the_price_of_is_flagged(ledger):
    apply(ledger, event(flags=UNPRICED), event(flags=0, cost_nanousd=7))
    assert (total(ledger, "unpriced"), total(ledger, "cost_nanousd")) == (1, 7)


def test_more_reasoning_than_output_is_counted_and_flagged(ledger):
    apply(ledger, event(output_tokens=5, counts=(0, 0, 6)), event(output_tokens=5, counts=(0, 0, 5)))
    assert (total(ledger, "reasoning_tokens"), total(ledger, "inconsistent")) == (11, 1)


def test_the_largest_request_of_a_series_is_kept(ledger):
    apply(ledger, event(5, 6, agent="a"), event(1, agent="a"), event(99, agent="b"))
    assert ledger.peak_tokens[:2].tolist() == [11, 99]


# --- time -----------------------------------------------------------------------------------------


def test_log_time_is_that_of_the_last_entry(ledger):
    apply(ledger, event(), log_ms=START_MS)
    apply(ledger, event(), log_ms=START_MS + 5)
    assert ledger.log_ms == START_MS + 5


def test_log_time_never_moves_back(ledger):
    apply(ledger, event(), log_ms=START_MS + 5)
    apply(ledger, event(), log_ms=START_MS)
    assert ledger.log_ms == START_MS + 5
    assert ledger.recent.column("log_ms", slice_of(ledger)).tolist() == [START_MS + 5] * 2


def slice_of(ledger):
    return ledger.recent.newest(None, len(ledger.recent))[::-1]


def test_log_time_never_moves_back_within_a_read(ledger):
    ledger.apply(joined([columns(event(), log_ms=START_MS + 5), columns(event(), log_ms=START_MS)]))
    assert ledger.last_ms[0] == START_MS + 5


def test_the_first_and_last_time_of_a_series_are_log_times(ledger):
    reads = [columns(event(at_ms=1, agent=agent), log_ms=START_MS + ms) for ms, agent in enumerate("abab")]
    ledger.apply(joined(reads[:3]))
    ledger.apply(reads[3])
    assert ledger.first_ms[:2].tolist() == [START_MS, START_MS + 1]
    assert ledger.last_ms[:2].tolist() == [START_MS + 2, START_MS + 3]


@pytest.mark.parametrize(
    ("claimed_ms", "kept_ms", "clamped"),
    [
        (START_MS, START_MS, 0),
        (START_MS - PAST_MS_MAX, START_MS - PAST_MS_MAX, 0),
        (START_MS - PAST_MS_MAX - 1, START_MS - PAST_MS_MAX, 1),
        (START_MS + FUTURE_MS_MAX, START_MS + FUTURE_MS_MAX, 0),
        (START_MS + FUTURE_MS_MAX + 1, START_MS + FUTURE_MS_MAX, 1),
        (START_MS * 1_000_000, START_MS + FUTURE_MS_MAX, 1),
        (-(2**61), START_MS - PAST_MS_MAX, 1),
    ],
)
def test_a_time_that_is_too_far_away_is_clamped_and_flagged(ledger, claimed_ms, kept_ms, clamped):
    apply(ledger, event(at_ms=claimed_ms))
    assert ledger.recent.column("event_ms", slice_of(ledger)).tolist() == [kept_ms]
    assert total(ledger, "clamped") == clamped


# --- counting once --------------------------------------------------------------------------------


def test_a_batch_that_comes_again_is_counted_once(ledger):
    for _ in range(3):
        assert send(ledger, event(1), event(2)) == []
    assert (total(ledger), total(ledger, "requests"), total(ledger, "duplicates")) == (3, 2, 4)


def test_of_an_overlapping_batch_only_the_new_events_are_counted(ledger):
    send(ledger, event(1), event(2), first_seq=2)
    send(ledger, *(event(10**number) for number in range(1, 7)))
    assert total(ledger) == 1 + 2 + 10 + 100 + 10**5 + 10**6
    assert (total(ledger, "duplicates"), ledger.producers.missing) == (2, 0)


def test_a_batch_that_comes_twice_in_one_read_is_counted_once(ledger):
    read = columns(event(1), event(2))
    read.runs = [Run(PRODUCER, 0, 0, 0, 2)]
    ledger.apply(joined([read, read]))
    assert (total(ledger), total(ledger, "duplicates")) == (3, 2)


def test_what_is_missing_is_told_until_it_comes(ledger):
    send(ledger, event(1), first_seq=5)
    assert ask(ledger, "status")["missing"] == 5
    send(ledger, *[event(1)] * 5)
    assert ask(ledger, "status")["missing"] == 0


def test_single_events_without_an_id_are_all_counted(ledger):
    for _ in range(3):
        apply(ledger, event(1))
    assert total(ledger) == 3


def test_a_message_id_is_counted_once(ledger):
    assert apply(ledger, event(1, message_id="m"), event(1, message_id="m"), event(1)) == []
    assert apply(ledger, event(1, message_id="m")) == []
    assert (total(ledger), total(ledger, "duplicates")) == (2, 2)


def test_a_message_id_with_other_numbers_is_a_conflict_and_the_first_one_counts(ledger):
    apply(ledger, event(1, 2, message_id="m"))
    assert apply(ledger, event(2, 1, message_id="m")) == [
        (
            "id_conflict",
            (
                "message_id 'm' was counted before with other numbers than input_tokens=2, output_tokens=1, "
                "cache_read_tokens=0, cache_write_tokens=0, reasoning_tokens=0"
            ),
        )
    ]
    assert (total(ledger), total(ledger, "duplicates"), ledger.dead) == (1, 0, {"id_conflict": 1})


def test_a_message_id_belongs_to_a_tenant(ledger):
    apply(ledger, event(1, message_id="m", tenant="a"))
    assert apply(ledger, event(2, message_id="m", tenant="b"), event(4, message_id="m", tenant="c")) == []
    assert total(ledger) == 7


def test_a_message_id_belongs_to_the_tenant_that_sent_it_also_when_tenants_are_folded():
    ledger = Ledger(Bounds(names_max={**NAMES_MAX, "tenant": 1}))
    for tenant in "abc":
        assert apply(ledger, event(1, message_id="m", tenant=tenant)) == []
    assert total(ledger) == 3
    apply(ledger, event(1, message_id="m", tenant="b"), event(1, message_id="m", tenant="c"))
    assert (total(ledger), total(ledger, "duplicates")) == (3, 2)


def test_a_message_id_is_the_same_in_every_session_of_a_tenant(ledger):
    apply(ledger, event(1, message_id="m", session="a"))
    apply(ledger, event(1, message_id="m", session="b"))
    assert (total(ledger), total(ledger, "duplicates")) == (1, 1)


def test_a_duplicate_by_sequence_does_not_ask_for_its_id(ledger):
    send(ledger, event(1, message_id="m"))
    assert send(ledger, event(1, message_id="m")) == []
    assert (total(ledger, "duplicates"), ledger.dead) == (1, {})


def test_the_same_id_from_two_producers_is_counted_once(ledger):
    send(ledger, event(1), event(1, message_id="m"))
    send(ledger, event(1), event(1, message_id="m"), producer=OTHER_PRODUCER)
    assert (total(ledger), total(ledger, "duplicates")) == (3, 1)


# --- what cannot be counted -----------------------------------------------------------------------


def test_of_a_batch_only_the_bad_events_are_rejected(ledger):
    rejections = send(ledger, event(1), event(2), event(4), bad=[1])
    assert [(r.entry, r.position, r.reason, r.detail) for r in rejections] == [(0, 1, "range", "input_tokens is wrong")]
    assert (total(ledger), ledger.dead) == (5, {"range": 1})


def test_the_sequence_number_of_a_bad_event_is_seen_so_no_false_hole_appears(ledger):
    send(ledger, event(1), event(2), bad=[0, 1])
    assert (ledger.producers.missing, total(ledger, "requests")) == (0, 0)


def test_a_bad_event_is_rejected_once_however_often_it_comes(ledger):
    for _ in range(3):
        send(ledger, event(1), event(2), bad=[1])
    assert ledger.dead == {"range": 1}


def test_a_bad_series_key_rejects_its_events_and_no_others(ledger):
    read = columns(event(1), event(2), event(4))
    read.keys[1] = "no\x1fkey"
    assert [(r.entry, r.reason) for r in ledger.apply(read)] == [(1, "decode")]
    assert (total(ledger), len(ledger.series)) == (5, 1)


def test_a_series_of_which_every_event_is_bad_has_no_row(ledger):
    send(ledger, event(1, agent="a"), event(2, agent="b"), bad=[1])
    assert len(ledger.series) == 1


def test_a_bad_event_that_comes_again_is_no_duplicate(ledger):
    for _ in range(2):
        send(ledger, event(1), event(2), bad=[1])
    assert total(ledger, "duplicates") == 1


def test_a_bad_series_key_that_comes_again_is_neither_rejected_again_nor_counted(ledger):
    for expected in ({"decode": 1}, {"decode": 1}):
        read = columns(event(1), event(2))
        read.keys[1] = "bad"
        read.runs = [Run(PRODUCER, 0, 0, 0, 2)]
        ledger.apply(read)
        assert ledger.dead == expected
    assert (total(ledger), total(ledger, "duplicates")) == (1, 1)


def test_the_id_of_a_bad_event_is_not_known(ledger):
    send(ledger, event(1, message_id="m"), bad=[0])
    apply(ledger, event(2, message_id="m"))
    assert total(ledger) == 2


def test_a_read_of_nothing_but_bad_events_moves_the_log_time(ledger):
    send(ledger, event(1), bad=[0], log_ms=START_MS + 7)
    assert ledger.log_ms == START_MS + 7


# --- folding idle sessions ------------------------------------------------------------------------


def use(ledger, hour, *events):
    """Let sessions be used at the full hour."""
    return apply(ledger, *events, log_ms=START_MS + hour * HOUR_MS)


@pytest.fixture
def crowded():
    """A ledger of at most 40 rows with 31 of them taken; session ``x`` was used longest ago, with two models."""
    ledger = Ledger(Bounds(rows_max=40))
    use(ledger, 0, event(100, session="x", model="a"), event(50, session="x", model="b"))
    ledger.tick(START_MS + 1)
    use(ledger, 0, *(event(1, session=f"s{number}") for number in range(29)))
    return ledger


def input_tokens(ledger, session):
    figures = session_figures(ledger, tenant="default", session=session, history_limit=0, now_ms=0)["figures"]
    return figures["input_tokens"]


def test_a_session_is_folded_as_a_whole_or_not_at_all(crowded):
    crowded.tick(START_MS + 2)
    use(crowded, 0, event(1, session="x", model="b"))
    use(crowded, 1, event(1, session="x", model="b"))
    assert input_tokens(crowded, "x") == 152


def test_a_session_never_has_less_than_nothing_after_a_reset_and_folding(crowded):
    reset_session(crowded, tenant="default", session="x")
    crowded.tick(START_MS + 2)
    use(crowded, 0, event(1, session="x", model="b"))
    use(crowded, 1, event(1, session="x", model="b"))
    assert input_tokens(crowded, "x") == 2


def test_the_session_that_fills_the_share_to_fold_is_folded_whole(crowded):
    ledger = Ledger(Bounds(rows_max=40))
    use(ledger, 0, *(event(1, session="x", model=f"m{number}") for number in range(15)))
    ledger.tick(START_MS + 1)
    use(ledger, 0, *(event(1, session="y", model=f"m{number}") for number in range(16)))
    use(ledger, 1, event(1, session="z"))
    assert (input_tokens(ledger, "x"), input_tokens(ledger, "y"), input_tokens(ledger, "z")) == (0, 16, 1)


def test_sessions_of_the_same_name_are_idle_apart(crowded):
    ledger = Ledger(Bounds(rows_max=40))
    use(ledger, 0, event(1, session="x", tenant="a"), *(event(1, session=f"s{number}") for number in range(29)))
    ledger.tick(START_MS + 1)
    use(ledger, 0, event(2, session="x", tenant="b"))
    use(ledger, 1, event(1, session="s0"))
    selected = [ledger.series.select({"session": "x", "tenant": tenant}) for tenant in "ab"]
    assert [len(rows) for rows in selected] == [0, 1]


def test_a_read_may_span_more_hours_than_python_may_nest_calls():
    ledger = Ledger(Bounds(rows_max=40))
    reads = [columns(event(1, session=f"s{hour % 40}"), log_ms=START_MS + hour * HOUR_MS) for hour in range(1500)]
    ledger.apply(joined(reads))
    assert total(ledger, "requests") == 1500


def test_a_new_hour_that_a_command_begins_folds_too(crowded):
    crowded.tick(START_MS + HOUR_MS)
    assert len(crowded.series) == 23  # 20 that are left, and __other__ with each of three models


# --- memory ---------------------------------------------------------------------------------------


def read_of(first, count):
    """Return events with ids of their own, of 1,200 sessions, ten milliseconds apart."""
    places = np.arange(first, first + count)
    read = columns(*[event(1)] * count)
    read.keys = [f"default\x1f\x1f\x1f\x1fs{number}\x1f\x1f" for number in range(first % 1200, first % 1200 + 100)]
    read.key_index = places % 100
    read.log_ms = read.event_ms = START_MS + 10 * places
    read.message_ids = np.array([f"id{place}" for place in places], dtype=np.object_)
    return read


def memory_after(ledger, first, count):
    for start in range(first, first + count, 2000):
        ledger.apply(read_of(start, 2000))
    return tracemalloc.get_traced_memory()[0]


@pytest.fixture
def traced():
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
def test_the_memory_of_a_bounded_ledger_does_not_follow_the_events():
    """200,000 events take no more than 100,000 did, but for the minutes that are kept of them."""
    bounds = Bounds(
        rows_max=1000,
        message_ids_max=2000,
        recent_events_max=2000,
        retention_ms={"minute": 5 * 60_000, "hour": HOUR_MS, "day": DAY_MS},
    )
    before = tracemalloc.get_traced_memory()[0]
    ledger = Ledger(bounds)
    first = memory_after(ledger, 0, 100_000) - before
    second = memory_after(ledger, 100_000, 100_000) - before
    assert total(ledger, "requests") == 200_000
    assert (len(ledger.series), len(ledger.message_ids), len(ledger.recent)) <= (1001, 2000, 2000)
    assert second < 6_000_000
    assert second < 1.5 * first


SERIES_BYTES_MAX = 1200  # a row with its key, names, codes, indexes and counters, and one frame of each resolution


@pytest.mark.usefixtures("traced")
def test_a_series_takes_no_more_than_its_share_of_memory():
    ledger = Ledger()
    apply(ledger, event())
    before = tracemalloc.get_traced_memory()[0]
    for start in range(0, 10_000, 1000):
        keys = (f"default\x1f\x1fuser-{n}\x1fplanner\x1fsession-{n:016d}\x1fp\x1fm" for n in range(start, start + 1000))
        apply(ledger, *(Event(key, 1, 1) for key in keys))
    ledger.frames.fold()
    ring = sum(column.nbytes for column in ledger.recent._columns.values())
    taken = tracemalloc.get_traced_memory()[0] - before - ring
    assert len(ledger.series) == 10_001
    assert taken / 10_000 < SERIES_BYTES_MAX


# --- what a leader tells --------------------------------------------------------------------------


def test_what_was_seen_in_a_future_that_is_taken_back_was_seen_now(ledger):
    apply(ledger, event(1, session="old"), log_ms=START_MS)
    ledger.tell(START_MS + MINUTE_MS, now_ms=START_MS + DAY_MS, epoch=1)
    apply(ledger, event(2, session="new"), log_ms=START_MS + 2 * MINUTE_MS)
    ledger.tell(START_MS + 3 * MINUTE_MS, now_ms=START_MS + 3 * MINUTE_MS, epoch=1)
    old, new = (int(ledger.last_ms[row]) for row in range(2))
    assert (old, new, int(ledger.first_ms[1])) == (START_MS, START_MS + 3 * MINUTE_MS, START_MS + 3 * MINUTE_MS)
    assert ledger.log_ms == START_MS + 3 * MINUTE_MS


def test_an_event_without_a_time_is_dated_by_the_corrected_clock_and_one_with_a_time_by_that(ledger):
    ledger.tell(START_MS + DAY_MS, now_ms=START_MS, epoch=1)
    own_ms = START_MS - MINUTE_MS
    apply(ledger, event(1), event(2, at_ms=own_ms), log_ms=START_MS + DAY_MS + 7)
    assert ledger.recent.column("event_ms", np.arange(2)).tolist() == [START_MS + 7, own_ms]
    assert total(ledger, "clamped") == 0


def test_a_leader_of_the_past_tells_the_ledger_nothing(ledger):
    tell(ledger, START_MS)
    ledger.tell(START_MS + 1, now_ms=START_MS + DAY_MS, epoch=0)
    assert ledger.log_ms == START_MS


def test_a_reset_in_a_future_that_is_taken_back_was_now(ledger):
    apply(ledger, event(1, session="s"), log_ms=START_MS)
    ledger.tell(START_MS, now_ms=START_MS + DAY_MS, epoch=1)
    reset_session(ledger, tenant="default", session="s")
    ledger.tell(START_MS, now_ms=START_MS, epoch=1)
    assert [base.log_ms for base in ledger.resets.values()] == [START_MS]
