"""Dead letters once more: what a retry counts, what it keeps, and that nothing is counted twice."""

from __future__ import annotations

import json

import pytest

from tests.makers import PRODUCER, event
from tests.served import Served
from token_actor.core.commands import Command
from token_actor.errors import InvalidValue, ServerRefused, ServerUnavailable
from token_actor.operations import dead
from token_actor.operations.dead import Selection, drop_dead, selected_dead
from token_actor.operations.retry import ID_PREFIX, identified, retry_dead, why_hopeless
from token_actor.transport.memory import MemoryConnection, MemoryServer
from token_actor.transport.ports import Append, DeleteEntries, PutField
from token_actor.wire import batches, messages
from token_actor.wire.batches import encode_batch
from token_actor.wire.codec import BATCH_BYTES_MAX, MESSAGE_BYTES_MAX, pack
from token_actor.wire.keys import Keys
from token_actor.wire.messages import RAW_BYTES_MAX, DeadLetter, encode_command

EVERYTHING = Selection()


class Ledgered(Served):
    """A namespace whose dead letters are retried."""

    def counted(self):
        return self.total()

    def retry(self, selection=EVERYTHING, **more):
        retried = retry_dead(self.connection, "default", selection, **more)
        assert self.client.status()
        return retried


@pytest.fixture
def ledgered():
    made = Ledgered()
    yield made
    made.close()


class CutOff:
    """A connection that breaks before it deletes anything: whoever retries is gone between the two steps."""

    def __init__(self, connection):
        self._connection = connection

    def __getattr__(self, name):
        return getattr(self._connection, name)

    def write(self, operations):
        if any(isinstance(operation, DeleteEntries) for operation in operations):
            raise ServerUnavailable("cut off")
        return self._connection.write(operations)


def batch(*events, first_seq=0):
    return encode_batch(events, producer=PRODUCER, epoch=0, first_seq=first_seq)


FIVE = batch(event(5))
FIVE_AND_SIX = batch(event(5), event(6))


@pytest.fixture
def old_program(monkeypatch):
    """Let the actor and this program read other versions than those of today, until the upgrade."""

    def upgrade():
        monkeypatch.setattr(batches, "BATCH_VERSION", 1)
        monkeypatch.setattr(messages, "MESSAGE_VERSION", 1)

    monkeypatch.setattr(batches, "BATCH_VERSION", 0)
    return upgrade


# --- what a retry counts ----------------------------------------------------------------------------


def test_a_batch_of_a_version_that_was_not_known_is_counted_after_the_upgrade(ledgered, old_program):
    letter_id = ledgered.append(b"b", FIVE_AND_SIX)
    assert [letter.reason for letter in ledgered.letters()] == ["version"]
    old_program()
    (done,) = ledgered.retry(Selection(reason="version")).done
    assert (done.letter_id, done.partition) == (letter_id, 0)
    assert (ledgered.counted(), ledgered.letters(), ledgered.client.status()["missing"]) == (11, [], 0)
    assert done.document() == {"id": letter_id, "partition": 0, "entry": done.entry}


def test_a_batch_that_cannot_be_counted_yet_is_missing_and_a_retry_of_it_is_hopeless(ledgered, old_program):
    ledgered.append(b"b", FIVE)
    (kept,) = ledgered.retry().kept
    assert "it would be refused again: version" in kept.why
    assert kept.document()["why"] == kept.why
    old_program()
    ledgered.append(b"b", batch(event(6), first_seq=1))
    assert ledgered.client.status()["missing"] == 1
    ledgered.retry()
    assert ledgered.client.status()["missing"] == 0


def test_a_retry_that_is_cut_off_between_log_and_letter_counts_a_batch_once(ledgered, old_program):
    ledgered.append(b"b", FIVE)
    old_program()
    with pytest.raises(ServerUnavailable):
        retry_dead(CutOff(ledgered.connection), "default", EVERYTHING)
    assert len(ledgered.letters()) == 1
    ledgered.retry()
    assert (ledgered.counted(), ledgered.letters()) == (5, [])


@pytest.fixture
def fault_of_ours(monkeypatch):
    """Let the actor stumble over every single event, until the upgrade."""

    def broken(fields):
        raise RuntimeError("a bug")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("token_actor.wire.reads.event_of", broken)
        yield patch.undo


@pytest.mark.parametrize("encode", [pack, lambda fields: json.dumps(fields).encode()], ids=["e", "j"])
@pytest.mark.parametrize("message_id", [None, "m"])
def test_an_event_counts_once_however_often_its_retry_is_cut_off(ledgered, fault_of_ours, encode, message_id):
    name = b"e" if encode is pack else b"j"
    fields = {"input_tokens": 5, "agent": "ü", **({"message_id": message_id} if message_id else {})}
    letter_id = ledgered.append(name, encode(fields))
    assert [letter.reason for letter in ledgered.letters()] == ["internal"]
    fault_of_ours()
    for _ in range(3):
        with pytest.raises(ServerUnavailable):
            retry_dead(CutOff(ledgered.connection), "default", EVERYTHING)
    ledgered.retry()
    assert (ledgered.counted(), ledgered.letters()) == (5, [])
    (entry,) = ledgered.client.history(10)
    assert entry["message_id"] == (message_id or ID_PREFIX + letter_id)


