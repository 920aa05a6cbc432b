"""The in-process manager and the ledger agree: the same events, and every answer is the same.

The ledger is read as ``client.manager`` does it. Times are multiples of an eighth of a second, which
are exact in milliseconds and in binary, so that answers can be compared to the last digit.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import (
    HOUR_MS,
    START_MS,
    ask,
    batch_entry,
    command_entry,
    event,
    examples,
    fields_of,
    json_entry,
    single_entry,
    tell,
)
from token_actor.actor.fold import fold
from token_actor.core.analytics import SessionFigures, SessionRules, history_entry, predict_overflow, session_analytics
from token_actor.core.export import FORMATS, export_metrics, summary_text
from token_actor.core.ledger import Bounds, Ledger
from token_actor.core.manager import TokenManager
from token_actor.core.usage import TOKEN_KINDS

RULES = SessionRules(context_window_limit=1000, overflow_warning_threshold=75.0, history_size=4)
SCOPE = {"tenant": "t", "session": "s"}
EIGHTH_MS = 125


class SessionOfTheFleet:
    """Answer like a manager, from a ledger that other sessions use too."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.ledger = Ledger(bounds)
        self.now_ms = START_MS
        self.sequence = 0

    def wait(self, wait_ms):
        """Let time pass; the leader tells the log when it is long."""
        self.now_ms += wait_ms
        if self.now_ms - self.ledger.log_ms > HOUR_MS:
            tell(self.ledger, self.now_ms)

    def append(self, entry):
        return fold(self.ledger, [entry], epoch=1)

    def command(self, operation, arguments=None, *, of=None):
        self.sequence += 1
        fields = None if of is None else fields_of(of)
        entry = command_entry(operation, arguments, event=fields, request_id=str(self.sequence), at_ms=self.now_ms)
        ((_, answer),) = self.append(entry).answers
        return answer.result

    def update_tokens(self, counts, message_id, model, form):
        """Count one request; one with an id in a command that is answered, like the shared manager."""
        made = event(*counts[:2], counts=(*counts[2:], 0), message_id=message_id, model=model, **SCOPE)
        if message_id is not None:
            return self.command("record", of=made)["counted"]
        if form == "batch":
            self.append(batch_entry(made, at_ms=self.now_ms, first_seq=self.sequence))
            self.sequence += 1
        else:
            self.append({"json": json_entry, "msgpack": single_entry}[form](self.now_ms, **fields_of(made)))
        return True

    def reset(self):
        self.command("reset", SCOPE)

    def ask(self, limit=0):
        return ask(self.ledger, "session", self.now_ms, selector=SCOPE, limit=limit)

    def get_usage_history(self, limit):
        names = (
            "timestamp_s", *TOKEN_KINDS, "message_id", "cumulative_input", "cumulative_output",
        )  # fmt: skip
        entries = self.ask(min(limit, RULES.history_size))["history"]
        return [
            history_entry(**dict(zip(names, entry, strict=True)), context_window_limit=RULES.context_window_limit)
            for entry in entries
        ]

    def get_analytics(self):
        answer = self.ask(RULES.history_size)
        figures = SessionFigures(**answer["figures"], current_history_size=len(answer["history"]))
        return session_analytics(figures, RULES)

    def predict_overflow(self, estimated_tokens):
        figures = self.ask()["figures"]
        used = figures["input_tokens"] + figures["output_tokens"]
        return predict_overflow(used, estimated_tokens, RULES.context_window_limit)

    def tokens_in_window(self, window_ms):
        figures = self.ask()["figures"]
        if window_ms >= figures["uptime_s"] * 1000:  # all since the reset, and nothing from before it
            return sum(figures[kind] for kind in TOKEN_KINDS)
        return ask(self.ledger, "window", self.now_ms, window_ms=window_ms, selector=SCOPE)["tokens"]

    def export_metrics(self, export_format):
        history = self.get_usage_history(RULES.history_size)[::-1]
        return export_metrics(self.get_analytics(), history, export_format, self.now_ms / 1000)


COUNTS = st.tuples(*[st.integers(0, 300)] * 4)
UPDATES = st.tuples(
    st.just("update"), COUNTS, st.sampled_from([None, None, "a", "b", "c", "d"]), st.sampled_from(["m", "n"]),
    st.sampled_from(["batch", "json", "msgpack"]),
)  # fmt: skip
WAITS = st.tuples(st.just("wait"), st.integers(0, 80) | st.integers(0, 100_000))
OTHERS = st.tuples(
    st.just("other"), st.sampled_from([{"session": "s", "tenant": "u"}, {"session": "r", "tenant": "t"}])
)
STEPS = st.lists(st.one_of(UPDATES, UPDATES, UPDATES, UPDATES, WAITS, WAITS, OTHERS, st.just(("reset",))), max_size=40)
WINDOWS = st.lists(st.integers(1, 80) | st.integers(1, 100_000), min_size=3, max_size=3)


def manager_at(fleet):
    return TokenManager(
        RULES.context_window_limit,
        RULES.history_size,
        RULES.overflow_warning_threshold,
        clock=lambda: fleet.now_ms / 1000,
        warn=lambda *_: None,
        engine_failed=lambda _: None,
    )


