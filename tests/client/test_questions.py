"""What a client can ask, and what exactly it is told."""

from __future__ import annotations

import csv
import io
import json
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest

from tests.client.harness import wait_until
from token_actor.core.usage import DIMENSIONS
from token_actor.errors import InvalidQuestion, InvalidValue

MINUTE_S = 60


@pytest.fixture
def start_s():
    """The beginning of a minute ten minutes ago."""
    return int(time.time()) // MINUTE_S * MINUTE_S - 10 * MINUTE_S


@pytest.fixture
def client(fleet, start_s):
    """A client whose actor knows three events, a minute apart."""
    fleet.actor()
    client = fleet.client(tenant="t1", provider="p", batch_age_ms=60_000)  # all three in one entry of the log
    client.record(
        100, 10, cache_read_tokens=5, model="m1", agent="a", session="s1", timestamp=start_s, cost_usd="0.5",
        message_id="x", tags={"k": "v"},
    )  # fmt: skip
    client.record(
        200, 20, reasoning_tokens=7, model="m2", agent="a", session="s1", timestamp=start_s + 60, exactness="estimated"
    )
    client.record(300, 30, cache_write_tokens=50, model="m1", agent="b", timestamp=start_s + 120, cost_usd=0.25)
    return client


def without(answer, *names):
    return {name: value for name, value in answer.items() if name not in names}


def sums(requests, tokens, *, reasoning=0, cost_nanousd=0, **flags):
    input_tokens, output_tokens, cache_read_tokens, cache_write_tokens = tokens
    return {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "cache_read_tokens": cache_read_tokens,
        "cache_write_tokens": cache_write_tokens,
        "reasoning_tokens": reasoning,
        "requests": requests,
        "cost_nanousd": cost_nanousd,
        "total_tokens": sum(tokens),
        "cost_usd": cost_nanousd / 1e9,
        **flags,
    }


def flags(**raised):
    names = ("estimated", "lower_bound", "aborted", "unpriced", "clamped", "inconsistent", "duplicates")
    return {**dict.fromkeys(names, 0), **raised}


class TestAnalytics:
    def test_everything_is_summed_when_nothing_is_selected(self, client):
        before_s = time.time()
        answer = client.analytics()
        assert without(answer, "first_seen", "last_seen", "as_of") == {
            **sums(3, (600, 60, 5, 50), reasoning=7, cost_nanousd=750_000_000, **flags(estimated=1, unpriced=1)),
            "series": 3,
            "peak_request_tokens": 330,
            "since": None,
            "until": None,
            "group_by": [],
            "groups": [],
            "groups_omitted": 0,
        }
        assert before_s - 60 < answer["first_seen"] <= answer["last_seen"] <= answer["as_of"] < time.time() + 60

    def test_a_selector_narrows_it_down(self, client):
        answer = client.analytics(agent="a", model="m1")
        assert (answer["requests"], answer["input_tokens"], answer["cost_usd"]) == (1, 100, 0.5)

    def test_what_nobody_used_is_nothing(self, client):
        answer = client.analytics(agent="nobody")
        assert (answer["requests"], answer["total_tokens"], answer["first_seen"], answer["series"]) == (0, 0, None, 0)

    def test_groups_are_the_largest_first(self, client):
        answer = client.analytics(["agent"])
        assert answer["group_by"] == ["agent"]
        assert answer["groups"] == [
            {"agent": "b", **sums(1, (300, 30, 0, 50), cost_nanousd=250_000_000, **flags())},
            {
                "agent": "a",
                **sums(2, (300, 30, 5, 0), reasoning=7, cost_nanousd=500_000_000, **flags(estimated=1, unpriced=1)),
            },
        ]

    def test_one_dimension_may_be_given_as_a_string(self, client):
        assert client.analytics("agent")["groups"] == client.analytics(["agent"])["groups"]

    def test_groups_by_several_dimensions_are_their_tuples(self, client):
        answer = client.analytics(["agent", "model", "session"])
        found = [
            (group["agent"], group["model"], group["session"], group["input_tokens"]) for group in answer["groups"]
        ]
        assert found == [("b", "m1", None, 300), ("a", "m2", "s1", 200), ("a", "m1", "s1", 100)]

    def test_what_has_no_name_is_a_group_called_none(self, client):
        found = {group["session"]: group["requests"] for group in client.analytics(["session"])["groups"]}
        assert found == {"s1": 2, None: 1}

    def test_the_groups_add_up_to_the_total(self, client):
        for dimension in DIMENSIONS:
            answer = client.analytics([dimension])
            assert sum(group["total_tokens"] for group in answer["groups"]) == answer["total_tokens"] == 715

    def test_a_limit_keeps_the_largest_and_counts_the_others(self, client):
        answer = client.analytics(["model"], limit=1)
        assert [group["model"] for group in answer["groups"]] == ["m1"]
        assert answer["groups_omitted"] == 1
        assert answer["total_tokens"] == 715

    def test_a_limit_of_none_of_the_groups_leaves_the_total(self, client):
        answer = client.analytics(["model"], limit=0)
        assert (answer["groups"], answer["groups_omitted"], answer["requests"]) == ([], 2, 3)


