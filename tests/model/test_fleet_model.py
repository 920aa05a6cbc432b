"""Two actors on one log, against an oracle: whoever is stepped, crashes or saves, both know what it knows."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.actor.conftest import LEASE_MS, Stage
from tests.fault.planted import planted
from tests.makers import START_MS, ask, examples
from tests.model.oracle import AMOUNT, CALLS, Oracle
from token_actor.actor.loop import Actor
from token_actor.actor.settings import ActorSettings, Clock
from token_actor.actor.snapshots import digests_now
from token_actor.core.limits import Limit
from token_actor.errors import LeadershipLost, ServerUnavailable
from token_actor.transport.memory import MemoryServer
from token_actor.transport.ports import FIRST
from token_actor.wire.messages import Answer

DAY = Limit("day", 10**6, kind="calendar", period="day")  # more than is ever used; no run sees its end
LIMITS = [Limit("l", AMOUNT), Limit("calls", CALLS, kind="concurrency"), DAY]
TURNS_MAX = 100  # far more than anything takes
AGENTS = st.sampled_from(["a", "b"])
TOKENS = st.sampled_from([0, 1, 7, 30, 60, 120])
PLACES = st.integers(0, 1_000)  # of something written before, counted from the newest
PASSED_MS = st.sampled_from([1, 400, LEASE_MS, 20_000, 59_000])  # together less than a leap of an hour


class FleetAgainstOracle(RuleBasedStateMachine):
    """Write entries, and let two actors live and die; what is written is told to the oracle at once."""

    @initialize()
    def begin(self):
        self.now_ms = START_MS
        self.stage = Stage(MemoryServer(clock_ms=lambda: self.now_ms), "model")
        self.oracle = Oracle()
        self.started = self.next_seq = self.skipped = 0
        self.batches, self.commands, self.reservations = [], [], ["c:nobody"]
        self.told, self.heard = {}, FIRST
        self.actors = [self.start(), self.start()]
        for limit in LIMITS:
            self.stage.command("put_limit", limit.name, limit=limit.as_map())

    def start(self):
        self.started += 1
        settings = ActorSettings(
            keys=self.stage.keys, holder=f"actor{self.started}", lease_ms=LEASE_MS, block_ms=0, standby_block_ms=0
        )
        return Actor(self.stage.connect(), settings, Clock(lambda: self.now_ms, lambda: self.now_ms, lambda _: False))

    # --- what is written -------------------------------------------------------------------------

    @rule(count=st.integers(1, 4), skipped=st.sampled_from([0, 0, 1, 3]), agent=AGENTS, tokens=TOKENS)
    def send(self, count, skipped, agent, tokens):
        self.batches.append((self.next_seq + skipped, count, agent, tokens))
        self.next_seq += skipped + count
        self.skipped += skipped
        self.resend(0)

    @precondition(lambda self: self.batches)
    @rule(place=PLACES)
    def resend(self, place):
        first_seq, count, agent, tokens = self.batches[-1 - place % len(self.batches)]
        entry = self.stage.batch(count, first_seq=first_seq, agent=agent, input_tokens=tokens)
        for number in range(first_seq, first_seq + count):
            self.oracle.take(self.now_ms, entry, agent, tokens, number)

    @rule(agent=AGENTS, tokens=TOKENS, message_id=st.sampled_from([None, "x", "y", "z"]))
    def append(self, agent, tokens, message_id):
        fields = {} if message_id is None else {"message_id": message_id}
        entry = self.stage.event(agent=agent, input_tokens=tokens, **fields)
        self.oracle.take(self.now_ms, entry, agent, tokens, message_id or entry)

    @rule()
    def append_nonsense(self):
        self.oracle.dead.append((self.stage.event(input_tokens=-1), "range"))

    @rule(agent=AGENTS, tokens=TOKENS.filter(bool), ttl_ms=st.sampled_from([1, 1_500, 30_000]))
    def reserve(self, agent, tokens, ttl_ms):
        request = self.command("reserve", None, agent=agent, tokens=tokens, ttl_ms=ttl_ms)
        self.reservations.append(f"c:{request}")
        self.oracle.answers[request] = self.oracle.reserve(self.now_ms, f"c:{request}", tokens, ttl_ms)

    @rule(place=PLACES, agent=AGENTS, tokens=TOKENS)
    def settle(self, place, agent, tokens):
        name = self.reservations[-1 - place % len(self.reservations)]
        request = self.command("settle", {"agent": agent, "input_tokens": tokens}, reservation=name)
        self.oracle.answers[request] = self.oracle.settle(self.now_ms, name, agent, tokens)

    @rule(place=PLACES)
    def release(self, place):
        name = self.reservations[-1 - place % len(self.reservations)]
        request = self.command("release", None, reservation=name)
        self.oracle.answers[request] = self.oracle.release(self.now_ms, name)

    def command(self, operation, event, **arguments):
        request = str(len(self.commands))
        self.commands.append((operation, request, event, arguments))
        self.stage.command(operation, request, event, **arguments)
        return request

    @precondition(lambda self: self.commands)
    @rule(place=PLACES)
    def ask_again(self, place):
        operation, request, event, arguments = self.commands[-1 - place % len(self.commands)]
        self.stage.command(operation, request, event, **arguments)

    # --- what happens to the actors --------------------------------------------------------------

    @rule(which=st.integers(0, 1), times=st.integers(1, 6))
    def step(self, which, times):
        for _ in range(times):
            try:
                self.actors[which].step()
            except (LeadershipLost, ServerUnavailable):
                self.actors[which]._due_ms = 0  # as its loop does
            self.hear()

    @rule(which=st.integers(0, 1))
    def crash(self, which):
        self.actors[which] = self.start()

    @rule(passed_ms=PASSED_MS)
    def let_time_pass(self, passed_ms):
        self.now_ms += passed_ms

    @rule(which=st.integers(0, 1), times=st.integers(0, 12))
    def snapshot(self, which, times):
        self.actors[which]._saving.hurry()
        self.step(which, times)

    def hear(self):
        for entry_id, fields in self.stage.connection.range(
            self.stage.keys.inbox("c"), start=b"(" + self.heard, count=1_000
        ):
            self.heard = entry_id
            answer = Answer.decode(fields[1])
            result = dict(answer.result)
            assert self.told.setdefault(answer.request_id, result) == result  # same id, same answer

    # --- what must be true -----------------------------------------------------------------------

    @rule()
    def drain_and_compare(self):
        self.append("a", 1, None)  # the log comes to now, and with it everything that is due
        self.drain()
        self.oracle.tick(self.actors[0]._follower.ledger.log_ms)  # a leader lets it go on for what expires
        for actor in self.actors:
            self.compare(actor._follower.ledger)
        one, other = (digests_now(actor._follower.ledger) for actor in self.actors)
        assert one == other
        found = [(letter.source, letter.reason) for letter in self.stage.dead()]
        assert found == self.oracle.dead
        for request, expected in self.oracle.answers.items():
            told = self.told.get(request, expected)
            assert {name: told[name] for name in expected} == expected

    def drain(self):
        for _ in range(TURNS_MAX):
            last = self.stage.state(self.stage.keys.log).last_id
            follow = [actor._follower for actor in self.actors]
            all_folded = all(each.recovered and each.position.offset == last for each in follow)
            leading = [actor for actor in self.actors if actor._leadership.epoch]
            if all_folded and len(leading) == 1 and leading[0]._desk.epoch and not leading[0]._letters:
                return
            self.now_ms += LEASE_MS // 8
            for which in range(2):
                self.step(which, 2)
        raise AssertionError("it never comes to rest")

    def compare(self, ledger):
        oracle = self.oracle
        status, limits = ask(ledger, "status"), ask(ledger, "limits", oracle.now_ms)
        found = [status["duplicates"], status["dead"], status["missing"]]
        assert found == [oracle.duplicates, Counter(reason for _, reason in oracle.dead), self.skipped]
        used = Counter()
        for _, agent, tokens in oracle.used:
            used[agent] += tokens
        groups = ask(ledger, "analytics", group_by=["agent"])["groups"]
        assert Counter({group["agent"]: group["input_tokens"] for group in groups}) == used
        tops = {each["name"]: each["top"] for each in limits["limits"]}
        found = [(top["used"], top["reserved"]) for top in tops["l"]]
        assert found == [oracle.taken()]
        assert [(top["used"], top["reserved"]) for top in tops["day"]] == [oracle.taken(of_the_minute=False)]
        assert limits["open_reservations"] == oracle.open()
        assert [top["reserved"] for top in tops["calls"]] in ([oracle.open()], [])
        assert ask(ledger, "books")["differences"] == []

    def teardown(self):
        if hasattr(self, "actors"):
            self.drain_and_compare()
            for operation, request, event, arguments in self.commands:
                self.stage.command(operation, request, event, **arguments)
            self.drain_and_compare()
            assert self.told.keys() >= self.oracle.answers.keys()  # whoever asked again was answered


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.CRITICAL, logger="token_actor")


def test_two_actors_know_what_an_oracle_knows():
    run_state_machine_as_test(FleetAgainstOracle, settings=settings(examples(100), stateful_step_count=40))


@pytest.mark.parametrize(
    "bug", ["dedupe off", "snapshot without dedupe state", "offset saved before state", "reservation never expires"]
)
def test_a_planted_bug_is_noticed(bug):
    once = settings(examples(2_000), phases=[Phase.generate], report_multiple_bugs=False)  # it ends at the first
    with planted(bug), pytest.raises(AssertionError):
        run_state_machine_as_test(FleetAgainstOracle, settings=once)
