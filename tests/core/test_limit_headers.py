"""Headers of a decision: structured fields whatever the names, never a negative number, never an early retry."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.quota import NOW_MS, Quota
from tests.makers import ask
from token_actor.core.limit_headers import (
    SF_INTEGER_MAX,
    decision_of,
    duration,
    limits_covering,
    rate_limit_headers,
    vendor_headers,
)
from token_actor.core.limits import AMOUNT_MAX, Limit
from token_actor.errors import RateLimited

# A list of strings with parameters, as RFC 9651 writes them: the draft allows nothing else.
STRING = r'"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*"'
INTEGER = r"-?\d{1,15}"
PARAMETER = rf" *;[a-z*][a-z0-9_.*-]*=(?:{INTEGER}|{STRING})"
ITEM = rf"({STRING})((?:{PARAMETER})*)"
LIST = re.compile(rf"{ITEM}(?:, {ITEM})*")


def parsed(value):
    """Return the items of a structured field as (name, parameters); fail when it is not one."""
    assert LIST.fullmatch(value), value
    return [
        (
            re.sub(r"\\(.)", r"\1", name[1:-1]),
            {key: number.strip('"') for key, number in re.findall(r";([^=]+)=([^;]+)", rest)},
        )
        for name, rest in re.findall(ITEM, value)
    ]


def maps(*limits):
    return [limit.as_map() for limit in limits]


def decided(*limits, tokens=0, used=0, **names):
    """Return what a reserve is answered under limits of which ``used`` tokens are gone."""
    quota = Quota(*limits)
    if used:
        quota.use(used)
    return quota.reserve(tokens, **names)


class TestRateLimit:
    def test_a_window_has_its_quota_its_length_and_what_remains(self):
        limit = Limit("per minute", 100)
        assert rate_limit_headers(decided(limit, tokens=30), maps(limit)) == {
            "RateLimit-Policy": '"per minute";q=100;qu="tokens";w=60',
            "RateLimit": '"per minute";r=70;t=60',
        }

    def test_a_refusal_says_when_to_try_again_in_whole_seconds_rounded_up(self):
        limit = Limit("l", 100, seconds=60)
        headers = rate_limit_headers(decided(limit, tokens=50, used=60), maps(limit))
        assert headers["RateLimit"] == '"l";r=40;t=61'
        assert headers["Retry-After"] == "61"

    def test_what_can_never_fit_is_not_to_be_tried_again(self):
        limit = Limit("l", 100)
        headers = rate_limit_headers(decided(limit, tokens=101), maps(limit))
        assert headers["RateLimit"] == '"l";r=100'
        assert "Retry-After" not in headers

    def test_an_untouched_window_is_whole_now(self):
        limit = Limit("l", 100)
        assert rate_limit_headers(decided(limit), maps(limit))["RateLimit"] == '"l";r=100;t=0'

    @pytest.mark.parametrize(
        ("limit", "policy"),
        [
            (Limit("l", 5, unit="requests", seconds=0.5), '"l";q=5;w=1'),
            (Limit("l", 5, unit="concurrency"), '"l";q=5;qu="concurrent-requests"'),
            (Limit("l", 5, kind="bucket"), '"l";q=5;qu="tokens";w=60'),
            (Limit("l", 5, kind="bucket", burst=50), '"l";q=5;qu="tokens";w=60;token-actor-burst=50'),
            (Limit("l", 5, unit="cost_nanousd", seconds=3_600), '"l";q=5;qu="nano-usd";w=3600'),
            (Limit("l", AMOUNT_MAX, unit="input_tokens"), f'"l";q={SF_INTEGER_MAX};qu="input-tokens";w=60'),
        ],
    )
    def test_the_policy_of_a_limit(self, limit, policy):
        assert rate_limit_headers(decided(limit), maps(limit))["RateLimit-Policy"] == policy

    @pytest.mark.parametrize(
        ("period", "window"), [("day", ";w=86400"), ("week", ";w=604800"), ("month", ";w=2678400"), (None, "")]
    )
    def test_a_calendar_has_the_longest_of_its_periods_and_no_time_that_nobody_knows(self, period, window):
        limit = {**Limit("l", 9, unit="requests").as_map(), "kind": "calendar", "period": period}
        decision = decided(Limit("l", 9, unit="requests"))
        assert rate_limit_headers(decision, [limit]) == {
            "RateLimit-Policy": f'"l";q=9{window}',
            "RateLimit": '"l";r=8',
        }

    def test_a_bucket_is_whole_when_it_is_full(self):
        limit = Limit("l", 60, kind="bucket", seconds=60, burst=100)
        assert rate_limit_headers(decided(limit, tokens=25), maps(limit))["RateLimit"] == '"l";r=75;t=25'

    def test_every_policy_is_named_and_the_figures_are_those_of_the_binding_limit(self):
        limits = Limit("day", 1_000, seconds=86_400), Limit("minute", 100)
        headers = rate_limit_headers(decided(*limits, tokens=30), maps(*limits))
        assert [name for name, _ in parsed(headers["RateLimit-Policy"])] == ["day", "minute"]
        assert headers["RateLimit"] == '"minute";r=70;t=60'

    def test_what_was_explained_has_the_figures_of_every_limit(self):
        limits = Limit("day", 1_000, seconds=86_400), Limit("minute", 100)
        quota = Quota(*limits)
        quota.reserve(30)
        told = ask(quota.ledger, "explain", NOW_MS, selector={}, tokens=80)
        headers = rate_limit_headers(told, maps(*limits))
        assert headers["RateLimit"] == '"day";r=970, "minute";r=70;t=61'
        assert headers["Retry-After"] == "61"

    def test_a_shadow_limit_is_not_told(self):
        limits = Limit("trial", 10, mode="shadow"), Limit("l", 1_000)
        quota = Quota(*limits)
        told = ask(quota.ledger, "explain", NOW_MS, selector={}, tokens=80)
        assert rate_limit_headers(told, maps(*limits)) == {
            "RateLimit-Policy": '"l";q=1000;qu="tokens";w=60',
            "RateLimit": '"l";r=1000;t=0',
        }
        assert "RateLimit" not in rate_limit_headers(quota.reserve(5), maps(*limits))

    def test_a_call_that_no_limit_covers_has_no_headers(self):
        assert rate_limit_headers(decided(tokens=5)) == {}
        assert vendor_headers(decided(tokens=5)) == {}

    def test_a_full_table_of_reservations_only_says_when_to_try_again(self):
        decision = {"granted": False, "limit": "__reservations__", "remaining": 7, "retry_after_ms": 1}
        assert rate_limit_headers(decision) == {"Retry-After": "1"}

    @pytest.mark.parametrize(
        ("name", "written"),
        [
            ('say "hi"', r'"say \"hi\""'),
            ("back\\slash", r'"back\\slash"'),
            ("Zürich", '"Z%C3%BCrich"'),
            ("50%", '"50%25"'),
        ],
    )
    def test_a_name_is_written_in_ascii(self, name, written):
        limit = Limit(name, 10)
        assert rate_limit_headers(decided(limit), maps(limit))["RateLimit"] == f"{written};r=10;t=0"


class TestRefusals:
    def test_an_error_has_the_same_headers_as_its_decision(self):
        limit = Limit("l", 100)
        decision = decided(limit, tokens=50, used=60)
        error = RateLimited(
            "no", retry_after_s=decision["retry_after_ms"] / 1000, limit="l", used=60, reserved=0, remaining=40
        )
        for headers in (rate_limit_headers, vendor_headers):
            assert headers(decision_of(error), maps(limit)) == headers(decision, maps(limit))

    def test_an_error_that_says_never_has_no_time(self):
        error = RateLimited("no", retry_after_s=None, limit="l", used=0, reserved=0, remaining=10)
        assert rate_limit_headers(decision_of(error)) == {"RateLimit": '"l";r=10'}


class TestVendor:
    def test_the_style_of_providers(self):
        limit = Limit("l", 100, seconds=360)
        assert vendor_headers(decided(limit, tokens=30), maps(limit)) == {
            "x-ratelimit-limit-tokens": "100",
            "x-ratelimit-remaining-tokens": "70",
            "x-ratelimit-reset-tokens": "6m0s",
        }

    def test_a_refusal_has_the_time_in_milliseconds_too(self):
        limit = Limit("l", 100, kind="bucket", seconds=60)
        headers = vendor_headers(decided(limit, tokens=50, used=55), maps(limit))
        assert headers == {
            "x-ratelimit-limit-tokens": "100",
            "x-ratelimit-remaining-tokens": "45",
            "x-ratelimit-reset-tokens": "33s",
            "Retry-After": "3",
            "retry-after-ms": "3000",
        }

    def test_of_two_limits_of_one_unit_the_tightest_is_told(self):
        limits = Limit("open", 3, unit="concurrency"), Limit("tight", 100), Limit("wide", 1_000, seconds=3_600)
        quota = Quota(*limits)
        quota.reserve(30)
        told = ask(quota.ledger, "explain", NOW_MS, selector={}, tokens=0)
        assert vendor_headers(told, maps(*limits)) == {
            "x-ratelimit-limit-tokens": "100",
            "x-ratelimit-remaining-tokens": "70",
            "x-ratelimit-reset-tokens": "1m0s",
            "x-ratelimit-limit-concurrency": "3",
            "x-ratelimit-remaining-concurrency": "2",
        }

    def test_a_limit_of_which_only_the_name_is_known_has_no_unit_to_tell(self):
        assert vendor_headers(decided(Limit("l", 100), tokens=30)) == {}

    @pytest.mark.parametrize(
        ("milliseconds", "text"),
        [(0, "0s"), (-5, "0s"), (17, "17ms"), (1_000, "1s"), (8_640, "8.64s"), (360_000, "6m0s"), (3_600_000, "1h0m0s"),
         (90_061_001, "25h1m1.001s")],
    )  # fmt: skip
    def test_durations(self, milliseconds, text):
        assert duration(milliseconds) == text


def test_a_limit_covers_a_call_that_has_what_its_selector_names():
    limits = maps(Limit("all", 1), Limit("a", 1, selector={"agent": "a"}), Limit("b", 1, selector={"agent": "b"}))
    assert [limit["name"] for limit in limits_covering(limits, {"agent": "a", "tenant": "t"})] == ["all", "a"]


NAMES = st.text(min_size=1, max_size=20).filter(lambda name: name.isprintable() and not name.startswith("__"))
AMOUNTS = st.one_of(st.integers(1, 1_000), st.integers(1, AMOUNT_MAX))


@st.composite
def limits_in_force(draw):
    kinds = st.sampled_from(["window", "bucket", "concurrency"])
    units = st.sampled_from(["tokens", "input_tokens", "requests", "cost_nanousd"])
    return [
        Limit(
            name,
            draw(AMOUNTS),
            kind=draw(kinds),
            unit=draw(units),
            seconds=draw(st.floats(0.001, 86_400)),
            mode=draw(st.sampled_from(["enforce", "enforce", "shadow"])),
        )
        for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    ]


@given(limits_in_force(), st.lists(st.integers(0, 2_000), min_size=1, max_size=5), st.booleans())
def test_whatever_is_decided_the_headers_are_well_formed_and_not_negative(limits, calls, explained):
    quota = Quota(*limits)
    for tokens in calls:
        told = (
            ask(quota.ledger, "explain", NOW_MS, selector={}, tokens=tokens)
            if explained
            else quota.reserve(tokens, input_tokens=tokens, cost_usd=tokens / 2)
        )
        if explained:
            quota.reserve(tokens)
        headers = rate_limit_headers(told, maps(*limits))
        retry_s = int(headers.get("Retry-After", SF_INTEGER_MAX))
        for field in ("RateLimit-Policy", "RateLimit"):
            for _, parameters in parsed(headers[field]) if field in headers else []:
                assert all(int(value) >= 0 for key, value in parameters.items() if key != "qu")
                assert parameters.get("w") != "0"
                assert told["granted"] or int(parameters.get("t", 0)) <= retry_s
        assert retry_s * 1000 >= (told["retry_after_ms"] or 0)
        assert ("Retry-After" in headers) == (not told["granted"] and told["retry_after_ms"] is not None)
        for name, value in vendor_headers(told, maps(*limits)).items():
            assert re.fullmatch(r"(\d+h)?(\d+m)?\d+(\.\d{1,3})?s|\d+ms" if "-reset-" in name else r"\d+", value)
