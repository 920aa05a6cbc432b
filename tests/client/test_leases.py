"""Leases through a client, in memory and on a real server: who decides, what is charged, and what comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from decimal import Decimal

import pytest

from tests.client.harness import JOIN_S, run_script, start_script, wait_until
from token_actor.core.limits import Limit
from token_actor.errors import ActorUnavailable, ClosedError, InvalidValue, RateLimited

LONG_S = 60.0  # longer than any test


@pytest.fixture
def client(fleet):
    """A client of a fleet that may use 1000 tokens an hour."""
    fleet.actor()
    client = fleet.client(agent="a")
    client.put_limit(Limit("l", 1_000, seconds=3_600))
    return client


def taken(client, name="l"):
    (limit,) = [each for each in client.limits() if each["name"] == name]
    return (limit["top"][0]["used"], limit["top"][0]["reserved"]) if limit["top"] else (0, 0)


class Commands:
    """Note the commands of a client, and the threads that gave them."""

    def __init__(self, client):
        self.given = []
        self._give = client._engine.command
        client._engine.command = self

    def __call__(self, operation, arguments, **more):
        self.given.append((operation, threading.current_thread().name, arguments))
        return self._give(operation, arguments, **more)

    def of(self, operation):
        """Return the arguments of all commands of one kind."""
        return [arguments for given, _, arguments in self.given if given == operation]

    def by(self, thread):
        """Return the kinds of commands that a thread gave."""
        return [operation for operation, name, _ in self.given if name == thread]


def grown(lease, calls=200):
    """Take from a lease until it holds blocks of many calls."""
    for _ in range(calls):
        lease.reserve(1).settle()


class TestDeciding:
    def test_nothing_is_held_before_the_first_call(self, client):
        assert client.lease().try_reserve(1) is None

    def test_the_first_call_takes_no_more_than_it_asks_for(self, client):
        commands = Commands(client)
        lease = client.lease(ttl_s=LONG_S)
        lease.reserve(10)
        (asked,) = commands.of("reserve")
        assert (asked["tokens"], asked["requests"], asked["agent"]) == (10, 1, "a")

    def test_what_is_held_is_granted_without_asking_anybody(self, client):
        lease = client.lease(ttl_s=LONG_S)
        grown(lease)
        commands = Commands(client)
        calls = [lease.try_reserve(1) for _ in range(5)]
        assert None not in calls
        assert commands.by(threading.current_thread().name) == []

    def test_one_block_serves_many_calls(self, client):
        commands = Commands(client)
        lease = client.lease(ttl_s=LONG_S)
        calls = [lease.reserve(1) for _ in range(500)]
        assert len(calls) == 500
        assert len(commands.of("reserve")) < 50

    def test_one_client_may_take_the_limit_to_its_last_token(self, client):
        lease = client.lease(ttl_s=LONG_S)
        calls = [lease.reserve(10) for _ in range(100)]
        with pytest.raises(RateLimited) as refused:
            lease.reserve(1)
        assert (refused.value.limit, refused.value.remaining, len(calls)) == ("l", 0, 100)
        assert taken(client) == (0, 1_000)

    def test_what_is_held_but_too_little_goes_back_before_a_call_is_refused(self, client):
        lease = client.lease(ttl_s=LONG_S)
        for _ in range(3):
            lease.reserve(300).release()
        assert lease.reserve(1_000) is not None

    def test_what_others_took_is_refused(self, fleet, client):
        fleet.client(agent="b").reserve(995)
        with pytest.raises(RateLimited) as refused:
            client.lease().reserve(6)
        assert (refused.value.remaining, refused.value.degraded) == (5, False)

    def test_every_limit_that_covers_the_calls_counts(self, client):
        client.put_limit(Limit("calls", 3, unit="requests", seconds=3_600))
        client.put_limit(Limit("money", 10**9, unit="cost_nanousd", seconds=3_600))
        lease = client.lease(ttl_s=LONG_S)
        with pytest.raises(RateLimited) as too_dear:
            lease.reserve(1, cost_usd="1.000000001")
        calls = [lease.reserve(1, cost_usd=Decimal("0.25")) for _ in range(3)]
        with pytest.raises(RateLimited) as too_many:
            lease.reserve(1)
        assert (too_dear.value.limit, too_many.value.limit, len(calls)) == ("money", "calls", 3)
        assert (taken(client, "calls"), taken(client, "money")) == ((0, 3), (0, 750_000_000))

    def test_costs_are_taken_from_what_is_held_too(self, client):
        client.put_limit(Limit("money", 10**9, unit="cost_nanousd", seconds=3_600))
        lease = client.lease(ttl_s=LONG_S)
        for _ in range(20):
            lease.reserve(1, cost_usd="0.001").settle(cost_usd="0.001")
        assert lease.try_reserve(1, cost_usd="0.001") is not None
        assert lease.try_reserve(1, cost_usd="0.9") is None

    def test_what_is_tried_for_in_vain_is_asked_for_in_the_background(self, client):
        lease = client.lease(ttl_s=LONG_S)
        wait_until(lambda: lease.try_reserve(10) is not None)
        assert lease.try_reserve(2_000) is None  # more than there will ever be
        assert taken(client)[1] >= 10

    def test_a_call_that_never_fits_leaves_what_is_held_here(self, client):
        lease = client.lease(ttl_s=LONG_S)
        grown(lease)
        wait_until(lambda: lease.try_reserve(1) is not None)
        with pytest.raises(RateLimited) as refused:
            lease.reserve(2_000)
        assert refused.value.retry_after_s is None
        assert lease.try_reserve(1) is not None

    def test_a_block_leaves_half_of_what_remains_to_others(self, fleet, client):
        lease = client.lease(ttl_s=LONG_S)
        for _ in range(100):
            lease.reserve(1)
        assert fleet.client(agent="b").reserve(400)

    def test_a_limit_of_concurrent_calls_cannot_be_leased(self, client):
        client.put_limit(Limit("few", 5, kind="concurrency", selector={"agent": "a"}))
        with pytest.raises(InvalidValue) as refused:
            client.lease().reserve(1)
        assert "'few', a limit of concurrent calls" in str(refused.value)
        assert taken(client, "few") == (0, 0)
        assert client.lease(agent="b").reserve(1)

    @pytest.mark.parametrize(("arguments", "field"), [
        ({"tokens": -1}, "tokens"), ({"tokens": 1.0}, "tokens"), ({"tokens": True}, "tokens"),
        ({"tokens": 0, "cost_usd": -1}, "cost_usd"),
    ])  # fmt: skip
    def test_a_wrong_argument_is_named(self, client, arguments, field):
        with pytest.raises(InvalidValue) as refused:
            client.lease().reserve(**arguments)
        assert refused.value.field == field

    @pytest.mark.parametrize(("arguments", "field"), [
        ({"ttl_s": 0}, "ttl_s"), ({"held_s": "1"}, "held_s"), ({"ttl_s": 2, "held_s": 1}, "held_s"),
        ({"colour": "red"}, "colour"),
    ])  # fmt: skip
    def test_a_wrong_term_is_named(self, fleet, arguments, field):
        with pytest.raises(InvalidValue) as refused:
            fleet.client().lease(**arguments)
        assert refused.value.field == field

    def test_threads_share_a_lease(self, client):
        lease, granted = client.lease(ttl_s=LONG_S), []

        def call():
            try:
                while True:
                    with lease.reserve(2) as call:
                        granted.append(1)
                        call.settle(1, 1)
            except RateLimited:
                return

        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(JOIN_S)
        lease.close()
        wait_until(lambda: taken(client)[1] == 0)
        assert 0 < len(granted) <= 500
        assert taken(client) == (2 * len(granted), 0)
        assert client.analytics()["requests"] == len(granted)

    def test_who_waits_for_a_block_that_another_asks_for_has_a_deadline(self, client):
        lease = client.lease()
        with lease._fetching, pytest.raises(ActorUnavailable, match="others wait for one"):
            lease.reserve(1, timeout_s=0.01)


class TestEnding:
    def test_a_settled_call_is_counted_once_and_its_block_comes_back(self, client):
        with client.lease(model="m") as lease:
            for _ in range(20):
                with lease.reserve(10) as call:
                    call.settle(3, 1, session="s")
                    call.settle(3, 1)
        wait_until(lambda: taken(client)[1] == 0)
        analytics = client.analytics(model="m", session="s")
        assert (analytics["requests"], analytics["total_tokens"], taken(client)) == (20, 80, (80, 0))

    def test_a_used_up_block_goes_back_when_its_calls_have_ended(self, client):
        lease = client.lease(ttl_s=LONG_S)
        call = lease.reserve(10)
        assert taken(client) == (0, 10)
        call.settle(4)
        wait_until(lambda: taken(client) == (4, 0))

    def test_a_block_comes_back_after_the_usage_is_in_the_log(self, fleet, client):
        lease = client.lease(ttl_s=LONG_S)
        lease.reserve(10).settle(4)
        wait_until(lambda: [fields[0] for _, fields in fleet.log()][-3:] == [b"c", b"b", b"c"])

    def test_a_call_that_was_left_charges_its_estimate_and_counts_no_call(self, client):
        with client.lease() as lease, lease.reserve(10):
            pass
        wait_until(lambda: taken(client) == (10, 0))
        assert client.analytics()["requests"] == 0

    def test_of_one_block_what_was_left_is_charged_and_the_rest_comes_back(self, client):
        lease = client.lease(ttl_s=LONG_S)
        grown(lease)
        with lease.reserve(7):
            pass
        lease.reserve(5).settle(2)
        lease.close()
        wait_until(lambda: taken(client) == (9, 0))
        assert client.analytics()["requests"] == 201

    def test_a_call_that_nobody_holds_any_more_charges_its_estimate(self, client):
        lease = client.lease()
        lease.reserve(10)
        lease.close()
        wait_until(lambda: taken(client) == (10, 0))

    def test_a_call_that_was_not_made_gives_back_what_it_took(self, client):
        lease = client.lease(ttl_s=LONG_S)
        lease.reserve(1_000).release()
        assert lease.reserve(1_000) is not None
        lease.close()

    def test_a_wrong_settlement_leaves_the_call_open(self, client):
        with client.lease() as lease, lease.reserve(10) as call:
            with pytest.raises(InvalidValue):
                call.settle(-1)
            call.settle(3)
        wait_until(lambda: taken(client) == (3, 0))


class TestLife:
    def test_a_block_grants_nothing_after_its_life(self, client):
        lease = client.lease(ttl_s=0.05)
        lease.reserve(100).release()
        wait_until(lambda: lease.try_reserve(1) is None)

    def test_an_idle_lease_gives_back_what_it_holds_and_asks_for_nothing(self, client):
        lease = client.lease(ttl_s=0.2)
        grown(lease)
        wait_until(lambda: taken(client) == (0, 0))
        wait_until(lambda: client._keeper._thread is None)
        commands = Commands(client)
        assert lease.try_reserve(1) is None
        assert commands.given == []

    def test_the_next_block_is_there_before_it_is_needed(self, client):
        commands = Commands(client)
        lease = client.lease(ttl_s=LONG_S)

        def asked_ahead():
            lease.reserve(1).settle()
            return "reserve" in commands.by("token-actor-leases")

        wait_until(asked_ahead)

    def test_a_block_is_held_while_a_call_is_open(self, client):
        commands = Commands(client)
        lease = client.lease(ttl_s=0.1, held_s=2.0)
        call = lease.reserve(10)
        wait_until(lambda: len(commands.of("extend")) == 2)
        assert taken(client) == (0, 10)
        call.settle(10)
        wait_until(lambda: taken(client) == (10, 0))

    def test_a_block_that_expired_on_the_actor_is_not_given_back(self, client):
        commands = Commands(client)
        lease = client.lease(ttl_s=0.1, held_s=2.0)
        call = lease.reserve(10)
        (block,) = lease._blocks
        block.reservation.settle(10)  # the actor's clock ran ahead, say
        wait_until(lambda: commands.of("extend") and block.gone)
        call.settle(1)
        wait_until(lambda: client._keeper._thread is None)
        assert (commands.of("release"), taken(client)) == ([], (11, 0))

    def test_an_outage_does_not_let_go_of_the_block_of_an_open_call(self, fleet, client, caplog):
        other = fleet.client(agent="b", timeout_s=0.2)
        lease = other.lease(ttl_s=0.1, held_s=10.0)
        call = lease.reserve(10)
        (block,) = lease._blocks
        fleet.go_away()
        block.held_until -= 8.0  # so much time has passed
        wait_until(lambda: "lease_failed" in [getattr(record, "action", None) for record in caplog.records])
        fleet.come_back()
        wait_until(lambda: block.held_until - time.monotonic() > 5.0)
        call.settle(1)
        wait_until(lambda: taken(client) == (1, 0))

    @pytest.mark.parametrize(
        ("problem", "logged"),
        [
            (ActorUnavailable("away", timeout_s=1), 1),
            (RateLimited("no", retry_after_s=9, limit="l", used=1, reserved=0, remaining=0), 0),
        ],
    )
    def test_a_block_that_cannot_be_had_ahead_of_need_is_not_asked_for_again_at_once(
        self, client, caplog, problem, logged
    ):
        refused = []

        def refuse(*arguments):
            refused.append(threading.current_thread().name)
            raise problem

        lease = client.lease(ttl_s=LONG_S)
        grown(lease)
        grant, lease._lender.grant = lease._lender.grant, refuse
        wait_until(lambda: lease.try_reserve(1) is None or refused)
        wait_until(lambda: refused)
        for _ in range(3):
            client._keeper.wake()
            taken(client)
        assert refused == ["token-actor-leases"]
        assert [record.message[:14] for record in caplog.records] == ["The next block"] * logged
        lease._lender.grant = grant

    def test_a_closed_lease_takes_no_call_and_holds_nothing_without_open_ones(self, client):
        lease = client.lease(ttl_s=LONG_S)
        grown(lease)
        call = lease.reserve(1)
        lease.close()
        lease.close()
        with pytest.raises(ClosedError):
            lease.reserve(1)
        call.settle(1)
        wait_until(lambda: taken(client) == (1, 0))

    def test_a_closed_client_holds_nothing(self, fleet, client):
        other = fleet.client(agent="b")
        lease = other.lease(ttl_s=LONG_S)
        lease.reserve(10).settle(1)
        grown(lease)
        other.close()
        assert taken(client) == (1, 0)
        lease.close()

    def test_it_is_no_error_that_the_actor_is_away_when_a_lease_is_closed(self, fleet, client, caplog):
        other = fleet.client(agent="b", timeout_s=0.2)
        lease = other.lease(ttl_s=LONG_S)
        lease.reserve(10).release()
        fleet.go_away()
        lease.close()
        assert "lease_failed" in [getattr(record, "action", None) for record in caplog.records]
        fleet.come_back()
        wait_until(lambda: taken(client) == (0, 0))

    def test_coroutines_decide_without_waiting(self, fleet):
        async def play():
            async with fleet.async_client(agent="a") as client:
                await client.put_limit(Limit("l", 100, seconds=3_600))
                async with client.lease(ttl_s=LONG_S) as lease:
                    assert lease.try_reserve(10) is None
                    with await lease.reserve(10) as call:
                        call.settle(3)
                    for _ in range(40):
                        (await lease.reserve(1)).settle()
                    call = await lease.reserve(1)
                    assert call.degraded is False
                    call.settle(1)
                    with pytest.raises(RateLimited):
                        await lease.reserve(101)
                wait_until(lambda: taken(client._sync) == (4, 0))
                late = client.lease()
            await late.close()

        fleet.actor()
        asyncio.run(play())


LEAVING = """
import sys
from token_actor import TokenClient
client = TokenClient(sys.argv[1], namespace=sys.argv[2], agent="b")
lease = client.lease(ttl_s=60)
for _ in range(50):
    lease.reserve(2).settle(1)
