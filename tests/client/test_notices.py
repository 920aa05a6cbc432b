"""Being told what budgets have reached, and killing, through a client: in memory and on a real server."""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
import weakref

import pytest

from tests.client.harness import JOIN_S, run_script, wait_until
from token_actor.client.notices import NoticeReader, Watch
from token_actor.core.limits import Limit
from token_actor.errors import ActorUnavailable, ClosedError, InvalidValue, RateLimited
from token_actor.transport.ports import Append, Delete


def budget(amount=100, **more):
    return Limit(**{"name": "b", "amount": amount, "kind": "calendar", "period": "month", "by": ["agent"], **more})


@pytest.fixture
def client(fleet):
    """A client of a fleet in which each agent may use 100 tokens a month."""
    fleet.actor()
    client = fleet.client(agent="a")
    client.put_limit(budget())
    return client


def use(client, tokens, **names):
    """Use, and wait until what that reaches is told."""
    client.record(tokens, **names)
    client.status()  # what it was told of is written before it is answered


def shown(notices):
    return [(each["scope"]["agent"], each["threshold_pct"]) for each in notices]


class TestReading:
    def test_notices_are_listed_with_the_oldest_first(self, client):
        use(client, 85)
        use(client, 60, agent="b")
        assert shown(client.notices()) == [("a", 50), ("a", 80), ("b", 50)]

    def test_one_says_everything_that_is_known_of_it(self, client):
        use(client, 60)
        (notice,) = client.notices()
        assert notice.keys() == {
            "id", "limit", "scope", "threshold_pct", "unit", "mode", "amount", "used", "period_start_ms",
            "period_end_ms", "log_ms",
        }  # fmt: skip
        assert (notice["limit"], notice["amount"], notice["used"], notice["unit"]) == ("b", 100, 60, "tokens")

    def test_they_are_read_in_pages_of_any_size(self, client):
        use(client, 120)
        use(client, 120, agent="b")
        everything, after, pages = client.notices(), None, []
        while page := client.notices(after, 2):
            pages += page
            after = page[-1]["id"]
        assert pages == everything
        assert len(pages) == 6
        assert client.notices(limit=0) == []

    def test_behind_an_entry_of_the_log_are_those_of_later_ones(self, client):
        use(client, 120)
        use(client, 60, agent="b")
        entry_id = client.notices()[0]["id"].partition(":")[0]
        assert shown(client.notices(entry_id)) == [("b", 50)]

    def test_behind_one_that_is_gone_are_those_that_are_left(self, fleet, client):
        use(client, 60)
        (gone,) = client.notices()
        fleet.connect().write([Delete(keys=[fleet.keys().notices])])
        assert client.notices(gone["id"]) == []
        use(client, 60, agent="b")
        assert shown(client.notices(gone["id"])) == [("b", 50)]

    def test_what_cannot_be_read_is_left_out_and_logged(self, fleet, client, caplog):
        fields = [b"n", b"{broken"]
        fleet.connect().write([Append(key=fleet.keys().notices, fields=fields, entry_id=b"1-1")])
        use(client, 60)
        use(client, 60, agent="b")
        assert shown(client.notices()) == [("a", 50), ("b", 50)]
        assert "notice_unread" in {each.action for each in caplog.records}

    def test_it_is_logged_when_more_was_reached_than_is_told(self, fleet, client, caplog):
        value = b'{"v": 1, "notices": [], "left_out": 5}'
        fleet.connect().write([Append(key=fleet.keys().notices, fields=[b"n", value])])
        assert client.notices() == []
        assert [each.left_out for each in caplog.records if each.action == "notices_left_out"] == [5]

    @pytest.mark.parametrize(("arguments", "field"), [(("x",), "after"), ((None, -1), "limit")])
    def test_a_wrong_argument_is_named(self, client, arguments, field):
        with pytest.raises(InvalidValue) as refused:
            client.notices(*arguments)
        assert refused.value.field == field

    def test_those_of_a_tenant_are_in_its_partition(self, fleet):
        for partition in (0, 1):
            fleet.actor(partition, partitions=2)
        client = fleet.client(agent="a")
        for tenant in ("t1", "t2", "t3", "t4"):
            client.put_limit(budget(name=tenant, selector={"tenant": tenant}))
            use(client, 60, tenant=tenant)
            client.status(tenant=tenant)
            assert tenant in {notice["limit"] for notice in client.notices(tenant=tenant)}
        assert sum(len(client.notices(tenant=tenant)) for tenant in ("t1", "t2")) < 8

    def test_without_a_server_it_is_said_at_the_deadline(self, fleet, client):
        fleet.go_away()
        with pytest.raises(ActorUnavailable):
            client.notices(timeout_s=0.2)
        with pytest.raises(ActorUnavailable):
            client.on_notice(print, timeout_s=0.2)
        fleet.come_back()
        assert client.notices() == []

    def test_where_nobody_has_ever_served_it_is_said(self, fleet):
        with pytest.raises(ActorUnavailable, match="no actor has ever served"):
            fleet.client().notices(timeout_s=0.1)


