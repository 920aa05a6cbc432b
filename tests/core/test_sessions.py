"""Facts about one session, as a TokenManager sees it, read from the ledger."""

from __future__ import annotations

import pytest

from tests.makers import START_MS, apply, event, total
from token_actor.core.analytics import SessionFigures
from token_actor.core.ledger import Bounds, Ledger
from token_actor.core.sessions import reset_session, session_figures, session_rows


@pytest.fixture
def ledger():
    return Ledger()


def use(ledger, input_tokens=0, output_tokens=0, *, at_ms=START_MS, session="s", **more):
    apply(ledger, event(input_tokens, output_tokens, session=session, **more), log_ms=at_ms)


def shown(ledger, *, history_limit=0, now_ms=START_MS, tenant="default", session="s"):
    return session_figures(ledger, tenant=tenant, session=session, history_limit=history_limit, now_ms=now_ms)


def figures(ledger, **asked):
    return shown(ledger, **asked)["figures"]


def reset(ledger, session="s"):
    reset_session(ledger, tenant="default", session=session)


def test_a_session_nobody_knows_has_used_nothing(ledger):
    assert shown(ledger, history_limit=5) == {
        "figures": {
            "requests": 0,
            "input_tokens": 0,
            "output_tokens": 0,
            "cache_read_tokens": 0,
            "cache_write_tokens": 0,
            "peak_tokens": 0,
            "uptime_s": 0.0,
            "recent_totals": [],
        },
        "history": [],
    }


def test_a_session_is_all_its_series(ledger):
    use(ledger, 1, 2, model="a")
    use(ledger, 10, 20, model="b", counts=(100, 1000, 5))
    found = figures(ledger)
    assert found == {
        "requests": 2,
        "input_tokens": 11,
        "output_tokens": 22,
        "cache_read_tokens": 100,
        "cache_write_tokens": 1000,
        "peak_tokens": 33,
        "uptime_s": 0.0,
        "recent_totals": [3, 1130],
    }
    assert len(session_rows(ledger, "default", "s")) == 2


def test_figures_are_what_the_formulas_take(ledger):
    assert SessionFigures(**figures(ledger), current_history_size=0) == SessionFigures(recent_totals=[])


def test_other_sessions_and_other_tenants_are_not_shown(ledger):
    use(ledger, 1)
    use(ledger, 10, session="t")
    use(ledger, 100, tenant="x")
    assert figures(ledger)["input_tokens"] == 1


def test_uptime_counts_from_the_first_event(ledger):
    use(ledger, 1, at_ms=START_MS)
    use(ledger, 1, at_ms=START_MS + 500, model="b")
    assert figures(ledger, now_ms=START_MS + 1500)["uptime_s"] == 1.5


def test_uptime_is_never_negative(ledger):
    use(ledger, 1)
    assert figures(ledger, now_ms=START_MS - 1)["uptime_s"] == 0.0


def test_a_series_of_which_nothing_counted_does_not_begin_the_session(ledger):
    use(ledger, 1, message_id="m")
    use(ledger, 1, message_id="m", model="b")
    assert figures(ledger, now_ms=START_MS + 1000)["uptime_s"] == 1.0


def test_the_last_six_totals_make_the_trend(ledger):
    for number in range(8):
        use(ledger, number, model="ab"[number % 2])
    assert figures(ledger)["recent_totals"] == [2, 3, 4, 5, 6, 7]


def test_history_is_newest_first_with_what_was_used_up_to_each_event(ledger):
    use(ledger, 1, 2, at_ms=START_MS, message_id="m")
    use(ledger, 10, 20, at_ms=START_MS + 1, model="b", counts=(7, 8, 9))
    use(ledger, 100, 200, at_ms=START_MS + 2)
    second = START_MS / 1000
    assert shown(ledger, history_limit=2)["history"] == [
        [second + 0.002, 100, 200, 0, 0, None, 111, 222],
        [second + 0.001, 10, 20, 7, 8, None, 11, 22],
    ]
    assert shown(ledger, history_limit=9)["history"][2] == [second, 1, 2, 0, 0, "m", 1, 2]


def test_an_event_is_shown_at_the_time_it_claims(ledger):
    use(ledger, 1, at_ms=START_MS)
    apply(ledger, event(2, session="s", at_ms=START_MS - 5000), log_ms=START_MS)
    assert shown(ledger, history_limit=1)["history"][0][0] == START_MS / 1000 - 5


def test_history_goes_back_as_far_as_recent_events_do():
    ledger = Ledger(Bounds(recent_events_max=2))
    for tokens in (1, 10, 100):
        use(ledger, tokens)
    assert [(entry[1], entry[6]) for entry in shown(ledger, history_limit=9)["history"]] == [(100, 111), (10, 11)]


# --- reset ----------------------------------------------------------------------------------------


def test_a_reset_session_starts_from_nothing(ledger):
    use(ledger, 1, 2)
    reset(ledger)
    assert figures(ledger)["requests"] == figures(ledger)["input_tokens"] == figures(ledger)["peak_tokens"] == 0
    assert shown(ledger, history_limit=9)["history"] == []
    assert figures(ledger)["recent_totals"] == []


def test_a_reset_takes_nothing_out_of_the_totals(ledger):
    use(ledger, 1)
    reset(ledger)
    assert total(ledger) == 1


def test_a_session_goes_on_after_a_reset(ledger):
    use(ledger, 1, 2)
    reset(ledger)
    use(ledger, 10, 20)
    use(ledger, 100, 200, model="new")
    assert figures(ledger)["input_tokens"] == 110
    assert [entry[6:] for entry in shown(ledger, history_limit=9)["history"]] == [[110, 220], [10, 20]]


def test_a_second_reset_hides_more_than_the_first(ledger):
    use(ledger, 1)
    reset(ledger)
    use(ledger, 10)
    reset(ledger)
    use(ledger, 100)
    assert figures(ledger)["input_tokens"] == 100


def test_uptime_counts_from_the_reset(ledger):
    use(ledger, 1)
    ledger.advance(START_MS + 3000)
    reset(ledger)
    assert figures(ledger, now_ms=START_MS + 5000)["uptime_s"] == 2.0


def test_the_reset_of_a_session_nobody_knows_leaves_nothing_to_remember(ledger):
    reset(ledger)
    assert ledger.resets == {}
    use(ledger, 1)
    assert figures(ledger)["input_tokens"] == 1


def test_other_sessions_are_not_reset(ledger):
    use(ledger, 1)
    use(ledger, 10, session="t")
    reset(ledger)
    assert figures(ledger, session="t")["input_tokens"] == 10


def test_the_ids_of_a_reset_session_are_forgotten(ledger):
    use(ledger, 1, message_id="a")
    use(ledger, 1, message_id="b", session="t")
    reset(ledger)
    use(ledger, 1, message_id="a")
    use(ledger, 1, message_id="b", session="t")
    assert total(ledger) == 3


def test_the_ids_of_another_tenant_are_kept(ledger):
    use(ledger, 1, message_id="a")
    use(ledger, 1, message_id="a", tenant="x")
    reset(ledger)
    use(ledger, 1, message_id="a", tenant="x")
    assert total(ledger) == 2


def test_a_second_reset_leaves_ids_from_before_the_first_alone(ledger):
    use(ledger, 1, message_id="a")
    reset(ledger)
    use(ledger, 1, message_id="a", session="t")
    reset(ledger)
    use(ledger, 1, message_id="a", session="t")
    assert total(ledger) == 2
