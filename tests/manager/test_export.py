from __future__ import annotations

import csv
import io
import json

import pytest

from tests.manager.conftest import START_S
from token_actor.errors import InvalidValue


@pytest.fixture
def used(manager, clock):
    """Return a manager with two requests."""
    manager.update_tokens(100, 50, 10, 5, "first")
    clock.advance(1)
    manager.update_tokens(200, 100, message_id="second")
    return manager


def rows_of(text):
    return list(csv.reader(io.StringIO(text, newline="")))


def test_json_is_the_default(used):
    assert used.export_metrics() == used.export_metrics("json")


def test_json_has_the_keys_of_the_contract(used):
    document = json.loads(used.export_metrics())
    assert list(document) == ["analytics", "history", "export_timestamp", "export_unix_time"]


def test_json_carries_the_figures(used):
    assert json.loads(used.export_metrics())["analytics"] == used.get_analytics()


def test_json_carries_the_history_oldest_first(used):
    assert json.loads(used.export_metrics())["history"] == used.get_usage_history()[::-1]


def test_json_says_when_it_was_exported(used):
    document = json.loads(used.export_metrics())
    assert document["export_unix_time"] == START_S + 1
    assert document["export_timestamp"] == "2023-11-14T22:13:21.000000+00:00"


def test_json_of_a_new_manager_has_an_empty_history(manager):
    assert json.loads(manager.export_metrics())["history"] == []


def test_json_holds_the_whole_history(make):
    manager = make(history_size=100)
    for _ in range(150):
        manager.update_tokens(1)
    assert len(json.loads(manager.export_metrics())["history"]) == 100


def test_csv_has_a_section_of_figures(used):
    rows = rows_of(used.export_metrics("csv"))
    assert rows[:3] == [["=== Token Manager Analytics ==="], ["Metric", "Value"], ["total_requests", "2"]]
    assert [name for name, _ in rows[2:22]] == list(used.get_analytics())


def test_csv_separates_the_sections_with_a_blank_row(used):
    rows = rows_of(used.export_metrics("csv"))
    assert rows[22:24] == [[], ["=== Usage History ==="]]


def test_csv_has_a_section_of_history_oldest_first(used):
    header, *entries = rows_of(used.export_metrics("csv"))[24:]
    assert [row[header.index("message_id")] for row in entries] == ["first", "second"]
    assert [row[header.index("total_tokens")] for row in entries] == ["165", "300"]


def test_csv_heads_the_history_with_its_columns(used):
    assert rows_of(used.export_metrics("csv"))[24] == list(used.get_usage_history()[0])


def test_csv_says_that_there_is_no_history(manager):
    assert rows_of(manager.export_metrics("csv"))[23:] == [["=== Usage History ==="], ["No history available"]]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_csv_disarms_a_message_id_that_a_spreadsheet_would_run(manager, start):
    manager.update_tokens(1, message_id=f"{start}1+1")
    exported = manager.export_metrics("csv")
    assert f'"\'{start}1+1"' in exported
    assert rows_of(exported)[25][7] == f"'{start}1+1"


def test_prometheus_exports_the_counters(used):
    samples = used.export_metrics("prometheus").splitlines()
    assert "token_actor_requests_total 2" in samples
    assert "token_actor_input_tokens_total 300" in samples
    assert "token_actor_context_usage_percent 45.0" in samples


@pytest.mark.parametrize("name", ["JSON", "Csv", "pRoMeTheuS"])
def test_the_case_of_a_format_does_not_matter(used, name):
    assert used.export_metrics(name) == used.export_metrics(name.lower())


@pytest.mark.parametrize("name", ["xml", "", " json", "yaml", None, 3])
def test_an_unknown_format_is_refused_with_the_known_ones(manager, name):
    with pytest.raises(InvalidValue, match="^export_format must be one of json, csv, prometheus, not "):
        manager.export_metrics(name)


def test_the_format_may_be_a_keyword(used):
    assert used.export_metrics(export_format="csv").startswith("=== Token Manager Analytics ===\r\n")


def test_an_export_changes_nothing(used):
    before = used.get_analytics()
    for name in ("json", "csv", "prometheus"):
        used.export_metrics(name)
    assert used.get_analytics() == before
