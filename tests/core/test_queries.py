"""Facts about questions and their answers."""

from __future__ import annotations

import pytest

from tests.makers import DAY_MS, HOUR_MS, MINUTE_MS, PRODUCER, START_MS, apply, ask, columns, event, tell
from token_actor.core import queries
from token_actor.core.columns import Run
from token_actor.core.ledger import COUNTERS, Bounds, Ledger
from token_actor.core.queries import HISTORY_MAX, QUESTIONS, WINDOW_MS_MAX
from token_actor.core.series import NAMES_MAX, OTHER
from token_actor.errors import InvalidQuestion

START_S = START_MS / 1000


@pytest.fixture
def ledger():
    """Agent a used 1 and 2 tokens of model m, agent b 4 of m and 8 of n, a minute apart."""
    made = Ledger()
    for minute, (tokens, agent, model) in enumerate(((1, "a", "m"), (2, "a", "m"), (4, "b", "m"), (8, "b", "n"))):
        apply(made, event(tokens, agent=agent, model=model, session="s"), log_ms=START_MS + minute * MINUTE_MS)
    return made


def refused_field(ledger, kind, **arguments):
    with pytest.raises(InvalidQuestion) as refused:
        ask(ledger, kind, **arguments)
    return refused.value.field


def test_an_unknown_question_is_refused_with_those_that_are_known(ledger):
    with pytest.raises(InvalidQuestion, match="'why' is not known; there are status, analytics, history") as refused:
        ask(ledger, "why")
    assert refused.value.field == "kind"


@pytest.mark.parametrize("kind", sorted({"analytics", "history", "window", "session"}))
@pytest.mark.parametrize("selector", [None, 5, "agent=a", ["agent"], {"colour": "red"}, {"agent": 1}])
def test_a_bad_selector_is_refused_by_every_question_that_has_one(ledger, kind, selector):
    more = {"window_ms": 1} if kind == "window" else {}
    assert refused_field(ledger, kind, selector=selector, **more) in {"selector", "colour", "agent"}


def fitting(kind):
    """Return arguments that a kind of question takes."""
    arguments = {"window_ms": 1000, "selector": {"session": "s"}, "producer": PRODUCER, "epochs": [0]}
    return {name: value for name, value in arguments.items() if name in QUESTIONS[kind].arguments}


@pytest.mark.parametrize("kind", sorted(QUESTIONS))
def test_no_question_changes_the_answers_of_the_next(ledger, kind):
    assert ask(ledger, kind, **fitting(kind)) == ask(ledger, kind, **fitting(kind))


@pytest.mark.parametrize("kind", sorted(QUESTIONS))
def test_every_question_can_be_asked_of_a_ledger_of_nothing(kind):
    assert ask(Ledger(), kind, **fitting(kind))


@pytest.mark.parametrize("kind", sorted(QUESTIONS))
def test_an_argument_that_a_question_does_not_take_is_refused(ledger, kind):
    assert refused_field(ledger, kind, selektor={}) == "selektor"


def test_a_dimension_to_group_by_may_be_named_once(ledger):
    assert refused_field(ledger, "analytics", group_by=["agent", "agent"]) == "group_by"


# --- status ---------------------------------------------------------------------------------------


def test_the_status_says_how_much_there_is_of_everything(ledger):
    read = columns(event(1, message_id="x"), log_ms=START_MS)
    read.runs = [Run(PRODUCER, 0, 2, 0, 1)]
    ledger.apply(read)
    apply(ledger, event(1, message_id="x"), event(2, message_id="x"), event(3, message_id="y"))
    assert ask(ledger, "status") == {
        "log_ms": START_MS + 3 * MINUTE_MS,
        "events": 6,
        "duplicates": 1,
        "dead": {"id_conflict": 1},
        "missing": 2,
        "series": 4,
        "folded_events": 0,
        "producers": 1,
        "message_ids": 2,
        "recent_events": 6,
        "open_reservations": 0,
        "set_aside_calls": 0,
    }


def test_the_status_says_how_much_is_counted_under_other_once_for_each_event():
    ledger = Ledger(Bounds(names_max={**NAMES_MAX, "model": 1, "agent": 1}))
    for name in "abc":
        apply(ledger, event(1, model=name, agent=name))
    assert ask(ledger, "status")["folded_events"] == 2


# --- analytics ------------------------------------------------------------------------------------


