"""Reserving and settling through a client, in memory and on a real server."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from tests.client.harness import wait_until
from token_actor.client.aio import AsyncFace
from token_actor.core.limits import Limit
from token_actor.errors import ActorUnavailable, InvalidQuestion, InvalidValue, RateLimited


@pytest.fixture
def client(fleet):
    """A client of a fleet in which each agent may use 100 tokens a minute."""
    fleet.actor()
    client = fleet.client(agent="a")
    client.put_limit(Limit("l", 100, by=["agent"]))
    return client


def taken(client, agent="a"):
    (limit,) = client.limits()
    found = [(top["used"], top["reserved"]) for top in limit["top"] if top["scope"] == {"agent": agent}]
    return found[0] if found else (0, 0)


class TestLimits:
    def test_a_limit_is_listed_as_it_was_put(self, client):
        (shown,) = client.limits()
        assert Limit("l", 100, by=("agent",)).as_map().items() <= shown.items()

    def test_a_limit_goes_on_with_its_counters_when_only_the_amount_changes(self, client):
        client.reserve(10)
        assert client.put_limit(Limit("l", 50, by=["agent"])) is True
        assert client.put_limit(Limit("l", 50)) is False

    def test_a_limit_that_is_deleted_is_gone(self, client):
        assert (client.delete_limit("l"), client.delete_limit("l"), client.limits()) == (True, False, [])

    def test_of_many_values_of_by_the_fullest_are_shown(self, client):
        for number in range(3):
            client.reserve(10 + number, agent=f"a{number}")
        (limit,) = client.limits(top=1)
        assert (limit["scopes"], [top["scope"] for top in limit["top"]]) == (3, [{"agent": "a2"}])

    def test_own_records_count_before_the_next_decision(self, client):
        client.record(95, 3)
        with pytest.raises(RateLimited):
            client.reserve(3)
        assert client.reserve(2).decision["remaining"] == 0

    def test_what_expires_is_shown_though_nothing_else_happens(self, client):
        client.reserve(10, ttl_s=0.1)
        wait_until(lambda: taken(client) == (10, 0))

    def test_the_limit_that_is_explained_is_the_tightest_after_the_call(self, client):
        client.put_limit(Limit("large", 1_000_000))
        client.record(0, agent="b")
        client.put_limit(Limit("taken", 1_000, unit="requests"))
        client.record(1, agent="a")
        assert client.explain(90)["limit"] == client.reserve(90).decision["limit"] == "l"

    def test_it_is_explained_what_a_call_would_be_told(self, client):
        told = client.explain(101, cost_usd=Decimal("0.5"))
        assert (told["granted"], told["limit"], told["never"], told["scope"]) == (False, "l", True, {"agent": "a"})
        assert [each["name"] for each in told["limits"]] == ["l"]

    def test_limits_of_tenants_live_where_their_tenant_does(self, fleet):
        for partition in (0, 1):
            fleet.actor(partition, partitions=2)
        client = fleet.client(tenant="t1")
        for tenant in ("t1", "t2", "t3", "t4"):
            client.put_limit(Limit(tenant, 10, selector={"tenant": tenant}))
            assert client.reserve(10, tenant=tenant).decision["limit"] == tenant
        with pytest.raises(InvalidQuestion) as refused:
            client.put_limit(Limit("everybody", 10))
        assert refused.value.field == "tenant"


class TestWaiting:
    def test_one_that_waits_goes_on_when_another_gives_back(self, client):
        first = client.reserve(80)
        with ThreadPoolExecutor() as pool:
            later = pool.submit(client.reserve, 60, wait_s=60)
            wait_until(lambda: client.limits()[0]["waiting"] == 1)
            first.release()
            assert later.result().decision["granted"] is True
        assert taken(client) == (0, 60)

    def test_time_alone_lets_it_go_although_nobody_writes(self, client):
        client.put_limit(Limit("l", 100, seconds=0.5))
        client.reserve(80).settle(80)
        reservation = client.reserve(60, wait_s=30)
        assert 300 < reservation.decision["waited_ms"] < 20_000

    def test_at_its_deadline_it_is_refused(self, client):
        client.reserve(80)
        with pytest.raises(RateLimited) as refused:
            client.reserve(60, wait_s=0.1)
        assert refused.value.remaining == 20

    def test_coroutines_wait_too(self, fleet):
        fleet.actor()

        async def wait():
            async with fleet.async_client(agent="a") as client:
                await client.put_limit(Limit("l", 100))
                first = await client.reserve(80)
                later = asyncio.create_task(client.reserve(60, wait_s=60))
                while (await client.limits())[0]["waiting"] == 0:
                    pass
                await first.release()
                return (await later).decision["granted"]

        assert asyncio.run(wait()) is True

    def test_those_who_wait_are_not_in_the_way_of_what_they_wait_for(self, fleet):
        fleet.actor()
        client = fleet.client(agent="a", lines_max=2)
        client.put_limit(Limit("one", 1, kind="concurrency"))
        holder = client.reserve(1)
        with ThreadPoolExecutor(20) as pool:
            others = [pool.submit(lambda: client.reserve(1, wait_s=60).release()) for _ in range(20)]
            wait_until(lambda: client.limits()[0]["waiting"] == 20)
            holder.settle(1)
            assert [other.result(60) for other in others] == [True] * 20

    def test_nor_are_coroutines_that_wait(self, fleet):
        fleet.actor()

        async def wait_all():
            client = fleet.async_client(agent="a", lines_max=2)
            await client.put_limit(Limit("one", 1, kind="concurrency"))
            holder = await client.reserve(1)

            async def wait():
                return await (await client.reserve(1, wait_s=60)).release()

            others = [asyncio.create_task(wait()) for _ in range(20)]
            while (await client.limits())[0]["waiting"] < len(others):
                pass
            await holder.settle(1)
            return await asyncio.gather(*others)

        assert asyncio.run(wait_all()) == [True] * 20

    @pytest.mark.parametrize("wait_s", [-1, 601, "1", None])
    def test_a_wait_that_is_none_is_refused(self, client, wait_s):
        with pytest.raises(InvalidValue) as refused:
            client.reserve(1, wait_s=wait_s)
        assert refused.value.field == "wait_s"


class TestReserving:
    def test_a_refusal_says_by_what_and_when_to_try_again(self, client):
        client.reserve(60)
        with pytest.raises(RateLimited) as refused:
            client.reserve(50)
        error = refused.value
        assert (error.limit, error.used, error.reserved, error.remaining) == ("l", 0, 60, 40)
        assert error.retry_after_s is not None
        assert 55 < error.retry_after_s <= 61
        assert str(error).startswith("limit 'l' (agent a): 50 tokens asked, 40 of 100 left; try again in ")

    def test_a_refusal_by_a_budget_is_told_in_dollars(self, client):
        client.put_limit(Limit("budget", 2 * 10**9, unit="cost_nanousd"))
        with pytest.raises(RateLimited) as refused:
            client.reserve(1, cost_usd="2.5")
        assert str(refused.value) == "limit 'budget': $2.50 asked, $2.00 of $2.00 left; it can never fit"

    def test_a_refusal_by_calls_under_way_says_so(self, client):
        client.put_limit(Limit("parallel", 1, kind="concurrency"))
        client.reserve(1)
        with pytest.raises(RateLimited, match="limit 'parallel': 0 of 1 at once left; try again in (60|59.9)"):
            client.reserve(1)

    def test_what_can_never_fit_has_no_time_to_try_again(self, client):
        with pytest.raises(RateLimited) as refused:
            client.reserve(101)
        assert refused.value.retry_after_s is None
        assert "it can never fit" in str(refused.value)

    def test_another_agent_has_quota_of_its_own(self, client):
        client.reserve(100)
        assert client.reserve(100, agent="b").decision["scope"] == {"agent": "b"}

    def test_settling_counts_the_call_once_and_gives_back_the_rest(self, client):
        reservation = client.reserve(90, model="m")
        told = reservation.settle(20, 5, cost_usd=Decimal("0.5"), message_id="x")
        assert (told["counted"], told["debt"], taken(client)) == (True, {}, (25, 0))
        analytics = client.analytics(model="m")
        assert (analytics["requests"], analytics["total_tokens"], analytics["cost_usd"]) == (1, 25, 0.5)
        assert client.settle(reservation, 99) == told

    def test_leaving_without_a_word_charges_the_estimate(self, client):
        with client.reserve(30):
            pass
        assert taken(client) == (30, 0)
        assert client.analytics()["requests"] == 0

    def test_leaving_by_an_error_charges_the_estimate_too(self, client):
        with pytest.raises(KeyError), client.reserve(30):
            raise KeyError
        assert taken(client) == (30, 0)

    @pytest.mark.parametrize(("end", "left"), [("settle", (7, 0)), ("release", (0, 0))])
    def test_leaving_after_a_word_changes_nothing(self, client, end, left):
        with client.reserve(30) as reservation:
            _ = reservation.settle(7) if end == "settle" else reservation.release()
        assert taken(client) == left

    def test_the_id_is_enough_for_another_process(self, fleet, client):
        reservation = client.reserve(30)
        other = fleet.client(agent="a")
        assert reservation.id in repr(reservation)
        assert other.extend(reservation.id, 3_600) is True
        assert other.settle(reservation.id, 10)["debt"] == {}
        assert (other.release(reservation.id), taken(other)) == (False, (10, 0))

    def test_an_extension_is_granted_while_it_is_open(self, client):
        reservation = client.reserve(30, ttl_s=30)
        assert reservation.expires_at > 0
        assert (reservation.extend(60), reservation.release(), reservation.extend(60)) == (True, True, False)

    def test_an_unsettled_reservation_expires_by_the_time_of_the_log(self, client):
        reservation = client.reserve(30, ttl_s=0.001)
        while client.release(reservation):  # each is an entry, and moves the time of the log
            reservation = client.reserve(30, ttl_s=0.001)
        assert taken(client)[1] == 0
        assert reservation.settle(10)["late"] is True

    @pytest.mark.parametrize(
        ("arguments", "field"),
        [({"tokens": -1}, "tokens"), ({"tokens": 1.5}, "tokens"), ({"ttl_s": 0}, "ttl_s"), ({"ttl_s": "1"}, "ttl_s"),
         ({"colour": "red"}, "colour"), ({"model": 5}, "model"), ({"input_tokens": -1}, "input_tokens")],
    )  # fmt: skip
    def test_a_wrong_argument_is_refused_before_anything_is_sent(self, fleet, arguments, field):
        with pytest.raises(InvalidValue) as refused:
            fleet.client().reserve(**arguments)
        assert refused.value.field == field

    def test_a_wrong_settlement_is_refused_and_the_reservation_stays(self, client):
        reservation = client.reserve(30)
        with pytest.raises(InvalidValue) as refused:
            reservation.settle(-1)
        assert (refused.value.field, taken(client)) == ("input_tokens", (0, 30))


def test_coroutines_do_the_same(fleet):
    async def play():
        async with fleet.async_client(agent="a") as client:
            assert await client.put_limit(Limit("l", 100)) is False
            assert (await client.explain(5))["granted"] is True
            async with await client.reserve(30) as first:
                assert await first.extend(60) is True
                assert (await first.settle(10))["debt"] == {}
            async with await client.reserve(20):
                pass
            second, third, fourth = [await client.reserve(10) for _ in range(3)]
            assert (await second.release(), await client.release(third.id)) == (True, True)
            assert await client.extend(fourth, 60) is True
            assert (await client.settle(fourth, 5))["counted"] is True
            assert (await client.settle_estimate(await client.reserve(3)))["counted"] is False
            with pytest.raises(RateLimited):
                await client.reserve(90)
            (limit,) = await client.limits()
            assert (limit["top"][0]["used"], limit["top"][0]["reserved"]) == (38, 0)
            assert await client.delete_limit("l") is True

    fleet.actor()
    asyncio.run(play())


class TestNobodyWaitsAnyMore:
    def held(self, client):
        return [limit["top"][0]["reserved"] for limit in client.limits() if limit["top"]]

    def test_a_reservation_that_was_answered_too_late_is_given_back(self, fleet):
        actor, client = fleet.actor(), fleet.client()
        client.put_limit(Limit("l", 100))
        actor.stop()
        with pytest.raises(ActorUnavailable):
            client.reserve(60, timeout_s=0.2)
        fleet.actor()
        assert client.reserve(60).decision["reserved"] == 60
        assert self.held(client) == [60]

    def test_so_is_one_that_waited_for_its_turn(self, fleet):
        actor, client = fleet.actor(), fleet.client()
        client.put_limit(Limit("l", 100))
        first = client.reserve(100)
        actor.stop()
        with pytest.raises(ActorUnavailable):
            client.reserve(60, wait_s=0.1, timeout_s=0.1)
        fleet.actor()
        first.release()
        assert client.limits()[0]["waiting"] == 0
        assert self.held(client) == [0]

    def test_and_one_whose_coroutine_was_cancelled(self, fleet):
        fleet.actor()
        client = fleet.client()
        client.put_limit(Limit("l", 100))
        first = client.reserve(100)

        async def cancelled():
            face = AsyncFace(fleet.engine())
            waits = asyncio.ensure_future(face.reserve(60, wait_s=30))
            await asyncio.to_thread(wait_until, lambda: client.limits()[0]["waiting"] == 1)
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits
            first.release()
            await asyncio.to_thread(wait_until, lambda: self.held(client) == [0])
            await face.close()

        asyncio.run(cancelled())
