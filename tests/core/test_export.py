from __future__ import annotations

import csv
import io
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_actor.core.analytics import SessionFigures, SessionRules, history_entry, session_analytics
from token_actor.core.export import (
    FORMATS,
    export_csv,
    export_json,
    export_metrics,
    export_prometheus,
    summary_text,
)
from token_actor.errors import InvalidValue

NOW_S = 1_700_000_000.5
ANALYTICS = session_analytics(
    SessionFigures(requests=2, input_tokens=1000, output_tokens=234, cache_read_tokens=5, uptime_s=90.0),
    SessionRules(),
)
HISTORY = [
    history_entry(
        timestamp_s=NOW_S,
        input_tokens=500,
        output_tokens=117,
        cache_read_tokens=5,
        cache_write_tokens=0,
        message_id=message_id,
        cumulative_input=500,
        cumulative_output=117,
        context_window_limit=200_000,
    )
    for message_id in ("m", None)
]

SAMPLE = re.compile(r'[a-z_]+(\{[a-z_]+="(\\.|[^"\\\n])*"(,[a-z_]+="(\\.|[^"\\\n])*")*\})? -?[0-9.e+]+')


def rows_of(text):
    return list(csv.reader(io.StringIO(text, newline="")))


def test_json_round_trips():
    assert json.loads(export_json(ANALYTICS, HISTORY, NOW_S)) == {
        "analytics": ANALYTICS,
        "history": HISTORY,
        "export_timestamp": "2023-11-14T22:13:20.500000+00:00",
        "export_unix_time": NOW_S,
    }


def test_json_is_one_line_unless_indented():
    assert "\n" not in export_json(ANALYTICS, HISTORY, NOW_S)
    assert export_json({}, [], NOW_S, indent=2).startswith('{\n  "analytics": {}')


def test_the_json_of_a_session_is_indented_for_people():
    assert export_metrics(ANALYTICS, [], "json", NOW_S) == export_json(ANALYTICS, [], NOW_S, indent=2)


def test_the_json_of_a_fleet_may_have_a_list_of_groups():
    groups = [{"model": "a", "total_requests": 1}, {"model": "b", "total_requests": 2}]
    assert json.loads(export_json(groups, [], NOW_S))["analytics"] == groups


def test_json_never_says_nan_which_is_no_json():
    with pytest.raises(ValueError, match="JSON"):
        export_json({"pct": math.nan}, [], NOW_S)


def test_csv_has_two_sections():
    assert export_csv({"total_requests": 2}, [{"a": 1, "b": "x"}], ("a", "b")).split("\r\n") == [
        "=== Token Manager Analytics ===",
        "Metric,Value",
        "total_requests,2",
        "",
        "=== Usage History ===",
        "a,b",
        "1,x",
        "",
    ]


def test_csv_without_history_says_so():
    assert export_csv({}, [], ("a",)).split("\r\n")[-3:] == ["=== Usage History ===", "No history available", ""]


def test_csv_may_have_columns_of_a_fleet():
    rows = rows_of(export_csv({}, [{"model": "m", **HISTORY[0], "tenant": "t"}], ("tenant", "model", "total_tokens")))
    assert rows[-2:] == [["tenant", "model", "total_tokens"], ["t", "m", "622"]]


def test_csv_leaves_what_a_row_lacks_empty():
    assert rows_of(export_csv({}, [{"a": None}], ("a", "b")))[-1] == ["", ""]


def test_csv_quotes_what_would_break_a_row():
    exported = export_csv({}, [{"a": 'x,"y"\r\nz', "b": 1}], ("a", "b"))
    assert rows_of(exported)[-1] == ['x,"y"\r\nz', "1"]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_csv_disarms_and_quotes_formulas(start):
    assert export_csv({}, [{"a": f'{start}A1"&'}], ("a",)).endswith(f'"\'{start}A1""&"\r\n')


@pytest.mark.parametrize("harmless", ["a=1", " =1", "'=1", "1-1", "m@x"])
def test_csv_leaves_other_text_alone(harmless):
    assert export_csv({}, [{"a": harmless}], ("a",)).endswith(f"\r\n{harmless}\r\n")


