"""The one tree of errors: as it is drawn, with the fields that it promises, and fit to travel between processes."""

from __future__ import annotations

import concurrent.futures
import copy
import inspect
import multiprocessing
import pickle
import re
from typing import Any

import pytest

from token_actor import errors
from token_actor.errors import (
    ActorUnavailable,
    BadEntry,
    BufferFull,
    ClientBusy,
    ClosedError,
    InvalidQuestion,
    InvalidValue,
    LeadershipLost,
    LogUnavailable,
    RateLimited,
    RateLimitExceeded,
    ServerRefused,
    ServerUnavailable,
    SetupError,
    SnapshotError,
    SpoolError,
    SpoolFull,
    TokenActorError,
    TokenManagerException,
    TransportError,
)

# Each error, made as its callers make it, with its message and its fields.
MADE: Any = (
    (TokenActorError("m"), "m", {}),
    (TokenManagerException("m"), "m", {}),
    (RateLimitExceeded("m"), "m", {}),
    (InvalidValue("limit", "must be odd"), "limit must be odd",
     {"field": "limit", "problem": "must be odd", "reason": "range"}),
    (InvalidValue("limit", "must be odd", reason="type"), "limit must be odd",
     {"field": "limit", "problem": "must be odd", "reason": "type"}),
    (InvalidQuestion("kind", "is new"), "kind is new", {"field": "kind", "problem": "is new", "reason": "range"}),
    (BadEntry("decode", "not JSON"), "decode: not JSON", {"reason": "decode", "detail": "not JSON"}),
    (ActorUnavailable("m", timeout_s=1.5), "m", {"timeout_s": 1.5}),
    (ClientBusy("m", timeout_s=1.5), "m", {"timeout_s": 1.5}),
    (LogUnavailable("m", timeout_s=1.5, pending=3), "m", {"timeout_s": 1.5, "pending": 3}),
    (RateLimited("m", retry_after_s=None, limit="l", used=1, reserved=2, remaining=3), "m",
     {"retry_after_s": None, "limit": "l", "used": 1, "reserved": 2, "remaining": 3, "degraded": False}),
    (BufferFull("m", pending=3), "m", {"pending": 3}),
    (SpoolFull("m", pending=3), "m", {"pending": 3}),
    (SpoolError("m"), "m", {}),
    (TransportError("m"), "m", {}),
    (ServerUnavailable("m"), "m", {}),
    (ServerRefused("OOM no memory"), "OOM no memory", {"code": "OOM"}),
    (ServerRefused(""), "", {"code": ""}),
    (LeadershipLost("m"), "m", {}),
    (SnapshotError("m"), "m", {}),
    (SetupError("m"), "m", {}),
    (ClosedError("m"), "m", {}),
)  # fmt: skip


def drawn():
    """Return the tree of the docstring: each error and what it derives from."""
    parents, path = {}, []
    for line in errors.__doc__.splitlines():
        found = re.match(r"^    ([│ ├└─]*)(\w+)(?: \((\w+)\))?(?:  |$)", line)
        if found is None:
            continue
        depth = len(found[1]) // 4
        path[depth:] = [found[2]]
        parents[found[2]] = {*path[depth - 1 : depth], *filter(None, [found[3]])}
    return parents


def real():
    """Return the classes of the module, and what each derives from."""
    classes = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, TokenActorError)]
    return {each.__name__: {base.__name__ for base in each.__bases__} - {"Exception"} for each in classes}


def test_the_tree_of_the_docstring_is_the_tree_of_the_classes():
    assert drawn() == real()


def test_every_error_is_among_those_tested_here():
    assert {type(error).__name__ for error, _, _ in MADE} == set(real())


@pytest.mark.parametrize(("error", "message", "fields"), MADE, ids=range(len(MADE)))
def test_an_error_has_a_message_and_its_fields(error, message, fields):
    assert str(error) == message
    assert vars(error) == fields


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(("error", "message", "fields"), MADE, ids=range(len(MADE)))
def test_an_error_can_be_pickled(error, message, fields, protocol):
    travelled = pickle.loads(pickle.dumps(error, protocol))
    assert type(travelled) is type(error)
    assert (str(travelled), vars(travelled), travelled.args) == (message, fields, error.args)


@pytest.mark.parametrize(("error", "message", "fields"), MADE, ids=range(len(MADE)))
def test_an_error_can_be_copied(error, message, fields):
    for copied in (copy.copy(error), copy.deepcopy(error)):
        assert (type(copied), str(copied), vars(copied)) == (type(error), message, fields)


def test_a_note_travels_with_its_error():
    error = BufferFull("m", pending=3)
    error.add_note("while recording")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["while recording"]


@pytest.mark.parametrize("error", [InvalidValue("f", "p"), InvalidQuestion("f", "p")], ids=["value", "question"])
def test_what_is_wrong_with_an_argument_is_a_value_error(error):
    assert isinstance(error, ValueError)


def _refuse() -> None:
    raise LogUnavailable("3 events wait", timeout_s=1.5, pending=3)


def test_an_error_in_another_process_reaches_its_parent_with_its_fields():
    context = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool,
        pytest.raises(LogUnavailable, match="^3 events wait$") as caught,
    ):
        pool.submit(_refuse).result()
    assert (caught.value.timeout_s, caught.value.pending) == (1.5, 3)
