"""A shared session answers as a TokenManager does, to everybody."""

from __future__ import annotations

import csv
import inspect
import io
import json
import threading
from typing import Any

import pytest

from tests.client.harness import wait_until
from token_actor import TokenManager
from token_actor.client.manager import SharedTokenManager
from token_actor.errors import InvalidValue

OF_TIME = {"timestamp", "datetime", "uptime_seconds", "requests_per_minute", "tokens_per_minute"}

# Calls of update_tokens: no id, new ids, a repetition, cache reads, nothing at all.
CALLS: Any = (
    {"input_tokens": 1_000, "output_tokens": 200},
    {"input_tokens": 500, "message_id": "m1"},
    {"input_tokens": 500, "message_id": "m1"},
    {"output_tokens": 70, "cache_read": 30, "cache_write": 4, "message_id": "m2"},
    {},
    {"input_tokens": 9_000, "message_id": ""},
    {"input_tokens": 12_000, "output_tokens": 1, "message_id": "m3"},
    {"input_tokens": 500, "message_id": "m1"},
    {"input_tokens": 20_000},
)


def timeless(value):
    """Return an answer without what differs from one moment to the next."""
    if isinstance(value, dict):
        return {name: timeless(each) for name, each in value.items() if name not in OF_TIME}
    if isinstance(value, list):
        return [timeless(each) for each in value]
    return value


@pytest.fixture
def client(fleet):
    fleet.actor()
    return fleet.client()


@pytest.fixture
def managers(client):
    """The same session twice: in this process alone, and shared."""
    return TokenManager(100_000, 5, 60.0), client.manager(
        "s", context_window_limit=100_000, history_size=5, overflow_warning_threshold=60.0
    )


def replay(manager, calls=CALLS):
    return [manager.update_tokens(**call) for call in calls]


class TestAgreement:
    def test_every_method_of_a_token_manager_is_there_with_the_same_arguments(self):
        for name, method in inspect.getmembers(TokenManager, inspect.isfunction):
            if not name.startswith("_"):
                shared = inspect.signature(getattr(SharedTokenManager, name)).parameters
                own = inspect.signature(method).parameters
                assert [(p.name, p.default) for p in shared.values()] == [(p.name, p.default) for p in own.values()]

    def test_updates_return_the_same(self, managers):
        alone, shared = map(replay, managers)
        assert shared == alone == [True, True, False, True, True, True, True, False, True]

    def test_analytics_are_the_same(self, managers):
        for manager in managers:
            replay(manager)
        alone, shared = (manager.get_analytics() for manager in managers)
        assert list(shared) == list(alone)
        assert timeless(shared) == timeless(alone)
        assert (shared["trend"], shared["peak_usage_pct"]) == ("increasing", 42.77)

    @pytest.mark.parametrize("calls", range(len(CALLS)))
    def test_analytics_are_the_same_after_every_number_of_calls(self, memory_fleet, calls):
        memory_fleet.actor()
        alone, shared = TokenManager(), memory_fleet.client().manager("s")
        for manager in (alone, shared):
            replay(manager, CALLS[:calls])
        assert timeless(shared.get_analytics()) == timeless(alone.get_analytics())

    @pytest.mark.parametrize("limit", [1, 3, 5, 50])
    def test_histories_are_the_same(self, managers, limit):
        for manager in managers:
            replay(manager)
        alone, shared = (manager.get_usage_history(limit) for manager in managers)
        assert timeless(shared) == timeless(alone)
        assert len(shared) == min(limit, 5)
        assert list(shared[0]) == list(alone[0])

    def test_the_share_of_the_context_window_is_the_same(self, managers):
        for manager in managers:
            replay(manager)
        alone, shared = (manager.get_context_usage_pct() for manager in managers)
        assert shared == alone == 42.771

    @pytest.mark.parametrize("estimate", [0, 57_229, 57_230, 0.5])
    def test_predictions_are_the_same(self, managers, estimate):
        for manager in managers:
            replay(manager)
        alone, shared = (manager.predict_overflow(estimate) for manager in managers)
        assert shared == alone

    @pytest.mark.parametrize("window_seconds", [3600, 1e12, float("inf")])
    @pytest.mark.parametrize("max_tokens", [42_804, 42_805, float("inf")])
    def test_rates_are_the_same(self, managers, window_seconds, max_tokens):
        for manager in managers:
            replay(manager)
        alone, shared = (manager.check_rate_limit(window_seconds, max_tokens) for manager in managers)
        assert shared == alone == (max_tokens > 42_804)

    @pytest.mark.parametrize("export_format", ["json", "JSON"])
    def test_exports_as_json_are_the_same(self, managers, export_format):
        for manager in managers:
            replay(manager)
        alone, shared = (json.loads(manager.export_metrics(export_format)) for manager in managers)
        assert list(shared) == list(alone)
        for part in ("analytics", "history"):
            assert timeless(shared[part]) == timeless(alone[part])

    def test_exports_as_csv_have_the_same_rows(self, managers):
        for manager in managers:
            replay(manager)
        alone, shared = (list(csv.reader(io.StringIO(manager.export_metrics("csv")))) for manager in managers)
        assert [row[0] for row in shared[:22]] == [row[0] for row in alone[:22]]
        assert [row[2:] for row in shared[25:]] == [row[2:] for row in alone[25:]]
        assert len(shared) == len(alone)

    def test_exports_for_prometheus_have_the_same_samples(self, managers):
        for manager in managers:
            replay(manager)
        alone, shared = (manager.export_metrics("prometheus").splitlines() for manager in managers)
        lines = [line for line in shared if "uptime_seconds " not in line]
        assert lines == [line for line in alone if "uptime_seconds " not in line]

    def test_summaries_are_the_same_but_for_the_uptime(self, managers):
        for manager in managers:
            replay(manager)
        alone, shared = (manager.get_summary().splitlines() for manager in managers)
        assert shared[:-1] == alone[:-1]
        assert shared[1:3] == ["Total Requests: 7", "Input Tokens: 42,500"]

    def test_after_a_reset_everything_is_the_same_again(self, managers):
        for manager in managers:
            replay(manager)
            manager.reset()
        alone, shared = (timeless(manager.get_analytics()) for manager in managers)
        assert shared == alone
        assert (shared["total_requests"], shared["peak_usage_pct"]) == (0, 0.0)
        assert [manager.get_usage_history() for manager in managers] == [[], []]

    def test_after_a_reset_an_id_counts_again(self, managers):
        for manager in managers:
            replay(manager)
            manager.reset()
        alone, shared = map(replay, managers)
        assert shared == alone
        assert timeless(managers[1].get_analytics()) == timeless(managers[0].get_analytics())

    def test_what_lies_before_a_reset_is_in_no_rate(self, managers):
        for manager in managers:
            replay(manager)
            manager.reset()
            manager.update_tokens(5)
        assert [manager.check_rate_limit(3600, 5) for manager in managers] == [True, True]
        assert [manager.check_rate_limit(3600, 4) for manager in managers] == [False, False]

    def test_a_rate_can_leave_out_the_beginning_of_a_session(self, managers):
        for manager in managers:
            manager.update_tokens(1_000)
        wait_until(lambda: managers[1].get_analytics()["uptime_seconds"] >= 0.2)
        for manager in managers:
            manager.update_tokens(5)
        assert [manager.check_rate_limit(0.15, 5) for manager in managers] == [True, True]
        assert [manager.check_rate_limit(60, 1_004) for manager in managers] == [False, False]

    def test_without_history_there_is_none(self, client):
        alone, shared = TokenManager(history_size=0), client.manager("s", history_size=0)
        for manager in (alone, shared):
            replay(manager)
        assert shared.get_usage_history() == alone.get_usage_history() == []
        assert timeless(shared.get_analytics()) == timeless(alone.get_analytics())