def test_letters_are_retried_in_the_order_of_the_log_and_a_page_at_a_time(ledgered, fault_of_ours, monkeypatch):
    monkeypatch.setattr(dead, "LETTERS_AT_ONCE", 2)
    ids = [ledgered.append(b"j", b'{"input_tokens": 1}') for _ in range(5)]
    fault_of_ours()
    assert [outcome.letter_id for outcome in ledgered.retry().done] == ids
    assert ledgered.counted() == 5


def test_letters_that_come_back_while_others_are_retried_are_not_retried_again(ledgered, monkeypatch):
    monkeypatch.setattr(dead, "LETTERS_AT_ONCE", 1)
    for _ in range(3):
        ledgered.append(b"j", b'{"input_tokens": -1}')
    retried = ledgered.retry(hopeless=True)
    assert len(retried.done) == 3
    assert [letter.reason for letter in ledgered.letters()] == ["range"] * 3
    assert not {letter.source.decode() for letter in ledgered.letters()} & {each.letter_id for each in retried.done}


# --- what it keeps ----------------------------------------------------------------------------------

RECORD = {"v": 1, "id": "1", "client": "c", "op": "record"}
UNKNOWN = encode_command(Command(operation="explode", request_id="1", client="c", arguments={}))
HOPELESS = {
    "refused again": (b"j", b'{"input_tokens": -1}', "it would be refused again: range, input_tokens"),
    "an unreadable batch": (b"b", batch(event(1)) + b"\xc0", "it would be refused again: decode"),
    "a batch with a bad event": (b"b", batch(event(1), event(10**12 + 1)), "sequence numbers are used up"),
    "a batch that is too large": (b"b", batch(event(1)) + bytes(BATCH_BYTES_MAX), "not all of it was kept"),
    "a command that was answered": (b"c", UNKNOWN, "its request id has been answered"),
    "a conflict": (b"j", b'{"message_id": "m", "input_tokens": 2}', "the first one counts"),
    "a name that does not exist": (b"x", b"", "it would be refused again: decode, unknown field name"),
}


@pytest.mark.parametrize("name", HOPELESS)
def test_what_would_not_be_counted_is_kept_and_the_reason_told(ledgered, name):
    field, value, why = HOPELESS[name]
    ledgered.append(b"j", b'{"message_id": "m", "input_tokens": 1}')
    letter_id = ledgered.append(field, value)
    (kept,) = ledgered.retry().kept
    assert (kept.letter_id, kept.entry) == (letter_id, None)
    assert why in kept.why
    assert [letter.source.decode() for letter in ledgered.letters()] == [letter_id]


def test_an_entry_of_which_only_a_part_was_kept_is_never_retried(ledgered):
    ledgered.connection.write([Append(key=ledgered.keys.log, fields=[b"j", b"{}", b"e", b"\x80"])])
    ledgered.append(b"j", b"x" * (RAW_BYTES_MAX + 1))
    kept = ledgered.retry(hopeless=True, unidentified=True).kept
    assert ["not all of it was kept" in outcome.why for outcome in kept] == [True, True]


def test_what_somebody_else_wrote_among_the_dead_letters_is_never_retried(ledgered):
    ledgered.append(b"j", b'{"input_tokens": 5}', key=ledgered.keys.dead)
    assert len(ledgered.retry(hopeless=True, unidentified=True).kept) == 1
    assert ledgered.counted() == 0


def test_what_cannot_be_told_from_its_repetition_is_retried_only_if_asked_for(ledgered):
    ledgered.append(b"j", b"{")
    (kept,) = ledgered.retry(hopeless=True).kept
    assert "could count it twice" in kept.why
    assert len(ledgered.retry(hopeless=True, unidentified=True).done) == 1
    assert len(ledgered.letters()) == 1  # it came back


def test_what_the_server_refuses_stays_a_letter(ledgered):
    class Full(MemoryConnection):
        def write(self, operations):
            return [ServerRefused("OOM full") if isinstance(o, Append) else super().write([o])[0] for o in operations]

    ledgered.append(b"j", b'{"input_tokens": -1}')
    ledgered.connection.__class__ = Full
    (kept,) = ledgered.retry(hopeless=True).kept
    assert "the server refused it: OOM full" in kept.why
    assert len(ledgered.letters()) == 1


def letter(name, raw, reason="internal", **more):
    return DeadLetter(source=b"5-1", reason=reason, detail="", name=name, raw=raw, **more)


