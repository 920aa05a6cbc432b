"""The rows on reserve and settle of the table of bad input: each input, and what exactly it gets.

The entries are written as any language would, into the log of a real server and of the in-memory twin.
"""

from __future__ import annotations

import itertools
import math
import threading
from contextlib import closing
from typing import Any

import pytest

from token_actor import InvalidValue, Limit, RateLimited, TokenClient
from token_actor.core.usage import TOKENS_MAX
from token_actor.service import actor_settings, connector_of, run_actor
from token_actor.transport.ports import FIRST, Append
from token_actor.wire.codec import MESSAGE_BYTES_MAX, pack
from token_actor.wire.keys import Keys
from token_actor.wire.messages import Answer, DeadLetter

AMOUNT = 100
CALENDAR = {"name": "x", "amount": 1, "kind": "calendar", "period": "day"}


class Someone:
    """Somebody with a plain connection, who writes commands by hand."""

    def __init__(self, connection: Any, namespace: str) -> None:
        self.connection = connection
        self.keys = Keys(namespace, 0)
        self.after = FIRST
        self.sent = 0

    def tell(self, op: str, args: Any, event: Any = None) -> Answer:
        """Write one command; return what comes back."""
        self.sent += 1
        message = {"v": 1, "id": str(self.sent), "client": "someone", "op": op, "args": args}
        data = pack(message if event is None else {**message, "event": event})
        command = Append(key=self.keys.log, fields=[b"c", data])
        inbox = self.keys.inbox("someone")
        _, entries = self.connection.exchange(command, inbox=inbox, after=self.after, block_ms=10_000)
        (entry,) = entries
        self.after = entry[0]
        return Answer.decode(entry[1][1])

    def write(self, data: bytes) -> None:
        """Write what may be no command at all; nobody is answered."""
        self.connection.write([Append(key=self.keys.log, fields=[b"c", data])])

    def result(self, op: str, args: Any, event: Any = None) -> Any:
        answer = self.tell(op, args, event)
        assert answer.problem is None
        return answer.result

    def refused(self, op: str, args: Any, event: Any = None) -> tuple[str, str]:
        problem = self.tell(op, args, event).problem
        assert problem is not None
        return problem.field, problem.reason

    def taken(self) -> tuple[int, int]:
        """What is used and reserved, as a refusal shows it."""
        got = self.result("reserve", {"tokens": AMOUNT + 1})
        return got["used"], got["reserved"]

    def dead(self) -> list[str]:
        return [DeadLetter.read(*entry).reason for entry in self.connection.range(self.keys.dead, count=100)]


@pytest.fixture(params=["memory", "valkey"])
def url(request, namespace):
    if request.param == "valkey":
        return request.getfixturevalue("server_url")
    return f"memory://{namespace}"


@pytest.fixture
def client(url, namespace, request):
    """A client, a limit of a hundred tokens, and an actor."""
    if not url.startswith("memory"):
        actor = request.getfixturevalue("actor_on")
        actor(url, namespace)
    with TokenClient(url, namespace=namespace) as client:
        client.put_limit(Limit("l", AMOUNT))
        yield client


@pytest.fixture
def someone(client, url, namespace):
    with closing(connector_of(url, namespace).connect()) as connection:
        yield Someone(connection, namespace)


@pytest.fixture
def actor_on():
    """Start an actor in a thread; it is stopped at the end."""
    stop, threads = threading.Event(), []

    def start(url, namespace):
        arguments = (connector_of(url), actor_settings(namespace), stop)
        threads.append(threading.Thread(target=run_actor, args=arguments, daemon=True))
        threads[-1].start()

    yield start
    stop.set()
    for thread in threads:
        thread.join(20)


