"""The table of bad input, row by row, on the whole way in: from a client or a raw XADD to what becomes of it.

Every row of "Bad input: what gets what" has a section here, in the order of the table. The rows about
``reserve`` and ``settle`` are in ``test_reservation_input.py``. Missing are the points of a question by the
minute, because no question has points yet; what is bounded so far are the groups of an answer. Of "cached
> input, reasoning > output, provider total differs" only the second can be said on the wire: its token
kinds are disjoint, so more cache reads than uncached input is everyday, and it has no field for a total.
What each reader does with bytes is in ``wire/test_bad_input.py``, bytes that nobody thought of in ``fuzz``.
"""

from __future__ import annotations

import csv
import io
import json
import math
import tracemalloc

import numpy as np
import pytest
import redis

from tests.acceptance.program import last_line, run, serving, until
from tests.makers import PRODUCER, START_MS, command_entry, event
from tests.served import Served
from token_actor import TokenClient
from token_actor.core.queries import GROUPS_MAX
from token_actor.core.series import NAMES_MAX, OTHER
from token_actor.core.usage import COUNTS, DIMENSIONS, TOKENS_MAX
from token_actor.errors import InvalidQuestion, InvalidValue, SetupError
from token_actor.operations.dead import list_dead
from token_actor.transport.redis import RedisConnector
from token_actor.wire.batches import LIST_FIELDS, encode_batch
from token_actor.wire.codec import BATCH_BYTES_MAX, MESSAGE_BYTES_MAX, pack, unpack_batch
from token_actor.wire.messages import QUESTION_FIELD, Question
from token_actor.wire.reads import decode_read

BATCH = encode_batch([event(1, message_id="x"), event(2)], producer=PRODUCER, epoch=0, first_seq=0)


@pytest.fixture
def served():
    made = Served()
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared():
    """One for rows that only look at what becomes of an entry, whatever was there before."""
    made = Served()
    yield made
    made.close()


def changed(**fields):
    """Return the bytes of a batch with some of its fields changed."""
    return pack({**unpack_batch(BATCH, lists=LIST_FIELDS), **fields})


def quarantined(served, name, value):
    """Return why an entry is quarantined, once the entry after it is counted and the books balance."""
    before = served.total("requests")
    reason = served.outcome(name, value)
    counted = served.total("requests") - before
    assert (counted == 0) == (reason is not None)
    served.append(b"j", b"{}")
    assert served.total("requests") - before - counted == 1
    assert served.client.books()["differences"] == []
    assert served.client.status()["missing"] == 0
    return reason


def both(served, **fields):
    """Return what becomes of one event, in JSON and in msgpack."""
    return {quarantined(served, b"j", json.dumps(fields).encode()), quarantined(served, b"e", pack(fields))}


# --- | empty, random bytes, truncated, trailing bytes, wrong field names | dead `decode` | ------------

NOT_DECODED = {
    "empty": (b"b", b""),
    "an empty event": (b"e", b""),
    "an empty JSON": (b"j", b""),
    "an empty command": (b"c", b""),
    "random bytes": (b"b", bytes.fromhex("abcdef0123456789")),
    "a random event": (b"e", bytes.fromhex("deadbeefcafebabe")),
    "truncated": (b"e", pack({"model": "m"})[:-1]),
    "truncated JSON": (b"j", b'{"model": "m"'),
    "a trailing byte": (b"e", pack({}) + b"\xc0"),
    "a wrong field name": (b"x", pack({})),
    "a wrong field of an event": (b"j", b'{"input_token": 5}'),
    "not a map": (b"j", b"[]"),
}


@pytest.mark.parametrize("name", NOT_DECODED)
def test_what_cannot_be_read_is_dead_decode(shared, name):
    assert quarantined(shared, *NOT_DECODED[name]) == "decode"


