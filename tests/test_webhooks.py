"""Webhooks against a real HTTP server: at least once, in order, signed, and one bad notice blocks no other."""

from __future__ import annotations

import hashlib
import hmac
import http.server
import json
import queue
import threading
from contextlib import contextmanager

import pytest

from tests.client.harness import JOIN_S, Fleet, wait_until
from token_actor.core.limits import Limit
from token_actor.errors import InvalidValue, ServerRefused, ServerUnavailable
from token_actor.operations import webhooks
from token_actor.operations.webhooks import ATTEMPTS_MAX, OLDEST, Notifier, Webhook, consumer_of
from token_actor.transport.ports import Delete

AT_ONCE = (0.001, 0.002)


class Receiver(http.server.ThreadingHTTPServer):
    """Take what is posted, and answer as a test says: ``answers`` first, then 200."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Taker)
        self.answers = []
        self.taken = queue.Queue()
        self.url = f"http://127.0.0.1:{self.server_port}/hook"

    def next(self):
        """Return the body of the next request that was answered with success, and how it was sent."""
        headers, body = self.taken.get(timeout=JOIN_S)
        return json.loads(body), headers


class Taker(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self.server.answers.pop(0) if self.server.answers else 200
        if status is None:
            return  # hang up without a word
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()
        if status < 300:
            self.server.taken.put((dict(self.headers), body))

    def do_GET(self):
        self.server.taken.put(("a redirect was followed", b"{}"))

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(webhooks, "NEWS_MS", 20)  # a stop need not wait for longer


@pytest.fixture
def receiver():
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def fleet(namespace):
    """A fleet in which each agent may use 100 tokens a month."""
    with Fleet.in_memory(namespace) as fleet:
        fleet.actor()
        fleet.client().put_limit(Limit("b", 100, kind="calendar", period="month", by=["agent"]))
        yield fleet


def use(fleet, agent, tokens=60):
    client = fleet.client(agent=agent)
    client.record(tokens)
    client.status()


@contextmanager
def notifying(fleet, webhook, connection=None, **options):
    """Run a notifier for as long as the block runs."""
    stop = threading.Event()
    notifier = Notifier(connection or fleet.connect(), fleet.namespace, webhook, wait_s=AT_ONCE, **options)
    thread = threading.Thread(target=notifier.run, args=(stop,))
    thread.start()
    try:
        yield notifier
    finally:
        stop.set()
        thread.join(JOIN_S)
        assert not thread.is_alive()


def place(fleet, consumer):
    return fleet.connect().get(fleet.keys().notified(consumer))


def begun(fleet, url):
    """Wait until a new notifier knows where it begins."""
    wait_until(lambda: place(fleet, consumer_of(url)) is not None)


class TestWhatIsPosted:
    def test_a_notice_is_posted_as_json_with_a_key_of_its_own(self, fleet, receiver):
        with notifying(fleet, Webhook(url=receiver.url)):
            begun(fleet, receiver.url)
            use(fleet, "a", 85)
            found = [receiver.next() for _ in range(2)]
        assert [notice for notice, _ in found] == fleet.client().notices()
        assert [headers["Idempotency-Key"] for _, headers in found] == [each["id"] for each, _ in found]
        assert found[0][1]["Content-Type"] == "application/json"
        assert "Token-Actor-Signature" not in found[0][1]

    def test_with_a_secret_the_body_is_signed(self, fleet, receiver):
        with notifying(fleet, Webhook(url=receiver.url, secret=b"s3cret"), since=OLDEST):
            use(fleet, "ü")
            headers, body = receiver.taken.get(timeout=JOIN_S)
        digest = hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
        assert headers["Token-Actor-Signature"] == f"sha256={digest}"
        assert json.loads(body)["scope"] == {"agent": "ü"}


class TestWhereItBegins:
    def test_a_new_one_is_given_what_comes(self, fleet, receiver):
        use(fleet, "a")
        with notifying(fleet, Webhook(url=receiver.url)):
            begun(fleet, receiver.url)
            use(fleet, "b")
            assert receiver.next()[0]["scope"] == {"agent": "b"}

    def test_one_that_was_away_is_given_what_it_missed_and_nothing_twice(self, fleet, receiver):
        hook = Webhook(url=receiver.url)
        with notifying(fleet, hook):
            begun(fleet, receiver.url)
            use(fleet, "a", 120)
            given = [receiver.next()[0]["id"] for _ in range(3)]
            wait_until(lambda: place(fleet, consumer_of(receiver.url)) == given[-1].encode())
        use(fleet, "b")
        with notifying(fleet, hook):
            assert receiver.next()[0]["scope"] == {"agent": "b"}
        assert receiver.taken.empty()

    def test_one_that_ended_within_an_entry_goes_on_within_it(self, fleet, receiver):
        use(fleet, "a", 120)
        second = fleet.client().notices()[1]["id"]
        with notifying(fleet, Webhook(url=receiver.url), since=second):
            assert receiver.next()[0]["threshold_pct"] == 100

    def test_each_consumer_has_a_place_of_its_own(self, fleet, receiver):
        use(fleet, "a")
        for consumer in ("one", "two"):
            with notifying(fleet, Webhook(url=receiver.url), consumer=consumer, since=OLDEST):
                notice, _ = receiver.next()
                wait_until(lambda: place(fleet, consumer) == notice["id"].encode())  # noqa: B023 - called here

    def test_before_anybody_has_served_everything_is_new(self, namespace, receiver):
        with Fleet.in_memory(namespace) as fleet, notifying(fleet, Webhook(url=receiver.url)):
            fleet.actor()
            fleet.client().put_limit(Limit("b", 100, kind="calendar", period="month", by=["agent"]))
            use(fleet, "a")
            assert receiver.next()[0]["threshold_pct"] == 50

    def test_notices_of_every_partition_are_posted(self, namespace, receiver):
        with Fleet.in_memory(namespace) as fleet:
            for partition in (0, 1):
                fleet.actor(partition, partitions=2)
            client = fleet.client(agent="a")
            with notifying(fleet, Webhook(url=receiver.url), since=OLDEST):
                for tenant in ("t1", "t2", "t3", "t4"):
                    limit = Limit(tenant, 100, kind="calendar", period="day", selector={"tenant": tenant})
                    client.put_limit(limit)
                    client.record(60, tenant=tenant)
                client.flush()
                assert {receiver.next()[0]["limit"] for _ in range(4)} == {"t1", "t2", "t3", "t4"}

    @pytest.mark.parametrize(("options", "field"), [({"since": "x"}, "after"), ({"consumer": "a b"}, "client")])
    def test_a_wrong_setting_is_named(self, fleet, options, field):
        with pytest.raises(InvalidValue) as refused:
            Notifier(fleet.connect(), fleet.namespace, Webhook(url="http://x/"), **options)
        assert refused.value.field == field


class TestAReceiverInTrouble:
    @pytest.mark.parametrize("answer", [500, 503, 429, 408, None])
    def test_one_that_is_away_is_given_it_later_however_long_that_takes(self, fleet, receiver, answer, caplog):
        receiver.answers = [answer] * (3 * ATTEMPTS_MAX)
        use(fleet, "a")
        use(fleet, "b")
        with notifying(fleet, Webhook(url=receiver.url), since=OLDEST):
            assert [receiver.next()[0]["scope"]["agent"] for _ in range(2)] == ["a", "b"]
        failed = [each for each in caplog.records if each.action == "webhook_failed"]
        assert len(failed) == 3 * ATTEMPTS_MAX
        assert (failed[0].limit, failed[0].threshold_pct) == ("b", 50)

    @pytest.mark.parametrize("answer", [400, 404, 302])
    def test_what_it_refuses_is_left_out_and_the_next_is_given(self, fleet, receiver, answer, caplog):
        receiver.answers = [answer] * ATTEMPTS_MAX
        use(fleet, "a")
        use(fleet, "b")
        with notifying(fleet, Webhook(url=receiver.url), since=OLDEST):
            notice, _ = receiver.next()
            wait_until(lambda: place(fleet, consumer_of(receiver.url)) == notice["id"].encode())
        assert notice["scope"] == {"agent": "b"}
        (refused,) = [each for each in caplog.records if each.action == "webhook_refused"]
        assert str(answer) in refused.problem
        assert refused.id == fleet.client().notices()[0]["id"]

    def test_one_that_never_answers_costs_no_more_than_the_timeout(self, fleet, receiver):
        silent = Webhook(url=receiver.url, timeout_s=0.05)
        held = threading.Event()
        receiver.RequestHandlerClass = type("Silent", (Taker,), {"do_POST": lambda _: held.wait(JOIN_S)})
        try:
            status, problem = silent.post({"id": "1-1:0"})
            assert status is None
            assert "timed out" in problem
        finally:
            held.set()

    def test_a_stop_does_not_wait_for_one_that_is_away(self, fleet):
        use(fleet, "a")
        nobody = Webhook(url="http://127.0.0.1:9/")
        with notifying(fleet, nobody, since=OLDEST):
            pass
        assert place(fleet, consumer_of(nobody.url)) is None

    @pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/", "http://", "x"])
    def test_what_is_no_address_of_the_web_is_refused(self, url):
        with pytest.raises(InvalidValue) as refused:
            Webhook(url=url)
        assert refused.value.field == "webhook"

    def test_an_empty_secret_is_refused(self):
        with pytest.raises(InvalidValue):
            Webhook(url="http://x/", secret=b"")


class Breaking:
    """A connection whose writes and reads fail when a test says so."""

    def __init__(self, connection):
        self._connection = connection
        self.failing = {}

    def __getattr__(self, name):
        method = getattr(self._connection, name)

        def call(*arguments, **options):
            if self.failing.get(name):
                outcome = self.failing[name].pop(0)
                if isinstance(outcome, ServerUnavailable):
                    raise outcome
                return [outcome]
            return method(*arguments, **options)

        return call


class TestAServerInTrouble:
    def test_a_connection_that_is_lost_is_made_anew_and_nothing_is_missed(self, fleet, receiver, caplog):
        connection = Breaking(fleet.connect())
        connection.failing["read"] = [ServerUnavailable("gone"), ServerUnavailable("gone")]
        use(fleet, "a", 120)
        with notifying(fleet, Webhook(url=receiver.url), connection, since=OLDEST):
            assert [receiver.next()[0]["threshold_pct"] for _ in range(3)] == [50, 80, 100]
        assert [each.action for each in caplog.records if each.action == "notices_unread"] == ["notices_unread"]

    def test_what_was_delivered_when_it_was_lost_is_not_delivered_again(self, fleet, receiver):
        connection = Breaking(fleet.connect())
        connection.failing["write"] = [ServerUnavailable("gone")]
        use(fleet, "a", 120)
        with notifying(fleet, Webhook(url=receiver.url), connection, since=OLDEST):
            assert [receiver.next()[0]["threshold_pct"] for _ in range(3)] == [50, 80, 100]
        assert receiver.taken.empty()

    def test_one_that_is_full_does_not_keep_it_from_delivering(self, fleet, receiver, caplog):
        connection = Breaking(fleet.connect())
        connection.failing["write"] = [ServerRefused("OOM no room")]
        use(fleet, "a", 85)
        with notifying(fleet, Webhook(url=receiver.url), connection, since=OLDEST):
            assert [receiver.next()[0]["threshold_pct"] for _ in range(2)] == [50, 80]
        assert "write_refused" in {each.action for each in caplog.records}

    def test_one_that_has_lost_everything_is_followed_from_its_beginning(self, fleet, receiver):
        with notifying(fleet, Webhook(url=receiver.url), since="99999999999999-0"):
            use(fleet, "a")
            assert receiver.next()[0]["threshold_pct"] == 50
        fleet.connect().write([Delete(keys=[fleet.keys().notices])])