class TestReserve:
    def test_0_is_granted_and_takes_nothing(self, client, someone):
        client.record(500)
        client.flush()
        got = someone.result("reserve", {"tokens": 0})
        assert (got["granted"], got["remaining"]) == (True, 0)
        assert someone.taken() == (500, 0)

    @pytest.mark.parametrize(
        ("args", "field", "reason"),
        [
            ({"tokens": -1}, "tokens", "range"),
            ({"tokens": TOKENS_MAX + 1}, "tokens", "range"),
            ({"tokens": 1.0}, "tokens", "type"),
            ({"tokens": True}, "tokens", "type"),
            ({"tokens": "5"}, "tokens", "type"),
            ({"tokens": None}, "tokens", "type"),
            ({"tokens": math.nan}, "tokens", "type"),
            ({"output_tokens": -1}, "output_tokens", "range"),
            ({"cost_usd": -1}, "cost_usd", "range"),
            ({"cost_usd": "much"}, "cost_usd", "type"),
            ({"cost_usd": math.inf}, "cost_usd", "type"),
            ({"model": "m" * 129}, "model", "bad_name"),
            ({"model": "m\n"}, "model", "bad_name"),
            ({"model": ["m"]}, "model", "type"),
            ({"agent": "__other__"}, "agent", "bad_name"),
            ({"ttl_ms": 0}, "ttl_ms", "range"),
            ({"ttl_ms": 10**12}, "ttl_ms", "range"),
            ({"ttl_ms": "1"}, "ttl_ms", "type"),
            ({"ttl_ms": 5.0}, "ttl_ms", "type"),
            ({"token": 5}, "token", "decode"),
        ],
    )
    def test_what_is_wrong_is_refused_by_its_name_and_put_aside(self, someone, args, field, reason):
        assert someone.refused("reserve", args) == (field, reason)
        assert (someone.dead(), someone.taken()) == ([reason], (0, 0))

    def test_a_negative_number_is_a_value_error_before_it_is_sent(self, client):
        with pytest.raises(ValueError, match="tokens must be between") as refused:
            client.reserve(-1)
        assert isinstance(refused.value, InvalidValue)

    def test_above_the_limit_is_never(self, client, someone):
        got = someone.result("reserve", {"tokens": AMOUNT + 1})
        assert (got["granted"], got["never"], got["retry_after_ms"]) == (False, True, None)
        with pytest.raises(RateLimited) as refused:
            client.reserve(AMOUNT + 1)
        assert refused.value.retry_after_s is None


