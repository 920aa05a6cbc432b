"""What is decided when the actor cannot be reached, by the rule of each limit, in memory and on a real server."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.client.harness import SLACK_S, elapsed_s, run_script, wait_until
from token_actor.client import outage
from token_actor.client.deadline import Deadline
from token_actor.client.outage import SILENCE_S
from token_actor.core.limits import Limit
from token_actor.errors import ActorUnavailable, ClientBusy, InvalidValue, LogUnavailable, RateLimited

SOON_S = 0.2  # the deadline of a call that nobody answers


def limit(on_outage, amount=1_000, **more):
    return Limit(more.pop("name", "l"), amount, **{"seconds": 3_600, "on_outage": on_outage, **more})


def put(fleet, *limits, **options):
    """Start an actor with these limits; return it, and a client that has heard of them."""
    actor = fleet.actor()
    client = fleet.client(**{"agent": "a", "timeout_s": 5.0, **options})
    for each in limits:
        client.put_limit(each)
    client.reserve(1).release()
    return actor, client


def reserve_soon(client, tokens=1, **call):
    return client.reserve(tokens, timeout_s=SOON_S, **call)


def stopped(fleet, *limits, **options):
    """Return a client that knew an actor, which is no more."""
    actor, client = put(fleet, *limits, **{"timeout_s": 5.0, **options})
    actor.stop()
    return client


class Questions:
    """Count what a client asks."""

    def __init__(self, client):
        self.kinds = []
        self._ask = client._engine.ask
        client._engine.ask = self

    def __call__(self, kind, arguments, **more):
        self.kinds.append(kind)
        return self._ask(kind, arguments, **more)


class TestWhileItAnswers:
    def test_decisions_and_refusals_say_that_they_are_the_actors(self, fleet):
        _, client = put(fleet, limit("open", 10))
        assert client.reserve(1).degraded is False
        assert client.reserve(1).decision["degraded"] is False
        with pytest.raises(RateLimited) as refused:
            client.reserve(100)
        assert refused.value.degraded is False

    def test_the_limits_are_asked_for_once_per_change(self, fleet):
        fleet.actor()
        client = fleet.client()
        asked = Questions(client)
        client.reserve(1)
        assert asked.kinds == []  # there are none
        client.put_limit(limit("open"))
        for _ in range(3):
            client.reserve(1)
        assert asked.kinds == ["limits"]
        client.put_limit(limit("closed"))
        for _ in range(3):
            client.reserve(1)
        assert asked.kinds == ["limits", "limits"]

    def test_a_grant_stays_one_when_the_limits_cannot_be_told(self, fleet, caplog, monkeypatch):
        monkeypatch.setattr(outage, "COPY_S", 0.1)
        fleet.actor()
        client = fleet.client()
        client.put_limit(limit("open"))

        def fail(*arguments, **more):
            raise ActorUnavailable("away", timeout_s=0.1)

        ask, client._engine.ask = client._engine.ask, fail
        assert client.reserve(1).degraded is False
        assert [record.action for record in caplog.records if hasattr(record, "action")] == ["limits_unread"]
        client._engine.ask = ask
        wait_until(lambda: client.reserve(1) and client.outage.covering({"tenant": "default"}))


class TestClosed:
    def test_nothing_is_granted_and_the_reason_is_said(self, fleet):
        client = stopped(fleet, limit("closed"))
        with pytest.raises(ActorUnavailable) as away:
            reserve_soon(client)
        assert "limit 'l' is closed while the actor cannot be reached" in str(away.value)
        assert away.value.timeout_s == SOON_S

    def test_one_closed_limit_is_enough(self, fleet):
        client = stopped(fleet, limit("open", name="o"), limit("safe", name="s"), limit("closed", name="c"))
        with pytest.raises(ActorUnavailable, match="limit 'c' is closed"):
            reserve_soon(client)

    def test_limits_that_do_not_cover_the_call_or_only_tell_do_not_matter(self, fleet):
        client = stopped(
            fleet, limit("closed", name="c", selector={"agent": "b"}), limit("closed", name="s", mode="shadow")
        )
        assert reserve_soon(client).degraded is True

    def test_who_has_never_heard_of_the_limits_grants_nothing(self, fleet):
        put(fleet, limit("open"))[0].stop()
        with pytest.raises(ActorUnavailable) as away:
            reserve_soon(fleet.client(agent="a"))
        assert "its limits are not known here yet" in str(away.value)

    def test_usage_that_waits_for_the_log_does_not_hide_the_reason(self, fleet):
        _, client = put(fleet, limit("closed"))
        fleet.go_away()
        client.record(1)
        with pytest.raises(LogUnavailable, match="limit 'l' is closed"):
            reserve_soon(client)
        fleet.come_back()

    def test_every_call_waits_for_the_actor_which_may_come_back(self, fleet):
        client = stopped(fleet, limit("closed"), timeout_s=SOON_S)
        for _ in range(2):
            with pytest.raises(ActorUnavailable):
                client.reserve(1)
        fleet.actor()
        assert client.reserve(1, timeout_s=10).degraded is False


class TestOpen:
    def test_a_call_is_granted_without_the_actor_and_says_so(self, fleet):
        client = stopped(fleet, limit("open", 10))
        reservation = reserve_soon(client, 1_000)
        assert (reservation.degraded, reservation.decision["granted"]) == (True, True)
        assert abs(reservation.expires_at - time.time() - 60) < 60

    def test_after_the_first_the_next_ones_do_not_wait(self, fleet):
        client = stopped(fleet, limit("open"), timeout_s=SOON_S)
        assert elapsed_s(lambda: client.reserve(1)) >= SOON_S
        assert elapsed_s(lambda: [client.reserve(1) for _ in range(20)]) < SILENCE_S + SLACK_S

    def test_now_and_then_one_call_finds_out_whether_it_is_back(self, fleet, monkeypatch):
        monkeypatch.setattr(outage, "SILENCE_S", 0.05)
        client = stopped(fleet, limit("open"), timeout_s=SOON_S)
        assert client.reserve(1).degraded is True
        fleet.actor()
        wait_until(lambda: not client.reserve(1, timeout_s=5).degraded)

    def test_a_caller_without_patience_says_nothing_of_the_actor(self, fleet):
        _, client = put(fleet, limit("open"))
        assert client.reserve(1, timeout_s=0).degraded is True
        assert client.reserve(1).degraded is False

    def test_a_client_that_is_busy_itself_is_no_outage(self, fleet):
        _, client = put(fleet, limit("open", 100), lines_max=1, timeout_s=5.0)
        with (
            client._engine._lines.line(Deadline.after(1)),
            pytest.raises(ClientBusy, match="lines to the actor are busy"),
        ):
            client.reserve(1, timeout_s=SOON_S)
        assert client.reserve(1).degraded is False

    def test_what_was_used_counts_once_when_the_actor_is_back(self, fleet):
        client = stopped(fleet, limit("open"))
        reservation = reserve_soon(client, 100)
        told = reservation.settle(7, 5, message_id="x")
        assert (told["counted"], told["degraded"], told["debt"]) == (True, True, {})
        assert client.settle(reservation, 99) == told
        fleet.actor()
        analytics = client.analytics(agent="a", timeout_s=10)
        assert (analytics["requests"], analytics["total_tokens"]) == (1, 12)
        assert client.limits()[0]["top"][0]["used"] == 12

    def test_releasing_extending_and_leaving_ask_nobody(self, fleet):
        client = stopped(fleet, limit("open"))
        reservation = reserve_soon(client)
        assert (reservation.extend(60), reservation.release(), reservation.extend(60)) == (True, True, False)
        with reserve_soon(client) as left:
            pass
        assert left.release() is False
        assert client.pending == 0

    def test_another_process_settles_by_the_id_when_the_actor_is_back(self, fleet):
        client = stopped(fleet, limit("open"))
        reservation = reserve_soon(client)
        fleet.actor()
        told = fleet.client(agent="a", timeout_s=10).settle(reservation.id, 5)
        assert (told["unknown"], told["counted"]) == (True, True)

    def test_a_settlement_that_was_wrong_may_be_made_again(self, fleet):
        reservation = reserve_soon(stopped(fleet, limit("open")))
        with pytest.raises(InvalidValue):
            reservation.settle(-1)
        assert reservation.settle(1)["counted"] is True

    def test_a_lease_goes_on_with_blocks_of_its_own(self, fleet):
        client = stopped(fleet, limit("open"), timeout_s=SOON_S)
        with client.lease() as lease, lease.reserve(5) as call:
            assert call.degraded is True
            call.settle(5)
        fleet.actor()
        assert client.analytics(timeout_s=10)["total_tokens"] == 5

    def test_coroutines_are_told_too(self, fleet):
        async def play():
            client = fleet.async_client(agent="a", timeout_s=5.0)
            await client.put_limit(limit("open"))
            assert (await client.reserve(1)).degraded is False
            actor.stop()
            reservation = await client.reserve(1, timeout_s=SOON_S)
            assert reservation.degraded is True
            assert (await reservation.settle(1))["degraded"] is True
            await client.close()

        actor = fleet.actor()
        asyncio.run(play())


class TestSafe:
    @pytest.mark.parametrize(("rule", "call", "granted"), [
        (limit("safe", 1_000), {"tokens": 1}, 10),
        (limit("safe", 1_000, safe_share=0.029), {"tokens": 7}, 4),
        (limit("safe", 50, safe_share=0.29, unit="requests"), {"tokens": 5}, 14),
        (limit("safe", 1_000, kind="bucket", burst=300), {"tokens": 1}, 3),
        (limit("safe", 200, kind="concurrency"), {}, 2),
        (limit("safe", 99), {"tokens": 1}, 0),
        (limit("safe", 1_000, weights={"output_tokens": 2}), {"output_tokens": 1}, 5),
    ])  # fmt: skip
    def test_a_client_grants_its_share_and_no_more(self, fleet, rule, call, granted):
        client = stopped(fleet, rule, timeout_s=SOON_S)
        for _ in range(granted):
            assert client.reserve(**call).degraded is True
        with pytest.raises(RateLimited) as refused:
            client.reserve(**call)
        assert (refused.value.degraded, refused.value.limit) == (True, "l")
        assert refused.value.retry_after_s is not None

    def test_each_value_of_by_has_a_share_of_its_own(self, fleet):
        client = stopped(fleet, limit("safe", 100, by=["user"]), timeout_s=SOON_S)
        for user in ("u", "v"):
            assert client.reserve(1, user=user)
            with pytest.raises(RateLimited):
                client.reserve(1, user=user)

    def test_what_was_used_less_is_not_granted_again_and_what_was_released_is(self, fleet):
        client = stopped(fleet, limit("safe", 1_000), timeout_s=SOON_S)
        client.reserve(6).settle(1)
        client.reserve(4).release()
        client.reserve(4)
        with pytest.raises(RateLimited):
            client.reserve(1)

    def test_what_is_open_at_once_is_given_back_by_its_expiry(self, fleet):
        client = stopped(fleet, limit("safe", 100, kind="concurrency"), timeout_s=SOON_S)
        client.reserve(ttl_s=0.05)

        def granted():
            try:
                return client.reserve()
            except RateLimited:
                return None

        wait_until(granted)

    def test_the_share_is_of_any_window_of_the_limit(self, fleet):
        client = stopped(fleet, limit("safe", 1_000, seconds=0.6), timeout_s=SOON_S)
        client.reserve(10)
        with pytest.raises(RateLimited) as refused:
            client.reserve(10)
        assert 0 < refused.value.retry_after_s <= 0.7

        def granted():
            try:
                return client.reserve(10).degraded
            except RateLimited:
                return False

        wait_until(granted)

    def test_an_open_limit_beside_it_changes_nothing(self, fleet):
        client = stopped(fleet, limit("open", name="o"), limit("safe", name="s"), timeout_s=SOON_S)
        client.reserve(10)
        with pytest.raises(RateLimited) as refused:
            client.reserve(1)
        assert refused.value.limit == "s"

    def test_a_call_without_an_estimate_is_not_granted(self, fleet):
        client = stopped(fleet, limit("safe"), timeout_s=SOON_S)

        def away():
            raise ActorUnavailable("away", timeout_s=SOON_S)

        with pytest.raises(ActorUnavailable, match="to a call without an estimate"):
            client.outage.decide(away, {"tenant": "default"})

    def test_under_a_limit_of_money_that_is_a_call_that_says_no_cost(self, fleet):
        client = stopped(fleet, limit("safe", unit="cost_nanousd"), timeout_s=SOON_S)
        with pytest.raises(ActorUnavailable, match="to a call without an estimate of its cost"):
            client.reserve(10)
        assert client.reserve(10, cost_usd=0).degraded

    def test_calls_are_counted_without_an_estimate(self, fleet):
        client = stopped(fleet, limit("safe", unit="requests"), timeout_s=SOON_S)

        def away():
            raise ActorUnavailable("away", timeout_s=SOON_S)

        assert client.outage.decide(away, {"tenant": "default"})["granted"] is True

    def test_after_the_outage_the_shares_of_limits_that_changed_are_others(self, fleet):
        actor, client = put(fleet, limit("safe", 1_000), limit("safe", 100, name="gone"), timeout_s=SOON_S)
        client.put_limit(limit("safe", 2_000), timeout_s=10)
        client.delete_limit("gone", timeout_s=10)
        client.reserve(1, timeout_s=10).release()
        actor.stop()
        client.reserve(20)
        with pytest.raises(RateLimited):
            client.reserve(1)


FORKING = """
import json, os, sys, threading
from token_actor import Limit, TokenClient
from token_actor.service import actor_settings, connector_of, run_actor
url, namespace = sys.argv[1:]
stop = threading.Event()
actor = threading.Thread(target=run_actor, args=(connector_of(url), actor_settings(namespace), stop))
actor.start()
client = TokenClient(url, namespace=namespace)
client.put_limit(Limit("l", 1_000, on_outage="safe"))
client.reserve(1).release()
stop.set()
actor.join()
mine = client.reserve(10, timeout_s=0.2)
r, w = os.pipe()
if not os.fork():
    reservation = client.reserve(10, timeout_s=0.2)
    os.write(w, str([reservation.degraded, client.outage.holds(mine.id)]).encode())
    os._exit(0)
os.wait()
print(json.dumps(os.read(r, 100).decode()))
"""


def test_a_child_has_a_share_of_its_own(server_url, namespace):
    assert run_script(FORKING, server_url, namespace) == "[True, False]"