def test_analytics_sum_every_counter(ledger):
    apply(ledger, event(1, 2, counts=(3, 4, 0), cost_nanousd=1_500_000_000, flags=0))
    found = ask(ledger, "analytics")
    assert found.keys() >= set(COUNTERS)
    assert (found["input_tokens"], found["requests"], found["total_tokens"], found["cost_usd"]) == (16, 5, 25, 1.5)


def test_analytics_of_everything_know_when_and_how_much(ledger):
    found = ask(ledger, "analytics", now_ms=START_MS + HOUR_MS)
    expected = {
        "series": 3,
        "first_seen": START_S,
        "last_seen": START_S + 180,
        "peak_request_tokens": 8,
        "since": None,
        "until": None,
        "as_of": START_S + 3600,
        "group_by": [],
        "groups": [],
        "groups_omitted": 0,
    }
    assert {name: found[name] for name in expected} == expected


def test_time_never_lies_before_the_log_time(ledger):
    assert ask(ledger, "analytics", now_ms=5)["as_of"] == START_S + 180


def test_analytics_of_what_was_selected(ledger):
    assert ask(ledger, "analytics", selector={"agent": "b", "model": "m"})["input_tokens"] == 4


def test_analytics_of_nobody_are_zero(ledger):
    found = ask(ledger, "analytics", selector={"agent": "nobody"}, group_by=["agent"])
    activity = [found[name] for name in ("series", "first_seen", "last_seen", "peak_request_tokens")]
    assert (found["requests"], activity, found["groups"]) == (0, [0, None, None, 0], [])


def test_groups_come_largest_first(ledger):
    found = ask(ledger, "analytics", group_by=["agent"])
    assert [(group["agent"], group["input_tokens"]) for group in found["groups"]] == [("b", 12), ("a", 3)]


def test_groups_may_have_several_dimensions_and_names_that_are_absent(ledger):
    apply(ledger, event(100))
    groups = ask(ledger, "analytics", group_by=["model", "agent"])["groups"]
    names = [(group["model"], group["agent"], group["total_tokens"]) for group in groups]
    assert names == [(None, None, 100), ("n", "b", 8), ("m", "b", 4), ("m", "a", 3)]


def test_groups_add_up_to_the_whole(ledger):
    found = ask(ledger, "analytics", group_by=["agent", "session"])
    assert all(sum(group[name] for group in found["groups"]) == found[name] for name in COUNTERS)


def test_only_the_largest_groups_come_when_there_are_too_many(ledger, monkeypatch):
    found = ask(ledger, "analytics", group_by=["agent"], limit=1)
    assert ([group["agent"] for group in found["groups"]], found["groups_omitted"]) == (["b"], 1)
    assert ask(ledger, "analytics", group_by=["agent"], limit=0)["groups_omitted"] == 2


@pytest.mark.parametrize("group_by", [5, "agent", {"agent": 1}, ["colour"], [5], [["agent"]], None])
def test_groups_by_what_is_no_dimension_are_refused(ledger, group_by):
    assert refused_field(ledger, "analytics", group_by=group_by) == "group_by"


@pytest.mark.parametrize("limit", [-1, 10_001, "5", 1.0, True, None])
def test_a_limit_that_is_none_is_refused(ledger, limit):
    assert refused_field(ledger, "analytics", limit=limit) == "limit"


def span_of(found):
    return found["since"] - START_S, found["until"] - START_S


def test_analytics_of_a_span_are_widened_to_whole_minutes(ledger):
    found = ask(ledger, "analytics", since_ms=START_MS + MINUTE_MS + 1, until_ms=START_MS + 2 * MINUTE_MS + 1)
    assert (found["input_tokens"], span_of(found)) == (6, (60, 180))


def test_analytics_of_a_span_can_be_selected_and_grouped(ledger):
    found = ask(ledger, "analytics", since_ms=START_MS + MINUTE_MS, selector={"model": "m"}, group_by=["agent"])
    assert [(group["agent"], group["input_tokens"]) for group in found["groups"]] == [("b", 4), ("a", 2)]
    assert "duplicates" not in found


def test_a_span_without_an_end_goes_to_the_last_event_there_can_be(ledger):
    apply(ledger, event(100, at_ms=START_MS + DAY_MS), log_ms=START_MS + 3 * MINUTE_MS)
    found = ask(ledger, "analytics", since_ms=START_MS + 3 * MINUTE_MS)
    assert (found["input_tokens"], span_of(found)) == (108, (180, 9 * 60))