def perform(step: tuple[Any, ...], manager: TokenManager, fleet: SessionOfTheFleet) -> None:
    """Do one step to both, and compare what they return."""
    if step[0] == "wait":
        fleet.wait(step[1] * EIGHTH_MS)
    elif step[0] == "other":
        fleet.append(batch_entry(event(7, **step[1]), at_ms=fleet.now_ms, first_seq=fleet.sequence))
        fleet.sequence += 1
    elif step[0] == "reset":
        manager.reset()
        fleet.reset()
    else:
        _, counts, message_id, model, form = step
        counted = fleet.update_tokens(counts, message_id, model, form)
        assert manager.update_tokens(counts[0], counts[1], counts[2], counts[3], message_id) is counted


def assert_same_answers(manager, fleet, windows=()):
    """Compare every answer."""
    assert fleet.get_analytics() == manager.get_analytics()
    for limit in (1, 3, 10):
        assert fleet.get_usage_history(limit) == manager.get_usage_history(limit)
    for estimate in (0, 1, 500, 1000.5):
        assert fleet.predict_overflow(estimate) == manager.predict_overflow(estimate)
    for export_format in FORMATS:
        assert fleet.export_metrics(export_format) == manager.export_metrics(export_format)
    assert summary_text(fleet.get_analytics()) == manager.get_summary()
    for window_ms in (EIGHTH_MS, 60_000, 3_600_000, *(window * EIGHTH_MS for window in windows)):
        used = fleet.tokens_in_window(window_ms)
        assert manager.check_rate_limit(window_ms / 1000, used + 0.5) is True
        assert used == 0 or manager.check_rate_limit(window_ms / 1000, used - 0.5) is False


FIRST = ("update", (1, 2, 3, 4), "first", "m", "json")  # a session of the fleet begins with its first event


@given(STEPS, WINDOWS)
@examples(300)
def test_the_manager_and_the_ledger_give_the_same_answers(steps, windows):
    fleet = SessionOfTheFleet()
    manager = manager_at(fleet)
    for step in (FIRST, *steps):
        perform(step, manager, fleet)
    assert_same_answers(manager, fleet, windows)


@given(STEPS, WINDOWS)
@examples(80)
def test_they_agree_after_every_single_step(steps, windows):
    fleet = SessionOfTheFleet()
    manager = manager_at(fleet)
    for step in (FIRST, *steps[:12]):
        perform(step, manager, fleet)
        assert_same_answers(manager, fleet, windows)


@given(STEPS)
@examples(120)
def test_with_few_recent_events_only_what_they_bound_differs(steps):
    fleet = SessionOfTheFleet(Bounds(recent_events_max=3))
    manager = manager_at(fleet)
    for step in (FIRST, *(step for step in steps if step[0] != "reset")):  # a reset forgets the ids of recent events
        perform(step, manager, fleet)
    bounded = {"trend", "current_history_size"}
    theirs, ours = fleet.get_analytics(), manager.get_analytics()
    assert {key: value for key, value in theirs.items() if key not in bounded} == {
        key: value for key, value in ours.items() if key not in bounded
    }
    history = fleet.get_usage_history(10)
    assert history == manager.get_usage_history(10)[: len(history)]
    for window_ms in (EIGHTH_MS, 60_000, 3_600_000):
        used = fleet.tokens_in_window(window_ms)
        assert manager.check_rate_limit(window_ms / 1000, used + 0.5) is True  # never too little


@pytest.mark.parametrize("seed", range(3))
def test_they_agree_over_a_long_session(seed):
    rng = random.Random(seed)
    fleet = SessionOfTheFleet()
    manager = manager_at(fleet)
    perform(FIRST, manager, fleet)
    for _ in range(400):
        counts = tuple(rng.randrange(300) for _ in range(4))
        message_id = rng.choice((None, f"id{rng.randrange(80)}"))
        perform(
            ("update", counts, message_id, rng.choice("mn"), rng.choice(("batch", "json", "msgpack"))), manager, fleet
        )
        perform(("wait", rng.choice((0, 0, 1, 8, 400))), manager, fleet)
        if rng.random() < 0.01:
            perform(("reset",), manager, fleet)
        if rng.random() < 0.1:
            assert_same_answers(manager, fleet, [rng.randrange(1, 5000) for _ in range(3)])


def test_the_trend_agrees():
    for totals, expected in (((100,) * 3 + (121,) * 3, "increasing"), ((100,) * 3 + (79,) * 3, "decreasing")):
        fleet = SessionOfTheFleet()
        manager = manager_at(fleet)
        for total in totals:
            perform(("update", (total, 0, 0, 0), None, "m", "batch"), manager, fleet)
        assert manager.get_analytics()["trend"] == fleet.get_analytics()["trend"] == expected


@pytest.mark.parametrize("form", ["batch", "json", "msgpack"])
def test_a_large_request_agrees_in_every_form(form):
    fleet = SessionOfTheFleet()
    manager = manager_at(fleet)
    perform(("update", (10**12, 10**12, 10**12, 10**12), None, "m", form), manager, fleet)
    assert_same_answers(manager, fleet)