"""
FORKING = """
import json, os, sys
from token_actor import TokenClient
client = TokenClient(sys.argv[1], namespace=sys.argv[2], agent="b")
lease = client.lease(ttl_s=60)
for _ in range(50):
    lease.reserve(1).settle()
assert lease.try_reserve(1) is not None
r, w = os.pipe()
if not os.fork():
    none = lease.try_reserve(1) is None
    lease.reserve(1).settle(1)
    client.close()
    os.write(w, str(none).encode())
    os._exit(0)
os.wait()
found = os.read(r, 10).decode()
client.close()
print(json.dumps(found))
"""
STORM = """
import os, sys, threading
from token_actor import RateLimited, TokenClient
client = TokenClient(sys.argv[1], namespace=sys.argv[2], agent=sys.argv[3], timeout_s=10.0)
lease, granted = client.lease(ttl_s=0.3), 0
while True:
    try:
        call = lease.reserve(7)
    except RateLimited:
        break
    os.write(1, b"7\\n")
    granted += 1
    if (sys.argv[3], granted) == ("killed", 100):
        threading.Event().wait()
    call.settle(7)
"""


class TestProcesses:
    def test_who_ends_without_a_word_gives_back_what_it_held(self, server, valkey_fleet):
        client = self.fleet_client(valkey_fleet)
        run_script(LEAVING, server.url, valkey_fleet.namespace)
        assert taken(client) == (50, 0)

    def test_a_child_begins_with_nothing(self, server, valkey_fleet):
        client = self.fleet_client(valkey_fleet)
        assert run_script(FORKING, server.url, valkey_fleet.namespace) == "True"
        wait_until(lambda: taken(client)[1] == 0)

    def test_with_clients_killed_never_more_is_granted_than_the_limit(self, server, valkey_fleet):
        client = self.fleet_client(valkey_fleet, amount=30_000)
        storm = [start_script(STORM, server.url, valkey_fleet.namespace, "killed")]
        first = "".join(storm[0].stdout.readline() for _ in range(100))
        storm += [start_script(STORM, server.url, valkey_fleet.namespace, name) for name in ("s1", "s2")]
        outs = [first + storm[1].stdout.readline()]
        os.kill(storm[0].pid, signal.SIGKILL)
        outs += [each.stdout.read() for each in storm]
        for each in storm:
            each.communicate(timeout=60)
        granted = sum(7 * out.count("7") for out in outs)
        assert [each.returncode for each in storm] == [-signal.SIGKILL, 0, 0]
        assert 10_000 < granted <= 30_000
        used, reserved = taken(client)
        assert granted <= used + reserved

    @staticmethod
    def fleet_client(fleet, amount=1_000):
        fleet.actor()
        client = fleet.client(agent="a")
        client.put_limit(Limit("l", amount, seconds=3_600))
        return client
