"""Rows of a long run: they are kept as they come, and make one table."""

from __future__ import annotations

from tests.fault.scenario import Outcome, add_row, merged, read_rows, table


def test_a_row_is_read_back_as_it_was_added(tmp_path):
    outcome = Outcome(name="a", seed=1, faults=2, events=3, recovery_ms=[1.5], violations=["I1: …"], skipped="no root")
    add_row(tmp_path / "rows", outcome)
    add_row(tmp_path / "rows", Outcome(name="b", seed=2))
    assert read_rows(tmp_path / "rows") == [outcome, Outcome(name="b", seed=2)]


def test_parts_of_a_scenario_are_one_row():
    parts = [
        Outcome(name="a", seed=1, faults=2, events=10, lost=1, recovery_ms=[5.0], violations=["I1: …"]),
        Outcome(name="b", seed=2),
        Outcome(name="a", seed=3, faults=3, events=20, stale=1, recovery_ms=[7.0]),
    ]
    whole, other = merged(parts)
    assert (whole.faults, whole.events, whole.lost, whole.stale, whole.recovery_ms) == (5, 30, 1, 1, [5.0, 7.0])
    assert whole.violations == ["I1: … (seed 1)"]
    assert other == parts[1]
    assert "BROKEN" in table([whole])
