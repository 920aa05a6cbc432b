"""Budgets from the command line: a webhook hears of them, whoever is killed is refused, and signals end it."""

from __future__ import annotations

import hashlib
import hmac
import json
import signal

import pytest

from tests.acceptance.program import Program, connected, last_line, run, serving, until
from tests.test_webhooks import receiver as receiver  # noqa: PLC0414 - a fixture
from token_actor import Limit, RateLimited, TokenClient
from token_actor.operations.webhooks import consumer_of
from token_actor.wire.keys import Keys


def test_a_webhook_is_given_each_notice_signed_and_goes_on_after_another_start(
    server_url, namespace, receiver, tmp_path
):
    where = ("--redis", server_url, "--namespace", namespace)
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    words = ("notify", *where, "--webhook", receiver.url, "--secret-file", str(secret), "--log-json")
    with serving(*where) as actor, TokenClient(server_url, namespace=namespace, agent="a") as client:
        client.put_limit(Limit("b", 1_000_000_000, unit="cost_nanousd", kind="calendar", period="month"))
        with Program(*words) as notifier, connected(server_url) as connection:
            until(lambda: connection.get(Keys(namespace).notified(consumer_of(receiver.url))))
            client.record(1, cost_usd="0.85")
            client.flush()
            headers, body = receiver.taken.get(timeout=20)
            assert headers["Token-Actor-Signature"] == "sha256=" + hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
            assert json.loads(body)["threshold_pct"] == 50
            assert receiver.next()[0]["threshold_pct"] == 80
            notifier.hear('"threshold_pct": 80')
            notifier.send(signal.SIGTERM)
            assert notifier.end() == (0, "")
        actor.hear("A budget has reached a threshold")
        client.record(1, cost_usd="0.2")
        client.flush()
        with Program(*words):
            assert receiver.next()[0]["threshold_pct"] == 100
    assert receiver.taken.empty()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--webhook", "file:///etc/passwd"], "webhook must be an address"),
        (["--webhook", "http://x/", "--since", "x"], "after must be the id of a notice"),
        (["--webhook", "http://x/", "--name", "a b"], "client must be"),
        ([], "Missing option"),
        (["--webhook", "http://x/", "--secret-file", "/nowhere"], "does not exist"),
    ],
)
def test_what_cannot_work_is_refused_at_once(server_url, words, problem):
    done = run("notify", "--redis", server_url, *words)
    assert done.returncode == 2
    assert problem in " ".join(done.stderr.split())


def test_whoever_is_killed_is_refused_until_revived(server_url, namespace, ask, call):
    where = ("--redis", server_url, "--namespace", namespace)
    with serving(*where), TokenClient(server_url, namespace=namespace, agent="a") as client:
        assert ask("kill", "--agent", "a", *where) == {"killed": {"agent": "a"}, "limit": "kill:agent=a"}
        with pytest.raises(RateLimited, match="killed .'kill:agent=a'.: refused until"):
            client.reserve(1)
        assert call("kill", "--agent", "a", "--session", "s", *where)[:2] == (
            (0, "killed, by the limit kill:agent=a,session=s\n")
        )
        assert call("revive", "--agent", "a", *where)[:2] == (0, "revived\n")
        assert client.reserve(1).decision["granted"]
        assert ask("revive", "--agent", "a", "--session", "s", *where) == {"revived": {"agent": "a", "session": "s"}}
        assert ask("revive", "--agent", "a", *where, code=1) == {"revived": None}
        done = run("revive", "--agent", "a", *where)
        assert (done.returncode, last_line(done)) == (1, "token-actor: nothing of exactly this selection was killed")
        done = run("kill", *where)
        assert done.returncode == 2
        assert "must name at least one of tenant" in done.stderr
