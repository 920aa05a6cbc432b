"""The face for coroutines: the same names, the same answers, and no event loop ever waits."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import time

import pytest

from tests.client.harness import SLACK_S, run_script, wait_until
from token_actor.client.aio import AsyncFace, AsyncTokenManager
from token_actor.client.manager import SharedTokenManager
from token_actor.client.sync import SyncFace
from token_actor.errors import ActorUnavailable, ClientBusy, ClosedError, InvalidQuestion, LogUnavailable

PLAIN = {"record", "manager", "lease"}  # they never wait, so they are plain calls
GENERATORS = {"pages"}


def public(face):
    return {
        name: member
        for name, member in inspect.getmembers(face)
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
    }


class TestTheSameNames:
    @pytest.mark.parametrize("name", sorted(public(SyncFace)))
    def test_every_public_name_of_the_client_is_there(self, name):
        member = public(AsyncFace)[name]
        if name in GENERATORS:
            assert inspect.isasyncgenfunction(member)
        elif name in PLAIN or isinstance(member, property):
            assert not inspect.iscoroutinefunction(member)
        else:
            assert inspect.iscoroutinefunction(member)

    @pytest.mark.parametrize("name", sorted(n for n, m in public(SharedTokenManager).items() if inspect.isfunction(m)))
    def test_every_method_of_a_manager_is_there_with_the_same_arguments(self, name):
        ours = inspect.signature(getattr(AsyncTokenManager, name)).parameters.values()
        theirs = inspect.signature(getattr(SharedTokenManager, name)).parameters.values()
        assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]
        assert inspect.iscoroutinefunction(getattr(AsyncTokenManager, name))

    @pytest.mark.parametrize("name", sorted(public(SyncFace).keys() - {"pending"}))
    def test_arguments_by_position_are_the_same(self, name):
        def positional(face):
            parameters = inspect.signature(getattr(face, name)).parameters.values()
            return [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

        assert positional(AsyncFace) == positional(SyncFace)


class TestTheSameAnswers:
    @pytest.fixture
    def both(self, fleet):
        fleet.actor()
        engine = fleet.engine(tenant="t", batch_age_ms=60_000)
        client = SyncFace(engine)
        client.record(100, 10, agent="a", model="m", session="s", message_id="x")
        client.record(200, 20, agent="b", session="s")
        return client, AsyncFace(engine)

    @pytest.mark.parametrize(
        "ask",
        [
            lambda face: face.analytics(["agent"], stale_ok=False),
            lambda face: face.analytics("model", None, None, limit=1, agent="a"),
            lambda face: face.history(1, agent="a"),
            lambda face: face.tokens_in_window(60, agent="a"),
            lambda face: face.window_usage(60, agent="a"),
            lambda face: face.check_rate_limit(60, 329),
            lambda face: face.predict_overflow("s", 5, context_window_limit=335),
            lambda face: face.summary(agent="a"),
            lambda face: face.status(),
            lambda face: face.books(),
            lambda face: face.manager("s").get_context_usage_pct(),
            lambda face: face.manager("s").predict_overflow(7),
            lambda face: face.manager("s").get_usage_history(2),
            lambda face: face.manager("s").check_rate_limit(60, 330),
            lambda face: face.manager("s").update_tokens(1, message_id="x"),
        ],
        ids=range(15),
    )
    def test_a_coroutine_returns_what_the_method_returns(self, both, ask):
        client, async_client = both
        client.flush()

        async def answer():
            return await ask(async_client)

        def timeless(value):
            return {**value, "as_of": 0} if isinstance(value, dict) else value

        assert timeless(asyncio.run(answer())) == timeless(ask(client))

    def test_answers_with_times_are_shaped_alike(self, both):
        client, async_client = both

        async def answers():
            manager = async_client.manager("s")
            await async_client.flush()
            return (
                await async_client.session("s"),
                await manager.get_analytics(),
                await manager.get_summary(),
                await manager.export_metrics("csv"),
                await async_client.export("csv", limit=1),
            )

        session, analytics, summary, session_csv, fleet_csv = asyncio.run(answers())
        assert session["figures"]["input_tokens"] == analytics["total_input_tokens"] == 300
        assert summary.splitlines()[:-1] == client.manager("s").get_summary().splitlines()[:-1]
        assert len(session_csv.splitlines()) == len(client.manager("s").export_metrics("csv").splitlines())
        assert len(fleet_csv.splitlines()) == len(client.export("csv", limit=1).splitlines())

    def test_pages_come_one_after_the_other(self, fleet):
        fleet.actor()

        async def lengths():
            async with fleet.async_client() as client:
                for n in range(4_500):
                    client.record(n)
                return [len(page) async for page in client.pages()]

        assert asyncio.run(lengths()) == [2_000, 2_000, 500]

    def test_a_reset_is_awaited(self, both):
        client, async_client = both

        async def reset():
            await async_client.manager("s").reset()

        asyncio.run(reset())
        assert client.session("s")["figures"]["requests"] == 0

    def test_errors_are_the_same(self, both):
        async def ask():
            await both[1].analytics(["colour"])

        with pytest.raises(InvalidQuestion) as wrong:
            asyncio.run(ask())
        assert wrong.value.field == "group_by"


class TestTheEventLoop:
    def test_it_goes_on_while_an_answer_is_awaited(self, fleet):
        async def ticks_while_waiting():
            client = fleet.async_client(timeout_s=0.9)
            client.record(1)
            await client.flush()
            ticks, longest_s, last_s = 0, 0.0, time.monotonic()
            question = asyncio.ensure_future(client.analytics())
            while not question.done():
                await asyncio.sleep(0.005)
                now_s = time.monotonic()
                ticks, longest_s, last_s = ticks + 1, max(longest_s, now_s - last_s), now_s
            with pytest.raises(ActorUnavailable):
                await question
            return ticks, longest_s

        ticks, longest_s = asyncio.run(ticks_while_waiting())
        assert ticks > 10
        assert longest_s < 0.7

    def test_recording_in_an_outage_does_not_hold_it_up(self, fleet):
        async def record():
            client = fleet.async_client()
            fleet.go_away()
            start_s = time.monotonic()
            for _ in range(1_000):
                client.record(1)
            spent_s = time.monotonic() - start_s
            with pytest.raises(LogUnavailable):
                await client.flush(0.05)
            assert client.pending == 1_000
            return spent_s

        assert asyncio.run(record()) < SLACK_S

    def test_many_coroutines_ask_at_once(self, fleet):
        fleet.actor()

        async def ask_all():
            async with fleet.async_client(lines_max=4) as client:
                for n in range(200):
                    client.record(n, agent=f"agent{n}")
                return await asyncio.gather(*(client.analytics(agent=f"agent{n}") for n in range(200)))

        assert [answer["input_tokens"] for answer in asyncio.run(ask_all())] == list(range(200))

    def test_many_coroutines_that_nobody_answers_all_end_at_the_deadline(self, fleet):
        fleet.actor().stop()

        async def ask_all():
            client = fleet.async_client(lines_max=4, timeout_s=0.5)
            start_s = time.monotonic()
            outcomes = await asyncio.gather(*(client.analytics() for _ in range(100)), return_exceptions=True)
            return outcomes, time.monotonic() - start_s

        outcomes, spent_s = asyncio.run(ask_all())
        assert {type(outcome) for outcome in outcomes} == {ActorUnavailable, ClientBusy}  # some had no line in time
        assert 0.4 < spent_s < 0.5 + SLACK_S

    def test_each_coroutine_sees_its_own_records(self, fleet):
        fleet.actor()

        async def work(client, agent):
            for turn in range(1, 6):
                for _ in range(50):
                    client.record(1, agent=agent)
                assert (await client.analytics(agent=agent))["requests"] == 50 * turn

        async def work_all():
            async with fleet.async_client() as client:
                await asyncio.gather(*(work(client, f"agent{n}") for n in range(20)))

        asyncio.run(work_all())

    def test_one_client_serves_one_loop_after_the_other(self, fleet):
        fleet.actor()
        client = fleet.async_client(lines_max=1)

        async def ask_twice():
            client.record(1)
            return await asyncio.gather(client.analytics(), client.analytics())

        counts = [[answer["requests"] for answer in asyncio.run(ask_twice())] for _ in range(3)]
        assert counts == [[1, 1], [2, 2], [3, 3]]

    def test_a_cancelled_question_leaves_the_client_usable(self, fleet):
        fleet.actor().stop()

        async def cancel():
            async with fleet.async_client(lines_max=1, timeout_s=5.0) as client:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await client.analytics()
                fleet.actor()
                return await client.analytics()

        assert asyncio.run(cancel())["requests"] == 0


class TestClosing:
    def test_closing_twice_is_fine(self, fleet):
        async def close_twice():
            client = fleet.async_client()
            client.record(1)
            await client.close()
            await client.close()

        asyncio.run(close_twice())
        assert len(fleet.batches()) == 1

    def test_after_close_nothing_works_and_says_so(self, fleet):
        async def use():
            client = fleet.async_client()
            manager = client.manager("s")
            await client.close()
            with pytest.raises(ClosedError):
                client.record(1)
            for call in (client.flush, client.analytics, client.status, manager.get_summary, manager.reset):
                with pytest.raises(ClosedError):
                    await call()

        asyncio.run(use())

    def test_it_is_a_context_manager(self, fleet):
        async def use():
            async with fleet.async_client(batch_age_ms=60_000) as client:
                client.record(1)

        asyncio.run(use())
        assert len(fleet.batches()) == 1

    def test_a_close_that_came_too_late_says_what_is_given_up(self, memory_fleet):
        async def close():
            client = memory_fleet.async_client()
            memory_fleet.go_away()
            client.record(1)
            await client.close(0.05)

        with pytest.raises(LogUnavailable, match="given up") as late:
            asyncio.run(close())
        assert late.value.pending == 1

    def test_a_close_does_not_wait_for_questions_under_way(self, fleet):
        fleet.actor().stop()

        async def close():
            client = fleet.async_client(lines_max=2, timeout_s=3.0)
            questions = [asyncio.ensure_future(client.analytics()) for _ in range(10)]
            await asyncio.sleep(0)
            start_s = time.monotonic()
            await client.close()
            spent_s = time.monotonic() - start_s
            fleet.actor()
            await asyncio.gather(*questions, return_exceptions=True)
            return spent_s

        assert asyncio.run(close()) < SLACK_S

    def test_the_threads_of_a_client_end_with_it(self, fleet):
        fleet.actor()

        async def use():
            async with fleet.async_client() as client:
                await client.analytics()

        gc.collect()  # what earlier tests dropped
        asyncio.run(use())
        wait_until(lambda: not _pool_threads())

    def test_the_threads_of_a_dropped_client_end(self, fleet):
        fleet.actor()

        async def use():
            client = fleet.async_client()
            await client.analytics()

        asyncio.run(use())
        gc.collect()
        wait_until(lambda: not _pool_threads())


def _pool_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("token-actor-aio")]


FORK = """
import asyncio, json, os, sys
from token_actor import AsyncTokenClient

client = AsyncTokenClient(sys.argv[1], namespace=sys.argv[2])

async def count(agent):
    client.record(1, agent=agent)
    return (await client.analytics(agent=agent))["requests"]

assert asyncio.run(count("parent")) == 1
if os.fork() == 0:
    assert asyncio.run(count("child")) == 1
    os._exit(0)
assert os.wait()[1] == 0
print(json.dumps(asyncio.run(count("parent"))))
"""


def test_a_client_that_was_used_before_a_fork_works_in_the_child(server, valkey_fleet):
    valkey_fleet.actor()
    quiet = {"PYTHONWARNINGS": "ignore::DeprecationWarning"}
    assert run_script(FORK, server.url, valkey_fleet.namespace, **quiet) == 2