class TestSpans:
    def test_a_span_is_half_open(self, client, start_s):
        answer = client.analytics(since=start_s, until=start_s + 120)
        assert without(answer, "first_seen", "last_seen", "as_of") == {
            **sums(2, (300, 30, 5, 0), reasoning=7, cost_nanousd=500_000_000, unpriced=1),
            "series": 2,
            "peak_request_tokens": None,
            "since": float(start_s),
            "until": float(start_s + 120),
            "group_by": [],
            "groups": [],
            "groups_omitted": 0,
        }

    @pytest.mark.parametrize(
        ("since", "until", "requests"),
        [(0, None, 3), (60, None, 2), (120, None, 1), (180, None, 0), (None, 60, 1), (None, 0, 0), (0, 180, 3)],
    )
    def test_an_open_end_is_all_there_is(self, client, start_s, since, until, requests):
        since_s = None if since is None else start_s + since
        until_s = None if until is None else start_s + until
        assert client.analytics(since=since_s, until=until_s)["requests"] == requests

    def test_a_span_is_widened_to_whole_minutes_and_says_so(self, client, start_s):
        answer = client.analytics(since=start_s + 59, until=start_s + 61)
        assert (answer["since"], answer["until"], answer["requests"]) == (start_s, start_s + 120, 2)

    def test_moments_may_be_numbers_texts_or_datetimes(self, client, start_s):
        moment = datetime.fromtimestamp(start_s + 60, UTC)
        elsewhere = moment.astimezone(timezone(timedelta(hours=5, minutes=30)))
        for since in (start_s + 60, float(start_s + 60), moment, elsewhere, moment.isoformat(), elsewhere.isoformat()):
            assert client.analytics(since=since)["requests"] == 2

    def test_a_span_can_be_grouped_and_selected(self, client, start_s):
        answer = client.analytics("model", since=start_s, until=start_s + 120, agent="a")
        assert [(group["model"], group["input_tokens"]) for group in answer["groups"]] == [("m2", 200), ("m1", 100)]

    @pytest.mark.parametrize("field", ["since", "until"])
    @pytest.mark.parametrize("moment", ["yesterday", "2026-01-01T00:00:00", datetime(2026, 1, 1), True, float("nan")])
    def test_a_moment_that_is_none_is_named(self, memory_fleet, field, moment):
        with pytest.raises(InvalidQuestion) as wrong:
            memory_fleet.client().analytics(**{field: moment})
        assert wrong.value.field == field

    def test_a_span_that_ends_before_it_begins_is_refused(self, client, start_s):
        with pytest.raises(InvalidQuestion) as wrong:
            client.analytics(since=start_s, until=start_s - 60)
        assert wrong.value.field == "since"