class TestSettle:
    def test_an_unknown_one_counts_directly_with_a_flag(self, client, someone):
        got = someone.result("settle", {"reservation": "nobody:1"}, {"input_tokens": 7})
        assert (got["counted"], got["unknown"], got["debt"]) == (True, True, {})
        assert (someone.taken(), client.analytics()["input_tokens"]) == ((7, 0), 7)

    def test_twice_is_the_same_answer_and_one_call(self, client, someone):
        reservation = someone.result("reserve", {"tokens": 50})["reservation"]
        first = someone.result("settle", {"reservation": reservation}, {"input_tokens": 7})
        assert someone.result("settle", {"reservation": reservation}, {"input_tokens": 8}) == first
        assert (someone.taken(), client.analytics()["requests"]) == ((7, 0), 1)

    def test_after_expiry_it_is_counted(self, client, someone):
        reservation = someone.result("reserve", {"tokens": 50, "ttl_ms": 1})["reservation"]
        while someone.taken() != (50, 0):  # each is an entry, and moves the time of the log
            pass
        got = someone.result("settle", {"reservation": reservation}, {"input_tokens": 7})
        assert (got["counted"], got["late"]) == (True, True)
        assert (someone.taken(), client.analytics()["input_tokens"]) == ((7, 0), 7)

    def test_above_the_reservation_it_is_counted_as_debt(self, someone):
        reservation = someone.result("reserve", {"tokens": 50})["reservation"]
        got = someone.result("settle", {"reservation": reservation}, {"input_tokens": 170})
        assert (got["debt"], someone.taken()) == ({"l": 120}, (170, 0))

    @pytest.mark.parametrize(
        ("operation", "args", "field", "reason"),
        [
            ("settle", {}, "reservation", "type"),
            ("settle", {"reservation": 5}, "reservation", "type"),
            ("settle", {"reservation": ""}, "reservation", "bad_name"),
            ("settle", {"reservation": "x" * 130}, "reservation", "bad_name"),
            ("settle", {"reservation": "x", "tokens": 5}, "tokens", "decode"),
            ("release", {"reservation": None}, "reservation", "type"),
            ("extend", {"reservation": "x", "ttl_ms": -1}, "ttl_ms", "range"),
            ("put_limit", {}, "limit", "decode"),
            ("put_limit", {"limit": {"name": "x"}}, "amount", "decode"),
            ("put_limit", {"limit": {"name": "x", "amount": -1}}, "amount", "range"),
            ("put_limit", {"limit": {"name": "x", "amount": 1, "unit": ["tokens"]}}, "unit", "range"),
            ("put_limit", {"limit": {"name": "x", "amount": 1, "by": [["agent"]]}}, "by", "range"),
            ("put_limit", {"limit": {**CALENDAR, "period": None}}, "period", "range"),
            ("put_limit", {"limit": {**CALENDAR, "period": ["day"]}}, "period", "range"),
            ("put_limit", {"limit": {**CALENDAR, "kind": "window"}}, "period", "range"),
            ("put_limit", {"limit": {**CALENDAR, "tz": "Mars/Olympus"}}, "tz", "range"),
            ("put_limit", {"limit": {**CALENDAR, "tz": 5}}, "tz", "type"),
            ("put_limit", {"limit": {**CALENDAR, "tz": "../../etc/passwd"}}, "tz", "range"),
            ("put_limit", {"limit": {**CALENDAR, "week_start": 1}}, "week_start", "range"),
            ("put_limit", {"limit": {**CALENDAR, "thresholds": [80, 50]}}, "thresholds", "range"),
            ("put_limit", {"limit": {**CALENDAR, "thresholds": {"50": True}}}, "thresholds", "type"),
            ("delete_limit", {"name": 5}, "name", "type"),
        ],
    )
    def test_what_is_wrong_is_refused_by_its_name_and_changes_nothing(self, someone, operation, args, field, reason):
        assert someone.refused(operation, args) == (field, reason)
        assert (someone.dead(), someone.taken()) == ([reason], (0, 0))

    @pytest.mark.parametrize(
        ("event", "reason"),
        [
            ({"input_tokens": -1}, "range"),
            ({"input_tokens": TOKENS_MAX + 1}, "range"),
            ({"output_tokens": 1.5}, "type"),
            ({"input_tokens": True}, "type"),
            ({"input_tokens": math.nan}, "type"),
            ({"input_tokens": "5"}, "type"),
            ({"input_tokens": 5, "timestamp": "today"}, "type"),
            ({"input_tokens": 5, "model": "m" * 129}, "bad_name"),
            ({"input_tokens": 5, "model": "__other__"}, "bad_name"),
            ({"input_tokens": 5, "surprise": 1}, "decode"),
            ([], "decode"),
        ],
    )
    def test_a_wrong_event_is_put_aside_and_the_reservation_stays(self, someone, event, reason):
        reservation = someone.result("reserve", {"tokens": 50})["reservation"]
        command = {"v": 1, "id": "x", "client": "someone", "op": "settle", "args": {"reservation": reservation}}
        someone.write(pack({**command, "event": event}))
        assert (someone.taken(), someone.dead()) == ((0, 50), [reason])

    @pytest.mark.parametrize(
        ("event", "shown"),
        [
            ({"input_tokens": 0}, {"requests": 1}),
            ({"input_tokens": 7, "timestamp": 1}, {"clamped": 1}),
            ({"output_tokens": 7, "reasoning_tokens": 8}, {"inconsistent": 1}),
            ({"input_tokens": 1, "cache_read_tokens": 6}, {"cache_read_tokens": 6}),
        ],
    )
    def test_an_odd_event_is_counted_and_shown(self, client, someone, event, shown):
        reservation = someone.result("reserve", {"tokens": 50})["reservation"]
        got = someone.result("settle", {"reservation": reservation}, event)
        assert (got["counted"], someone.taken()[1], someone.dead()) == (True, 0, [])
        assert shown.items() <= client.analytics().items()

    def test_an_event_that_was_counted_before_is_a_duplicate_and_gives_the_reservation_back(self, client, someone):
        event = {"input_tokens": 7, "message_id": "m"}
        someone.result("record", {}, event)
        reservation = someone.result("reserve", {"tokens": 50})["reservation"]
        got = someone.result("settle", {"reservation": reservation}, event)
        assert (got["counted"], got["reason"]) == (False, "duplicate")
        assert (someone.taken(), client.analytics()["requests"], someone.dead()) == ((7, 0), 1, [])

    def test_an_id_that_came_with_other_numbers_is_a_conflict_and_the_reservation_is_charged(self, someone):
        someone.result("record", {}, {"input_tokens": 7, "message_id": "m"})
        reservation = someone.result("reserve", {"tokens": 50})["reservation"]
        got = someone.result("settle", {"reservation": reservation}, {"input_tokens": 8, "message_id": "m"})
        assert (got["counted"], got["reason"]) == (False, "id_conflict")
        assert (someone.taken(), someone.dead()) == ((57, 0), ["id_conflict"])


RESERVE = {"v": 1, "id": "x", "client": "someone", "op": "reserve", "args": {"tokens": 50}}


class TestBytes:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "decode"),
            (pack(RESERVE)[:-1], "decode"),
            (pack(RESERVE) + b"\x00", "decode"),
            (pack({**RESERVE, "args": [50]}), "decode"),
            (pack({**RESERVE, "surprise": 1}), "decode"),
            (pack({**RESERVE, "client": "some:one"}), "decode"),
            (pack({**RESERVE, "id": "x" * 65}), "decode"),
            (pack({**RESERVE, "args": {"tokens": [[[[[[[[[[50]]]]]]]]]]}}), "decode"),
            (pack({**RESERVE, "args": {"model": "m"}}).replace(b"\xa1m", b"\xa1\xff"), "bad_name"),
            (pack({**RESERVE, "v": 99}), "version"),
            (pack({**RESERVE, "args": {"model": "m" * MESSAGE_BYTES_MAX}}), "too_large"),
        ],
        ids=itertools.count(),
    )
    def test_what_is_no_command_is_put_aside_and_takes_nothing(self, someone, data, reason):
        someone.write(data)
        assert (someone.taken(), someone.dead()) == ((0, 0), [reason])
