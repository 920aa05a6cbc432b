"""Every target takes its corpus and some thousand inputs that nobody thought of."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.mutate import corpus, joined, mutations, parts_of
from tests.fuzz.targets import ASKED, TARGETS, inputs_of, snapshot_input, snapshot_of

INPUTS = {"decode": 800, "snapshot": 3_000, "question": 6_000}  # about two seconds each


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_its_corpus(name):
    assert corpus(name)
    for data in inputs_of(name):
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_inputs_that_nobody_thought_of(name):
    for data in itertools.islice(mutations(inputs_of(name), random.Random(7)), INPUTS[name]):
        TARGETS[name](data)


def test_the_same_seed_makes_the_same_inputs():
    first, again = (list(itertools.islice(mutations([b"abc", b"d"], random.Random(3)), 50)) for _ in range(2))
    assert first == again
    assert len(set(first)) > 20


def test_parts_come_back_as_they_were_joined_and_any_bytes_have_parts():
    assert parts_of(joined([(1, b"abc"), (2, b"")])) == [(1, b"abc"), (2, b"")]
    assert parts_of(b"\x03") == [(3, b"")]
    assert parts_of(b"\x03\x00\x00\x00\x09ab") == [(3, b"ab")]


def test_an_input_that_a_target_fails_on_is_said_and_saved(monkeypatch, tmp_path, capsys):
    def failing(data):
        assert b"\xff" not in data

    monkeypatch.setitem(TARGETS, "decode", failing)
    monkeypatch.setattr("tests.fuzz.__main__.CRASHES", tmp_path / "crashes")
    assert fuzz("decode", 60, seed=1) == 1
    (saved,) = (tmp_path / "crashes").iterdir()
    said = capsys.readouterr().out
    assert "seed 1" in said
    assert saved.read_bytes().hex() in said


def test_a_run_without_a_fault_ends_when_its_time_is_over(capsys):
    assert fuzz("question", 0.0, seed=1) == 0
    assert "no fault" in capsys.readouterr().out


def test_an_input_of_the_snapshots_is_read_to_its_end():
    assert snapshot_of(snapshot_input(ASKED)).total() == ASKED.total()