class TestWrongQuestions:
    @pytest.mark.parametrize(
        ("ask", "field"),
        [
            (lambda client: client.analytics(["colour"]), "group_by"),
            (lambda client: client.analytics([["agent"]]), "group_by"),
            (lambda client: client.analytics(colour="red"), "colour"),
            (lambda client: client.analytics(agent=5), "agent"),
            (lambda client: client.analytics(agent=object()), "agent"),
            (lambda client: client.analytics(agent=None), "agent"),
            (lambda client: client.analytics(["agent"], limit=-1), "limit"),
            (lambda client: client.analytics(["agent"], limit="many"), "limit"),
            (lambda client: client.analytics(["agent"], limit=10_001), "limit"),
            (lambda client: client.history(colour="red"), "colour"),
            (lambda client: client.export(colour="red"), "colour"),
            (lambda client: client.export(stale_ok=True), "stale_ok"),
            (lambda client: client.summary(group_by="agent"), "group_by"),
            (lambda client: client.tokens_in_window(0), "window_seconds"),
            (lambda client: client.tokens_in_window(-1), "window_seconds"),
            (lambda client: client.tokens_in_window(35 * 86_400 + 1), "window_seconds"),
            (lambda client: client.tokens_in_window(float("inf")), "window_seconds"),
            (lambda client: client.check_rate_limit(60, 5, colour="red"), "colour"),
        ],
        ids=range(18),
    )
    def test_a_wrong_question_names_the_field(self, client, ask, field):
        with pytest.raises(InvalidQuestion) as wrong:
            ask(client)
        assert wrong.value.field == field

    @pytest.mark.parametrize(
        ("ask", "field"),
        [
            (lambda client: client.history(-1), "limit"),
            (lambda client: client.history("many"), "limit"),
            (lambda client: client.tokens_in_window("60"), "window_seconds"),
            (lambda client: client.tokens_in_window(True), "window_seconds"),
            (lambda client: client.check_rate_limit(60, "5"), "max_tokens"),
            (lambda client: client.check_rate_limit(60, float("nan")), "max_tokens"),
            (lambda client: client.predict_overflow("s1", -1), "estimated_tokens"),
            (lambda client: client.predict_overflow("s1", 1, context_window_limit=0), "context_window_limit"),
            (lambda client: client.export("xml"), "export_format"),
            (lambda client: client.export(None), "export_format"),
        ],
        ids=range(10),
    )
    def test_a_wrong_argument_is_named(self, client, ask, field):
        with pytest.raises(InvalidValue) as wrong:
            ask(client)
        assert wrong.value.field == field

    def test_after_a_wrong_question_the_next_one_is_answered(self, client):
        with pytest.raises(InvalidQuestion):
            client.analytics(["colour"])
        assert client.analytics()["requests"] == 3


class TestHistory:
    def test_events_come_newest_first_with_everything_known_of_them(self, client, start_s):
        newest, _, oldest = client.history()
        nobody = dict.fromkeys(DIMENSIONS)
        assert newest == {
            "timestamp": start_s + 120.0,
            **nobody,
            "tenant": "t1",
            "provider": "p",
            "agent": "b",
            "model": "m1",
            "input_tokens": 300,
            "output_tokens": 30,
            "cache_read_tokens": 0,
            "cache_write_tokens": 50,
            "reasoning_tokens": 0,
            "total_tokens": 380,
            "cost_usd": 0.25,
            "message_id": None,
            "exactness": "exact",
            "clamped": False,
            "inconsistent": False,
            "tags": None,
        }
        assert (oldest["message_id"], oldest["tags"], oldest["session"]) == ("x", {"k": "v"}, "s1")

    def test_what_has_no_price_costs_none_and_not_nothing(self, client):
        assert [entry["cost_usd"] for entry in client.history()] == [0.25, None, 0.5]

    def test_a_limit_keeps_the_newest(self, client):
        assert [entry["input_tokens"] for entry in client.history(2)] == [300, 200]

    def test_a_limit_of_nothing_is_nothing(self, client):
        assert client.history(0) == []

    def test_a_selector_narrows_it_down(self, client):
        assert [entry["input_tokens"] for entry in client.history(agent="a")] == [200, 100]

    def test_what_nobody_used_is_nothing(self, client):
        assert client.history(agent="nobody") == []


class TestManyEvents:
    """More than one answer holds: 2,000."""

    COUNT = 4_500

    @pytest.fixture
    def client(self, fleet):
        fleet.actor()
        client = fleet.client()
        for n in range(self.COUNT):
            client.record(n, agent=f"agent{n % 2}", message_id=f"id{n}")
        return client

    def test_a_long_history_comes_in_order_and_without_a_hole(self, client):
        assert [entry["input_tokens"] for entry in client.history(self.COUNT + 1)] == list(reversed(range(self.COUNT)))

    @pytest.mark.parametrize("limit", [1_999, 2_000, 2_001, 4_000, 4_500])
    def test_a_limit_is_kept_across_pages(self, client, limit):
        newest = list(range(self.COUNT - 1, self.COUNT - 1 - limit, -1))
        assert [entry["input_tokens"] for entry in client.history(limit)] == newest

    def test_pages_are_full_but_for_the_last(self, client):
        assert [len(page) for page in client.pages()] == [2_000, 2_000, 500]

    def test_a_selector_holds_on_every_page(self, client):
        pages = list(client.pages(agent="agent1"))
        assert [len(page) for page in pages] == [2_000, 250]
        assert {entry["agent"] for page in pages for entry in page} == {"agent1"}

    def test_events_that_come_while_paging_do_not_shift_the_pages(self, client):
        pages = client.pages()
        found = next(pages)
        client.record(1, agent="late")
        client.flush()
        found += [entry for page in pages for entry in page]
        assert [entry["input_tokens"] for entry in found] == list(reversed(range(self.COUNT)))

    def test_an_export_as_json_holds_all_of_them_oldest_first(self, client):
        document = json.loads(client.export("json"))
        assert [entry["input_tokens"] for entry in document["history"]] == list(range(self.COUNT))
        assert document["analytics"]["requests"] == self.COUNT

    def test_an_export_as_csv_holds_all_of_them_oldest_first(self, client):
        rows = list(csv.reader(io.StringIO(client.export("csv"))))
        title = rows.index(["=== Usage History ==="])
        history = [dict(zip(rows[title + 1], row, strict=True)) for row in rows[title + 2 :]]
        assert [row["message_id"] for row in history] == [f"id{n}" for n in range(self.COUNT)]

    def test_an_export_can_be_bounded(self, client):
        document = json.loads(client.export("json", limit=2_500))
        assert [entry["input_tokens"] for entry in document["history"]] == list(range(2_000, self.COUNT))