@pytest.mark.parametrize(("name", "value"), [("cut short", BATCH[:-1]), ("with a byte behind it", BATCH + b"\xc0")])
def test_a_batch_that_cannot_be_read_is_dead_decode_and_leaves_no_false_hole(served, name, value):
    assert quarantined(served, b"b", value) == "decode"
    served.append(b"b", changed(q=2))
    assert served.client.status()["missing"] == 0
    assert served.total() == 3


def test_an_entry_of_more_than_one_field_is_dead_decode(served):
    entry_id = served.append(b"j", b"{}", b"e", b"\x80")
    assert served.letter(entry_id).reason == "decode"
    assert served.total("requests") == 0


# --- | payload above the limit | client error before sending; on the wire dead `too_large` | ----------


@pytest.mark.parametrize(
    ("name", "most"),
    [(b"b", BATCH_BYTES_MAX), (b"e", MESSAGE_BYTES_MAX), (b"j", MESSAGE_BYTES_MAX), (b"c", MESSAGE_BYTES_MAX)],
)
def test_a_payload_above_its_limit_is_dead_too_large(shared, name, most):
    assert quarantined(shared, name, b"\xff" * (most + 1)) == "too_large"
    assert quarantined(shared, name, b"\xff" * most) == "decode"


def test_a_batch_that_is_too_large_leaves_no_false_hole(served):
    assert served.outcome(b"b", BATCH + bytes(BATCH_BYTES_MAX)) == "too_large"
    served.append(b"b", changed(q=2))
    assert served.client.status()["missing"] == 0


def test_the_largest_events_there_can_be_are_sent_in_batches_that_fit(served):
    tags = {f"{number:->128}": "x" * 128 for number in range(16)}
    for number in range(40):
        served.client.record(1, message_id=f"{number:->256}", tags=tags, model="m" * 128)
    assert (served.total("requests"), served.letters()) == (40, [])


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("model", "m" * 129),
        ("message_id", "m" * 257),
        ("tags", {"a": "x" * 129}),
        ("tags", {str(number): "x" for number in range(17)}),
    ],
)
def test_an_event_above_the_limit_is_an_error_of_the_client_before_it_is_sent(shared, argument, value):
    with pytest.raises(InvalidValue, match=f"^{argument} must"):
        shared.client.record(1, **{argument: value})


# --- | msgpack bombs, ext types, duplicate or non-string keys | dead `decode`, no allocation | ---------

