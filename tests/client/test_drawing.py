"""Calls that are granted in one exchange, from what the actor has set aside: in memory and on a real server."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from tests.client.harness import Fleet, wait_until
from token_actor.actor import escrow
from token_actor.actor.leadership import Leadership
from token_actor.client import drawing
from token_actor.core.limits import Limit
from token_actor.embedded import EmbeddedServer
from token_actor.errors import RateLimited, ServerUnavailable
from token_actor.transport.ports import AddToField, Delete, Put
from token_actor.transport.redis import RedisConnector
from token_actor.wire.codec import unpack
from token_actor.wire.messages import COMMAND_FIELD

AMPLE = 10**9


@pytest.fixture
def client(fleet):
    """A client under an ample limit, whose actor answers."""
    fleet.actor()
    client = fleet.client(agent="a")
    client.put_limit(Limit("l", AMPLE))
    return client


def drawn(client, tokens=10, **more):
    """Tell whether a call was granted without the actor."""
    return "drawn" in client.reserve(tokens, **more).decision


def warm(client, tokens=10, **more):
    """Reserve until that needs no actor any more; return how many calls it took."""
    calls = []
    wait_until(lambda: calls.append(drawn(client, tokens, **more)) or calls[-1])
    return len(calls)


def reserved(client, name="l"):
    (top,) = next(limit["top"] for limit in client.limits() if limit["name"] == name)
    return top["reserved"]


def counters(fleet):
    return fleet.connect().get_fields(fleet.keys().escrow)


def commands(fleet, operation):
    """Return the arguments of the commands of one kind in the log."""
    found = [
        unpack(fields[1], bytes_max=100_000) for _, fields in fleet.log() if fields[0] == COMMAND_FIELD
    ]  # fmt: skip
    return [each["args"] for each in found if each["op"] == operation]


class TestGranting:
    def test_who_asks_often_is_granted_without_the_actor_and_all_of_it_counts(self, client):
        calls = warm(client)
        assert calls > escrow.OFTEN
        assert sum(drawn(client) for _ in range(100)) > 50
        assert reserved(client) == (calls + 100) * 10

    def test_a_decision_has_what_every_decision_has(self, client):
        decided = client.reserve(10).decision
        warm(client)
        taken = client.reserve(10).decision
        assert taken.keys() - {"drawn"} == decided.keys()
        assert (taken["granted"], taken["limit"], taken["cost"], taken["degraded"]) == (True, "l", 10, False)
        assert taken["estimate"] == decided["estimate"]

    def test_a_smaller_call_is_taken_too_and_a_larger_one_decided(self, client):
        warm(client)
        smaller = client.reserve(7).decision
        assert (smaller["cost"], smaller["estimate"]["tokens"]) == (None, 7)
        assert "drawn" not in client.reserve(11).decision

    def test_calls_that_have_grown_get_an_escrow_of_their_own(self, client):
        warm(client)
        warm(client, tokens=30)
        assert drawn(client, 25)

    def test_a_call_that_says_nothing_is_taken_for_what_was_learned(self, client):
        client.record(40, 2)
        warm(client, tokens=None)
        before = reserved(client)
        assert drawn(client, None)
        assert reserved(client) == before + 42

    def test_it_is_settled_released_and_extended_like_any_other(self, client):
        warm(client)
        before = reserved(client)
        calls = [client.reserve(10) for _ in range(3)]
        assert all("drawn" in call.decision for call in calls)
        assert calls[0].settle(4)["state"] == "settled"
        assert calls[1].release()
        assert calls[2].extend(500)
        assert reserved(client) == before + 10
        assert client.analytics()["input_tokens"] == 4

    def test_it_expires_like_any_other(self, client):
        warm(client)
        before = reserved(client)
        client.reserve(10, ttl_s=0.05)
        wait_until(lambda: reserved(client) == before)
        assert client.status()["open_reservations"] == before // 10

    def test_what_is_set_aside_is_not_shown(self, client):
        calls = warm(client)
        (top,) = client.limits()[0]["top"]
        assert (top["used"], top["reserved"], top["remaining"]) == (0, calls * 10, AMPLE - calls * 10)

    def test_the_figures_of_a_decision_are_not_older_than_that(self, client, monkeypatch):
        monkeypatch.setattr(drawing, "HINT_S", 0.0)
        assert not any(drawn(client) for _ in range(3 * escrow.OFTEN))

    def test_several_calls_in_one_are_decided(self, client):
        warm(client)
        assert not drawn(client, requests=2)

    def test_other_names_are_somebody_else(self, client):
        warm(client)
        assert not drawn(client, agent="b")

    def test_while_the_actor_is_away_what_is_set_aside_is_granted(self, fleet):
        actor = fleet.actor()
        client = fleet.client(agent="a")
        client.put_limit(Limit("l", AMPLE))
        calls = warm(client)
        actor.stop()
        assert drawn(client)
        fleet.actor()
        wait_until(lambda: reserved(client) == (calls + 1) * 10)


class TestBeingTight:
    @pytest.mark.parametrize("kind", ["window", "bucket", "concurrency"])
    def test_not_one_token_is_granted_too_much_nor_one_held_back(self, fleet, kind):
        fleet.actor()
        client = fleet.client(lines_max=8)
        client.put_limit(Limit("l", 1_000, kind=kind, seconds=10_000))

        def work(number):
            granted = 0
            try:
                while True:
                    granted += bool(client.reserve(0 if kind == "concurrency" else 5, agent=f"a{number % 3}"))
            except RateLimited:
                return granted

        with ThreadPoolExecutor(8) as pool:
            granted = sum(pool.map(work, range(8)))
        assert granted == (1_000 if kind == "concurrency" else 200)
        assert any("escrow" in each for each in commands(fleet, "reserve")), "it was about escrow at all"

    def test_who_needs_what_is_set_aside_for_others_gets_it(self, fleet):
        fleet.actor()
        client = fleet.client()
        client.put_limit(Limit("l", 1_000))
        calls = warm(client, agent="a")
        assert client.reserve(1_000 - calls * 10, agent="b").decision["granted"]
        with pytest.raises(RateLimited) as refused:
            client.reserve(1, agent="b")
        assert (refused.value.remaining, refused.value.reserved) == (0, 1_000)


class TestChanges:
    def test_once_a_limit_is_put_it_is_obeyed(self, client):
        warm(client)
        client.put_limit(Limit("new", 25))
        assert [bool(client.reserve(10)) for _ in range(2)] == [True, True]
        with pytest.raises(RateLimited) as refused:
            client.reserve(10)
        assert refused.value.limit == "new"

    def test_who_is_killed_is_refused_from_then_on(self, client):
        warm(client)
        client.kill(agent="a")
        with pytest.raises(RateLimited):
            client.reserve(10)
        client.revive(agent="a")
        assert warm(client)

    def test_nothing_is_granted_during_a_pause(self, fleet):
        fleet.actor()
        client = fleet.client(provider="openai", model="m")
        client.observe_headers({"x-ratelimit-limit-requests": "100000"})
        warm(client)
        client.observe_headers({"retry-after": "60"}, status=429)
        with pytest.raises(RateLimited):
            client.reserve(10)


class TestTheLeader:
    def test_the_next_one_recalls_what_the_last_one_set_aside(self, fleet):
        first = fleet.actor()
        client = fleet.client(agent="a")
        client.put_limit(Limit("l", AMPLE))
        calls = warm(client)
        old = set(counters(fleet))
        first.stop()
        fleet.actor()
        wait_until(lambda: not old & set(counters(fleet)))
        calls += warm(client)
        assert reserved(client) == calls * 10

    def test_what_nobody_takes_is_recalled(self, client, fleet, monkeypatch):
        monkeypatch.setattr(escrow, "IDLE_MS", 50)
        monkeypatch.setattr(escrow, "LOOK_MS", 10)
        warm(client)
        wait_until(lambda: counters(fleet) == {})
        assert not drawn(client)

    def test_a_counter_that_nobody_knows_is_let_go_of(self, client, fleet, monkeypatch):
        monkeypatch.setattr(escrow, "LOOK_MS", 10)
        warm(client)
        fleet.connect().write([AddToField(key=fleet.keys().escrow, field=b"stray", amount=-1)])
        wait_until(lambda: b"stray" not in counters(fleet))
        assert len(counters(fleet)) == 1

    def test_more_is_set_aside_before_it_is_used_up(self, client):
        warm(client)
        assert sum(drawn(client) for _ in range(500)) > 400

    def test_where_usage_has_taken_the_room_it_is_recalled(self, fleet, monkeypatch):
        monkeypatch.setattr(escrow, "LOOK_MS", 10)
        fleet.actor()
        client = fleet.client(agent="a")
        client.put_limit(Limit("l", 10_000))
        warm(client)
        client.record(10_000)
        client.flush()
        wait_until(lambda: counters(fleet) == {})
        assert client.status()["set_aside_calls"] == 0

    def test_where_two_want_all_there_is_one_gets_nothing(self, fleet, monkeypatch):
        monkeypatch.setattr(escrow, "SHARE", 1)
        monkeypatch.setattr(escrow, "OFTEN", 4)
        fleet.actor()
        client = fleet.client()
        client.put_limit(Limit("l", 160))
        with ThreadPoolExecutor(2) as pool:
            work = [pool.submit(lambda name=name: [client.reserve(10, agent=name) for _ in range(8)]) for name in "ab"]
            assert sum(len(each.result()) for each in work) == 16
        with pytest.raises(RateLimited):
            client.reserve(1)

    def test_what_was_not_written_for_certain_is_recalled(self, fleet, monkeypatch):
        fails = [True]

        def write(self, operations):
            if fails and any(isinstance(each, AddToField) for each in operations):
                fails.clear()
                raise ServerUnavailable("gone")
            return original(self, operations)

        original = Leadership.write
        monkeypatch.setattr(Leadership, "write", write)
        fleet.actor()
        client = fleet.client(agent="a")
        client.put_limit(Limit("l", AMPLE))
        calls = warm(client)
        assert not fails
        assert len(commands(fleet, "recall_escrows")) == 1
        assert reserved(client) == calls * 10

    def test_very_many_combinations_begin_anew(self, fleet, monkeypatch):
        monkeypatch.setattr(escrow, "COMBINATIONS_MAX", 2)
        fleet.actor()
        client = fleet.client()
        client.put_limit(Limit("l", AMPLE))
        for _ in range(2 * escrow.OFTEN):
            assert not any(drawn(client, agent=name) for name in ("a", "b", "c"))
        warm(client, agent="a")

    def test_a_server_that_does_not_let_it_is_left_alone(self, fleet, caplog):
        fleet.connect().write([Put(key=fleet.keys().escrow, value=b"something else")])
        fleet.actor()
        client = fleet.client(agent="a")
        client.put_limit(Limit("l", 1_000))
        with caplog.at_level(logging.WARNING, logger="token_actor.actor.escrow"):
            for _ in range(3 * escrow.OFTEN):
                assert not drawn(client, 1)
        wait_until(lambda: any(record.action == "escrow_refused" for record in caplog.records))
        assert reserved(client) == 3 * escrow.OFTEN


class TestTheServer:
    def test_after_an_outage_nothing_is_taken_from_what_was_known_before(self, valkey_fleet):
        fleet = valkey_fleet
        fleet.actor()
        client = fleet.client(agent="a", lines_max=1)
        client.put_limit(Limit("l", AMPLE))
        warm(client)
        fleet.go_away()
        fleet.come_back()
        assert not drawn(client)

    def test_when_the_counters_are_lost_that_is_noticed(self, fleet, monkeypatch):
        monkeypatch.setattr(escrow, "LOOK_MS", 10)
        fleet.actor()
        client = fleet.client(agent="a")
        client.put_limit(Limit("l", AMPLE))
        calls = warm(client)
        lost = set(counters(fleet))
        fleet.connect().write([Delete(keys=[fleet.keys().escrow])])
        client.reserve(10)
        wait_until(lambda: len(commands(fleet, "recall_escrows")) > 0)
        calls += 1 + warm(client)
        assert not lost & set(counters(fleet))
        assert reserved(client) == calls * 10

    def test_a_full_server_lets_nobody_take_anything_under_a_new_limit(self, namespace):
        with EmbeddedServer() as own, redis.Redis(port=own.port) as operator, Fleet.on(own.port, namespace) as fleet:
            fleet.actor()
            client = fleet.client(agent="a")
            client.put_limit(Limit("l", AMPLE))
            warm(client)
            operator.config_set("maxmemory", 1)
            wait_until(lambda: counters(fleet) == {})
            operator.config_set("maxmemory", 0)
            client.put_limit(Limit("new", 0))
            with pytest.raises(RateLimited):
                client.reserve(10)

    def test_a_client_that_may_not_count_is_decided(self, namespace):
        with EmbeddedServer() as own, redis.Redis(port=own.port) as operator, Fleet.on(own.port, namespace) as fleet:
            operator.acl_setuser("few", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-hincrby"])
            fleet.client_connector = RedisConnector(f"redis://few:pw@127.0.0.1:{own.port}/0")
            fleet.actor()
            client = fleet.client(agent="a")
            client.put_limit(Limit("l", AMPLE))
            assert not any(drawn(client) for _ in range(5 * escrow.OFTEN))

    def test_without_its_counter_a_call_is_decided(self, client, fleet):
        calls = warm(client)
        connection = fleet.connect()
        for name in counters(fleet):
            connection.write([AddToField(key=fleet.keys().escrow, field=name, amount=-AMPLE)])
        assert client.reserve(10).decision["granted"]
        assert reserved(client) == (calls + 1) * 10