class TestExport:
    def test_json_has_analytics_history_and_the_time(self, client):
        before_s = time.time()
        document = json.loads(client.export())
        assert list(document) == ["analytics", "history", "export_timestamp", "export_unix_time"]
        assert document["history"] == client.history()[::-1]
        assert without(document["analytics"], "as_of") == without(client.analytics(), "as_of")
        assert before_s <= document["export_unix_time"] <= time.time()
        moment = datetime.fromisoformat(document["export_timestamp"])
        assert moment.timestamp() == pytest.approx(document["export_unix_time"], abs=1e-3)

    def test_csv_has_two_sections(self, client, start_s):
        lines = client.export("csv").splitlines()
        assert lines[:3] == ["=== Token Manager Analytics ===", "Metric,Value", "input_tokens,600"]
        at = lines.index("=== Usage History ===")
        assert lines[at - 1] == ""
        assert lines[at + 1] == (
            "timestamp,tenant,project,user,agent,session,provider,model,input_tokens,output_tokens,cache_read_tokens,"
            "cache_write_tokens,reasoning_tokens,total_tokens,cost_usd,message_id,exactness,clamped,inconsistent"
        )
        assert lines[at + 2 :] == [
            f"{start_s}.0,t1,,,a,s1,p,m1,100,10,5,0,0,115,0.5,x,exact,False,False",
            f"{start_s + 60}.0,t1,,,a,s1,p,m2,200,20,0,0,7,220,,,estimated,False,False",
            f"{start_s + 120}.0,t1,,,b,,p,m1,300,30,0,50,0,380,0.25,,exact,False,False",
        ]

    def test_the_name_of_a_format_has_no_case(self, client):
        assert client.export("CSV").startswith("=== Token Manager Analytics ===")
        assert json.loads(client.export("Json"))["analytics"]["requests"] == 3

    def test_a_cell_that_a_spreadsheet_would_run_is_disarmed(self, client):
        client.record(1, agent="=1+1")
        assert client.export("csv", agent="=1+1").splitlines()[-1].split(",")[4] == '"\'=1+1"'

    def test_a_selector_narrows_both_parts(self, client):
        document = json.loads(client.export(agent="b"))
        assert document["analytics"]["requests"] == len(document["history"]) == 1

    def test_nothing_can_be_exported_too(self, client):
        assert client.export("csv", agent="nobody").splitlines()[-1] == "No history available"


class TestWindow:
    def test_all_four_kinds_count(self, client):
        assert client.tokens_in_window(3600) == 715

    def test_a_window_says_whether_it_is_exact(self, client):
        assert client.window_usage(3600, agent="nobody") == {"tokens": 0, "source": "recent"}
        assert client.window_usage(3600) == {"tokens": 715, "source": "recent"}

    def test_a_window_counts_when_the_log_took_it_and_not_what_it_claims(self, client):
        assert client.tokens_in_window(60) == 715  # they claim to be ten minutes old

    def test_a_window_passes(self, client):
        wait_until(lambda: client.tokens_in_window(0.05) == 0)
        assert client.tokens_in_window(3600) == 715

    def test_a_window_can_be_as_short_as_a_millisecond_and_as_long_as_35_days(self, client):
        assert client.tokens_in_window(0.0001) >= 0
        assert client.tokens_in_window(35 * 86_400) == 715

    @pytest.mark.parametrize(
        ("max_tokens", "within"), [(714, False), (715, True), (716, True), (1e9, True), (0, False)]
    )
    def test_a_rate_is_kept_up_to_and_with_its_limit(self, client, max_tokens, within):
        assert client.check_rate_limit(3600, max_tokens) is within

    def test_a_rate_can_be_that_of_one_agent(self, client):
        assert client.check_rate_limit(3600, 335, agent="a") is True
        assert client.check_rate_limit(3600, 334, agent="a") is False


