"""Facts about the words of usage, and the checks that every way in shares."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import examples
from token_actor.core.usage import (
    COST_NANOUSD_MAX,
    DIMENSIONS,
    SEPARATOR,
    TIME_MS_MAX,
    TOKENS_MAX,
    UNPRICED,
    Event,
    check_count,
    check_exactness,
    check_message_id,
    check_name,
    check_series_key,
    check_tags,
    cost_to_nanousd,
    seconds_to_ms,
    series_key,
)
from token_actor.errors import InvalidValue


def refusal(check, *arguments):
    """Return field and reason of the refusal."""
    with pytest.raises(InvalidValue) as refused:
        check(*arguments)
    return refused.value.field, refused.value.reason


# --- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, TOKENS_MAX])
def test_a_count_is_an_int_from_zero_to_a_trillion(count):
    assert check_count("input_tokens", count) == count


@pytest.mark.parametrize("count", [-1, TOKENS_MAX + 1, 2**64, pytest.param(10**5000, id="huge")])
def test_a_count_out_of_range_is_refused(count):
    assert refusal(check_count, "output_tokens", count) == ("output_tokens", "range")


@pytest.mark.parametrize("count", [True, False, 1.0, math.nan, math.inf, "1", None, [1], {}])
def test_a_count_that_is_no_int_is_refused(count):
    assert refusal(check_count, "input_tokens", count) == ("input_tokens", "type")


def test_a_refusal_reads_as_a_sentence_that_begins_with_the_argument():
    with pytest.raises(ValueError, match=r"^input_tokens must be between 0 and 1000000000000, not -5$"):
        check_count("input_tokens", -5)


def test_what_was_refused_is_shown_on_one_short_line():
    with pytest.raises(InvalidValue) as refused:
        check_count("input_tokens", "x" * 1000)
    assert str(refused.value) == f"input_tokens must be an int, not '{'x' * 36}..."


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, ""])
def test_no_name_is_the_empty_one(name):
    assert check_name("agent", name) == ""


@pytest.mark.parametrize(
    "name", ["a", "gpt-4o", "名前", "naïve café", "_x", "x__", "👩‍💻", "a\u2028b", "x" * 128, "é" * 64]
)
def test_a_name_is_kept_as_given(name):
    assert check_name("agent", name) == name


@pytest.mark.parametrize("name", ["x" * 129, "é" * 65, "👩" * 33])
def test_a_name_of_more_than_128_bytes_is_refused(name):
    assert refusal(check_name, "model", name) == ("model", "bad_name")


@pytest.mark.parametrize("character", ["\x00", "\n", "\x1f", "\x7f", "\x80", "\x9f"])
def test_a_name_with_a_control_character_is_refused(character):
    assert refusal(check_name, "model", f"a{character}b") == ("model", "bad_name")


def test_a_name_with_half_a_character_is_refused():
    assert refusal(check_name, "user", "a\ud800") == ("user", "bad_name")


@pytest.mark.parametrize("name", ["__other__", "__", "__x"])
def test_a_name_of_our_own_is_refused(name):
    assert refusal(check_name, "session", name) == ("session", "bad_name")


@pytest.mark.parametrize("name", [0, 1, b"a", ["a"], {"a": 1}, True])
def test_a_name_that_is_no_string_is_refused(name):
    assert refusal(check_name, "session", name) == ("session", "type")


# --- message ids ---------------------------------------------------------------------------------


@pytest.mark.parametrize("message_id", [None, ""])
def test_no_message_id_is_none(message_id):
    assert check_message_id(message_id) is None


@pytest.mark.parametrize("message_id", ["m", "__m", "a\nb", "x" * 256, "é" * 128])
def test_a_message_id_is_kept_as_given(message_id):
    assert check_message_id(message_id) == message_id


@pytest.mark.parametrize("message_id", ["x" * 257, "é" * 129, "\udfff"])
def test_a_message_id_that_does_not_fit_is_refused(message_id):
    assert refusal(check_message_id, message_id) == ("message_id", "bad_name")


@pytest.mark.parametrize("message_id", [0, 7, b"m", ["m"], {}, False])
def test_a_message_id_that_is_no_string_is_refused(message_id):
    assert refusal(check_message_id, message_id) == ("message_id", "type")


# --- tags ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tags", [None, {}])
def test_no_tags_are_none(tags):
    assert check_tags(tags) is None


def test_tags_are_kept_as_given():
    tags = {f"t{number}": "" for number in range(16)}
    assert check_tags(tags) is tags


def test_seventeen_tags_are_refused():
    assert refusal(check_tags, {str(number): "x" for number in range(17)}) == ("tags", "range")


@pytest.mark.parametrize("tags", [[], "a", 1, {"a": 1}, {"a": None}, {1: "a"}, {"": "a"}, {None: "a"}])
def test_tags_that_are_no_map_of_strings_are_refused(tags):
    assert refusal(check_tags, tags) == ("tags", "type")


@pytest.mark.parametrize("tags", [{"a\n": "b"}, {"a": "b\n"}, {"a": "x" * 129}, {"__a": "b"}])
def test_tags_are_names(tags):
    assert refusal(check_tags, tags) == ("tags", "bad_name")


# --- exactness -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "index"), [(None, 0), ("exact", 0), ("estimated", 1), ("lower_bound", 2), ("aborted", 3)]
)
def test_exactness_is_one_of_four_words(word, index):
    assert check_exactness(word) == index


@pytest.mark.parametrize("word", ["", "EXACT", "guess", 0, ["exact"], {}])
def test_any_other_exactness_is_refused(word):
    assert refusal(check_exactness, word) == ("exactness", "type")


# --- cost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cost", "nanousd"),
    [
        (None, None),
        (0, 0),
        (1, 10**9),
        (0.1, 10**8),
        ("0.000000001", 1),
        ("1e-3", 10**6),
        (Decimal("12.345678901"), 12_345_678_901),
        (0.30000000000000004, 300_000_000),
        ("0.0000000004", 0),
        (1_000, COST_NANOUSD_MAX),
        ("0E+999999999999", 0),
        ("1E-999999999999", 0),
    ],
)
def test_a_cost_becomes_whole_nano_dollars(cost, nanousd):
    assert cost_to_nanousd(cost) == nanousd


@pytest.mark.parametrize("cost", [-1, "-0.01", 1_000.01, "1e4", 10**400, pytest.param(10**5000, id="huge")])
def test_a_cost_out_of_range_is_refused(cost):
    assert refusal(cost_to_nanousd, cost) == ("cost_usd", "range")


@pytest.mark.parametrize(
    "cost",
    [True, "", "a lot", "1,5", [], {}, b"1", math.nan, math.inf, "NaN", "sNaN", "-Infinity", "1e9999999999999999999"],
)
def test_a_cost_that_is_no_finite_number_is_refused(cost):
    assert refusal(cost_to_nanousd, cost) == ("cost_usd", "type")


@given(st.integers(0, COST_NANOUSD_MAX))
@examples(200)
def test_a_cost_in_decimal_digits_is_exact(nanousd):
    assert cost_to_nanousd(f"{nanousd // 10**9}.{nanousd % 10**9:09d}") == nanousd


# --- times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "milliseconds"),
    [(0, 0), (1_700_000_000, 1_700_000_000_000), (1_700_000_000.123, 1_700_000_000_123), (-1, -1000), (0.5, 500)],
)
def test_seconds_become_milliseconds(seconds, milliseconds):
    assert seconds_to_ms("timestamp", seconds) == milliseconds


@given(st.integers(10**12, 4 * 10**12))
@examples(300)
def test_no_millisecond_is_lost_on_the_way(milliseconds):
    assert seconds_to_ms("timestamp", milliseconds / 1000) == milliseconds


@pytest.mark.parametrize("seconds", [1e300, 1.7e308, 10**400, 1.7e18])
def test_a_time_that_no_clock_shows_is_as_far_as_times_go(seconds):
    assert seconds_to_ms("timestamp", seconds) == -seconds_to_ms("timestamp", -seconds)
    assert TIME_MS_MAX - 1000 < seconds_to_ms("timestamp", seconds) <= TIME_MS_MAX


@pytest.mark.parametrize("seconds", [True, "1", None, [], math.nan, math.inf, -math.inf])
def test_a_time_that_is_no_finite_number_is_refused(seconds):
    assert refusal(seconds_to_ms, "since", seconds) == ("since", "type")


# --- series keys ---------------------------------------------------------------------------------


def test_a_series_key_is_the_seven_names_in_order():
    assert series_key("t", "p", "u", "a", "s", "v", "m").split(SEPARATOR) == ["t", "p", "u", "a", "s", "v", "m"]


@pytest.mark.parametrize("tenant", [None, ""])
def test_a_series_without_a_tenant_belongs_to_the_default_one(tenant):
    assert series_key(tenant) == "default" + SEPARATOR * 6


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_bad_name_in_a_series_is_refused_by_its_dimension(dimension):
    with pytest.raises(InvalidValue) as refused:
        series_key(**{dimension: "a\x1fb"})
    assert refused.value.field == dimension


@pytest.mark.parametrize("tenant", [0, False, 0.0, b""])
def test_a_tenant_that_is_nothing_but_no_string_is_refused(tenant):
    assert refusal(series_key, tenant) == ("tenant", "type")


def test_a_name_that_cannot_be_hashed_is_a_type_error_of_the_cache():
    with pytest.raises(TypeError):
        series_key(None, ["p"])


def test_a_canonical_series_key_passes_its_check():
    assert check_series_key(series_key(agent="a", model="m")) == "default\x1f\x1f\x1fa\x1f\x1f\x1fm"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (7, ("series", "type")),
        (b"t" + b"\x1f" * 6, ("series", "type")),
        ("t", ("series", "decode")),
        ("t" + "\x1f" * 7, ("series", "decode")),
        ("\x1f" * 6, ("tenant", "bad_name")),
        ("t\x1f\x1f\x1f\x1f__other__\x1f\x1f", ("session", "bad_name")),
        ("t\x1fa\nb" + "\x1f" * 5, ("project", "bad_name")),
    ],
)
def test_a_series_key_that_is_not_canonical_is_refused(key, expected):
    assert refusal(check_series_key, key) == expected


@given(st.lists(st.text(max_size=200), min_size=7, max_size=7))
@examples(200)
def test_every_series_key_that_can_be_made_passes_its_check(names):
    try:
        key = series_key(*names)
    except InvalidValue:
        return
    assert check_series_key(key) == key


def test_an_event_is_unpriced_and_has_nothing_unless_told_otherwise():
    assert Event("key") == ("key", 0, 0, 0, 0, 0, 0, UNPRICED, None, None, None)