BOMBS = {
    "an array of four billion": (b"e", b"\xdd\xff\xff\xff\xff"),
    "a map of four billion": (b"e", b"\xdf\xff\xff\xff\xff"),
    "a string of four gigabytes": (b"e", b"\x81\xa5model\xdb\xff\xff\xff\xff"),
    "a batch with four billion keys": (b"b", b"\x81\xa1k\xdd\xff\xff\xff\xff"),
    "nested headers": (b"e", (b"\xdd\x00\x00\x3f\xf0" * 3_277)[:MESSAGE_BYTES_MAX]),
    "nested headers in a batch": (b"b", (b"\x81\xa1k" + b"\xdd\x00\x00\xff\xf0" * 13_107)[:BATCH_BYTES_MAX]),
    "nested headers in a batch that is peeked into": (
        b"b",
        (b"\x82\xa1x" + b"\x91" * BATCH_BYTES_MAX)[:BATCH_BYTES_MAX],
    ),
    "nine levels": (b"e", pack({"model": [[[[[[[[1]]]]]]]]})),
    "nine levels of JSON": (b"j", b'{"model": [[[[[[[[1]]]]]]]]}'),
    "an ext type": (b"e", b"\x81\xa5model\xd4\x05x"),
    "a timestamp of msgpack": (b"e", b"\x81\xa5model\xd6\xff\x00\x00\x00\x00"),
    "a key twice": (b"e", b"\x82\xa5model\xa1a\xa5model\xa1b"),
    "a key of JSON twice": (b"j", b'{"model": "a", "model": "b"}'),
    "a key that is a number": (b"e", b"\x81\x05\x01"),
    "a key that is bytes": (b"e", b"\x81\xc4\x05model\xa1a"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_dead_decode(shared, name):
    assert quarantined(shared, *BOMBS[name]) == "decode"


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_makes_room_for_nothing(name):
    field, value = BOMBS[name]
    tracemalloc.start()
    try:
        decode_read([(b"5-0", [field, value])])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000


# --- | unknown schema version | dead `version`, kept for `dead retry` after an upgrade | ---------------


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_an_unknown_version_is_dead_version_and_kept_as_it_came(served, version):
    for name, value in ((b"b", changed(v=version)), (b"c", pack({"v": version, "what": "ever"}))):
        letter = served.letter(served.append(name, value))
        assert (letter.reason, letter.raw, letter.whole) == ("version", value, True)


def test_events_of_an_unknown_version_are_missing_until_they_are_counted(served):
    served.append(b"b", changed(v=2))
    served.append(b"b", changed(q=2, m=None))
    assert served.client.status()["missing"] == 2
    served.append(b"b", BATCH)  # what a retry sends, to an actor that reads it
    assert (served.client.status()["missing"], served.total()) == (0, 6)


# --- | tokens negative, float, bool, NaN, string, > 10^12 | dead `range` / `type`; `ValueError` | ------


@pytest.mark.parametrize("count", [-1, TOKENS_MAX + 1, 2**63])
def test_a_count_out_of_range_is_dead_range(shared, count):
    assert both(shared, input_tokens=count) == {"range"}


@pytest.mark.parametrize("count", [1.0, True, "5", None, math.nan])
def test_a_count_that_is_no_int_is_dead_type(shared, count):
    assert both(shared, output_tokens=count) == {"type"}


@pytest.mark.parametrize("text", [b"NaN", b"Infinity", b"1e309"])
def test_a_number_of_json_that_is_none_is_dead_type(shared, text):
    assert quarantined(shared, b"j", b'{"input_tokens": %s}' % text) == "type"


def test_a_bad_count_in_a_batch_is_dead_range_and_the_other_events_count(served):
    column = np.array([5, TOKENS_MAX + 1], dtype=np.int64).tobytes()
    letter = served.letter(served.append(b"b", changed(i=column)))
    assert (letter.reason, [position for position, _, _ in letter.events]) == ("range", [1])
    assert (served.total(), served.client.status()["missing"]) == (5, 0)


@pytest.mark.parametrize("count", [-1, 1.0, True, math.nan, "5", TOKENS_MAX + 1, None])
@pytest.mark.parametrize("argument", COUNTS)
def test_in_python_a_bad_count_is_a_value_error_naming_the_argument(shared, argument, count):
    with pytest.raises(ValueError, match=f"^{argument} must"):
        shared.client.record(**{argument: count})


def test_sums_of_the_largest_counts_are_exact_for_nine_million_calls(served):
    for _ in range(1_000):
        served.client.record(TOKENS_MAX, TOKENS_MAX)
    assert served.total() == served.total("output_tokens") == 1_000 * TOKENS_MAX
    assert 9_000_000 * TOKENS_MAX < 2**63  # so long an int64 holds them; a true call has a millionth of that


# --- | cached > input, reasoning > output, provider total differs | counted, flagged `inconsistent` | ---


def test_more_reasoning_than_output_is_counted_flagged_and_shown(served):
    served.client.record(output_tokens=1, reasoning_tokens=2)
    served.append(b"j", b'{"output_tokens": 1, "reasoning_tokens": 2}')
    found = served.client.analytics()
    assert (found["requests"], found["inconsistent"], found["reasoning_tokens"]) == (2, 2, 4)
    assert [entry["inconsistent"] for entry in served.client.history()] == [True, True]
    assert served.letters() == []


def test_more_cache_reads_than_uncached_input_are_no_contradiction(served):
    served.client.record(1, cache_read_tokens=100_000)
    assert (served.total("inconsistent"), served.total("total_tokens")) == (0, 100_001)


# --- | all counts 0 | counted as a request | -----------------------------------------------------------


def test_an_event_of_nothing_is_counted_as_a_request(served):
    served.client.record()
    served.append(b"j", b"{}")
    served.append(b"e", b"\x80")
    assert (served.total("requests"), served.total("total_tokens"), served.letters()) == (3, 0, [])


# --- | names > 128 bytes, control characters, invalid UTF-8 | dead `bad_name`; other Unicode kept | -----


@pytest.mark.parametrize("name", ["x" * 129, "é" * 65, "a\nb", "\x00", "a\x1fb", "\x85"], ids=range(6))
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_name_that_is_too_long_or_has_control_characters_is_dead_bad_name(shared, dimension, name):
    assert both(shared, **{dimension: name}) == {"bad_name"}


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_name_that_is_not_utf_8_is_dead_bad_name(shared, dimension):
    assert quarantined(shared, b"e", b"\x81" + pack(dimension) + b"\xa1\xff") == "bad_name"
    assert quarantined(shared, b"j", b'{"%s": "\xff"}' % dimension.encode()) == "bad_name"


def test_a_bad_name_in_a_batch_costs_its_own_events_only(served):
    value = encode_batch([event(1, model="m"), event(2, model="@")], producer=PRODUCER, epoch=0, first_seq=0)
    letter = served.letter(served.append(b"b", value.replace(b"@", b"\xff")))
    assert (letter.reason, [position for position, _, _ in letter.events]) == ("bad_name", [1])
    assert (served.total(), served.client.status()["missing"]) == (1, 0)


@pytest.mark.parametrize("name", ["名前", "naïve", "👩‍💻", "\u202eabc", "=cmd()", "<script>", "x" * 128])
def test_other_unicode_is_kept_as_given(shared, name):
    shared.client.record(agent=name)
    shared.append(b"j", json.dumps({"agent": name}).encode())
    assert shared.client.analytics(agent=name)["requests"] == 2
    assert shared.client.history(1)[0]["agent"] == name


# --- | a million distinct models, users, tags | `__other__`; totals exact; `__` refused | ---------------


def test_models_without_end_are_counted_under_other_with_exact_totals(served):
    more = NAMES_MAX["model"] + 500
    for number in range(more):
        served.client.record(1, model=f"m{number}")
    found = served.client.analytics("model", limit=1)
    assert (found["requests"], found["input_tokens"]) == (more, more)
    assert found["groups"][0]["model"] == OTHER
    assert served.client.status()["folded_events"] >= 500


@pytest.mark.parametrize("name", ["__other__", "__", "__mine"])
def test_names_of_our_own_are_refused(shared, name):
    assert both(shared, model=name) == {"bad_name"}
    with pytest.raises(InvalidValue, match="reserved"):
        shared.client.record(model=name)


# --- | same id same content / same id other content | duplicate / dead `id_conflict` | ------------------


def test_the_same_id_with_the_same_content_is_a_duplicate(served):
    served.client.record(5, message_id="m")
    served.client.flush()
    served.client.record(5, message_id="m")
    served.append(b"j", b'{"input_tokens": 5, "message_id": "m"}')
    assert (served.total(), served.total("duplicates"), served.letters()) == (5, 2, [])


def test_the_same_id_with_other_content_is_dead_id_conflict_and_the_first_one_counts(served):
    served.client.record(5, message_id="m")
    served.client.flush()
    served.client.record(6, message_id="m")
    served.client.flush()
    entry_id = served.append(b"j", b'{"input_tokens": 7, "message_id": "m"}')
    assert served.total() == 5
    assert [letter.reason for letter in served.letters()] == ["id_conflict"] * 2
    assert "'m' was counted before with other numbers" in served.letter(entry_id).detail
    assert served.client.status()["dead"] == {"id_conflict": 2}


# --- | timestamp years off, nanoseconds, text | clamped and flagged / dead `type` | ---------------------


@pytest.mark.parametrize("timestamp", [0, -1, START_MS * 1_000_000, 1e300, "9999-12-31T23:59:59Z"])
def test_a_time_that_is_far_off_is_clamped_and_flagged(served, timestamp):
    served.client.record(timestamp=timestamp)
    served.append(b"j", json.dumps({"timestamp": timestamp}).encode())
    assert (served.total("requests"), served.total("clamped"), served.letters()) == (2, 2, [])
    assert served.client.history(1)[0]["clamped"] is True


@pytest.mark.parametrize("timestamp", ["yesterday", "", "2023-11-14T22:13:20", True, []])
def test_a_time_that_is_text_or_nothing_is_dead_type(shared, timestamp):
    assert both(shared, timestamp=timestamp) == {"type"}


# --- a command that is refused (of the rows about commands, those that exist) ---------------------------


def test_a_refused_command_is_answered_the_same_and_put_aside_once_however_often_it_comes(served):
    _, (name, value) = command_entry("explode")
    for _ in range(3):
        served.append(name, value)
    assert [letter.reason for letter in served.letters()] == ["unknown_command"]
    assert served.client.status()["dead"] == {"unknown_command": 1}
    inbox = served.connection.range(served.keys.inbox("c"), count=10)
    assert len(inbox) == 3
    assert len({fields[1] for _, fields in inbox}) == 1


# --- | question with an unknown selector or group, reversed range, ... | error naming the field | --------


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"group_by": ["nonsense"]}, "group_by"),
        ({"group_by": ["model", "model"]}, "group_by"),
        ({"nonsense": "x"}, "nonsense"),
        ({"model": 5}, "model"),
        ({"since": 20, "until": 10}, "since"),
        ({"since": "yesterday"}, "since"),
        ({"limit": -1}, "limit"),
        ({"limit": GROUPS_MAX + 1}, "limit"),
    ],
)
def test_a_question_that_cannot_be_answered_is_an_error_naming_the_field(shared, arguments, field):
    with pytest.raises(InvalidQuestion) as refused:
        shared.client.analytics(**arguments)
    assert refused.value.field == field
    assert shared.client.analytics()