def test_a_span_without_a_beginning_begins_with_everything(ledger):
    assert ask(ledger, "analytics", until_ms=START_MS + MINUTE_MS)["input_tokens"] == 1


def test_a_span_in_the_future_is_empty_and_not_reversed(ledger):
    found = ask(ledger, "analytics", since_ms=START_MS + DAY_MS, until_ms=START_MS + 2 * DAY_MS)
    assert (found["requests"], found["since"] <= found["until"]) == (0, True)


def test_a_span_since_which_nothing_happened_is_empty(ledger):
    for idle in (ledger, Ledger()):
        found = ask(idle, "analytics", START_MS + 2 * DAY_MS, since_ms=START_MS + DAY_MS)
        assert (found["requests"], found["since"] <= found["until"]) == (0, True)


@pytest.mark.parametrize(("since_ms", "until_ms"), [(2, 1), (START_MS, START_MS), (2**62, 5)])
def test_a_reversed_span_is_refused(ledger, since_ms, until_ms):
    assert refused_field(ledger, "analytics", since_ms=since_ms, until_ms=until_ms) == "since"


@pytest.mark.parametrize("value", [-1, 2**62 + 1, 1.5, "yesterday", True])
@pytest.mark.parametrize("field", ["since_ms", "until_ms"])
def test_a_time_that_is_none_is_refused(ledger, field, value):
    assert refused_field(ledger, "analytics", **{field: value}) == field


@pytest.fixture
def old():
    """One event a day for 100 days, of 1, 2, 3, ... tokens; minutes are kept for a day, hours for sixty."""
    made = Ledger()
    for day in range(100):
        tell(made, START_MS + day * DAY_MS + 90 * MINUTE_MS)
        apply(made, event(day + 1), log_ms=START_MS + day * DAY_MS + 90 * MINUTE_MS)
    return made


@pytest.mark.parametrize(
    ("day", "widened"),
    [(99, (99 * 24 + 1.5, 99 * 24 + 1.5 + 1 / 60)), (70, (70 * 24 + 1, 70 * 24 + 2)), (10, (10 * 24, 11 * 24))],
)
def test_a_span_long_past_is_widened_to_what_is_kept_of_it(old, day, widened):
    at_ms = START_MS + day * DAY_MS + 90 * MINUTE_MS
    found = ask(old, "analytics", since_ms=at_ms, until_ms=at_ms + 1)
    assert found["input_tokens"] == day + 1
    assert span_of(found) == tuple(pytest.approx(hours * 3600) for hours in widened)


@pytest.mark.parametrize(("first", "last"), [(0, 99), (5, 80), (60, 99), (98, 99), (30, 31)])
def test_a_span_over_all_resolutions_is_exact(old, first, last):
    found = ask(old, "analytics", since_ms=START_MS + first * DAY_MS, until_ms=START_MS + last * DAY_MS)
    assert found["input_tokens"] == sum(range(first + 1, last + 1))


# --- history --------------------------------------------------------------------------------------


def test_an_entry_of_history_says_everything_about_an_event(ledger):
    apply(
        ledger,
        event(1, 2, counts=(3, 4, 9), flags=1, cost_nanousd=5, at_ms=1, message_id="m", tags={"a": "b"}, user="u"),
        log_ms=START_MS + DAY_MS,
    )
    (entry,) = ask(ledger, "history", limit=1)["history"]
    assert entry == {
        "timestamp": START_S + 86_400 - 35 * 86_400,
        "tenant": "default",
        "project": None,
        "user": "u",
        "agent": None,
        "session": None,
        "provider": None,
        "model": None,
        "input_tokens": 1,
        "output_tokens": 2,
        "cache_read_tokens": 3,
        "cache_write_tokens": 4,
        "reasoning_tokens": 9,
        "total_tokens": 10,
        "cost_usd": 5e-9,
        "message_id": "m",
        "exactness": "estimated",
        "clamped": True,
        "inconsistent": True,
        "tags": {"a": "b"},
    }


def test_an_event_without_a_price_has_none(ledger):
    (entry,) = ask(ledger, "history", limit=1)["history"]
    assert (entry["cost_usd"], entry["exactness"], entry["clamped"], entry["tags"]) == (None, "exact", False, None)


def test_history_is_newest_first_and_ten_long_unless_told_otherwise(ledger):
    for tokens in range(20):
        apply(ledger, event(tokens), log_ms=START_MS + HOUR_MS)
    assert [entry["input_tokens"] for entry in ask(ledger, "history")["history"]] == list(range(19, 9, -1))