def test_csv_disarms_names_of_columns_too():
    assert '\r\n"\'=cmd","b"\r\n' in export_csv({}, [{}], ("=cmd", "b"))


def test_csv_disarms_figures_too():
    assert export_csv({"trend": "=1"}, [], ()).split("\r\n")[2] == '"trend","\'=1"'


def test_csv_leaves_numbers_alone():
    assert rows_of(export_csv({"change": -5}, [], ()))[2] == ["change", "-5"]


@given(st.lists(st.text(), min_size=2, max_size=2))
def test_csv_cells_survive_and_never_start_a_formula(cells):
    exported = export_csv({}, [dict(zip("ab", cells, strict=True))], ("a", "b"))
    read = rows_of(exported)[-1]
    assert [cell.removeprefix("'") for cell in read] == [cell.removeprefix("'") for cell in cells]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in read)


def test_prometheus_has_help_and_type_before_each_metric():
    lines = export_prometheus([({}, {"total_requests": 2, "context_usage_pct": 1.5})]).split("\n")
    assert lines == [
        "# HELP token_actor_requests_total Requests counted.",
        "# TYPE token_actor_requests_total counter",
        "token_actor_requests_total 2",
        "# HELP token_actor_context_usage_percent Share of the context window in use.",
        "# TYPE token_actor_context_usage_percent gauge",
        "token_actor_context_usage_percent 1.5",
        "",
    ]


def test_prometheus_counters_end_with_total_and_gauges_do_not():
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", export_prometheus([({}, ANALYTICS)]), re.MULTILINE))
    assert len(kinds) == 9
    assert all(name.startswith("token_actor_") for name in kinds)
    assert all(name.endswith("_total") == (kind == "counter") for name, kind in kinds.items())


def test_prometheus_lines_follow_the_grammar():
    samples = [line for line in export_prometheus([({}, ANALYTICS)]).splitlines() if not line.startswith("#")]
    assert len(samples) == 9
    assert all(SAMPLE.fullmatch(line) for line in samples)


def test_prometheus_groups_the_samples_of_a_metric():
    groups = [({"model": name}, {"total_requests": number}) for number, name in enumerate("ab")]
    assert export_prometheus(groups).splitlines()[2:] == [
        'token_actor_requests_total{model="a"} 0',
        'token_actor_requests_total{model="b"} 1',
    ]


def test_prometheus_joins_labels_with_commas():
    exported = export_prometheus([({"tenant": "t", "model": "m"}, {"total_requests": 1})])
    assert exported.endswith('\ntoken_actor_requests_total{tenant="t",model="m"} 1\n')


@given(st.text())
def test_prometheus_labels_are_escaped_on_one_line(name):
    *_, sample, rest = export_prometheus([({"model": name}, {"total_requests": 1})]).split("\n")
    assert rest == ""
    assert SAMPLE.fullmatch(sample)
    escaped = sample.partition('{model="')[2].removesuffix('"} 1')
    assert re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), escaped) == name


def test_prometheus_of_nothing_is_empty():
    assert export_prometheus([]) == ""


def test_every_format_can_be_asked_for_in_any_case():
    for name in FORMATS:
        assert export_metrics(ANALYTICS, HISTORY, name.upper(), NOW_S) == export_metrics(
            ANALYTICS, HISTORY, name, NOW_S
        )


def test_an_unknown_format_is_refused_with_the_known_ones():
    with pytest.raises(InvalidValue, match="^export_format must be one of json, csv, prometheus, not 'xml'$"):
        export_metrics(ANALYTICS, HISTORY, "xml", NOW_S)


def test_the_summary_has_a_line_for_each_figure_that_matters():
    assert summary_text(ANALYTICS).splitlines() == [
        "=== Token Manager Summary ===",
        "Total Requests: 2",
        "Input Tokens: 1,000",
        "Output Tokens: 234",
        "Total Tokens: 1,234",
        "Context Usage: 0.6%",
        "Avg Tokens/Request: 617.0",
        "Trend: Stable",
        "Uptime: 90s",
    ]
