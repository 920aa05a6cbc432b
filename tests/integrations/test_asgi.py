"""Limits before an ASGI application, driven by hand: what is sent, what is charged, whatever becomes of the request."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.client.harness import Fleet, wait_until
from token_actor.core.limits import Limit
from token_actor.errors import ActorUnavailable, InvalidValue
from token_actor.integrations import asgi
from token_actor.integrations.asgi import RESERVATION, RateLimitMiddleware

MINUTE = Limit("minute", 100, by=["agent"])


@pytest.fixture
def fleet(namespace):
    with Fleet.in_memory(namespace) as fleet:
        yield fleet


@pytest.fixture(params=["threads", "coroutines"])
def client(request, fleet):
    """A client of either face; each agent may use 100 tokens a minute."""
    fleet.actor()
    fleet.client().put_limit(MINUTE)
    return fleet.client(agent="a") if request.param == "threads" else fleet.async_client(agent="a")


async def answer_ok(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
    await send({"type": "http.response.body", "body": b"ok"})


class Request:
    """One request to a middleware, and what was sent back."""

    def __init__(self, middleware, **scope):
        self.scope = {"type": "http", "method": "POST", "path": "/", "headers": [], **scope}
        self.messages = []
        self._middleware = middleware

    async def run(self):
        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            self.messages.append(message)

        await self._middleware(self.scope, receive, send)
        return self

    @property
    def status(self):
        return self.messages[0]["status"]

    @property
    def headers(self):
        pairs = self.messages[0]["headers"]
        assert all(type(name) is type(value) is bytes and name == name.lower() for name, value in pairs)
        assert len({name for name, _ in pairs}) == len(pairs)
        return {name.decode(): value.decode() for name, value in pairs}

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.messages[1:])


def middleware(client, app=answer_ok, tokens=30, **options):
    return RateLimitMiddleware(app, client, estimate=lambda scope: {"tokens": tokens}, **options)


def requested(*args, **scope):
    return asyncio.run(Request(*args, **scope).run())


def taken(fleet):
    (limit,) = fleet.client().limits()
    return [(top["used"], top["reserved"]) for top in limit["top"]]


class TestGranted:
    def test_the_answer_has_headers_and_the_estimate_is_charged(self, fleet, client):
        request = requested(middleware(client))
        assert (request.status, request.body) == (200, b"ok")
        assert request.headers == {
            "x-own": "1",
            "ratelimit-policy": '"minute";q=100;qu="tokens";w=60',
            "ratelimit": '"minute";r=70;t=60',
        }
        assert taken(fleet) == [(30, 0)]

    def test_the_endpoint_finds_its_reservation_and_settles_it(self, fleet, client):
        async def app(scope, receive, send):
            reservation = scope[RESERVATION]
            assert scope["state"]["reservation"] is reservation
            settled = reservation.settle(7, 1)
            if asyncio.iscoroutine(settled):
                await settled
            await answer_ok(scope, receive, send)

        assert requested(middleware(client, app), state={"of the server": 1}).scope["state"]["of the server"] == 1
        assert taken(fleet) == [(8, 0)]

    def test_providers_style_and_both(self, client):
        vendor = requested(middleware(client, headers="vendor")).headers
        assert (vendor["x-ratelimit-limit-tokens"], vendor["x-ratelimit-remaining-tokens"]) == ("100", "70")
        assert "ratelimit" not in vendor
        both = requested(middleware(client, headers="both")).headers
        assert (both["x-ratelimit-remaining-tokens"], both["ratelimit"]) == ("40", '"minute";r=40;t=60')

    def test_a_header_of_the_application_itself_goes_first(self, client):
        async def app(scope, receive, send):
            headers = [(b"RateLimit", b"mine")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})

        request = requested(middleware(client, app))
        assert [value for name, value in request.messages[0]["headers"] if name.lower() == b"ratelimit"] == [b"mine"]

    def test_a_changed_limit_is_told_with_the_next_answer(self, fleet, client):
        front = middleware(client, tokens=1)
        requested(front)
        fleet.client().put_limit(Limit("minute", 500, by=["agent"]))
        fleet.client().put_limit(Limit("others", 1, selector={"agent": "b"}))
        assert requested(front).headers["ratelimit-policy"] == '"minute";q=500;qu="tokens";w=60'

    def test_limits_are_asked_for_once_as_long_as_they_stay(self, client, monkeypatch):
        asked = []
        limits = client.limits
        monkeypatch.setattr(client, "limits", lambda **more: asked.append(more) or limits(**more))
        front = middleware(client, tokens=1)
        for _ in range(3):
            assert requested(front).headers["ratelimit-policy"]
        assert len(asked) == 1

    def test_the_limits_of_so_many_tenants_are_remembered(self, client, monkeypatch):
        monkeypatch.setattr(asgi, "TENANTS_MAX", 2)
        tenants = iter(["t1", "t2", "t3", "t1"])
        front = RateLimitMiddleware(answer_ok, client, estimate=lambda scope: {"tenant": next(tenants)})
        for _ in range(4):
            assert requested(front).headers["ratelimit-policy"]
        assert list(front._calls._known) == ["t3", "t1"]


class TestRefused:
    def test_a_refusal_is_answered_without_the_application(self, fleet, client):
        async def app(scope, receive, send):
            pytest.fail("it was not to run")

        request = requested(middleware(client, app, tokens=101))
        assert request.status == 429
        assert request.headers["content-type"] == "application/problem+json"
        assert request.headers["content-length"] == str(len(request.body))
        assert request.headers["ratelimit"] == '"minute";r=100'
        assert "retry-after" not in request.headers  # it can never fit
        problem = json.loads(request.body)
        assert (problem["violated-policies"], problem["remaining"], problem["retry_after_s"]) == (["minute"], 100, None)

    def test_a_refusal_says_when_to_try_again(self, client):
        front = middleware(client, tokens=60, headers="both")
        assert requested(front).status == 200
        request = requested(front)
        assert request.status == 429
        assert 55 <= int(request.headers["retry-after"]) <= 61
        assert int(request.headers["retry-after-ms"]) <= 61_000
        assert request.headers["ratelimit"] == f'"minute";r=40;t={request.headers["retry-after"]}'
        assert json.loads(request.body)["retry_after_s"] * 1000 == int(request.headers["retry-after-ms"])


class TestPassing:
    def test_what_needs_no_quota_passes_untouched(self, fleet, client):
        front = RateLimitMiddleware(answer_ok, client, estimate=lambda scope: None)
        request = requested(front)
        assert request.headers == {"x-own": "1"}
        assert RESERVATION not in request.scope
        assert taken(fleet) == []

    @pytest.mark.parametrize("kind", ["lifespan", "websocket"])
    def test_other_kinds_of_scopes_pass(self, client, kind):
        async def app(scope, receive, send):
            await send({"type": f"{kind}.seen"})

        front = RateLimitMiddleware(app, client, estimate=lambda scope: pytest.fail("it is not asked"))
        assert requested(front, type=kind).messages == [{"type": f"{kind}.seen"}]


class TestFailures:
    def test_an_error_before_the_answer_gives_all_of_it_back(self, fleet, client):
        async def app(scope, receive, send):
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            requested(middleware(client, app))
        assert taken(fleet) == [(0, 0)]

    def test_an_error_in_the_middle_of_the_answer_charges_the_estimate(self, fleet, client):
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200})
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            requested(middleware(client, app))
        assert taken(fleet) == [(30, 0)]

    def test_a_request_that_is_cancelled_is_charged_the_estimate(self, fleet, client):
        async def play():
            running = asyncio.Event()

            async def app(scope, receive, send):
                running.set()
                await asyncio.Event().wait()

            task = asyncio.create_task(Request(middleware(client, app)).run())
            await running.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(play())
        assert taken(fleet) == [(30, 0)]

    def test_a_wrong_estimate_is_the_applications_fault(self, client):
        front = RateLimitMiddleware(answer_ok, client, estimate=lambda scope: {"colour": "red"})
        with pytest.raises(InvalidValue) as refused:
            requested(front)
        assert refused.value.field == "colour"

    @pytest.mark.parametrize(("option", "value"), [("headers", "all"), ("on_unavailable", "ignore")])
    def test_a_wrong_option_is_named(self, client, option, value):
        with pytest.raises(InvalidValue) as refused:
            middleware(client, **{option: value})
        assert refused.value.field == option


class TestWithoutAnActor:
    @pytest.fixture(params=["threads", "coroutines"])
    def alone(self, request, fleet):
        make = fleet.client if request.param == "threads" else fleet.async_client
        return make(timeout_s=0.05)

    def test_requests_are_refused_and_told_when_to_come_back(self, alone, caplog):
        request = requested(middleware(alone))
        assert (request.status, request.headers["retry-after"]) == (503, "3")
        assert json.loads(request.body)["title"] == "Rate limits cannot be checked now"
        assert [record.action for record in caplog.records if record.name.endswith("asgi")] == ["limits_unavailable"]

    def test_they_go_on_without_a_reservation_where_that_is_wanted(self, alone):
        request = requested(middleware(alone, on_unavailable="allow"))
        assert (request.status, request.headers) == (200, {"x-own": "1"})
        assert request.scope[RESERVATION] is None

    def test_without_the_policy_the_figures_are_told_all_the_same(self, client, monkeypatch, caplog):
        def limits(**more):
            raise ActorUnavailable("away", timeout_s=1)

        monkeypatch.setattr(client, "limits", limits)
        assert requested(middleware(client)).headers == {"x-own": "1", "ratelimit": '"minute";r=70'}
        assert "limits_unavailable" in [getattr(record, "action", None) for record in caplog.records]

    def test_a_reservation_that_cannot_be_ended_expires_and_the_answer_stands(self, client, caplog):
        async def app(scope, receive, send):
            def away():
                raise ActorUnavailable("away", timeout_s=1)

            scope[RESERVATION].end = away
            await answer_ok(scope, receive, send)

        assert requested(middleware(client, app)).body == b"ok"
        (left,) = [record for record in caplog.records if getattr(record, "action", None) == "reservation_left"]
        assert left.reservation


def test_whoever_leaves_while_waiting_holds_nothing(fleet, client):
    watcher = fleet.client(agent="a")
    watcher.put_limit(Limit("one", 1, kind="concurrency"))
    middleware = RateLimitMiddleware(answer_ok, client, estimate=lambda _: {"tokens": 1, "wait_s": 60})

    def standing():
        return next(limit for limit in watcher.limits() if limit["name"] == "one")

    async def leave():
        holder = await asyncio.to_thread(watcher.reserve, 1)
        request = asyncio.create_task(Request(middleware).run())
        while not await asyncio.to_thread(lambda: standing()["waiting"]):
            pass
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await asyncio.to_thread(holder.release)

    asyncio.run(leave())
    wait_until(lambda: (standing()["waiting"], [top["reserved"] for top in standing()["top"]]) in [(0, []), (0, [0])])
