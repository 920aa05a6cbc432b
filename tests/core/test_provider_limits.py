"""Facts about limits in the shape in which providers set them."""

from __future__ import annotations

import pytest

from tests.core.quota import Quota
from tests.makers import apply, event
from token_actor.core.provider_limits import provider_limits
from token_actor.errors import InvalidValue


def of(quota, **taken):
    return {name: quota.taken(f"anthropic/m/{name}") for name in taken or ("requests", "input_tokens", "output_tokens")}


@pytest.fixture
def quota():
    return Quota(*provider_limits("anthropic", "m", requests_per_minute=50, input_tokens_per_minute=1_000,
                                  output_tokens_per_minute=200))  # fmt: skip


def test_they_are_named_by_provider_model_and_unit_and_cover_that_model_alone():
    limits = provider_limits("anthropic", "claude-x", input_tokens_per_minute=10, requests_per_minute=5)
    assert [(limit.name, limit.amount, limit.unit, limit.window_ms) for limit in limits] == [
        ("anthropic/claude-x/requests", 5, "requests", 60_000),
        ("anthropic/claude-x/input_tokens", 10, "input_tokens", 60_000),
    ]
    assert {tuple(limit.selector.items()) for limit in limits} == {(("provider", "anthropic"), ("model", "claude-x"))}


def test_no_quota_is_no_limit():
    assert provider_limits("p", "m") == []


def test_what_is_read_from_the_cache_is_no_input_and_what_is_written_there_is(quota):
    apply(quota.ledger, event(10, 20, counts=(500, 3, 0), provider="anthropic", model="m"))
    assert of(quota) == {"requests": (1, 0), "input_tokens": (13, 0), "output_tokens": (20, 0)}


def test_the_tokens_of_all_kinds_are_counted_where_a_provider_counts_them_together():
    quota = Quota(*provider_limits("openai", "m", tokens_per_minute=1_000))
    apply(quota.ledger, event(10, 20, counts=(500, 3, 0), provider="openai", model="m"))
    assert quota.taken("openai/m/tokens") == (533, 0)


def test_one_decision_is_made_over_all_of_them(quota):
    told = quota.run("reserve", {"provider": "anthropic", "model": "m", "input_tokens": 900, "output_tokens": 201})
    assert (told["granted"], told["limit"]) == (False, "anthropic/m/output_tokens")
    assert of(quota)["input_tokens"] == (0, 0)


def test_a_limit_of_one_tenant_covers_it_alone():
    (limit,) = provider_limits("p", "m", requests_per_minute=1, tenant="t")
    assert (limit.name, limit.selector["tenant"]) == ("t/p/m/requests", "t")


def test_other_fields_are_those_of_a_limit():
    (limit,) = provider_limits("p", "m", requests_per_minute=9, seconds=86_400, mode="shadow", by=("user",))
    assert (limit.seconds, limit.mode, limit.by) == (86_400, "shadow", ("user",))


@pytest.mark.parametrize(
    ("arguments", "field"),
    [(("", "m"), "provider"), (("p", ""), "model"), (("p", 5), "model"), (("p", "m" * 125), "name")],
)
def test_a_wrong_name_is_refused(arguments, field):
    with pytest.raises(InvalidValue) as refused:
        provider_limits(*arguments, requests_per_minute=1)
    assert refused.value.field == field


def test_a_wrong_amount_is_refused():
    with pytest.raises(InvalidValue):
        provider_limits("p", "m", requests_per_minute=-1)
