"""Settings that cannot work are refused when they are made, by name."""

from __future__ import annotations

import dataclasses

import pytest

from token_actor.client.settings import ClientSettings
from token_actor.errors import InvalidValue
from token_actor.wire.batches import EVENTS_MAX


def test_the_defaults_are_those_of_the_guide():
    assert dataclasses.asdict(ClientSettings()) == {
        "namespace": "default",
        "names": {},
        "batch_events_max": 500,
        "batch_age_ms": 20,
        "buffer_events_max": 100_000,
        "timeout_s": 5.0,
        "lines_max": 16,
        "spool_dir": None,
        "spool_bytes_max": 268_435_456,
        "spool_full": "block",
        "resend_share": 0.0,
    }


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("batch_events_max", 0),
        ("batch_events_max", EVENTS_MAX + 1),
        ("batch_events_max", 1.0),
        ("batch_events_max", True),
        ("batch_age_ms", -1),
        ("batch_age_ms", 60_001),
        ("batch_age_ms", None),
        ("buffer_events_max", 0),
        ("buffer_events_max", "many"),
        ("lines_max", 0),
        ("lines_max", 1_001),
        ("timeout_s", 0),
        ("timeout_s", -1),
        ("timeout_s", float("inf")),
        ("timeout_s", float("nan")),
        ("timeout_s", 1e300),
        ("timeout_s", "5"),
        ("timeout_s", True),
        ("resend_share", -0.1),
        ("resend_share", 1.1),
        ("resend_share", float("nan")),
        ("resend_share", "half"),
        ("namespace", ""),
        ("namespace", "a b"),
        ("namespace", "x" * 65),
    ],
    ids=range(25),
)
def test_a_setting_that_cannot_work_is_named(setting, value):
    with pytest.raises(InvalidValue) as wrong:
        ClientSettings(**{setting: value})
    assert wrong.value.field == setting


@pytest.mark.parametrize(
    ("dimension", "name"),
    [("agent", "a\n"), ("tenant", "x" * 129), ("model", "__mine"), ("user", 5), ("colour", "red")],
)
def test_a_name_that_cannot_be_recorded_is_named(dimension, name):
    with pytest.raises(InvalidValue) as wrong:
        ClientSettings(names={dimension: name})
    assert wrong.value.field == dimension


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("batch_events_max", 1),
        ("batch_events_max", EVENTS_MAX),
        ("batch_age_ms", 0),
        ("lines_max", 1),
        ("resend_share", 0),
        ("resend_share", 1),
        ("timeout_s", 0.001),
        ("timeout_s", 5),
    ],
)
def test_the_ends_of_a_range_are_fine(setting, value):
    assert getattr(ClientSettings(**{setting: value}), setting) == value


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ClientSettings().timeout_s = 1


@pytest.mark.parametrize(
    ("setting", "value"), [("spool_full", "drop"), ("spool_dir", 5), ("spool_bytes_max", 0), ("spool_bytes_max", "1")]
)
def test_a_spool_that_cannot_be_is_refused(setting, value):
    with pytest.raises(InvalidValue) as refused:
        ClientSettings(**{setting: value})
    assert refused.value.field == setting


def test_no_folder_is_no_spool():
    assert ClientSettings(spool_dir="").spool_dir is None