class TestCallbacks:
    def test_are_called_for_what_comes_and_not_for_what_was(self, client):
        use(client, 60)
        told = queue.Queue()
        client.on_notice(told.put)
        client.record(30)
        assert told.get(timeout=JOIN_S)["threshold_pct"] == 80
        assert told.empty()

    def test_go_on_behind_a_notice(self, client):
        use(client, 120)
        told = queue.Queue()
        client.on_notice(told.put, client.notices()[0]["id"])
        assert [told.get(timeout=JOIN_S)["threshold_pct"] for _ in range(2)] == [80, 100]

    def test_one_that_fails_is_logged_and_hears_of_the_next(self, client, caplog):
        told = queue.Queue()

        def fail_at_first(notice):
            told.put(notice["threshold_pct"])
            if notice["threshold_pct"] == 50:
                raise ZeroDivisionError

        client.on_notice(fail_at_first)
        client.record(85)
        assert [told.get(timeout=JOIN_S) for _ in range(2)] == [50, 80]
        assert [each.id for each in caplog.records if each.action == "callback_failed"] == [client.notices()[0]["id"]]

    def test_several_hear_of_the_same(self, client):
        first, second = queue.Queue(), queue.Queue()
        client.on_notice(first.put)
        client.on_notice(second.put)
        client.record(60)
        assert first.get(timeout=JOIN_S) == second.get(timeout=JOIN_S)

    def test_one_that_is_stopped_hears_no_more(self, client):
        told, ended = queue.Queue(), threading.Event()
        watch = client.on_notice(told.put, ended=ended.set)
        assert watch.running
        watch.stop()
        watch.stop()
        assert ended.wait(JOIN_S)
        wait_until(lambda: not watch.running)
        use(client, 60)
        assert told.empty()

    def test_one_may_stop_itself(self, client):
        told = queue.Queue()

        def once(notice):
            watch.stop()
            told.put(notice)

        watch = client.on_notice(once)
        client.record(120)
        assert told.get(timeout=JOIN_S)["threshold_pct"] == 50
        wait_until(lambda: not watch.running)
        assert told.empty()

    def test_a_closed_client_ends_them(self, client):
        watches = [client.on_notice(print) for _ in range(2)]
        client.close()
        wait_until(lambda: not any(watch.running for watch in watches))
        with pytest.raises(ClosedError):
            client.on_notice(print)

    def test_one_that_begins_while_the_client_is_closed_ends_at_once(self, fleet, client):
        client.close()
        watch = Watch(fleet.keys(), "0-0", print, None)
        client._engine.follow(watch)
        wait_until(lambda: not watch.running)

    def test_those_that_have_ended_are_forgotten(self, client):
        for _ in range(3):
            client.on_notice(print).stop()
        watch = client.on_notice(print)
        assert client._engine._watches == {watch}

    def test_so_does_a_client_that_nobody_refers_to_any_more(self, fleet):
        fleet.actor()
        from token_actor.client.engine import Engine
        from token_actor.client.settings import ClientSettings
        from token_actor.client.sync import SyncFace

        client = SyncFace(Engine(fleet.client_connector, ClientSettings(namespace=fleet.namespace)))
        gone = weakref.ref(client)
        watch = client.on_notice(print)
        del client
        gc.collect()
        assert gone() is None
        wait_until(lambda: not watch.running)

    def test_they_outlast_an_outage_and_miss_nothing(self, fleet, client, caplog):
        told = queue.Queue()
        client.on_notice(told.put)
        fleet.go_away()
        wait_until(lambda: "notices_unread" in {each.action for each in caplog.records})
        fleet.come_back()
        client.record(60)
        assert told.get(timeout=JOIN_S)["threshold_pct"] == 50

    def test_they_outlast_the_loss_of_their_stream(self, fleet, client):
        use(client, 60)
        told = queue.Queue()
        client.on_notice(told.put)
        lost = b'{"v": 1, "notices": [{"threshold_pct": 1}], "left_out": 0}'
        wait_until(lambda: client._engine._watches)
        writer = fleet.connect()
        writer.write([Delete(keys=[fleet.keys().notices])])
        append = Append(key=fleet.keys().notices, fields=[b"n", lost], entry_id=b"5-1")
        writer.write([append])  # as on a server whose clock is behind
        assert told.get(timeout=JOIN_S) == {"id": "5-1:0", "threshold_pct": 1}


FORK = """
import json, os, queue, sys
from token_actor import Limit, TokenClient

client = TokenClient(sys.argv[1], namespace=sys.argv[2], agent="a")
client.put_limit(Limit("b", 100, kind="calendar", period="month"))
told = queue.Queue()
watch = client.on_notice(told.put)
if os.fork() == 0:
    assert not watch.running
    client.record(60)
    client.close()
    os._exit(0)
assert os.wait()[1] == 0
print(json.dumps([told.get(timeout=20)["threshold_pct"], watch.running]))
"""


