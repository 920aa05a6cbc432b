"""Facts about series: every distinct tuple of names is one row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import examples
from token_actor.core.series import NAMES_MAX, OTHER, ROWS_MAX, SeriesTable, check_selector
from token_actor.core.usage import DIMENSIONS, series_key
from token_actor.errors import InvalidQuestion


def table_of(*names, **bounds):
    """Return a table with one series for each map of names."""
    table = SeriesTable(**bounds)
    rows, problems = table.resolve([series_key(**each) for each in names])
    assert problems == {}
    return table, rows.tolist()


def bounded(**names_max):
    return {"names_max": {**NAMES_MAX, **names_max}}


def names_at(table, row, *dimensions):
    names = table.names_of(row)
    return tuple(names[dimension] for dimension in dimensions)


# --- rows ----------------------------------------------------------------------------------------


def test_rows_are_given_in_the_order_of_the_log():
    _, rows = table_of({"agent": "a"}, {"agent": "b"}, {"agent": "a"}, {})
    assert rows == [0, 1, 0, 2]


def test_a_known_series_keeps_its_row():
    table, _ = table_of({"agent": "a"}, {"agent": "b"})
    assert table.row(series_key(agent="b")) == 1
    assert len(table) == 2


def test_a_bad_key_has_no_row_and_says_why():
    table = SeriesTable()
    rows, problems = table.resolve([series_key(), "bad", series_key(agent="a")])
    assert rows.tolist() == [0, -1, 1]
    assert {place: problem.reason for place, problem in problems.items()} == {1: "decode"}


def test_a_bad_key_is_bad_each_time():
    table = SeriesTable()
    for _ in range(2):
        assert table.resolve(["bad"])[1].keys() == {0}
    assert len(table) == 0


def test_no_keys_have_no_rows():
    rows, problems = SeriesTable().resolve([])
    assert (rows.dtype, len(rows), problems) == (np.int64, 0, {})


def test_a_row_has_the_names_of_its_key():
    table, _ = table_of({"tenant": "t", "session": "s", "model": "m"})
    assert table.names_of(0) == {
        "tenant": "t", "project": "", "user": "", "agent": "", "session": "s", "provider": "", "model": "m",
    }  # fmt: skip


def test_the_table_grows_beyond_its_first_capacity():
    table, rows = table_of(*({"session": f"s{number}"} for number in range(3000)))
    assert rows == list(range(3000))
    assert names_at(table, 2999, "session") == ("s2999",)
    assert table.select({"session": "s2999"}).tolist() == [2999]


# --- names without bound --------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_full_dimension_counts_new_names_under_other(dimension):
    table, rows = table_of(*({dimension: f"n{number}"} for number in range(5)), **bounded(**{dimension: 3}))
    assert [names_at(table, row, dimension)[0] for row in rows] == ["n0", "n1", "n2", OTHER, OTHER]


def test_a_full_dimension_still_knows_its_names():
    table, rows = table_of({"model": "a"}, {"model": "b"}, {"model": "a", "agent": "x"}, **bounded(model=1))
    assert [names_at(table, row, "model", "agent") for row in rows] == [("a", ""), (OTHER, ""), ("a", "x")]


def test_the_other_names_of_a_series_stay_when_one_is_folded():
    table, rows = table_of({"model": "a", "agent": "x"}, {"model": "b", "agent": "y"}, **bounded(model=1))
    assert names_at(table, rows[1], "model", "agent") == (OTHER, "y")


def test_a_name_of_our_own_is_refused_also_when_it_is_taken():
    table, _ = table_of({"session": "a"}, {"session": "b"}, **bounded(session=1))
    taken = table.keys[1]
    assert OTHER in taken
    rows, problems = table.resolve([taken])
    assert (rows.tolist(), problems[0].reason) == ([-1], "bad_name")


def test_a_name_may_contain_what_only_ours_begin_with():
    table, rows = table_of({"session": "x__other__"}, {"session": "x__other__"})
    assert rows == [0, 0]
    assert names_at(table, 0, "session") == ("x__other__",)


# --- rows without bound ---------------------------------------------------------------------------


def test_when_the_rows_run_out_new_sessions_are_counted_under_other():
    table, rows = table_of(*({"session": f"s{number}", "agent": "a"} for number in range(60)), rows_max=50)
    assert [names_at(table, row, "session", "agent") for row in rows[48:51]] == [
        ("s48", "a"),
        (OTHER, "a"),
        (OTHER, "a"),
    ]


def test_when_they_run_out_for_other_sessions_too_then_agents_follow_and_so_on():
    names = ({"session": f"s{n}", "agent": f"a{n}", "user": f"u{n}"} for n in range(60))
    table, rows = table_of(*names, rows_max=50)
    assert names_at(table, rows[-1], "session", "agent", "user") == (OTHER, OTHER, OTHER)


def test_a_tenant_is_never_given_the_row_of_another_for_want_of_rows():
    table, rows = table_of(*({"tenant": f"t{n}", "session": "s"} for n in range(60)), rows_max=50)
    assert [names_at(table, row, "tenant")[0] for row in rows] == [f"t{n}" for n in range(60)]


def test_a_known_series_is_found_when_the_rows_have_run_out():
    _, rows = table_of(*({"session": f"s{n}"} for n in range(60)), {"session": "s5"}, rows_max=50)
    assert rows[-1] == 5


@given(st.lists(st.tuples(*[st.sampled_from("abcdefgh")] * 3), max_size=120), st.integers(1, 30))
@examples(60)
def test_rows_exceed_their_bound_by_one_for_each_tenant_at_most(names, rows_max):
    table = SeriesTable(rows_max=rows_max)
    table.resolve([series_key(tenant, agent=agent, session=session) for tenant, agent, session in names])
    assert len(table) <= rows_max + len({tenant for tenant, _, _ in names})


# --- finding ----------------------------------------------------------------------------------------


@pytest.fixture
def table():
    made, _ = table_of(
        {"agent": "a", "model": "m"},
        {"agent": "b", "model": "m"},
        {"agent": "a", "model": "n"},
        {"agent": "a", "model": "m", "tenant": "t"},
        {"model": "m"},
    )
    return made


def test_no_names_select_everything(table):
    assert table.select({}) is None


@pytest.mark.parametrize(
    ("selector", "rows"),
    [
        ({"agent": "a"}, [0, 2, 3]),
        ({"model": "m"}, [0, 1, 3, 4]),
        ({"agent": "a", "model": "m"}, [0, 3]),
        ({"model": "m", "agent": "a", "tenant": "t"}, [3]),
        ({"agent": ""}, [4]),
        ({"agent": "b", "model": "n"}, []),
    ],
)
def test_names_select_the_rows_that_have_all_of_them(table, selector, rows):
    assert table.select(selector).tolist() == rows


@pytest.mark.parametrize("name", ["nobody", "a\n", "\ud800", OTHER])
def test_an_unknown_name_selects_nothing(table, name):
    assert table.select({"model": "m", "agent": name}).tolist() == []


def test_rows_are_grouped_by_a_dimension(table):
    groups, labels = table.group(None, ["agent"])
    assert [labels[group] for group in groups] == [("a",), ("b",), ("a",), ("a",), ("",)]


def test_rows_are_grouped_by_several_dimensions_in_the_order_asked(table):
    groups, labels = table.group(np.array([0, 2, 3]), ["model", "tenant"])
    assert [labels[group] for group in groups] == [("m", "default"), ("n", "default"), ("m", "t")]


def test_no_rows_have_no_groups(table):
    groups, labels = table.group(np.empty(0, dtype=np.int64), ["agent"])
    assert (len(groups), labels) == (0, [])


def test_no_dimensions_make_one_group(table):
    groups, labels = table.group(None, [])
    assert (groups.tolist(), labels) == ([0] * 5, [()])


def test_a_name_has_a_code_or_none(table):
    codes = (table.code("agent", "a"), table.code("agent", "b"), table.code("agent", ""), table.code("agent", "c"))
    assert codes == (0, 1, 2, None)


@given(st.lists(st.lists(st.sampled_from(["", "a", "b"]), min_size=7, max_size=7), min_size=1, max_size=30))
@examples(60)
def test_groups_and_selections_equal_brute_force(tuples):
    table, _ = table_of(*(dict(zip(DIMENSIONS, names, strict=True)) for names in tuples))
    rows = [table.names_of(row) for row in range(len(table))]
    groups, labels = table.group(None, ["model", "user", "agent"])
    assert [labels[group] for group in groups] == [(row["model"], row["user"], row["agent"]) for row in rows]
    assert sorted(set(labels)) == sorted(labels)
    found = table.select({"user": "a", "model": "b"})
    assert found.tolist() == [place for place, row in enumerate(rows) if row["user"] == "a" and row["model"] == "b"]


# --- replacing everything -------------------------------------------------------------------------


def test_a_replaced_table_finds_what_a_grown_one_finds(table):
    again = SeriesTable()
    again.replace(table.keys)
    assert again.keys == table.keys
    assert again.names == table.names
    for selector in ({"agent": "a"}, {"model": "m", "agent": "b"}, {"tenant": "x"}):
        assert again.select(selector).tolist() == table.select(selector).tolist()
    assert again.row(table.keys[3]) == 3
    assert again.row(series_key(agent="new")) == len(table)


def test_a_table_may_be_replaced_by_nothing(table):
    table.replace([])
    assert (len(table), table.select({"agent": "a"}).tolist()) == (0, [])
    assert table.row(series_key(agent="a")) == 0


def test_names_of_our_own_are_refused_also_after_a_replacement():
    table, _ = table_of({"session": "a"}, {"session": "b"}, **bounded(session=1))
    again = SeriesTable(**bounded(session=1))
    again.replace(table.keys)
    assert again.resolve([table.keys[1]])[0].tolist() == [-1]
    assert again.row(series_key(session="c")) == 1


# --- selectors ------------------------------------------------------------------------------------


def test_a_selector_maps_dimensions_to_names():
    assert check_selector({"agent": "a", "tenant": "t"}) == {"agent": "a", "tenant": "t"}


@pytest.mark.parametrize(
    ("selector", "field"),
    [
        (None, "selector"),
        ([], "selector"),
        ("agent=a", "selector"),
        ({"colour": "red"}, "colour"),
        ({7: "a"}, "7"),
        ({"agent": 7}, "agent"),
        ({"agent": None}, "agent"),
        ({"agent": ["a"]}, "agent"),
    ],
)
def test_a_selector_that_is_none_is_refused_by_field(selector, field):
    with pytest.raises(InvalidQuestion) as refused:
        check_selector(selector)
    assert refused.value.field == field


def test_sessions_are_bounded_by_the_rows_alone():
    assert NAMES_MAX["session"] == ROWS_MAX
