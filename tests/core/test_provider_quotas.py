"""Facts about the headers in which providers tell their quotas: what is read, and that nothing breaks the reader."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import examples
from token_actor.core.provider_quotas import PAUSE_S_DEFAULT, ProviderQuotas, Quota, read_quotas

NOW_S = 1_445_412_460.0  # 21 October 2015, 07:27:40 UTC
OPENAI = {
    "x-ratelimit-limit-requests": "60", "x-ratelimit-limit-tokens": "150000", "x-ratelimit-remaining-requests": "59",
    "x-ratelimit-remaining-tokens": "149984", "x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s",
}  # fmt: skip
ANTHROPIC = {
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-requests-remaining": "49",
    "anthropic-ratelimit-requests-reset": "2015-10-21T07:28:00Z",
    "anthropic-ratelimit-tokens-limit": "48000",
    "anthropic-ratelimit-input-tokens-limit": "40000",
    "anthropic-ratelimit-input-tokens-remaining": "0",
    "anthropic-ratelimit-input-tokens-reset": "2015-10-21T09:28:10+02:00",
    "anthropic-ratelimit-output-tokens-limit": "8000",
}


def read(**headers):
    return read_quotas({name.replace("_", "-"): value for name, value in headers.items()}, NOW_S)


def test_openai_tells_requests_and_tokens():
    told = read_quotas(OPENAI, NOW_S)
    assert told == ProviderQuotas(
        quotas={"requests": Quota(60, 59, 1.0), "tokens": Quota(150_000, 149_984, 360.0)}, retry_after_s=None
    )
    assert told.amounts == {"requests": 60, "tokens": 150_000}


def test_anthropic_tells_input_and_output_apart_and_moments():
    told = read_quotas(ANTHROPIC, NOW_S)
    assert told.quotas == {
        "requests": Quota(50, 49, 20.0),
        "tokens": Quota(48_000),
        "input_tokens": Quota(40_000, 0, 30.0),
        "output_tokens": Quota(8_000),
    }
    assert told.amounts == {"requests": 50, "input_tokens": 40_000, "output_tokens": 8_000}
    assert told.not_understood == ()


def test_names_are_read_in_any_case_and_as_bytes():
    told = read_quotas({"X-RateLimit-Limit-Requests": " 7 ", b"RETRY-AFTER": b"3", "other": "x"}, NOW_S)
    assert (told.quotas, told.retry_after_s) == ({"requests": Quota(7)}, 3.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0), ("6m0s", 360.0), ("20ms", 0.02), ("1h2m3.5s", 3723.5), ("2m59.56s", 179.56), ("1d", 86_400.0),
        ("0s", 0.0), ("1m", 60.0), ("3m500ms", 180.5), ("12µs", 12e-6), ("7us", 7e-6), ("9ns", 9e-9), ("59.5", 59.5),
        ("2015-10-21T07:28:00Z", 20.0), ("2015-10-21T07:00:00Z", 0.0),
        ("", None), ("s", None), ("-1s", None), ("1 s", None), ("1w", None), ("400d", None), ("soon", None),
        ("1445412480", None), ("2015-10-21T07:28:00", None), ("٣s", None), ("1s" * 40, None), ("9" * 19 + "h", None),
    ],
)  # fmt: skip
def test_a_duration(text, seconds):
    told = read(x_ratelimit_reset_tokens=text)
    found = told.quotas.get("tokens", Quota()).reset_s
    assert found == (None if seconds is None else pytest.approx(seconds))
    assert bool(told.not_understood) == (seconds is None)


@pytest.mark.parametrize(
    ("text", "amount"),
    [("1", 1), (12, 12), ("1000000000000000000", 10**18), ("0", None), ("-1", None), ("1.5", None), ("many", None),
     ("1e3", None), ("1000000000000000001", None), ("9" * 30, None), (None, None), ([], None), (10**4_000, None)],
)  # fmt: skip
def test_an_amount(text, amount):
    told = read(x_ratelimit_limit_tokens=text)
    assert told.amounts == ({} if amount is None else {"tokens": amount})
    assert bool(told.not_understood) == (amount is None)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "20"}, 20.0), ({"retry_after": "1.5"}, 1.5), ({"retry_after": 3}, 3.0), ({}, None),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 20.0),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:00 -0000"}, 20.0),
        ({"retry_after": "Wed, 21 Oct 2015 07:00:00 GMT"}, 0.0),
        ({"retry_after": "Sat, 21 Oct 2045 07:28:00 GMT"}, None),
        ({"retry_after": "-5"}, None), ({"retry_after": "later"}, None), ({"retry_after": "99999999"}, None),
        ({"retry_after_ms": "1500"}, 1.5), ({"retry_after_ms": "1500", "retry_after": "2"}, 1.5),
        ({"retry_after_ms": "?", "retry_after": "2"}, 2.0), ({"retry_after_ms": "9" * 15}, None),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT", "date": "Wed, 21 Oct 2015 07:27:55 GMT"}, 5.0),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT", "date": "yesterday"}, 20.0),
    ],
)  # fmt: skip
def test_a_wait(headers, seconds):
    assert read(**headers).retry_after_s == seconds


def test_what_is_wrong_is_left_out_by_itself_and_named():
    told = read_quotas({**OPENAI, "x-ratelimit-limit-tokens": "lots", "x-ratelimit-reset-requests": "x" * 200}, NOW_S)
    assert told.quotas == {"requests": Quota(60, 59, None), "tokens": Quota(None, 149_984, 360.0)}
    assert [text[:34] for text in told.not_understood] == [
        "x-ratelimit-reset-requests: xxxxxx", "x-ratelimit-limit-tokens: lots",
    ]  # fmt: skip
    assert max(map(len, told.not_understood)) <= 80


@pytest.mark.parametrize(
    ("status", "headers", "pause_s"),
    [
        (200, {"retry-after": "5"}, None), (429, {"retry-after": "5"}, 5.0), (529, {"retry-after": "5"}, 5.0),
        (503, {"retry-after": "5"}, 5.0), (503, {}, None), (529, ANTHROPIC, None), (500, {"retry-after": "5"}, None),
        (429, {}, PAUSE_S_DEFAULT), (429, OPENAI, PAUSE_S_DEFAULT), (429, ANTHROPIC, 30.0),
        (429, {**OPENAI, "x-ratelimit-remaining-tokens": "0"}, 360.0), (429, {"retry-after": "0"}, 0.0),
    ],
)  # fmt: skip
def test_how_long_nothing_more_should_be_sent(status, headers, pause_s):
    assert read_quotas(headers, NOW_S).pause_s(status) == pause_s


names = st.sampled_from([*OPENAI, *ANTHROPIC, "retry-after", "retry-after-ms", "date", "Date"]) | st.text()
near = st.from_regex(r"[0-9TZ:.+ \-a-z]{0,30}") | st.sampled_from(
    ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "Mon, 1 Jan 1 00:00:00 +9999", "1 Jan 99999 00:00 GMT"]
)
values = st.text() | near | st.binary() | st.integers() | st.floats() | st.none() | st.lists(st.integers())


@examples(800)
@given(st.dictionaries(names | st.binary() | st.integers(), values), st.floats(0, 2e9), st.integers())
def test_nothing_that_is_in_headers_breaks_the_reader(headers, now_s, status):
    told = read_quotas(headers, now_s)
    for quota in told.quotas.values():
        assert all(part is None or part >= 0 for part in quota)
    pause_s = told.pause_s(status)
    assert pause_s is None or 0 <= pause_s < 2e9
