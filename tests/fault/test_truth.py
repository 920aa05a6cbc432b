"""The ground truth survives what it has to survive."""

from __future__ import annotations

import numpy as np

from tests.fault.truth import ACCEPTED, ATTEMPT, Journal, Truth, block_sums, numbers


def test_a_file_that_is_not_there_says_nothing(tmp_path):
    assert Truth.read(1, tmp_path / "none").last == 0


def test_a_file_is_continued_and_read_back(tmp_path):
    Journal(tmp_path / "t").attempts(1, 10, 5)
    journal = Journal(tmp_path / "t")
    journal.accepted(1, 4)
    journal.attempts(11, 12, 6)
    truth = Truth.read(1, tmp_path / "t")
    assert truth.last == 12
    assert truth.attempted[1:].tolist() == [1] * 12
    assert np.flatnonzero(truth.accepted).tolist() == [1, 2, 3, 4]
    assert truth.at_ms[1:].tolist() == [5] * 10 + [6] * 2
    assert ATTEMPT != ACCEPTED


def test_half_a_record_at_the_end_is_none(tmp_path):
    Journal(tmp_path / "t").attempts(1, 10, 5)
    with (tmp_path / "t").open("ab") as file:
        file.write(b"\x01\x00\x00")
    assert Truth.read(1, tmp_path / "t").last == 10


def test_a_million_events_are_added_up_by_block(tmp_path):
    journal = Journal(tmp_path / "t")
    journal.attempts(1, 1_000_000, 5)
    journal.accepted(1, 999_999)
    blocks = block_sums(Truth.read(1, tmp_path / "t"))
    assert sum(sums["requests"] for sums, _ in blocks.values()) == 1_000_000
    assert [session for session, (_, accepted) in blocks.items() if not accepted] == ["block-2000"]


def test_the_numbers_of_an_event_are_possible_ones():
    tokens = numbers(3, np.arange(1, 10_000))
    assert (tokens.reasoning_tokens <= tokens.output_tokens).all()
    assert min(column.min() for column in tokens) >= 0
