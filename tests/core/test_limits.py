"""Facts about one limit: what it says of itself, whom it covers, and what a call costs."""

from __future__ import annotations

import numpy as np
import pytest

from tests.makers import event
from token_actor.core.limits import AMOUNT_MAX, WINDOW_MS_MAX, Estimate, Limit, estimate_of, limit_of
from token_actor.errors import InvalidValue

DAILY = {"kind": "calendar", "period": "day"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": 5}, "name"),
        ({"name": "__mine"}, "name"),
        ({"amount": -1}, "amount"),
        ({"amount": AMOUNT_MAX + 1}, "amount"),
        ({"amount": 1.5}, "amount"),
        ({"amount": True}, "amount"),
        ({"amount": "1"}, "amount"),
        ({"amount": 0, "kind": "bucket"}, "amount"),
        ({"unit": "coins"}, "unit"),
        ({"kind": "moon"}, "kind"),
        ({"mode": "maybe"}, "mode"),
        ({"on_expire": "keep"}, "on_expire"),
        ({"seconds": 0}, "seconds"),
        ({"seconds": -1}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": "60"}, "seconds"),
        ({"seconds": WINDOW_MS_MAX // 1000 + 1}, "seconds"),
        ({"burst": 5}, "burst"),
        ({"burst": -1, "kind": "bucket"}, "burst"),
        ({"burst": 1.0, "kind": "bucket"}, "burst"),
        ({"selector": "m"}, "selector"),
        ({"selector": {"colour": "red"}}, "selector"),
        ({"selector": {"model": 5}}, "selector"),
        ({"by": "agent"}, "by"),
        ({"by": ["colour"]}, "by"),
        ({"by": ["agent", "agent"]}, "by"),
        ({"weights": [1]}, "weights"),
        ({"weights": {"reasoning_tokens": 1}}, "weights"),
        ({"weights": {"input_tokens": -1}}, "weights"),
        ({"weights": {"input_tokens": 11}}, "weights"),
        ({"weights": {"input_tokens": "1"}}, "weights"),
        ({"weights": {"input_tokens": 1}, "unit": "requests"}, "weights"),
        ({"kind": "calendar"}, "period"),
        ({**DAILY, "period": "year"}, "period"),
        ({**DAILY, "period": ["day"]}, "period"),
        ({"period": "day"}, "period"),
        ({"period": "day", "kind": "calendar", "unit": "concurrency"}, "period"),
        ({**DAILY, "tz": "Mars/Olympus"}, "tz"),
        ({**DAILY, "tz": ""}, "tz"),
        ({**DAILY, "tz": 5}, "tz"),
        ({**DAILY, "tz": ["UTC"]}, "tz"),
        ({**DAILY, "tz": "../../etc/passwd"}, "tz"),
        ({"tz": "Europe/Berlin"}, "tz"),
        ({**DAILY, "week_start": "Monday"}, "week_start"),
        ({**DAILY, "burst": 5}, "burst"),
        ({**DAILY, "thresholds": 50}, "thresholds"),
        ({**DAILY, "thresholds": "50"}, "thresholds"),
        ({**DAILY, "thresholds": [50.0]}, "thresholds"),
        ({**DAILY, "thresholds": [True]}, "thresholds"),
        ({**DAILY, "thresholds": [0]}, "thresholds"),
        ({**DAILY, "thresholds": [1_001]}, "thresholds"),
        ({**DAILY, "thresholds": [80, 50]}, "thresholds"),
        ({**DAILY, "thresholds": [50, 50]}, "thresholds"),
        ({**DAILY, "thresholds": list(range(1, 12))}, "thresholds"),
        ({"thresholds": [50]}, "thresholds"),
        ({"thresholds": []}, "thresholds"),
        ({"fair_by": "agent"}, "fair_by"),
        ({"fair_by": ["agent", "agent"]}, "fair_by"),
        ({"on_outage": "panic"}, "on_outage"),
        ({"safe_share": 1.01}, "safe_share"),
        ({"safe_share": -0.01}, "safe_share"),
        ({"safe_share": float("nan")}, "safe_share"),
        ({"safe_share": "0.1"}, "safe_share"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(change, field):
    with pytest.raises(InvalidValue) as refused:
        limit_of({"name": "l", "amount": 5, **change})
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("fields", "field"), [({"name": "l"}, "amount"), ({"amount": 5}, "name"), ({"name": "l", "amount": 5, "x": 1}, "x")]
)
def test_a_map_of_a_limit_has_what_it_must_and_nothing_unknown(fields, field):
    with pytest.raises(InvalidValue) as refused:
        limit_of(fields)
    assert (refused.value.field, refused.value.reason) == (field, "decode")


@pytest.mark.parametrize(
    "limit",
    [
        Limit("l", 5),
        Limit("l", 5, kind="bucket", seconds=0.5, burst=9, mode="shadow", on_expire="refund"),
        Limit(
            "l", 5, "output_tokens", selector={"model": "m"}, by=("agent", "user"), weights={"cache_read_tokens": 0.1}
        ),
        Limit(
            "l",
            5,
            "cost_nanousd",
            "calendar",
            period="week",
            tz="Asia/Kolkata",
            week_start="sunday",
            thresholds=[5, 90],
        ),
        Limit("l", 5, fair_by=["agent"], on_outage="safe", safe_share=0.5),
    ],
)
def test_a_limit_comes_back_from_its_map_as_it_was(limit):
    again = limit_of(limit.as_map())
    assert (again, again.shape) == (limit, limit.shape)


@pytest.mark.parametrize("fields", [{"unit": "concurrency"}, {"kind": "concurrency"}])
def test_concurrency_is_a_unit_and_a_kind_at_once(fields):
    limit = Limit("l", 5, **fields)
    assert (limit.unit, limit.kind, limit.gives_back) == ("concurrency", "concurrency", True)


@pytest.mark.parametrize(
    ("change", "told_at"), [({}, (50, 80, 100)), ({"thresholds": [1, 1_000]}, (1, 1_000)), ({"thresholds": []}, ())]
)
def test_a_calendar_tells_at_its_thresholds_and_no_other_kind_does(change, told_at):
    assert limit_of({"name": "l", "amount": 5, **DAILY, **change}).told_at == told_at
    assert Limit("l", 5).told_at == ()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"seconds": 5}, True),  # a calendar has no use for them
        ({"thresholds": [10]}, True),
        ({"amount": 9}, True),
        ({"period": "month"}, False),
        ({"tz": "Asia/Kolkata"}, False),
        ({"week_start": "sunday"}, False),
    ],
)
def test_a_calendar_of_other_periods_counts_anew(change, same):
    fields = {"name": "l", "amount": 5, **DAILY}
    assert (limit_of(fields).shape == limit_of({**fields, **change}).shape) is same