class TestSession:
    def test_figures_of_a_session(self, client, start_s):
        answer = client.session("s1", history_limit=5)
        uptime_s = answer["figures"].pop("uptime_s")
        assert 0 <= uptime_s < 60
        assert answer == {
            "figures": {
                "requests": 2,
                "input_tokens": 300,
                "output_tokens": 30,
                "cache_read_tokens": 5,
                "cache_write_tokens": 0,
                "peak_tokens": 330,
                "recent_totals": [115, 220],
            },
            "history": [
                [start_s + 60.0, 200, 20, 0, 0, None, 300, 30],
                [start_s + 0.0, 100, 10, 5, 0, "x", 100, 10],
            ],
        }

    def test_a_session_is_looked_up_in_the_clients_tenant_unless_another_is_named(self, client):
        assert client.session("s1")["figures"]["requests"] == 2
        assert client.session("s1", tenant="t2")["figures"]["requests"] == 0

    def test_a_client_without_a_tenant_means_the_default_one(self, client, fleet):
        other = fleet.client()
        other.record(1, session="s1")
        assert other.session("s1")["figures"]["requests"] == 1

    def test_an_overflow_is_predicted_from_input_and_output(self, client):
        assert client.predict_overflow("s1", 70, context_window_limit=400) == (False, 100.0)
        assert client.predict_overflow("s1", 71, context_window_limit=400) == (True, 100.25)
        assert client.predict_overflow(session="s1", estimated_tokens=1_670) == (False, 1.0)


class TestSummary:
    def test_a_page_for_people(self, client):
        assert client.summary() == (
            "=== Fleet Summary: everything ===\n"
            "Requests: 3\n"
            "Input tokens: 600\n"
            "Output tokens: 60\n"
            "Cache read tokens: 5\n"
            "Cache write tokens: 50\n"
            "Total tokens: 715\n"
            "Cost: $0.7500 + 1 unpriced request\n"
            "\n"
            "Largest by model:\n"
            "  m1: 495 tokens in 2 requests\n"
            "  m2: 220 tokens in 1 request\n"
            "\n"
            "Largest by agent:\n"
            "  b: 380 tokens in 1 request\n"
            "  a: 335 tokens in 2 requests\n"
            "\n"
            "Largest by session:\n"
            "  s1: 335 tokens in 2 requests"
        )

    def test_it_says_what_was_selected(self, client):
        assert client.summary(agent="b", model="m1").startswith(
            "=== Fleet Summary: agent=b, model=m1 ===\nRequests: 1\n"
        )


class TestTheActorOfItself:
    def test_status_says_how_much_there_is_of_everything(self, client):
        status = client.status()
        assert status.pop("log_ms") > 0
        assert status.pop("offset").split("-")[0].isdigit()
        assert status.pop("generation") > 0
        assert status == {
            "lost_entries": 0,
            "events": 3,
            "duplicates": 0,
            "dead": {},
            "missing": 0,
            "series": 3,
            "folded_events": 0,
            "producers": 1,
            "message_ids": 1,
            "recent_events": 3,
            "open_reservations": 0,
            "set_aside_calls": 0,
            "epoch": 1,
            "holder": "actor-1",
            "entries": 1,
            "snapshot_offset": "0-0",
        }

    def test_the_books_balance(self, client):
        books = client.books()
        assert books["differences"] == []
        assert books["ways"] == 10
        assert books["total"] == without(
            sums(3, (600, 60, 5, 50), reasoning=7, cost_nanousd=750_000_000, unpriced=1), "total_tokens", "cost_usd"
        )


def test_batches_that_were_resent_are_duplicates_and_change_no_total(fleet):
    fleet.actor()
    client = fleet.client(resend_share=1.0, batch_events_max=10)
    for n in range(100):
        client.record(n, 1)
    client.flush()
    answer = client.analytics()
    assert (answer["requests"], answer["input_tokens"], answer["output_tokens"]) == (100, 4_950, 100)
    assert answer["duplicates"] == client.status()["duplicates"] == 100
    assert client.status()["missing"] == 0