def pages(ledger, limit, **selector):
    before = None
    while True:
        answer = ask(ledger, "history", limit=limit, before=before, selector=selector)
        yield [entry["input_tokens"] for entry in answer["history"]]
        before = answer["next_before"]
        if before is None:
            return


def test_history_comes_in_pages(ledger):
    assert list(pages(ledger, 3)) == [[8, 4, 2], [1]]
    assert list(pages(ledger, 2)) == [[8, 4], [2, 1], []]
    assert list(pages(ledger, 1, agent="a")) == [[2], [1], []]


def test_no_history_at_all_may_be_asked_for(ledger):
    assert ask(ledger, "history", limit=0) == {"history": [], "next_before": None}


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"limit": -1}, "limit"),
        ({"limit": HISTORY_MAX + 1}, "limit"),
        ({"limit": "all"}, "limit"),
        ({"before": -1}, "before"),
        ({"before": "x"}, "before"),
        ({"before": 1.5}, "before"),
    ],
)
def test_history_with_bad_arguments_is_refused(ledger, arguments, field):
    assert refused_field(ledger, "history", **arguments) == field


# --- windows --------------------------------------------------------------------------------------


def window(ledger, window_ms, *, now_ms=0, **selector):
    answer = ask(ledger, "window", now_ms, window_ms=window_ms, selector=selector)
    return answer["tokens"], answer["source"]


def test_a_window_ends_now_and_includes_its_first_millisecond(ledger):
    assert window(ledger, MINUTE_MS) == (12, "recent")
    assert window(ledger, MINUTE_MS - 1) == (8, "recent")
    assert window(ledger, MINUTE_MS, now_ms=START_MS + 4 * MINUTE_MS) == (8, "recent")


def test_a_window_of_what_was_selected(ledger):
    assert window(ledger, HOUR_MS, agent="a") == (3, "recent")
    assert window(ledger, HOUR_MS, agent="nobody") == (0, "recent")


@pytest.mark.parametrize("window_ms", [None, 0, -1, 1.5, "60", WINDOW_MS_MAX + 1])
def test_a_window_that_is_none_is_refused(ledger, window_ms):
    assert refused_field(ledger, "window", window_ms=window_ms) == "window_ms"


def test_a_window_beyond_the_recent_events_comes_in_whole_minutes_from_the_frames():
    ledger = Ledger(Bounds(recent_events_max=2))
    for minute in range(5):
        apply(ledger, event(10**minute, 0, counts=(0, 0, 5)), log_ms=START_MS + minute * MINUTE_MS + 7)
    assert window(ledger, 3 * MINUTE_MS) == (11_110, "frames")
    assert window(ledger, 3 * MINUTE_MS, agent="") == (11_110, "frames")
    assert window(ledger, MINUTE_MS - 1) == (10_000, "recent")


def test_a_window_beyond_the_recent_events_holds_those_that_claim_to_be_the_youngest():
    ledger = Ledger(Bounds(recent_events_max=1))
    apply(ledger, event(1), event(2, at_ms=START_MS + DAY_MS))
    assert window(ledger, MINUTE_MS) == (3, "frames")


def test_a_window_longer_than_minutes_are_kept_comes_in_hours():
    ledger = Ledger(Bounds(recent_events_max=1))
    for hours in (0, 30, 48):
        tell(ledger, START_MS + hours * HOUR_MS)
        apply(ledger, event(1 + hours), log_ms=START_MS + hours * HOUR_MS + MINUTE_MS)
    assert window(ledger, 40 * HOUR_MS) == (31 + 49, "frames")
    assert window(ledger, 48 * HOUR_MS - 1) == (1 + 31 + 49, "frames")


# --- sessions -------------------------------------------------------------------------------------


def test_a_session_is_of_the_default_tenant_unless_told_otherwise(ledger):
    apply(ledger, event(100, session="s", tenant="t"), log_ms=START_MS)
    assert ask(ledger, "session", selector={"session": "s"})["figures"]["input_tokens"] == 15
    assert ask(ledger, "session", selector={"session": "s", "tenant": "t"})["figures"]["input_tokens"] == 100


def test_a_session_comes_without_history_unless_told_otherwise(ledger):
    assert ask(ledger, "session", selector={"session": "s"})["history"] == []
    assert len(ask(ledger, "session", selector={"session": "s"}, limit=3)["history"]) == 3