def test_an_answer_has_no_more_groups_than_this(served):
    for number in range(GROUPS_MAX + 5):
        served.client.record(1, session=f"s{number}")
    served.client.flush(30)
    found = served.client.analytics("session", timeout_s=30)
    assert (len(found["groups"]), found["groups_omitted"], found["requests"]) == (GROUPS_MAX, 5, GROUPS_MAX + 5)


# --- | reply key of someone else | impossible: the inbox follows from the client id | -------------------


def test_nobody_can_name_the_inbox_of_someone_else(served):
    _, (name, value) = command_entry("reset", {"tenant": "default", "session": "s"})
    elsewhere = value.replace(pack("client") + pack("c"), pack("client") + pack("x}:log"))
    assert quarantined(served, name, elsewhere) == "decode"
    asked = Question(request_id="1", client="c", kind="status").encode()
    asked = asked.replace(pack("client") + pack("c"), pack("client") + pack("x}:log"))
    served.append(QUESTION_FIELD, asked, key=served.keys.ask)
    assert served.connection.stream_state(served.keys.inbox("c")) is None


# --- | CSV cells starting with `= + - @ TAB CR` | prefixed with `'`, quoted | ---------------------------


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_cell_that_a_spreadsheet_would_run_is_disarmed(served, start):
    served.client.record(1, message_id=f"{start}cmd()")
    text = served.client.export("csv")
    assert f'"\'{start}cmd()"' in text
    (row,) = [row for row in csv.reader(io.StringIO(text, newline="")) if any("cmd()" in cell for cell in row)]
    assert f"'{start}cmd()" in row


