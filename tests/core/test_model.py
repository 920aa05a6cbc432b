"""The ledger against a plain oracle: random logs, folded, asked, dumped and restored."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

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
    event,
    examples,
    fields_of,
    json_entry,
    packed,
    single_entry,
    state_of,
    travelled,
)
from tests.oracle import Oracle, sums
from token_actor.actor.fold import fold
from token_actor.core import snapshot
from token_actor.core.ledger import COUNTERS, Ledger
from token_actor.core.usage import DIMENSIONS, TOKENS_MAX, UNPRICED, Event

SIX = (*COUNTERS[:5], "requests")
TENANTS, SESSIONS = ("default", "t"), ("", "s", "r")
NAMES = {
    "tenant": st.sampled_from(TENANTS),
    "session": st.sampled_from(SESSIONS),
    "model": st.sampled_from(["m", "n"]),
    "agent": st.sampled_from(["", "a"]),
}
COUNT = st.integers(0, 3) | st.integers(0, TOKENS_MAX)
IDS = st.sampled_from([None, None, "x", "y", "z"])
DELAYS = st.sampled_from(
    [None, 0, 1, 500, MINUTE_MS, 3 * HOUR_MS, 2 * DAY_MS, 36 * DAY_MS, -1000, -6 * MINUTE_MS, -DAY_MS]
)
STEPS = st.sampled_from([0, 0, 1, 999, MINUTE_MS, HOUR_MS, -5000])
LEAPS = st.sampled_from([0, 1, HOUR_MS, HOUR_MS + 1, 5 * HOUR_MS, 3 * DAY_MS])
WRONG_BY = st.sampled_from([0, 0, 0, 3000, -9000, HOUR_MS, -2 * HOUR_MS, 2 * DAY_MS, -40 * DAY_MS])


@st.composite
def good_events(draw, *, timed=True):
    names = {dimension: draw(name) for dimension, name in NAMES.items()}
    counts = tuple(draw(COUNT) for _ in range(3)) if draw(st.booleans()) else (0, 0, 0)
    delay_ms = draw(DELAYS) if timed else None
    at_ms = None if delay_ms is None else START_MS - delay_ms
    return event(draw(COUNT), draw(COUNT), counts=counts, at_ms=at_ms, message_id=draw(IDS), **names)


BAD_EVENTS = st.sampled_from(
    [Event("no key"), Event("default" + "\x1f" * 6, TOKENS_MAX + 1, 0, 0, 0, 0, 0, UNPRICED, None, "x")]
)


@st.composite
def batches(draw):
    timed = draw(st.booleans())
    made = draw(st.lists(good_events(timed=timed) | BAD_EVENTS, min_size=1, max_size=6))
    return [
        each if (each.timestamp_ms is not None) == timed else each._replace(timestamp_ms=START_MS if timed else None)
        for each in made
    ]


class LedgerAgainstOracle(RuleBasedStateMachine):
    """Write a log entry by entry; the ledger folds some of them at once."""

    @initialize()
    def begin(self) -> None:
        self.ledger, self.oracle = Ledger(), Oracle()
        self.entries: list[Any] = []
        self.batches: list[tuple[Any, bytes]] = []
        self.unread = 0
        self.now_ms = START_MS
        self.told: list[tuple[str, Any]] = []

    def append(self, entry: Any, wait: bool) -> None:
        self.entries.append(entry)
        self.unread += 1
        if not wait:
            self.read()

    def read(self) -> None:
        folded = fold(self.ledger, self.entries[len(self.entries) - self.unread :], epoch=1)
        self.told += [(answer.request_id, answer.result) for _, answer in folded.answers]
        self.unread = 0

    def step(self, step_ms: int) -> int:
        self.now_ms += step_ms
        return self.now_ms

    @rule(
        made=batches(), producer=st.sampled_from([PRODUCER, OTHER_PRODUCER]), epoch=st.integers(0, 1),
        first_seq=st.integers(0, 25), step_ms=STEPS, wait=st.booleans(),
    )  # fmt: skip
    def batch(self, made, producer, epoch, first_seq, step_ms, wait):
        at_ms = self.step(step_ms)
        taken = (made, producer, epoch, first_seq)
        self.oracle.take_batch(at_ms, *taken)
        entry = batch_entry(*made, at_ms=at_ms, producer=producer, epoch=epoch, first_seq=first_seq)
        self.batches.append((taken, entry[1][1]))
        self.append(entry, wait)

    @rule(again=st.integers(0, 30), step_ms=STEPS, wait=st.booleans())
    def resend(self, again, step_ms, wait):
        if self.batches:
            at_ms = self.step(step_ms)
            taken, data = self.batches[again % len(self.batches)]
            self.oracle.take_batch(at_ms, *taken)
            self.append((b"%d-0" % at_ms, [b"b", data]), wait)

    @rule(made=good_events(), form=st.sampled_from([single_entry, json_entry]), step_ms=STEPS, wait=st.booleans())
    def single(self, made, form, step_ms, wait):
        at_ms = self.step(step_ms)
        self.oracle.take(at_ms, made)
        self.append(form(at_ms, **fields_of(made)), wait)

    @rule(off_ms=WRONG_BY, epoch=st.integers(1, 2), step_ms=LEAPS, wait=st.booleans())
    def clock(self, off_ms, epoch, step_ms, wait):
        at_ms = self.step(step_ms)
        self.oracle.tell(at_ms, at_ms + off_ms, epoch)
        self.append(clock_entry(at_ms + off_ms, epoch=epoch, at_ms=at_ms), wait)

    @rule(made=good_events(), step_ms=LEAPS, wait=st.booleans())
    def leap(self, made, step_ms, wait):
        at_ms = self.step(step_ms)
        self.oracle.take(at_ms, made)
        self.append(single_entry(at_ms, **fields_of(made)), wait)

    @rule(fields=st.sampled_from([{"input_tokens": -1}, {"model": 5}, {"x": 1}]), wait=st.booleans())
    def bad_single(self, fields, wait):
        self.oracle.reject({"input_tokens": "range", "model": "type", "x": "decode"}[next(iter(fields))])
        self.append(single_entry(self.now_ms + DAY_MS, **fields), wait)  # its time does not count either

    @rule(made=good_events(), request=st.sampled_from("123456"), step_ms=STEPS, wait=st.booleans())
    def record(self, made, request, step_ms, wait):
        at_ms = self.step(step_ms)
        if request not in self.oracle.answers:
            reason = self.oracle.take(at_ms, made)
            self.oracle.answers[request] = {"counted": reason is None, "reason": reason}
        self.append(command_entry("record", event=fields_of(made), request_id=request, at_ms=at_ms), wait)

    @rule(
        tenant=st.sampled_from(TENANTS), session=st.sampled_from(SESSIONS[1:]), request=st.sampled_from("789"),
        step_ms=STEPS, wait=st.booleans(),
    )  # fmt: skip
    def reset(self, tenant, session, request, step_ms, wait):
        at_ms = self.step(step_ms)
        if request not in self.oracle.answers:
            self.oracle.reset(at_ms, tenant, session)
            self.oracle.answers[request] = {"reset": True}
        arguments = {"tenant": tenant, "session": session}
        self.append(command_entry("reset", arguments, request_id=request, at_ms=at_ms), wait)

    @rule()
    def restart(self):
        self.read()
        state = state_of(self.ledger)
        self.ledger = snapshot.restore(travelled(state))
        assert packed(state_of(self.ledger)) == packed(state)

    @invariant()
    def the_answers_agree(self):
        if self.unread:
            return
        oracle, ledger = self.oracle, self.ledger
        assert dict(self.told) == oracle.answers
        status = ask(ledger, "status")
        found = [status[name] for name in ("log_ms", "events", "duplicates", "dead", "missing")]
        assert found == [oracle.log_ms, len(oracle.events), oracle.duplicates, dict(oracle.dead), oracle.missing()]
        assert ask(ledger, "books")["differences"] == []
        self.totals_agree()
        self.spans_agree()
        self.history_agrees()
        self.windows_agree()
        self.sessions_agree()

    def totals_agree(self):
        whole = ask(self.ledger, "analytics")
        assert tuple(whole[name] for name in SIX) == sums(self.oracle.events)
        assert whole["clamped"] == sum(each.clamped for each in self.oracle.events)
        assert whole["inconsistent"] == sum(each.counts[4] > each.counts[1] for each in self.oracle.events)
        for dimension in DIMENSIONS:
            groups = ask(self.ledger, "analytics", group_by=[dimension])["groups"]
            found = {group[dimension] or "": tuple(group[name] for name in SIX) for group in groups}
            names = {each.names[dimension] for each in self.oracle.events}
            expected = {name: sums(self.oracle.selected(**{dimension: name})) for name in names}
            assert {name: numbers for name, numbers in found.items() if numbers[5]} == expected

    def spans_agree(self):
        log_ms = max(START_MS, self.oracle.log_ms)
        for since_ms, until_ms in (
            (log_ms - HOUR_MS, log_ms), (log_ms - 5 * MINUTE_MS, log_ms + 6 * MINUTE_MS),
            (START_MS - DAY_MS, START_MS), (START_MS - 40 * DAY_MS, log_ms), (START_MS - 2 * DAY_MS, None),
        ):  # fmt: skip
            answer = ask(self.ledger, "analytics", since_ms=since_ms, until_ms=until_ms, selector={"model": "m"})
            expected = self.oracle.selected(answer["since"] * 1000, answer["until"] * 1000, model="m")
            assert tuple(answer[name] for name in SIX) == sums(expected)
            assert answer["since"] * 1000 <= since_ms

    def history_agrees(self):
        for selector in ({}, {"session": "s"}, {"tenant": "t", "model": "n"}):
            history = ask(self.ledger, "history", limit=50, selector=selector)["history"]
            found = [
                (entry["timestamp"], entry["message_id"], tuple(entry[name] for name in SIX[:5])) for entry in history
            ]
            newest_first = self.oracle.selected(**selector)[::-1][:50]
            assert found == [(each.event_ms / 1000, each.message_id, each.counts) for each in newest_first]

    def windows_agree(self):
        now_ms = self.oracle.log_ms + 300
        for window_ms in (1, 300, 301, MINUTE_MS, HOUR_MS + 300, DAY_MS):
            for selector in ({}, {"session": "s"}, {"tenant": "t"}):
                asked_ms = now_ms - self.oracle.off_ms  # by the server's clock, like ids
                answer = ask(self.ledger, "window", asked_ms, window_ms=window_ms, selector=selector)
                assert answer["tokens"] == self.oracle.window(now_ms - window_ms, **selector)

    def sessions_agree(self):
        for tenant in TENANTS:
            for session in SESSIONS[1:]:
                answer = ask(self.ledger, "session", selector={"tenant": tenant, "session": session}, limit=3)
                events = self.oracle.session(tenant, session)
                used, figures = sums(events), answer["figures"]
                assert [figures[name] for name in SIX[:4]] == list(used[:4])
                assert (figures["requests"], figures["peak_tokens"]) == (used[5], used[0] + used[1])
                assert figures["recent_totals"] == [sum(each.counts[:4]) for each in events[-6:]]
                assert [entry[1:5] for entry in answer["history"]] == [list(each.counts[:4]) for each in events[:-4:-1]]
                assert [entry[6] for entry in answer["history"]][:1] == [used[0]][: len(events)]


def test_the_ledger_answers_what_an_oracle_answers():
    run_state_machine_as_test(LedgerAgainstOracle, settings=examples(40))
