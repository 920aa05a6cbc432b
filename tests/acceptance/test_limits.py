"""Limits from the command line and from a file: put, looked at, explained, deleted, and what a mistake is told as."""

from __future__ import annotations

import signal

import pytest

from tests.acceptance.program import Program, last_line, run, serving, until
from token_actor import Limit, TokenClient

FILE = """
[[limit]]
name = "minute"
amount = 1_000
by = ["agent"]

[[limit]]
name = "budget"
amount_usd = 25
seconds = "7d"
"""


@pytest.fixture(scope="module")
def limited(server_url):
    """A namespace with three limits, of which something is used and reserved; tests here change nothing of it."""
    where = ("--redis", server_url, "--namespace", "limited")
    with serving(*where), TokenClient(server_url, namespace="limited") as client:
        client.put_limit(Limit("minute", 1_000, seconds=3_600, by=["agent"]))
        client.put_limit(Limit("budget", 25 * 10**9, unit="cost_nanousd", seconds=86_400, selector={"model": "m"}))
        client.put_limit(Limit("trial", 10, mode="shadow"))
        client.reserve(700, agent="a", model="m", cost_usd="1.50").settle(690, cost_usd="1.5")
        client.reserve(200, agent="a", ttl_s=3_600)
        client.record(5, agent="b")
        yield where


@pytest.fixture
def own(server_url, namespace):
    """A namespace of one's own that an actor serves."""
    where = ("--redis", server_url, "--namespace", namespace)
    with serving(*where):
        yield where


class TestLooking:
    def test_a_list_has_the_figures_of_the_fullest(self, limited, ask):
        minute, budget, trial = ask("limits", "list", *limited)["limits"]
        assert [(top["scope"], top["used"], top["reserved"]) for top in minute["top"]] == [
            ({"agent": "a"}, 690, 200),
            ({"agent": "b"}, 5, 0),
        ]
        assert (budget["top"][0]["used"], trial["mode"]) == (1_500_000_000, "shadow")

    def test_people_see_how_full_each_is(self, limited, call):
        code, printed, _ = call("limits", "list", "--top", "1", *limited)
        assert code == 0
        assert "█████████░  89%" in printed
        assert "$1.50" in printed
        assert "and 1 more value, with less taken" in printed

    def test_the_summary_has_the_fullest_limits(self, limited, ask, call):
        found = ask("summary", *limited)["limits"]
        assert [(row["name"], row["scope"]) for row in found][:2] == [("trial", {}), ("minute", {"agent": "a"})]
        _, printed, _ = call("summary", "--agent", "b", *limited)
        (line,) = [line for line in printed.splitlines() if line.startswith("minute")]
        assert line.split()[:3] == ["minute", "all", "b"]

    def test_the_summary_of_a_client_has_them_too(self, limited):
        with TokenClient(limited[1], namespace="limited") as client:
            assert "\n\nLimits:\n" in client.summary()
            line = "  minute (a): 690 used, 200 reserved, 110 of 1,000 tokens remaining"
            assert line in client.summary(agent="a").splitlines()
            assert "minute (a)" not in client.summary(agent="b")

    def test_a_call_that_would_be_granted_is_explained(self, limited, ask, call):
        words = ("limits", "explain", "--tokens", "100", "--agent", "a", *limited)
        told = ask(*words)
        assert (told["granted"], [each["name"] for each in told["limits"]]) == (True, ["minute", "trial"])
        _, printed, _ = call(*words)
        assert printed.startswith("granted: the tightest limit is 'trial', with 0 of 10 tokens left\n")
        assert "never fits (shadow)" in printed

    def test_a_call_that_would_be_refused_is_told_by_what_and_until_when(self, limited, ask, call):
        words = ("limits", "explain", "--tokens", "400", "--agent", "a", *limited)
        assert ask(*words)["retry_after_ms"] > 3_500_000
        code, printed, _ = call(*words)
        assert code == 0
        assert "refused by limit 'minute': it costs 400, with 110 of 1,000 tokens left; try again in" in printed
        _, printed, _ = call("limits", "explain", "--input-tokens", "1001", "--agent", "c", *limited)
        assert "refused by limit 'minute' for good: it costs 1,001, with 1,000 of 1,000 tokens left" in printed

    def test_money_is_told_in_dollars(self, limited, call):
        _, printed, _ = call("limits", "explain", "--cost-usd", "30", "--model", "m", *limited)
        assert "refused by limit 'budget' for good: it costs $30.00, with $23.50 of $25.00 left" in printed