class TestWrongArguments:
    @pytest.mark.parametrize(
        ("field", "call"),
        [
            ("input_tokens", lambda manager: manager.update_tokens(-1)),
            ("output_tokens", lambda manager: manager.update_tokens(0, 1.5)),
            ("cache_read", lambda manager: manager.update_tokens(cache_read="1")),
            ("cache_write", lambda manager: manager.update_tokens(cache_write=True)),
            ("input_tokens", lambda manager: manager.update_tokens(float("nan"))),
            ("input_tokens", lambda manager: manager.update_tokens(10**12 + 1)),
            ("message_id", lambda manager: manager.update_tokens(message_id=7)),
            ("estimated_tokens", lambda manager: manager.predict_overflow(-1)),
            ("estimated_tokens", lambda manager: manager.predict_overflow("1")),
            ("limit", lambda manager: manager.get_usage_history(0)),
            ("limit", lambda manager: manager.get_usage_history(-1)),
            ("limit", lambda manager: manager.get_usage_history("1")),
            ("limit", lambda manager: manager.get_usage_history(True)),
            ("window_seconds", lambda manager: manager.check_rate_limit(0, 1)),
            ("window_seconds", lambda manager: manager.check_rate_limit("60", 1)),
            ("max_tokens", lambda manager: manager.check_rate_limit(60, 0)),
            ("max_tokens", lambda manager: manager.check_rate_limit(60, None)),
            ("export_format", lambda manager: manager.export_metrics("xml")),
        ],
        ids=range(18),
    )
    def test_a_wrong_argument_is_named_as_a_token_manager_does(self, managers, field, call):
        for manager in managers:
            with pytest.raises(ValueError) as wrong:
                call(manager)
            assert isinstance(wrong.value, InvalidValue)
            assert wrong.value.field == field

    @pytest.mark.parametrize(
        ("field", "rules"),
        [
            ("context_window_limit", {"context_window_limit": 0}),
            ("overflow_warning_threshold", {"overflow_warning_threshold": 101}),
            ("history_size", {"history_size": -1}),
            ("agent", {"agent": "a\n"}),
            ("colour", {"colour": "red"}),
        ],
        ids=range(5),
    )
    def test_a_wrong_rule_is_named_when_the_manager_is_made(self, memory_fleet, field, rules):
        with pytest.raises(InvalidValue) as wrong:
            memory_fleet.client().manager("s", **rules)
        assert wrong.value.field == field

    def test_a_manager_needs_a_session(self, memory_fleet):
        with pytest.raises(InvalidValue) as wrong:
            memory_fleet.client().manager()
        assert wrong.value.field == "session"

    def test_an_update_that_was_refused_changes_nothing(self, client):
        manager = client.manager("s")
        with pytest.raises(InvalidValue):
            manager.update_tokens(5, -1)
        assert manager.get_analytics()["total_requests"] == 0