# --- | wrong server | refuse to start with one line that says what to change | in test_server_checks.py ---


def test_an_actor_with_another_number_of_partitions_is_refused_with_what_to_change(server_url, namespace):
    where = ("--redis", server_url, "--namespace", namespace)
    with serving(*where, "--partition", "1", "--partitions", "2"):
        done = run("serve", *where)
    assert (done.returncode, "has 2 partitions, not 1: start the actor with" in last_line(done)) == (1, True)


# --- | config: unknown key, negative, 1e309, unreadable | refuse to start, naming the key | -------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("batch_age_ms", -1),
        ("buffer_events_max", -5),
        ("timeout_s", float("1e309")),
        ("timeout_s", -1),
        ("batch_events_max", "many"),
        ("namespace", "not a name"),
        ("model", "\n"),
    ],
)
def test_a_setting_of_a_client_that_cannot_be_is_refused_by_name(setting, value):
    with pytest.raises(InvalidValue) as refused:
        TokenClient("memory://", **{setting: value})
    assert refused.value.field == setting


def test_a_setting_that_does_not_exist_is_refused_by_name():
    with pytest.raises(TypeError, match="nonsense"):
        TokenClient("memory://", nonsense=1)


@pytest.mark.parametrize("url", ["redis://host:port/0", "nonsense://host", "redis://host/0?nonsense=1"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(SetupError, match="address of the server"):
        TokenClient(url)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("serve", "--nonsense"), "--nonsense"),
        (("serve", "--partitions", "-1"), "--partitions"),
        (("serve", "--partition", "1e309"), "--partition"),
        (("serve", "--namespace", "not a name"), "namespace"),
        (("summary", "--timeout", "-1"), "--timeout"),
        (("summary", "--timeout", "1e309"), "timeout_s"),
        (("history", "--limit", "many"), "--limit"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else each,
)
def test_an_option_that_cannot_be_is_refused_by_name(words, named):
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr
    assert "Traceback" not in done.stderr


# --- the same on a real server ---------------------------------------------------------------------------


def test_a_real_server_and_actor_do_with_every_kind_what_the_table_says(server_url, namespace):
    kinds = [
        ("decode", b"b", BATCH + b"\xc0"),
        ("too_large", b"b", changed(q=2) + bytes(BATCH_BYTES_MAX)),
        ("decode", b"e", BOMBS["an array of four billion"][1]),
        ("version", b"c", pack({"v": 9})),
        ("range", b"j", b'{"input_tokens": -1}'),
        ("type", b"j", b'{"input_tokens": NaN}'),
        ("bad_name", b"j", b'{"model": "\xff"}'),
        (None, b"j", b'{"input_tokens": 5, "message_id": "m"}'),
        (None, b"j", b'{"input_tokens": 5, "message_id": "m"}'),
        ("id_conflict", b"j", b'{"input_tokens": 6, "message_id": "m"}'),
        (None, b"j", b'{"timestamp": 1e300}'),
        ("unknown_command", *command_entry("explode")[1]),
        (None, *command_entry("explode")[1]),
        (None, b"b", changed(q=4)),
    ]
    where = ("--redis", server_url, "--namespace", namespace)
    with (
        serving(*where),
        redis.Redis.from_url(server_url) as raw,
        TokenClient(server_url, namespace=namespace) as client,
    ):
        ids = [raw.xadd(f"{{{namespace}:0}}:log", {name: value}) for _, name, value in kinds]
        until(lambda: client.status()["entries"] == len(kinds))
        connection = RedisConnector(server_url).connect()
        found, _ = list_dead(connection, namespace, limit=100)
        connection.close()
        reason_of = {each.letter.source: each.letter.reason for each in found}
        assert [reason_of.get(entry_id) for entry_id in ids] == [reason for reason, _, _ in kinds]
        status, total = client.status(), client.analytics()
    assert (status["missing"], status["events"], total["input_tokens"], total["clamped"]) == (0, 4, 8, 1)
    assert total["duplicates"] == 1
