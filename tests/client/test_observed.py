"""What a provider says of its quotas holds the whole fleet, in memory and on a real server."""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.client.harness import ROOT
from token_actor.client import observed
from token_actor.core.limits import Limit
from token_actor.core.pauses import PAUSE_MS_MAX
from token_actor.core.provider_limits import provider_limits
from token_actor.errors import ActorUnavailable, InvalidValue, RateLimited

CALL = {"provider": "anthropic", "model": "m"}
HEADERS = {
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-input-tokens-limit": "40000",
    "anthropic-ratelimit-output-tokens-limit": "8000",
    "anthropic-ratelimit-tokens-limit": "48000",
}
WAIT = {"retry-after": "600"}


@pytest.fixture
def client(fleet):
    fleet.actor()
    return fleet.client(**CALL)


def amounts(client):
    return {limit["name"]: limit["amount"] for limit in client.limits()}


def commands(fleet):
    return sum(fields[0] == b"c" for _, fields in fleet.log())


def paused_s(client):
    """Return how long each limit is paused, in whole seconds, rounded up."""
    return {limit["name"]: -(-limit["paused_ms"] // 1000) for limit in client.limits()}


def wait_s(client):
    """Return how long a reservation has to wait, 0 when it is granted."""
    try:
        client.reserve(1)
    except RateLimited as refused:
        return refused.retry_after_s
    return 0.0


class TestQuotas:
    def test_they_become_the_limits_of_the_fleet(self, fleet, client):
        told = client.observe_headers(HEADERS)
        assert told.amounts["requests"] == 50
        assert amounts(fleet.client()) == {
            "anthropic/m/requests": 50,
            "anthropic/m/input_tokens": 40_000,
            "anthropic/m/output_tokens": 8_000,
        }
        with pytest.raises(RateLimited) as refused:
            fleet.client(agent="b").reserve(output_tokens=8_001, **CALL)
        assert refused.value.limit == "anthropic/m/output_tokens"

    def test_what_was_seen_before_costs_no_command(self, fleet, client):
        client.observe_headers(HEADERS)
        before = commands(fleet)
        client.observe_headers(HEADERS)
        client.observe_headers({"content-type": "text/plain"}, status=200)
        assert commands(fleet) == before == 3

    def test_another_amount_is_put_and_goes_on_with_what_is_taken(self, fleet, client):
        client.observe_headers(HEADERS)
        client.reserve(output_tokens=5_000)
        client.observe_headers({**HEADERS, "anthropic-ratelimit-output-tokens-limit": "9000"})
        assert (amounts(client)["anthropic/m/output_tokens"], commands(fleet)) == (9_000, 5)
        with pytest.raises(RateLimited):
            client.reserve(output_tokens=4_001)

    def test_a_model_has_its_own_and_so_has_a_tenant(self, client):
        client.observe_headers({"x-ratelimit-limit-tokens": "10"}, provider="openai", model="a")
        client.observe_headers({"x-ratelimit-limit-tokens": "20"}, provider="openai", model="b", tenant="t")
        assert amounts(client) == {"openai/a/tokens": 10, "t/openai/b/tokens": 20}

    def test_limits_put_by_name_are_the_ones_that_are_changed(self, client):
        for limit in provider_limits("anthropic", "m", requests_per_minute=10):
            client.put_limit(limit)
        client.observe_headers({"anthropic-ratelimit-requests-limit": "20"})
        assert amounts(client) == {"anthropic/m/requests": 20}

    def test_requests_that_a_provider_counts_by_the_day_are_limited_by_the_day(self, client):
        client.observe_headers(
            {"x-ratelimit-limit-requests": "14400", "x-ratelimit-limit-tokens": "6000"}, provider="groq"
        )
        assert {limit["unit"]: limit["seconds"] for limit in client.limits()} == {"requests": 86_400, "tokens": 60}

    def test_of_too_many_models_some_are_put_again(self, fleet, client, monkeypatch):
        monkeypatch.setattr(observed, "MODELS_MAX", 2)
        for model in "abca":
            client.observe_headers({"x-ratelimit-limit-tokens": "10"}, model=model)
        assert (commands(fleet), len(client._amounts)) == (4, 2)

    def test_what_is_not_understood_is_told(self, client):
        told = client.observe_headers({"x-ratelimit-limit-tokens": "lots"})
        assert (told.not_understood, client.limits()) == (("x-ratelimit-limit-tokens: lots",), [])

    @pytest.mark.parametrize(("names", "field"), [({}, "provider"), ({"provider": "p"}, "model")])
    def test_provider_and_model_must_be_known(self, fleet, names, field):
        with pytest.raises(InvalidValue) as refused:
            fleet.client(**names).observe_headers({})
        assert refused.value.field == field


class TestRefusals:
    def test_a_refusal_pauses_the_whole_fleet(self, fleet, client):
        client.observe_headers({**HEADERS, **WAIT}, status=429)
        assert set(paused_s(client).values()) == {600}
        with pytest.raises(RateLimited) as refused:
            fleet.client(agent="b", tenant="t").reserve(1, **CALL)
        assert refused.value.retry_after_s is not None
        assert 590 < refused.value.retry_after_s <= 600
        assert refused.value.remaining == 0
        assert fleet.client(agent="b").reserve(1, provider="anthropic", model="other")

    def test_it_ends_by_itself(self, client):
        client.observe_headers({"retry-after-ms": "5"}, status=429)
        waits_s = [0.005]
        while waits_s[-1]:  # each is an entry, and moves the time of the log
            waits_s.append(wait_s(client))
        assert max(waits_s[1:]) <= 0.005

    def test_where_no_limit_is_known_one_is_made(self, client):
        client.observe_headers(WAIT, status=429)
        assert (amounts(client), paused_s(client)) == ({"anthropic/m/requests": 10**18}, {"anthropic/m/requests": 600})

    def test_limits_of_other_calls_are_left_alone(self, client):
        client.put_limit(Limit("budget", 100))
        client.observe_headers(WAIT, status=429)
        assert paused_s(client) == {"budget": 0, "anthropic/m/requests": 600}

    @pytest.mark.parametrize("status", [503, 529])
    def test_an_overload_that_says_when_to_come_back_does_so_too(self, client, status):
        client.observe_headers({}, status=status)
        assert client.limits() == []
        client.observe_headers(WAIT, status=status)
        assert paused_s(client) == {"anthropic/m/requests": 600}

    def test_the_shorter_of_two_waits_ends_nothing(self, fleet, client):
        client.observe_headers(WAIT, status=429)
        fleet.client(**CALL).observe_headers({"retry-after": "1"}, status=429)
        assert paused_s(client)["anthropic/m/requests"] > 590

    def test_no_header_stops_a_fleet_for_longer_than_an_hour(self, client):
        client.observe_headers({"retry-after": "999999"}, status=429)
        assert paused_s(client) == {"anthropic/m/requests": PAUSE_MS_MAX // 1000}

    def test_no_wait_at_all_pauses_nothing(self, client):
        client.observe_headers({"retry-after": "0"}, status=429)
        assert client.limits() == []

    def test_without_an_actor_it_says_so_and_puts_it_in_force_the_next_time(self, fleet):
        client = fleet.client(**CALL)
        with pytest.raises(ActorUnavailable):
            client.observe_headers(HEADERS, timeout_s=0.05)
        fleet.actor()
        client.observe_headers(HEADERS)
        assert len(amounts(client)) == 3

    def test_coroutines_have_it_too(self, fleet, client):
        async def refused():
            other = fleet.async_client(**CALL)
            told = await other.observe_headers(WAIT, status=429)
            await other.close()
            return told.retry_after_s

        assert asyncio.run(refused()) == 600
        assert paused_s(client) == {"anthropic/m/requests": 600}


class TestEstimates:
    def test_a_reservation_without_counts_holds_what_the_last_calls_used(self, client):
        client.put_limit(Limit("l", 10_000))
        assert client.reserve().decision["estimate"] == {"source": "default", "tokens": 4_096, "requests": 1}
        client.record(300, 20)
        told = client.reserve().decision["estimate"]
        assert told == {"source": "learned", "input_tokens": 300, "output_tokens": 20, "requests": 1}
        assert client.reserve(7).decision["estimate"] == {"source": "given", "tokens": 7, "requests": 1}
        assert client.explain()["estimate"] == told


def test_the_example_of_the_documents_runs(capsys):
    _, section = (ROOT / "docs/limits.md").read_text().split("## Provider quotas\n")
    (block,) = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    exec(compile(block, "limits.md", "exec"), {})
    first, second = capsys.readouterr().out.splitlines()
    assert first == str([f"anthropic/claude-x/{unit}" for unit in ("requests", "input_tokens", "output_tokens")])
    assert second == "True 0 True"
