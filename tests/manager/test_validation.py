from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest

from token_actor.errors import InvalidValue

ARGUMENTS = ("input_tokens", "output_tokens", "cache_read", "cache_write")


class Whole:
    """Be an integer of another library."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


class Refusing:
    """Look like an integer, and not be one, as numpy's bool does."""

    def __index__(self):
        raise TypeError


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_a_negative_count_is_refused_by_name(manager, argument):
    with pytest.raises(ValueError, match=f"^{argument} must be between 0 and 1000000000000, not -1$"):
        manager.update_tokens(**{argument: -1})


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_a_count_above_a_trillion_is_refused_by_name(manager, argument):
    with pytest.raises(ValueError, match=f"^{argument} must be between"):
        manager.update_tokens(**{argument: 10**12 + 1})


@pytest.mark.parametrize("value", [1.0, math.nan, math.inf, True, False, "5", b"6", None, Decimal(7), [8], Refusing()])
def test_a_count_that_is_no_int_is_refused(manager, value):
    with pytest.raises(InvalidValue) as refused:
        manager.update_tokens(output_tokens=value)
    assert (refused.value.field, refused.value.reason) == ("output_tokens", "type")


def test_numpys_bool_is_refused_like_pythons(manager):
    with pytest.raises(InvalidValue, match="^input_tokens must be an int"):
        manager.update_tokens(np.True_)


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_zero_is_a_count(manager, argument):
    assert manager.update_tokens(**{argument: 0}) is True


def test_a_trillion_is_a_count(manager):
    manager.update_tokens(cache_read=10**12)
    assert manager.cache_read_tokens == 10**12


@pytest.mark.parametrize("number", [np.int64(7), np.uint8(7), np.int32(7), Whole(7)])
def test_integers_of_other_libraries_are_counted_as_ints(manager, number):
    manager.update_tokens(number)
    assert type(manager.input_tokens) is int
    assert manager.input_tokens == 7


def test_integers_of_other_libraries_can_be_exported(manager):
    manager.update_tokens(np.int64(7))
    assert '"input_tokens": 7' in manager.export_metrics()


def test_a_negative_integer_of_another_library_is_refused(manager):
    with pytest.raises(InvalidValue, match="^cache_write must be between"):
        manager.update_tokens(cache_write=np.int64(-7))


def test_the_limit_may_be_an_integer_of_another_library(make):
    assert type(make(np.int64(500)).context_window_limit) is int


def test_a_refused_update_changes_nothing(manager):
    manager.update_tokens(10, 20, 30, 40, "first")
    before = manager.export_metrics()
    with pytest.raises(InvalidValue):
        manager.update_tokens(1, 2, 3, -4, "second")
    assert manager.export_metrics() == before
    assert "second" not in manager.processed_message_ids


def test_counts_are_checked_before_the_message_id(manager):
    manager.update_tokens(1, message_id="m")
    with pytest.raises(InvalidValue, match="^input_tokens"):
        manager.update_tokens(-1, message_id="m")


def test_the_metrics_engine_hears_nothing_of_a_refused_update(make, engine):
    with pytest.raises(InvalidValue):
        make(metrics_engine=engine).update_tokens(-1)
    assert engine.seen == []


@pytest.mark.parametrize("message_id", [0, 17, 1.5, True, b"m", ("m",), ["m"]])
def test_a_message_id_that_is_no_text_is_refused(manager, message_id):
    with pytest.raises(InvalidValue, match="^message_id must be a string, not"):
        manager.update_tokens(1, message_id=message_id)
    assert manager.input_tokens == 0


def test_the_first_of_several_wrong_arguments_is_named(manager):
    with pytest.raises(InvalidValue) as refused:
        manager.update_tokens(1, -2, -3, -4)
    assert refused.value.field == "output_tokens"