class TestChanging:
    def test_a_limit_is_put_raised_and_deleted(self, own, ask, call):
        put = ("limits", "put", "l", "--by", "agent,user", "--seconds", "1h", "--selector", "model=m")
        (new,) = ask(*put, "--amount", "100", "--weights", "cache_read_tokens=0", *own)["put"]
        assert (new["change"], new["limit"]["by"], new["limit"]["seconds"]) == ("new", ["agent", "user"], 3_600)
        _, printed, _ = call(*put, "--amount", "200", "--weights", "cache_read_tokens=0", *own)
        assert printed == "l: amount 100 -> 200; what was used still counts\n"
        _, printed, _ = call(*put, "--amount", "200", "--weights", "cache_read_tokens=0", *own)
        assert printed == "1 in force already\n"
        _, printed, _ = call("limits", "put", "l", "--amount", "200", *own)
        assert "by agent,user -> none" in printed
        assert "it begins with nothing used" in printed
        assert ask("limits", "delete", "l", *own) == {"deleted": ["l"], "missing": []}
        assert ask("limits", "delete", "l", *own, code=1) == {"deleted": [], "missing": ["l"]}
        code, printed, _ = call("limits", "list", *own)
        assert (code, printed) == (0, "no limits; put one: token-actor limits put NAME --amount N\n")
        _, printed, _ = call("limits", "explain", "--tokens", "5", *own)
        assert printed == "granted: no limit covers this call\n"

    def test_every_kind_and_option_arrives(self, own, ask):
        words = "--amount 5 --unit requests --kind bucket --burst 9 --seconds 90 --mode shadow --on-outage safe"
        more = "--safe-share 0.5 --on-expire refund --fair-by agent"
        (put,) = ask("limits", "put", "b", *words.split(), *more.split(), *own)["put"]
        assert put["limit"] == Limit(
            "b", 5, unit="requests", kind="bucket", burst=9, seconds=90, mode="shadow", on_outage="safe",
            safe_share=0.5, on_expire="refund", fair_by=["agent"],
        ).as_map()  # fmt: skip
        words = "--amount 5 --kind calendar --period week --week-start sunday --tz Europe/Zurich --thresholds 50,90"
        (put,) = ask("limits", "put", "w", *words.split(), *own)["put"]
        assert (
            put["limit"]
            == Limit(
                "w", 5, kind="calendar", period="week", week_start="sunday", tz="Europe/Zurich", thresholds=[50, 90]
            ).as_map()
        )
        (put,) = ask("limits", "put", "c", "--amount", "3", "--kind", "concurrency", *own)["put"]
        assert put["limit"]["unit"] == "concurrency"
        (put,) = ask("limits", "put", "m", "--amount-usd", "2.50", *own)["put"]
        assert (put["limit"]["amount"], put["limit"]["unit"]) == (2_500_000_000, "cost_nanousd")

    def test_a_file_is_put_as_a_whole(self, own, ask, call, tmp_path):
        (tmp_path / "limits.toml").write_text(FILE)
        _, printed, _ = call("limits", "put", "--file", str(tmp_path / "limits.toml"), *own)
        assert printed.splitlines() == [
            "minute: in force now, with nothing used",
            "budget: in force now, with nothing used",
        ]
        assert [limit["amount"] for limit in ask("limits", "list", *own)["limits"]] == [1_000, 25 * 10**9]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["put"], "NAME is missing"),
        (["put", "l"], "--amount is missing"),
        (["put", "l", "--amount", "5", "--unit", "drops"], "--unit must be one of tokens,"),
        (["put", "l", "--amount", "-5"], "--amount must be between 0 and"),
        (["put", "l", "--amount", "5", "--seconds", "soon"], "--seconds must be a number, or text as in '90s'"),
        (["put", "l", "--amount", "5", "--amount-usd", "5"], "--amount-usd stands for amount"),
        (["put", "l", "--amount", "5", "--burst", "5"], "--burst is for buckets"),
        (["put", "l", "--amount", "5", "--selector", "agent"], "--selector takes NAME=VALUE, not 'agent'"),
        (["put", "l", "--amount", "5", "--selector", "agent=a,agent=b"], "--selector names something twice"),
        (["put", "l", "--amount", "5", "--selector", "colour=red"], "--selector 'colour' is not a dimension"),
        (["put", "l", "--amount", "5", "--by", "colour"], "--by 'colour' is not a dimension"),
        (["put", "l", "--amount", "5", "--weights", "input_tokens=x"], "--weights takes numbers"),
        (["put", "l", "--amount", "5", "--thresholds", "half"], "--thresholds takes whole numbers"),
        (["put", "l", "--amount", "5", "--kind", "calendar"], "--period must be one of day, week, month"),
        (["put", "l", "--file", "limits.toml"], "--file says all there is to say"),
        (["put", "__l", "--amount", "5"], "name must not start with '__'"),
        (["explain", "--tokens", "-1"], "tokens must be between 0 and"),
    ],
    ids=range(17),
)
def test_a_mistake_names_the_option(call, words, said):
    code, printed, told = call("limits", *words, "--redis", "redis://127.0.0.1:1/0")
    assert (code, printed) == (2, "")
    assert said in " ".join(told.replace("│", " ").split())