class TestSharing:
    def test_two_clients_add_to_the_same_session(self, fleet, client):
        other = fleet.client().manager("s")
        client.manager("s").update_tokens(10, message_id="a")
        other.update_tokens(5, message_id="b")
        assert other.get_analytics()["total_tokens"] == client.manager("s").get_analytics()["total_tokens"] == 15

    def test_a_message_id_counts_once_whoever_comes_first(self, fleet, client):
        managers = [client.manager("s"), fleet.client().manager("s")]
        assert [manager.update_tokens(10, message_id="m") for manager in managers] == [True, False]
        assert managers[0].get_analytics()["total_requests"] == 1

    def test_many_clients_that_race_for_the_same_ids_count_each_once(self, fleet, client):
        managers = [client.manager("s"), *(fleet.client().manager("s") for _ in range(3))]
        counted = []

        def work(manager):
            counted.extend(n for n in range(50) if manager.update_tokens(1, message_id=f"m{n}"))

        threads = [threading.Thread(target=work, args=(manager,)) for manager in managers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(counted) == list(range(50))
        assert managers[0].get_analytics()["total_requests"] == 50

    def test_the_same_id_with_other_numbers_does_not_count_and_is_kept_aside(self, fleet, client):
        manager = client.manager("s")
        manager.update_tokens(10, message_id="m")
        assert manager.update_tokens(11, message_id="m") is False
        assert manager.get_analytics()["total_tokens"] == 10
        assert client.status()["dead"] == {"id_conflict": 1}

    def test_a_reset_is_seen_by_everybody(self, fleet, client):
        manager, other = client.manager("s"), fleet.client().manager("s")
        manager.update_tokens(10, message_id="m")
        other.reset()
        assert manager.get_analytics()["total_requests"] == 0
        assert manager.update_tokens(10, message_id="m") is True
        assert other.get_analytics()["total_requests"] == 1

    def test_a_reset_leaves_the_totals_of_the_fleet(self, client):
        manager = client.manager("s")
        manager.update_tokens(10)
        manager.reset()
        assert client.analytics()["input_tokens"] == 10

    def test_what_a_client_records_for_a_session_is_in_it(self, client):
        client.record(7, 3, session="s", model="m")
        assert client.manager("s").get_analytics()["total_tokens"] == 10

    def test_sessions_are_apart(self, client):
        client.manager("s").update_tokens(10, message_id="m")
        assert client.manager("other").get_analytics()["total_requests"] == 0

    def test_the_same_session_of_two_tenants_is_two_sessions(self, client):
        here, there = client.manager("s", tenant="a"), client.manager("s", tenant="b")
        assert [manager.update_tokens(10, message_id="m") for manager in (here, there)] == [True, True]
        here.reset()
        assert [manager.get_analytics()["total_requests"] for manager in (here, there)] == [0, 1]

    def test_the_clients_own_session_needs_no_naming(self, fleet):
        fleet.actor()
        client = fleet.client(session="mine", tenant="t", model="m")
        client.manager().update_tokens(10, message_id="a")
        client.manager().update_tokens(5)
        answer = client.analytics(tenant="t", session="mine", model="m")
        assert (answer["requests"], answer["input_tokens"]) == (2, 15)

    def test_dimensions_of_the_manager_are_recorded(self, client):
        manager = client.manager("s", agent="planner")
        manager.update_tokens(10, message_id="a")
        manager.update_tokens(5)
        assert client.analytics(agent="planner")["input_tokens"] == 15


class TestTheObject:
    def test_its_rules_can_be_read(self, memory_fleet):
        manager = memory_fleet.client().manager(
            "s", context_window_limit=5, history_size=6, overflow_warning_threshold=7
        )
        rules = (manager.context_window_limit, manager.history_size, manager.overflow_warning_threshold)
        assert rules == (5, 6, 7)

    def test_its_repr_names_the_session_and_asks_nobody(self, memory_fleet):
        manager = memory_fleet.client(tenant="t").manager("s")
        assert repr(manager) == "SharedTokenManager(tenant='t', session='s')"

    def test_an_update_without_an_id_waits_for_nobody(self, memory_fleet):
        manager = memory_fleet.client().manager("s")
        memory_fleet.go_away()
        assert manager.update_tokens(1) is True
