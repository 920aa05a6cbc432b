"""A summary for people: totals first, and what has no price is not shown as free."""

from __future__ import annotations

import pytest

from token_actor.client.report import cost_text, fleet_summary

TOTAL = {
    "requests": 1_234,
    "input_tokens": 5_000_000,
    "output_tokens": 1,
    "cache_read_tokens": 0,
    "cache_write_tokens": 2,
    "total_tokens": 5_000_003,
    "cost_usd": 1_234.56789,
    "unpriced": 0,
}


def group(**names):
    return {**names, "total_tokens": 7_000, "requests": 1_000}


def test_numbers_have_separators():
    assert fleet_summary({"model": {**TOTAL, "groups": []}}, {}) == (
        "=== Fleet Summary: everything ===\nRequests: 1,234\nInput tokens: 5,000,000\nOutput tokens: 1\n"
        "Cache read tokens: 0\nCache write tokens: 2\nTotal tokens: 5,000,003\nCost: $1,234.5679"
    )


def test_groups_without_a_name_are_left_out():
    answer = {**TOTAL, "groups": [group(model=None), group(model="m")]}
    assert fleet_summary({"model": answer}, {"agent": "a"}).endswith(
        "\n\nLargest by model:\n  m: 7,000 tokens in 1,000 requests"
    )


def test_a_dimension_that_nobody_named_is_left_out():
    answer = {**TOTAL, "groups": [group(model=None)]}
    assert "Largest" not in fleet_summary({"model": answer}, {})


@pytest.mark.parametrize(
    ("sums", "text"),
    [
        ({"requests": 3, "cost_usd": 0.5, "unpriced": 0}, "$0.5000"),
        ({"requests": 3, "cost_usd": 0.5, "unpriced": 1}, "$0.5000 + 1 unpriced request"),
        ({"requests": 3, "cost_usd": 0.0, "unpriced": 3}, "unpriced"),
        ({"requests": 0, "cost_usd": 0.0, "unpriced": 0}, "$0.0000"),
        ({"requests": 3, "cost_usd": 0.5}, "$0.5000"),
    ],
    ids=range(5),
)
def test_a_cost_says_what_it_leaves_out(sums, text):
    assert cost_text(sums) == text


def taken(used, scope):
    return {"scope": scope, "amount": 1_000, "used": used, "reserved": 0, "remaining": 1_000 - used}


def test_the_fullest_limits_are_shown_and_those_of_others_are_not():
    limit = {"name": "l", "unit": "tokens", "selector": {}, "top": [taken(1, {"agent": "a"}), taken(2, {"agent": "b"})]}
    other = {"name": "other", "unit": "requests", "selector": {"agent": "b"}, "top": [taken(9, {})]}
    group = {"model": {**TOTAL, "groups": []}}
    assert fleet_summary(group, {}, [limit, other]).endswith(
        "\n\nLimits:\n  other: 9 used, 0 reserved, 991 of 1,000 requests remaining\n"
        "  l (b): 2 used, 0 reserved, 998 of 1,000 tokens remaining\n"
        "  l (a): 1 used, 0 reserved, 999 of 1,000 tokens remaining"
    )
    assert fleet_summary(group, {"agent": "a"}, [limit, other]).count(" remaining") == 1
    assert "Limits" not in fleet_summary(group, {"agent": "c"}, [limit, other])
