"""Limits in a file: what is read, what a mistake is told as, and what is brought in line with it."""

from __future__ import annotations

import pytest

from tests.client.harness import Fleet
from token_actor.core.limits import Limit
from token_actor.errors import InvalidQuestion, InvalidValue, RateLimited, SetupError
from token_actor.operations.limit_files import fields_of, limits_of_partition, nanousd_of, put_limits, read_limits

FILE = """
[[limit]]
name = "provider"
amount = 2_000_000
selector = { provider = "acme", model = "big" }
weights = { cache_read_tokens = 0, output_tokens = 1.5 }

[[limit]]
name = "each agent"
amount = 60
unit = "requests"
kind = "bucket"
seconds = "1m"
burst = 10
by = ["tenant", "agent"]
mode = "shadow"
on_expire = "refund"
on_outage = "safe"
safe_share = 0.25
fair_by = ["agent"]

[[limit]]
name = "budget"
amount_usd = 25.50
kind = "calendar"
period = "week"
tz = "Europe/Zurich"
week_start = "sunday"
thresholds = [50, 90]
"""


@pytest.fixture
def file(tmp_path):
    """A file of limits with what it is given."""

    def made(text):
        path = tmp_path / "limits.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return made


class TestReading:
    def test_every_field_is_read(self, file):
        assert read_limits(file(FILE)) == [
            Limit(
                "provider",
                2_000_000,
                selector={"provider": "acme", "model": "big"},
                weights={"cache_read_tokens": 0, "output_tokens": 1.5},
            ),
            Limit(
                "each agent", 60, unit="requests", kind="bucket", seconds=60, burst=10, by=("tenant", "agent"),
                mode="shadow", on_expire="refund", on_outage="safe", safe_share=0.25, fair_by=("agent",),
            ),
            Limit(
                "budget", 25_500_000_000, unit="cost_nanousd", kind="calendar", period="week", tz="Europe/Zurich",
                week_start="sunday", thresholds=[50, 90],
            ),
        ]  # fmt: skip

    def test_an_empty_file_has_no_limits(self, file):
        assert read_limits(file("")) == []

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ('[[limit]]\nname = "l"\namount = 5\ncolour = "red"', "limit 'l': colour is not a field of a limit"),
            ('[[limit]]\nname = "l"\namount = 1.5', "limit 'l': amount must be an int, not float"),
            ('[[limit]]\nname = "l"', "limit 'l': amount is missing"),
            ("[[limit]]\namount = 5", "the limit at place 1: name is missing"),
            ('[[limit]]\nname = "l"\namount = 5\nseconds = 0', "limit 'l': seconds must be above 0"),
            (
                '[[limit]]\nname = "l"\namount = 5\nseconds = "1 month"',
                "limit 'l': seconds must be a number, or text as",
            ),
            ('[[limit]]\nname = "l"\namount = 5\namount_usd = 5', "amount_usd stands for amount and the unit"),
            ('[[limit]]\nname = "l"\nunit = "tokens"\namount_usd = 5', "amount_usd stands for amount and the unit"),
            ('[[limit]]\nname = "l"\namount_usd = "much"', "amount_usd must be a number of dollars, not 'much'"),
            (
                '[[limit]]\nname = "l"\namount = 5\nselector = { colour = "red" }',
                "selector 'colour' is not a dimension",
            ),
            ('[[limit]]\nname = "l"\namount = 5\n[[limit]]\nname = "l"\namount = 6', "limit 'l' is there twice"),
            ('[limit]\nname = "l"', "each limit is a table of its own"),
            ("limit = [5]", "each limit is a table of its own"),
            ("[[limits]]", "'limits' is not known; each limit is a table [[limit]]"),
            ("limit = ", "is no TOML: Invalid value (at end of document)"),
            (b"\xff", "is no TOML: 'utf-8' codec can't decode"),
            ("".join(f'[[limit]]\nname = "{n}"\namount = 1\n' for n in range(101)), "has 101 limits; at most 100"),
        ],
        ids=range(17),
    )
    def test_a_mistake_names_the_file_the_limit_and_the_field(self, file, text, problem):
        path = file(text)
        with pytest.raises(SetupError) as refused:
            read_limits(path)
        assert str(refused.value).startswith(str(path))
        assert problem in str(refused.value)

    def test_a_file_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(SetupError, match="nowhere.toml cannot be read: No such file"):
            read_limits(tmp_path / "nowhere.toml")

    @pytest.mark.parametrize(("text", "seconds"), [("1.5s", 1.5), ("90s", 90), ("15m", 900), ("1 h", 3_600)])
    def test_lengths_of_time_may_have_a_unit(self, text, seconds):
        assert fields_of({"seconds": text})["seconds"] == seconds

    @pytest.mark.parametrize(("amount", "nanousd"), [("0.000000001", 1), (25, 25 * 10**9), ("1e3", 10**12)])
    def test_dollars_are_exact(self, amount, nanousd):
        assert nanousd_of(amount) == nanousd

    @pytest.mark.parametrize("amount", ["0.0000000001", -1, "1e999999", "nan", True, None, "-inf", 10**9 + 1])
    def test_other_amounts_are_refused(self, amount):
        with pytest.raises(InvalidValue) as refused:
            nanousd_of(amount)
        assert refused.value.field == "amount_usd"


