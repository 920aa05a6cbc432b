"""Limits against a brute-force oracle that keeps every grant and every use and looks at every window anew.

Each run is random but the same every time; ``MORE_EXAMPLES`` multiplies the seeds. A failure prints its seed.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field

import pytest

from tests.makers import START_MS, batch_entry, command_entry, entry, fields_of, plain, single_entry
from tests.makers import event as make_event
from token_actor.actor.fold import fold
from token_actor.core.ledger import Ledger
from token_actor.core.limits import Limit
from token_actor.core.queries import answer as ask_ledger

SEEDS = 25 * int(os.environ.get("MORE_EXAMPLES", "1"))
STEPS = 1_000  # of each seed: 25,000 operations in the default run
NAMES = [("a", "m"), ("a", "n"), ("b", "m")]
SUB_BUCKETS = 60


@dataclass
class Taken:
    """Something that counts: when, how much, and what of it was granted rather than just used."""

    at_ms: int
    amount: int
    granted: int
    held: bool = False


@dataclass
class Rule:
    """One window limit, and everything that ever counted under it, by agent."""

    limit: Limit
    by_agent: bool
    taken: dict[str, list[Taken]] = field(default_factory=dict)

    def covers(self, model):
        return self.limit.selector.get("model", model) == model

    def of(self, agent):
        return self.taken.setdefault(agent if self.by_agent else "", [])

    def sums(self, agent, now_ms):
        """Used and reserved in the window that ends now, in whole sub-buckets."""
        width_ms = -(-self.limit.window_ms // SUB_BUCKETS)
        first = now_ms // width_ms - SUB_BUCKETS
        inside = [each for each in self.of(agent) if each.at_ms // width_ms >= first]
        held = sum(each.amount for each in inside if each.held)
        return sum(each.amount for each in inside) - held, held


@dataclass
class Booked:
    """A reservation as the oracle knows it: its parts by name of the limit."""

    agent: str
    model: str
    parts: dict[str, Taken]
    expires_ms: int
    state: str = "open"
    told: object = None


class Oracle:
    """Keep everything, decide by adding up."""

    def __init__(self, rules):
        self.rules = rules
        self.now_ms = 0
        self.booked: dict[str, Booked] = {}

    def advance(self, now_ms):
        self.now_ms = max(self.now_ms, now_ms)
        for each in self.booked.values():
            if each.state == "open" and each.expires_ms <= self.now_ms:
                each.state = "expired"
                for name, part in each.parts.items():
                    part.held = False
                    if self.rule(name).limit.on_expire == "refund":
                        part.amount = part.granted = 0

    def rule(self, name):
        return next(rule for rule in self.rules if rule.limit.name == name)

    def covering(self, model):
        return [rule for rule in self.rules if rule.covers(model)]

    def use(self, agent, model, tokens):
        for rule in self.covering(model):
            rule.of(agent).append(Taken(self.now_ms, tokens, 0))

    def reserve(self, key, agent, model, tokens, ttl_ms):
        rules = self.covering(model)
        fits = all(tokens == 0 or sum(rule.sums(agent, self.now_ms)) + tokens <= rule.limit.amount for rule in rules)
        if fits:
            parts = {}
            for rule in rules:
                if tokens:
                    parts[rule.limit.name] = Taken(self.now_ms, tokens, tokens, held=True)
                    rule.of(agent).append(parts[rule.limit.name])
            self.booked[key] = Booked(agent, model, parts, self.now_ms + ttl_ms)
        return fits

    def settle(self, key, tokens):
        each = self.booked[key]
        if each.state == "settled":
            return
        corrects = each.state in {"open", "expired"}
        for rule in self.covering(each.model):
            part = each.parts.get(rule.limit.name) if corrects else None
            covered = 0
            if part is not None:
                covered = min(part.amount, tokens)
                part.amount = part.granted = covered
                part.held = False
            rule.of(each.agent).append(Taken(self.now_ms, tokens - covered, 0))
        each.state = "settled"

    def release(self, key):
        each = self.booked[key]
        if each.state == "open":
            each.state = "released"
            for part in each.parts.values():
                part.amount = part.granted = 0
                part.held = False

    def check_every_window(self):
        """What was granted in any window at all, of the limit's length, is at most its amount."""
        for rule in self.rules:
            for taken in rule.taken.values():
                granted = sorted((each.at_ms, each.granted) for each in taken if each.granted)
                first = total = 0
                for at_ms, amount in granted:
                    total += amount
                    while granted[first][0] < at_ms - rule.limit.window_ms:
                        total -= granted[first][1]
                        first += 1
                    assert total <= rule.limit.amount