def test_the_uptime_of_a_session_ends_when_it_was_asked_for(ledger):
    figures = ask(ledger, "session", START_MS + HOUR_MS, selector={"session": "s"})["figures"]
    assert figures["uptime_s"] == 3600.0


@pytest.mark.parametrize("selector", [{}, {"tenant": "t"}, {"session": "s", "agent": "a"}])
def test_a_session_is_named_by_session_and_tenant_alone(ledger, selector):
    assert refused_field(ledger, "session", selector=selector) == "selector"


@pytest.mark.parametrize("limit", [-1, HISTORY_MAX + 1, None, "5"])
def test_a_session_with_a_bad_limit_is_refused(ledger, limit):
    assert refused_field(ledger, "session", selector={"session": "s"}, limit=limit) == "limit"


# --- books ----------------------------------------------------------------------------------------


def test_the_books_add_up_in_every_way(ledger):
    apply(ledger, event(1, 2, counts=(3, 4, 1), cost_nanousd=5, flags=0))
    assert ask(ledger, "books") == {
        "total": {
            "input_tokens": 16,
            "output_tokens": 2,
            "cache_read_tokens": 3,
            "cache_write_tokens": 4,
            "reasoning_tokens": 1,
            "requests": 5,
            "cost_nanousd": 5,
            "unpriced": 4,
        },
        "ways": 10,
        "differences": [],
    }


def test_a_difference_in_the_books_is_found_and_named(ledger):
    ledger.frames.fold()
    (part,) = ledger.frames._frames["hour"][START_MS // HOUR_MS]
    part.sums[0, 0] += 1
    assert ask(ledger, "books")["differences"] == [
        {"way": "frames by hour", "counter": "input_tokens", "total": 15, "found": 16}
    ]


def test_a_whole_group_that_is_lost_is_found(ledger, monkeypatch):
    ledger.counters[5, 0] -= 2
    assert {difference["way"] for difference in ask(ledger, "books")["differences"]} == {
        "frames by minute", "frames by hour", "frames by day",
    }  # fmt: skip


def test_names_of_our_own_can_be_asked_for():
    ledger = Ledger(Bounds(names_max={**NAMES_MAX, "model": 1}))
    for model in "abc":
        apply(ledger, event(1, model=model))
    assert ask(ledger, "analytics", selector={"model": OTHER})["requests"] == 2
    assert queries.QUESTIONS.keys() == {
        "status", "analytics", "history", "window", "session", "books", "producer", "limits", "explain",
    }  # fmt: skip


class TestAProducer:
    def test_of_one_that_is_known_the_numbers_seen_are_told(self):
        seen = Ledger()
        for first, stop in ((0, 5), (7, 9), (12, 13)):
            seen.producers.see(PRODUCER, 3, first, stop)
        assert ask(seen, "producer", producer=PRODUCER, epochs=[3])["epochs"] == {
            "3": {"next_seq": 5, "ranges": [[7, 9], [12, 13]], "missing": 5}
        }

    def test_of_one_that_is_unknown_nothing_has_been_seen(self, ledger):
        nothing = {"next_seq": 0, "ranges": [], "missing": 0}
        assert ask(ledger, "producer", producer=bytes(16), epochs=[0, 7])["epochs"] == {"0": nothing, "7": nothing}

    def test_to_ask_is_not_to_remember(self, ledger):
        known = len(ledger.producers)
        ask(ledger, "producer", producer=b"x" * 16, epochs=[0])
        assert len(ledger.producers) == known

    def test_only_the_lowest_ranges_are_told(self):
        seen = Ledger()
        for number in range(1, 201, 2):
            seen.producers.see(PRODUCER, 0, number, number + 1)
        told = ask(seen, "producer", producer=PRODUCER, epochs=[0])["epochs"]["0"]
        assert (told["ranges"][0], told["ranges"][-1], len(told["ranges"])) == ([1, 2], [127, 128], 64)
        assert told["missing"] == 100

    @pytest.mark.parametrize("producer", [None, "x" * 16, b"x" * 15, b"x" * 17, 5])
    def test_a_name_that_is_none_is_refused(self, ledger, producer):
        assert refused_field(ledger, "producer", producer=producer, epochs=[0]) == "producer"

    @pytest.mark.parametrize("epochs", [None, 0, "x", ["0"], [0.0], [True], {0: 0}])
    def test_epochs_that_are_none_are_refused(self, ledger, epochs):
        assert refused_field(ledger, "producer", producer=PRODUCER, epochs=epochs) == "epochs"