class TestPutting:
    @pytest.fixture
    def client(self, namespace):
        """A client of a fleet with one limit in force, of which something is used."""
        with Fleet.in_memory(namespace) as fleet:
            fleet.actor()
            client = fleet.client()
            client.put_limit(Limit("old", 100))
            client.record(30)
            yield client

    def test_only_what_differs_is_put(self, client, file, monkeypatch):
        limits = read_limits(file(FILE))
        put_limits(client, limits)
        monkeypatch.setattr(client, "put_limit", lambda limit: pytest.fail(f"{limit} is in force"))
        assert [change.what for change in put_limits(client, limits)] == ["same"] * 3

    def test_it_is_told_what_became_of_each(self, client):
        changes = put_limits(client, [Limit("old", 200), Limit("new", 5)])
        assert [change.document() for change in changes] == [
            {"limit": Limit("old", 200).as_map(), "change": "changed", "was": {"amount": 100}, "counters_kept": True},
            {"limit": Limit("new", 5).as_map(), "change": "new", "was": {}, "counters_kept": False},
        ]
        assert client.limits()[0]["top"][0]["used"] == 30

    def test_others_stay(self, client):
        put_limits(client, [Limit("new", 5)])
        assert [limit["name"] for limit in client.limits()] == ["old", "new"]

    def test_who_was_killed_stays_so_where_the_file_is_to_be_exact(self, client):
        client.kill(agent="planner")
        assert [change.what for change in put_limits(client, [Limit("new", 5)], exact=True)][-1] == "new"
        with pytest.raises(RateLimited, match="killed"):
            client.reserve(0, agent="planner")

    def test_others_go_first_where_the_file_is_to_be_exact(self, client):
        for number in range(99):
            client.put_limit(Limit(f"l{number}", 1))
        changes = put_limits(client, [Limit("new", 5), Limit("l7", 1)], exact=True)
        assert [change.what for change in changes] == ["deleted"] * 99 + ["new", "same"]
        assert {limit["name"] for limit in client.limits()} == {"l7", "new"}

    def test_one_too_many_is_refused(self, client):
        with pytest.raises(InvalidQuestion, match="is one too many"):
            put_limits(client, [Limit(f"l{number}", 1) for number in range(100)])


class TestPartitions:
    LIMITS = (Limit("a", 1, selector={"tenant": "t1"}), Limit("b", 1, selector={"tenant": "t3"}))

    def test_each_partition_holds_the_limits_of_its_tenants(self):
        parts = [limits_of_partition(self.LIMITS, partition, 3) for partition in range(3)]
        assert sorted(limit.name for part in parts for limit in part) == ["a", "b"]
        assert max(map(len, parts)) == 1

    def test_where_there_is_one_it_holds_all(self):
        assert limits_of_partition([Limit("l", 1)], 0, 1) == [Limit("l", 1)]

    def test_a_limit_for_all_tenants_has_no_place_among_several(self):
        with pytest.raises(SetupError, match="limit 'l' has no tenant, and there are 2 partitions"):
            limits_of_partition([Limit("l", 1)], 0, 2)

    def test_limits_of_tenants_are_put_where_they_live(self, namespace):
        with Fleet.in_memory(namespace) as fleet:
            for partition in (0, 1, 2):
                fleet.actor(partition, partitions=3)
            client = fleet.client()
            assert [change.what for change in put_limits(client, self.LIMITS)] == ["new", "new"]
            assert [change.what for change in put_limits(client, self.LIMITS[:1], exact=True)] == ["same"]
            assert [limit["name"] for limit in client.limits(tenant="t3")] == ["b"]