NAMES = ["t", "p", "u", "a", "s", "v", "m"]


@pytest.mark.parametrize(
    ("selector", "by", "scope"),
    [
        ({}, [], ""),
        ({"model": "m"}, [], ""),
        ({"model": "n"}, [], None),
        ({"model": "m", "agent": "b"}, [], None),
        ({}, ["agent"], "a"),
        ({"tenant": "t"}, ["user", "agent"], "u\x1fa"),
    ],
)
def test_a_call_counts_under_its_value_of_by_if_the_selector_covers_it(selector, by, scope):
    assert Limit("l", 5, selector=selector, by=by).scope_of(NAMES) == scope


EVENT = event(100, 10, counts=(1_000, 7, 3), cost_nanousd=55)


@pytest.mark.parametrize(
    ("unit", "weights", "charge"),
    [
        ("tokens", None, 1_117),
        ("input_tokens", None, 100),
        ("output_tokens", None, 10),
        ("requests", None, 1),
        ("cost_nanousd", None, 55),
        ("tokens", {"cache_read_tokens": 0}, 117),
        ("tokens", {"cache_read_tokens": 0.1, "output_tokens": 5}, 257),
        ("input_tokens", {"cache_write_tokens": 1.25}, 109),  # 108.75, in favour of the limit
        ("tokens", {"cache_read_tokens": 0.0011}, 118),
    ],
)
def test_a_call_is_charged_in_the_unit_of_the_limit_alone_and_among_others(unit, weights, charge):
    limit = Limit("l", 5, unit, weights=weights)
    assert limit.charge_of(EVENT) == charge
    counts, cost = np.array([EVENT[1:6]] * 2).T, np.array([55, 55])
    assert limit.charges_of(counts, cost).tolist() == [charge, charge]


def test_usage_holds_nothing_open():
    assert Limit("l", 5, "concurrency").charge_of(EVENT) == 0


@pytest.mark.parametrize(
    ("unit", "weights", "cost"),
    [
        ("tokens", None, 18),
        ("input_tokens", None, 12),
        ("output_tokens", None, 16),
        ("tokens", {"output_tokens": 2}, 34),  # of no kind yet, so they may be the dearest
        ("requests", None, 1),
        ("concurrency", None, 1),
        ("cost_nanousd", None, 7),
    ],
)
def test_tokens_of_no_kind_are_reserved_as_the_dearest(unit, weights, cost):
    assert Limit("l", 5, unit, weights=weights).cost_of(Estimate("", 10, (2, 6, 0, 0), 7)) == cost


def test_an_estimate_is_read_from_a_map():
    estimate = estimate_of({"tenant": "t", "tokens": 4, "output_tokens": 2, "cost_usd": "0.5"})
    assert estimate == Estimate("t" + "\x1f" * 6, 4, (0, 2, 0, 0), 500_000_000)


def test_time_means_nothing_to_concurrency():
    assert Limit("l", 1, kind="concurrency", seconds=30).shape == Limit("l", 1, kind="concurrency").shape


def test_a_reservation_of_no_requests_is_not_open_at_once_with_others():
    limit = Limit("l", 1, kind="concurrency")
    assert [limit.cost_of(Estimate("", requests=requests)) for requests in (0, 1, 5)] == [0, 1, 1]