@pytest.mark.parametrize(
    ("name", "raw", "known"),
    [
        (b"b", b"whatever", True),
        (b"c", UNKNOWN, True),
        (b"c", pack(RECORD | {"id": ""}), False),
        (b"c", pack(RECORD | {"event": {"input_tokens": -1}}), False),
        (b"e", pack({"message_id": "m"}), True),
        (b"e", pack({}), True),
        (b"e", b"\xc1", False),
        (b"e", b"\x81\xa5model\xa1\xff", False),
        (b"j", b'{"message_id": "m"}', True),
        (b"j", b"[]", False),
        (b"j", b'{"model": "' + b"x" * (MESSAGE_BYTES_MAX - 13) + b'"}', False),
        (b"x", b"", False),
    ],
)
def test_what_is_known_when_it_comes_again_and_what_is_not(name, raw, known):
    assert identified(letter(name, raw))[1] is known


def test_an_event_with_an_id_goes_as_it_came():
    raw = b'{ "message_id": "m", "input_tokens": 5.0 }'
    assert identified(letter(b"j", raw)) == (raw, True)


def test_the_id_that_an_event_is_given_changes_nothing_else():
    raw, _ = identified(letter(b"j", b'{"cost_usd": 0.1, "input_tokens": 123456789012, "agent": "\\u00fc"}'))
    assert json.loads(raw) == {
        "cost_usd": 0.1, "input_tokens": 123456789012, "agent": "ü", "message_id": "dead:5-1"
    }  # fmt: skip


def test_a_retry_of_a_fault_of_ours_is_not_hopeless():
    assert why_hopeless(letter(b"b", batch(event(1)))) is None
    assert why_hopeless(letter(b"c", UNKNOWN)) is None
    assert why_hopeless(letter(b"e", pack({}), reason="type")) is None


# --- which ones -------------------------------------------------------------------------------------


def test_letters_are_meant_by_id_by_reason_and_by_time(ledgered):
    first = ledgered.append(b"j", b"{")
    second = ledgered.append(b"j", b'{"input_tokens": -1}')

    def meant(**selection):
        pages = selected_dead(ledgered.connection, "default", Selection(**selection))
        return [each.letter.source.decode() for page in pages for each in page]

    assert meant() == [first, second]
    assert meant(ids=[second]) == [second]
    assert meant(ids=[second, first]) == [second, first]
    assert meant(ids=[first], reason="range") == []
    assert meant(reason="range") == [second]
    assert meant(before_ms=0) == []
    assert meant(before_ms=10**14) == [first, second]
    assert meant(ids=["1-1"]) == []


def test_of_no_letters_none_is_meant(ledgered):
    assert list(selected_dead(ledgered.connection, "default", EVERYTHING)) == []
    assert ledgered.retry().outcomes == []


def test_an_id_that_is_none_is_refused_before_anything_is_done():
    with pytest.raises(InvalidValue, match="must be an entry id"):
        Selection(ids=["1-1", "x"])


def test_dropping_letters_leaves_the_others_and_the_numbers(ledgered):
    first = ledgered.append(b"j", b"{")
    ledgered.append(b"j", b'{"input_tokens": -1}')
    before = ledgered.client.status()["dead"]
    assert [
        gone.letter.source.decode() for gone in drop_dead(ledgered.connection, "default", Selection(ids=[first]))
    ] == [first]
    assert [letter.reason for letter in ledgered.letters()] == ["range"]
    assert ledgered.client.status()["dead"] == before


def test_a_drop_that_is_refused_is_raised(ledgered):
    class ReadOnly(MemoryConnection):
        def write(self, operations):
            return [ServerRefused("NOPERM no")]

    ledgered.append(b"j", b"{")
    ledgered.connection.__class__ = ReadOnly
    with pytest.raises(ServerRefused):
        drop_dead(ledgered.connection, "default", EVERYTHING)


def test_a_letter_of_an_older_actor_is_whole_if_it_is_shorter_than_what_was_kept():
    for size, whole in ((5, True), (RAW_BYTES_MAX, False)):
        fields = letter(b"j", b"x" * size).fields()
        old = fields[: fields.index(b"whole")]
        assert DeadLetter.read(b"5-1", old).whole is whole
        assert DeadLetter.read(b"5-1", fields).whole is True


def test_letters_of_every_partition_go_back_to_their_own_log():
    connection = MemoryServer().connect()
    connection.write([PutField(key=Keys().meta, field=b"partitions", value=b"3")])
    for partition in (0, 2):
        lost = DeadLetter(source=b"5-%d" % partition, reason="internal", detail="", name=b"b", raw=FIVE)
        connection.write([Append(key=Keys("default", partition).dead, fields=lost.fields(), entry_id=lost.source)])
    done = retry_dead(connection, "default", EVERYTHING).done
    assert [(each.letter_id, each.partition) for each in done] == [("5-0", 0), ("5-2", 2)]
    for partition, length in ((0, 1), (1, 0), (2, 1)):
        keys = Keys("default", partition)
        assert len(connection.range(keys.log, count=9)) == length
        assert connection.range(keys.dead, count=9) == []
