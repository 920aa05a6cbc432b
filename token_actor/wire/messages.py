"""Messages: questions, commands, answers and dead letters, and their bytes.

The envelope (version, id, who is waiting where) is apart from what is said. Every message checks
itself when it is made, so nothing half-valid travels further.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from token_actor.core.commands import Command
from token_actor.errors import BadEntry, InvalidQuestion, InvalidValue
from token_actor.wire.codec import BATCH_BYTES_MAX, pack, unpack, unpack_message
from token_actor.wire.entries import is_entry_id
from token_actor.wire.events import event_of
from token_actor.wire.keys import check_client

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from token_actor.core.columns import Rejection

MESSAGE_VERSION: Final = 1
RAW_BYTES_MAX: Final = BATCH_BYTES_MAX  # of a dead letter: the longest entry that is read at all
BAD_EVENTS_MAX: Final = 100  # named in one dead letter; the others are found in the same way
ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024  # an answer of 10,000 groups is about 4 MB

BATCH_FIELD: Final = b"b"
COMMAND_FIELD: Final = b"c"
EVENT_FIELD: Final = b"e"
JSON_FIELD: Final = b"j"
QUESTION_FIELD: Final = b"q"
ANSWER_FIELD: Final = b"r"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Hold one question: what is asked, by whom, and which entry of the log must be seen first.

    ``after`` ``None`` means the answer may be stale.
    """

    request_id: str
    client: str
    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    after: bytes | None = None

    def encode(self) -> bytes:
        """Return the bytes of the field ``q``."""
        return pack(
            {
                "v": MESSAGE_VERSION,
                "id": self.request_id,
                "client": self.client,
                "kind": self.kind,
                "args": self.arguments,
                "after": self.after,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Question:
        """Return the question that the bytes are. Raises ``BadEntry``."""
        message = _message(data, {"v", "id", "client", "kind", "args", "after"})
        after = message.get("after")
        if after is not None and not is_entry_id(after):
            raise BadEntry("decode", "'after' must be an entry id")
        return cls(
            request_id=_text(message, "id"),
            client=_client(message),
            kind=_text(message, "kind"),
            arguments=_arguments(message),
            after=after,
        )


def encode_command(command: Command, event: Mapping[str, Any] | None = None) -> bytes:
    """Return the bytes of the field ``c``; ``event`` is a map as ``events.event_of`` reads it."""
    message: dict[str, Any] = {
        "v": MESSAGE_VERSION,
        "id": command.request_id,
        "client": command.client,
        "op": command.operation,
        "args": command.arguments,
    }
    if event is not None:
        message["event"] = event
    return pack(message)


def decode_command(data: bytes) -> Command:
    """Return the command that the bytes are. Raises ``BadEntry``, ``InvalidValue``."""
    message = _message(data, {"v", "id", "client", "op", "args", "event"})
    event = message.get("event")
    if event is not None and not isinstance(event, dict):
        raise BadEntry("decode", "'event' must be a map")
    return Command(
        operation=_text(message, "op"),
        request_id=_text(message, "id"),
        client=_client(message),
        arguments=_arguments(message),
        event=None if event is None else event_of(event),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Hold the answer to a question or command: ``result``, or what is wrong with it."""

    request_id: str
    epoch: int
    result: Mapping[str, Any] | None = None
    problem: InvalidValue | None = None

    def encode(self) -> bytes:
        """Return the bytes of the field ``r``."""
        message: dict[str, Any] = {"v": MESSAGE_VERSION, "id": self.request_id, "epoch": self.epoch}
        if self.problem is None:
            message["result"] = self.result
        else:
            message["error"] = [self.problem.field, self.problem.problem, self.problem.reason]
        return pack(message)

    @classmethod
    def decode(cls, data: bytes) -> Answer:
        """Return the answer that the bytes are. Raises ``BadEntry``."""
        message = unpack(data, bytes_max=ANSWER_BYTES_MAX)
        error = message.get("error")
        try:
            problem = None if error is None else InvalidQuestion(error[0], error[1], reason=error[2])
            return cls(request_id=message["id"], epoch=message["epoch"], result=message.get("result"), problem=problem)
        except (KeyError, TypeError, IndexError) as missing:
            raise BadEntry("decode", f"not an answer: {missing}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """Hold what could not be applied: the raw field of one log entry, and why.

    At most ``RAW_BYTES_MAX`` bytes of the field are kept, which is all of what could have been counted.
    ``events`` lists (position in the batch, reason, detail) when only some of its events are bad;
    it is empty when it is the entry as a whole, and ends after ``BAD_EVENTS_MAX``. ``whole`` tells
    whether the field is all of the entry, with every byte of it.
    """

    source: bytes
    reason: str
    detail: str
    name: bytes
    raw: bytes
    events: Sequence[tuple[int, str, str]] = ()
    whole: bool = True

    @classmethod
    def of(cls, source: bytes, fields: Sequence[bytes], rejections: Sequence[Rejection]) -> DeadLetter:
        """Return the dead letter of an entry, from everything that was rejected of it."""
        name, raw = (fields[0], fields[1]) if len(fields) > 1 else (b"", b"")
        single = name in (EVENT_FIELD, JSON_FIELD, COMMAND_FIELD)
        return cls(
            source=source,
            reason=rejections[0].reason,
            detail=rejections[0].detail,
            name=name,
            raw=raw[:RAW_BYTES_MAX],
            events=[(r.position, r.reason, r.detail) for r in rejections if r.position is not None and not single][
                :BAD_EVENTS_MAX
            ],
            whole=len(fields) == 2 and len(raw) <= RAW_BYTES_MAX,  # noqa: PLR2004 - a name and a value
        )

    def fields(self) -> list[bytes]:
        """Return the fields of its entry in the stream of dead letters."""
        return [
            b"reason", self.reason.encode(),
            b"detail", self.detail.encode(errors="backslashreplace"),
            b"field", self.name,
            b"raw", self.raw,
            b"events", pack(list(self.events)),
            b"whole", b"yes" if self.whole else b"no",
        ]  # fmt: skip

    @classmethod
    def read(cls, entry_id: bytes, fields: Sequence[bytes]) -> DeadLetter:
        """Return the dead letter of an entry in the stream of dead letters. Raises ``BadEntry``."""
        named = dict(zip(fields[::2], fields[1::2], strict=False))
        try:
            return cls(
                source=entry_id,
                reason=named[b"reason"].decode(),
                detail=named[b"detail"].decode(),
                name=named[b"field"],
                raw=named[b"raw"],
                events=[tuple(event) for event in _list(named[b"events"])],
                # An older actor wrote no such field; of what it cut off, it kept exactly as much as it might.
                whole=named.get(b"whole", b"yes" if len(named[b"raw"]) < RAW_BYTES_MAX else b"no") == b"yes",
            )
        except (KeyError, TypeError, UnicodeDecodeError) as missing:
            raise BadEntry("decode", f"not a dead letter: {missing}") from None


def _list(data: bytes) -> list[Any]:
    return list(unpack(b"\x81\xa1e" + data, bytes_max=ANSWER_BYTES_MAX)["e"])  # as the one value of a map


def _message(data: bytes, fields: set[str]) -> dict[str, Any]:
    message = unpack_message(data)
    if message.get("v") != MESSAGE_VERSION:
        raise BadEntry("version", f"message version {message.get('v')!r}; this program reads {MESSAGE_VERSION}")
    if not message.keys() <= fields:
        raise BadEntry("decode", f"unknown field {min(message.keys() - fields)!r}")
    return message


def _text(message: Mapping[str, Any], name: str) -> str:
    value = message.get(name)
    if type(value) is not str or not 0 < len(value) <= 64:  # noqa: PLR2004 - ids are short
        raise BadEntry("decode", f"{name!r} must be a string of 1 to 64 characters")
    return value


def _client(message: Mapping[str, Any]) -> str:
    try:
        return check_client(_text(message, "client"))
    except InvalidValue as problem:
        raise BadEntry("decode", str(problem)) from None


def _arguments(message: Mapping[str, Any]) -> dict[str, Any]:
    arguments = message.get("args", {})
    if not isinstance(arguments, dict):
        raise BadEntry("decode", "'args' must be a map")
    return arguments