def limits_of(rng):
    windows_s = [0.05, 0.7, 3, 60]
    return [
        Limit("all", rng.choice([50, 200]), seconds=rng.choice(windows_s), on_expire=rng.choice(["charge", "refund"])),
        Limit("each", rng.choice([30, 100]), seconds=rng.choice(windows_s), by=["agent"]),
        Limit("m", rng.choice([20, 60]), seconds=rng.choice(windows_s), selector={"model": "m"}, on_expire="refund"),
    ]


class Play:
    """Write a log and tell ledger and oracle; the ledger answers each entry at once."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.ledger = Ledger()
        limits = limits_of(self.rng)
        self.oracle = Oracle([Rule(limit, bool(limit.by)) for limit in limits])
        self.now_ms = START_MS
        self.entries = []
        self.results = []
        self.grants = 0
        for limit in limits:
            self.command("put_limit", {"limit": limit.as_map()})

    def write(self, new, *, known=False):
        self.entries.append(new)
        if not known:  # a request that is answered already does not even move the time
            self.oracle.advance(self.now_ms)
        folded = fold(self.ledger, [new], epoch=1)
        assert folded.dead == []
        self.results += [(reply.request_id, reply.result) for _, reply in folded.answers]

    def command(self, operation, arguments, *, event=None, request=None):
        request = request or str(len(self.entries))
        self.write(command_entry(operation, arguments, event=event, request_id=request, at_ms=self.now_ms))
        return self.results[-1][1]

    def step(self):
        rng = self.rng
        self.now_ms += rng.choice([0, 0, 0, 1, 2, 15, 40, 200, 1_000]) * rng.choice([1, 1, 1, 1, 30])
        kind = rng.choice(["reserve"] * 5 + ["settle"] * 3 + ["use", "release", "extend", "again", "look"])
        getattr(self, kind)()

    def use(self):
        agent, model = self.rng.choice(NAMES)
        tokens = self.rng.randrange(12)
        self.write(single_entry(self.now_ms, **fields_of(make_event(tokens, agent=agent, model=model))))
        self.oracle.use(agent, model, tokens)

    def reserve(self):
        agent, model = self.rng.choice(NAMES)
        tokens = self.rng.choice([0, 1, 5, 20, 40, 300])
        ttl_ms = self.rng.choice([1, 50, 900, 60_000])
        arguments = {"agent": agent, "model": model, "tokens": tokens, "ttl_ms": ttl_ms}
        got = self.command("reserve", arguments)
        fits = self.oracle.reserve(f"c:{len(self.entries) - 1}", agent, model, tokens, ttl_ms)
        assert got["granted"] is fits, arguments
        self.grants += fits
        if not fits:
            self.check_refusal(got, agent, model, tokens)

    def check_refusal(self, got, agent, model, tokens):
        """The time to wait is right to the millisecond, if nothing else happens."""
        rules = self.oracle.covering(model)
        assert got["never"] is any(tokens > rule.limit.amount for rule in rules)
        binding = self.oracle.rule(got["limit"])
        assert (got["used"], got["reserved"]) == binding.sums(agent, self.now_ms)
        if not got["never"]:
            for wait_ms, fits in ((got["retry_after_ms"] - 1, False), (got["retry_after_ms"], True)):
                at_ms = self.now_ms + wait_ms
                found = [self.taken_at(rule, agent, at_ms) + tokens <= rule.limit.amount for rule in rules]
                assert all(found) is fits

    def taken_at(self, rule, agent, at_ms):
        """What a limit will count at a later time, with what expires until then."""
        given_back = 0
        width_ms = -(-rule.limit.window_ms // SUB_BUCKETS)
        if rule.limit.on_expire == "refund":
            for each in self.oracle.booked.values():
                part = each.parts.get(rule.limit.name)
                same = not rule.by_agent or each.agent == agent
                if part and part.held and same and each.state == "open" and each.expires_ms <= at_ms:
                    given_back += part.amount * (part.at_ms // width_ms >= at_ms // width_ms - SUB_BUCKETS)
        return sum(rule.sums(agent, at_ms)) - given_back

    def pick(self):
        keys = list(self.oracle.booked)[-12:]
        return self.rng.choice(keys) if keys else None

    def settle(self):
        key = self.pick()
        if key is not None:
            each = self.oracle.booked[key]
            tokens = self.rng.choice([0, 1, 5, 20, 45])
            self.oracle.advance(self.now_ms)
            was = each.state
            used = fields_of(make_event(tokens, agent=each.agent, model=each.model))
            got = self.command("settle", {"reservation": key}, event=used)
            if was == "settled":
                assert got == each.told
            else:
                assert (got["counted"], got["late"], got["unknown"]) == (True, was in {"expired", "released"}, False)
                each.told = got
            self.oracle.settle(key, tokens)

    def release(self):
        key = self.pick()
        if key is not None:
            self.oracle.advance(self.now_ms)
            was = self.oracle.booked[key].state
            assert self.command("release", {"reservation": key})["released"] is (was == "open")
            self.oracle.release(key)

    def extend(self):
        key = self.pick()
        if key is not None:
            self.oracle.advance(self.now_ms)
            each = self.oracle.booked[key]
            got = self.command("extend", {"reservation": key, "ttl_ms": 400})
            assert got["extended"] is (each.state == "open")
            if each.state == "open":
                each.expires_ms = self.now_ms + 400

    def again(self):
        """A command that is sent again changes nothing, and has the answer it had."""
        sent = [place for place, (_, fields) in enumerate(self.entries) if fields[0] == b"c"][-20:]
        value = self.entries[self.rng.choice(sent)][1][1]
        self.write(entry(value, b"c", at_ms=self.now_ms), known=True)
        request, result = self.results[-1]
        assert (request, result) in self.results[:-1]

    def look(self):
        """The numbers shown are those that decide."""
        shown = {each["name"]: each for each in ask_ledger(self.ledger, "limits", {}, self.ledger.log_ms)["limits"]}
        for rule in self.oracle.rules:
            for agent in rule.taken:
                scope = {"agent": agent} if rule.by_agent else {}
                found = [
                    (top["used"], top["reserved"]) for top in shown[rule.limit.name]["top"] if top["scope"] == scope
                ]
                assert (found or [(0, 0)]) == [rule.sums(agent, self.ledger.log_ms)]


@pytest.fixture(scope="module")
def plays():
    made = []
    for seed in range(SEEDS):
        play = Play(seed)
        try:
            for _ in range(STEPS):
                play.step()
        except AssertionError:
            print(f"seed {seed}, entry {len(play.entries)}")
            raise
        made.append(play)
    return made


def test_every_decision_and_every_number_shown_is_that_of_the_oracle(plays):
    assert sum(play.grants for play in plays) > SEEDS * STEPS / 20  # refusals are no use without grants
    refused = sum(each["refused"] for play in plays for each in ask_ledger(play.ledger, "limits", {}, 0)["limits"])
    assert refused > SEEDS * STEPS / 20


def test_what_is_granted_in_any_window_is_at_most_the_limit(plays):
    for play in plays:
        play.oracle.check_every_window()


def test_nothing_is_reserved_at_rest(plays):
    for play in plays:
        play.now_ms += 200_000
        play.use()
        limits = ask_ledger(play.ledger, "limits", {}, 0)
        assert limits["open_reservations"] == 0
        assert {top["reserved"] for each in limits["limits"] for top in each["top"]} == {0}
        assert all(meter.holders == {} for meter in play.ledger.limits.meters.values())


def state_of(ledger):
    return plain([ledger.limits.dump(), ledger.reservations.dump(), ledger.total()])


def test_the_result_does_not_depend_on_how_the_log_is_cut_into_reads(plays):
    for play in plays:
        ledger, results, rng = Ledger(), [], random.Random(1)
        left = list(play.entries)
        while left:
            cut = rng.choice([1, 3, 10, 100])
            folded = fold(ledger, left[:cut], epoch=1)
            results += [(reply.request_id, reply.result) for _, reply in folded.answers]
            left = left[folded.entries :]
        assert results == play.results
        assert state_of(ledger) == state_of(play.ledger)


def test_batches_with_many_times_count_the_same_however_they_are_cut():
    for seed in range(SEEDS):
        rng = random.Random(seed)
        limits = [
            *limits_of(rng),
            Limit("b", 50, kind="bucket", seconds=1, by=["agent"], on_expire="refund"),
            Limit("d", 200, kind="calendar", period="day", tz="America/Sao_Paulo", by=["agent"]),  # midnight in 3 h
            Limit("c", 5, kind="concurrency"),
        ]
        log = [command_entry("put_limit", {"limit": each.as_map()}, request_id=each.name) for each in limits]
        at_ms = START_MS
        for number in range(120):
            at_ms += rng.choice([0, 0, 1, 30, 500, 20_000, 2_000_000])
            agent, model = rng.choice(NAMES)
            if rng.random() < 0.15:
                asked = {"agent": agent, "tokens": rng.randrange(30), "ttl_ms": rng.choice([5, 800, 30_000])}
                log.append(command_entry("reserve", asked, request_id=f"r{number}", at_ms=at_ms))
            else:
                again = max(0, number - rng.randrange(2))  # now and then a resend, which counts nothing
                used = [make_event(rng.randrange(9), agent=agent, model=model) for _ in range(2)]
                log.append(batch_entry(*used, at_ms=at_ms, first_seq=2 * again))
        whole, cut = Ledger(), Ledger()
        fold(whole, log, epoch=1)
        for each in log:
            fold(cut, [each], epoch=1)
        assert state_of(whole) == state_of(cut), f"seed {seed}"