def test_a_child_inherits_no_callback_and_takes_none_from_its_parent(server, valkey_fleet):
    valkey_fleet.actor()
    quiet = {"PYTHONWARNINGS": "ignore::DeprecationWarning"}
    assert run_script(FORK, server.url, valkey_fleet.namespace, **quiet) == [50, True]


class TestCoroutines:
    def test_notices_are_yielded_until_the_client_is_closed(self, fleet):
        fleet.actor()

        async def play():
            found, client = [], fleet.async_client(agent="a")
            await client.put_limit(budget())
            began = asyncio.Event()

            async def listen():
                notices = client.watch_notices("0-0")
                began.set()
                async for notice in notices:
                    found.append(notice["threshold_pct"])
                    if len(found) == 3:
                        await client.close()

            listening = asyncio.create_task(listen())
            await began.wait()
            client.record(120)
            await client.flush()
            await asyncio.wait_for(listening, JOIN_S)
            return found

        assert asyncio.run(play()) == [50, 80, 100]

    def test_one_that_is_no_longer_listened_to_ends(self, fleet):
        fleet.actor()

        async def play():
            client = fleet.async_client(agent="a")
            await client.put_limit(budget())
            client.record(120)
            notices = client.watch_notices("0-0")
            first = await anext(notices)
            (watch,) = client._engine._watches
            await notices.aclose()
            await asyncio.to_thread(wait_until, lambda: not watch.running)
            return first["threshold_pct"]

        assert asyncio.run(play()) == 50

    def test_a_loop_that_ended_first_is_no_trouble(self, fleet):
        fleet.actor()
        client = fleet.async_client(agent="a")

        async def play():
            await client.put_limit(budget())
            notices = client.watch_notices()
            waiting = asyncio.ensure_future(anext(notices))
            await asyncio.to_thread(wait_until, lambda: client._engine._watches)
            waiting.cancel()

        asyncio.run(play())
        for watch in client._engine._watches:
            wait_until(lambda watch=watch: not watch.running)

    def test_the_other_methods_are_the_same(self, fleet):
        fleet.actor()

        async def play():
            client = fleet.async_client(agent="a")
            await client.put_limit(budget())
            told = queue.Queue()
            watch = await client.on_notice(told.put)
            client.record(60)
            await client.flush()
            found = await asyncio.to_thread(told.get, timeout=JOIN_S)
            assert await client.notices() == [found]
            watch.stop()
            assert await client.kill(agent="a") == "kill:agent=a"
            with pytest.raises(RateLimited):
                await client.reserve(1)
            assert (await client.revive(agent="a"), await client.revive(agent="a")) == (True, False)

        asyncio.run(play())


class TestKilling:
    def test_whoever_is_killed_is_told_so_until_revived(self, fleet, client):
        other = fleet.client(agent="b")
        assert other.kill(agent="a") == "kill:agent=a"
        with pytest.raises(RateLimited) as refused:
            client.reserve(1)
        assert (refused.value.limit, refused.value.retry_after_s) == ("kill:agent=a", None)
        assert str(refused.value) == (
            "killed ('kill:agent=a'): refused until 'token-actor revive', or client.revive, of the same names"
        )
        assert other.reserve(1).decision["granted"]
        assert [limit["name"] for limit in client.limits()] == ["b", "kill:agent=a"]
        assert (client.revive(agent="a"), client.revive(agent="a")) == (True, False)
        assert client.reserve(1).decision["granted"]

    def test_a_session_is_killed_alone(self, client):
        client.kill(session="s", agent="a")
        with pytest.raises(RateLimited, match="killed"):
            client.reserve(1, session="s")
        assert client.reserve(1, session="t").decision["granted"]

    def test_nobody_is_killed_by_mistake(self, client):
        with pytest.raises(InvalidValue):
            client.kill()

    def test_of_a_tenant_with_a_partition_of_its_own(self, fleet):
        for partition in (0, 1):
            fleet.actor(partition, partitions=2)
        client = fleet.client(agent="a")
        for tenant in ("t1", "t2", "t3"):
            client.kill(agent="a", tenant=tenant)
            with pytest.raises(RateLimited, match="killed"):
                client.reserve(1, tenant=tenant)
            assert client.revive(agent="a", tenant=tenant)


def test_a_reader_goes_on_behind_an_entry_that_is_gone(fleet):
    connection = fleet.connect()
    notice = b'{"v": 1, "notices": [{"n": 1}], "left_out": 0}'
    connection.write([Append(key=fleet.keys().notices, fields=[b"n", notice], entry_id=b"9-0")])
    reader = NoticeReader(connection, fleet.keys(), "5-0:3")
    assert reader.read(block_ms=None) == [{"id": "9-0:0", "n": 1}]