class TestServing:
    @pytest.fixture
    def file(self, tmp_path):
        path = tmp_path / "limits.toml"
        path.write_text(FILE)
        return path

    def test_an_actor_puts_the_limits_of_its_file(self, server_url, namespace, file, ask):
        where = ("--redis", server_url, "--namespace", namespace)
        with Program("serve", "--limits", str(file), *where) as actor:
            actor.hear("The limits of the file are in force")
            assert [limit["name"] for limit in ask("limits", "list", *where)["limits"]] == ["minute", "budget"]
            ask("limits", "put", "other", "--amount", "5", *where)
            actor.send(signal.SIGTERM)
            assert actor.end()[0] == 0
        assert actor.stderr.count("A limit has changed") == 2
        file.write_text(FILE.replace("1_000", "2_000"))
        with Program("serve", "--limits", str(file), *where) as again:
            again.hear("The limits of the file are in force")
            found = ask("limits", "list", *where)["limits"]
            assert [(limit["name"], limit["amount"]) for limit in found] == [
                ("minute", 2_000), ("budget", 25 * 10**9), ("other", 5),
            ]  # fmt: skip
        assert again.stderr.count("A limit has changed") == 1

    def test_an_exact_file_deletes_the_others(self, own, file, ask):
        ask("limits", "put", "other", "--amount", "5", *own)
        with Program(
            "serve", "--limits", str(file), "--limits-exact", *own
        ) as standby:  # the leader takes what it says
            standby.hear("The limits of the file are in force")
            until(lambda: [each["name"] for each in ask("limits", "list", *own)["limits"]] == ["minute", "budget"])

    def test_limits_that_are_refused_are_logged_and_the_actor_goes_on(self, own, file, ask, server_url):
        with TokenClient(server_url, namespace=own[3]) as client:
            for number in range(100):
                client.put_limit(Limit(f"l{number}", 1))
        with Program("serve", "--limits", str(file), *own) as actor:
            actor.hear("The limits of the file are not all in force")
            actor.send(signal.SIGTERM)
            assert actor.end()[0] == 0

    def test_a_broken_file_is_told_on_one_line_and_nothing_starts(self, server_url, namespace, file):
        file.write_text(FILE + "colour = 'red'\n")
        done = run("serve", "--limits", str(file), "--redis", server_url, "--namespace", namespace)
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (1, 1)
        assert "limit 'budget': colour is not a field of a limit" in last_line(done)

    def test_an_exact_file_without_limits_is_a_mistake(self, file):
        file.write_text("")
        done = run("serve", "--limits", str(file), "--limits-exact")
        assert (done.returncode, "would delete all that are in force" in last_line(done)) == (1, True)
        assert run("serve", "--limits-exact").returncode == 2
