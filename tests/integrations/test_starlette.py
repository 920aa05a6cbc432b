"""The middleware in Starlette, asked by a real HTTP client: as in FastAPI, which stands on it."""

from __future__ import annotations

import asyncio

import httpx
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from token_actor import AsyncTokenClient, Limit, TokenClient
from token_actor.integrations.asgi import RateLimitMiddleware


def estimate(scope):
    """Take the agent from a header; what is not under /llm needs no quota."""
    if not scope["path"].startswith("/llm"):
        return None
    return {"tokens": 45, "agent": dict(scope["headers"]).get(b"x-agent", b"nobody").decode()}


async def threads(request):
    await run_in_threadpool(request.state.reservation.settle, 5, 5, model="m")
    return PlainTextResponse("done")


async def coroutines(request):
    await request.state.reservation.settle(5, 5, model="m")
    return PlainTextResponse("done")


async def stream(request):
    async def parts():
        for _ in range(3):
            yield "part "

    return StreamingResponse(parts())


async def free(request):
    return PlainTextResponse("free")


async def timed(request, call_next):
    """Be a middleware around ours that runs it in a task group of its own."""
    response = await call_next(request)
    response.headers["x-seen"] = "1"
    return response


def application(client, settling):
    routes = [Route("/llm", settling, methods=["POST"]), Route("/llm/stream", stream), Route("/free", free)]
    middleware = [
        Middleware(BaseHTTPMiddleware, dispatch=timed),
        Middleware(RateLimitMiddleware, client=client, estimate=estimate),
    ]
    return Starlette(routes=routes, middleware=middleware)


async def play(app):
    """Ask until agent a is refused; return the answers by what was asked for."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        return {
            "free": await http.get("/free"),
            "first": await http.post("/llm", headers={"x-agent": "a"}),
            "stream": await http.get("/llm/stream", headers={"x-agent": "a"}),
            "next": await http.post("/llm", headers={"x-agent": "a"}),
            "refused": await http.get("/llm/stream", headers={"x-agent": "a"}),
            "other": await http.post("/llm", headers={"x-agent": "b"}),
        }


def check(answers, analytics):
    assert {name: answer.status_code for name, answer in answers.items()} == {
        "free": 200, "first": 200, "stream": 200, "next": 200, "refused": 429, "other": 200,
    }  # fmt: skip
    assert "ratelimit" not in answers["free"].headers
    assert answers["first"].headers["ratelimit"] == '"l";r=55;t=60'
    assert answers["stream"].text == "part part part "
    assert answers["next"].headers["ratelimit"] == '"l";r=0;t=60'
    assert int(answers["refused"].headers["retry-after"]) > 50
    assert answers["refused"].json()["violated-policies"] == ["l"]
    assert answers["other"].headers["x-seen"] == "1"
    assert (analytics["requests"], analytics["total_tokens"]) == (3, 30)


def test_with_a_client_for_threads():
    with TokenClient("memory://") as client:
        client.put_limit(Limit("l", 100, by=["agent"]))
        check(asyncio.run(play(application(client, threads))), client.analytics(model="m"))


def test_with_a_client_for_coroutines():
    async def played():
        async with AsyncTokenClient("memory://") as client:
            await client.put_limit(Limit("l", 100, by=["agent"]))
            return await play(application(client, coroutines)), await client.analytics(model="m")

    check(*asyncio.run(played()))
