"""Bytes to plain values and back, within limits, whatever the bytes are.

Nothing here trusts what came from a stream: the length is bounded before anything is decoded, the
decoders make room for no more than a message can hold (a header of five bytes may claim four
billion items, and a thousand headers may be nested), and whatever they raise becomes one ``BadEntry``.
"""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgpack
import numpy as np

from token_actor.errors import BadEntry

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

BATCH_BYTES_MAX: Final = 64 * 1024
MESSAGE_BYTES_MAX: Final = 16 * 1024  # one event, command or question
ITEMS_MAX: Final = 64  # items of one map or list in a message; three times what the longest one has
DEPTH_MAX: Final = 8  # maps and lists in one another in a message; twice what the deepest one has
_ARRAY_EXT: Final = 1  # msgpack extension type of an array in a snapshot
_DECODE_ERRORS: Final = (ValueError, TypeError, RecursionError, OverflowError, msgpack.OutOfData)
_NIL: Final = b"\xc0"
_ESCAPED: Final = "surrogateescape"  # a name that is not UTF-8 is then refused by name, and its batch is not
_NAMES: Final = frozenset({str})
_SCALARS: Final = frozenset({str, int, float, bool, bytes, type(None)})


def pack(value: Any) -> bytes:  # noqa: ANN401 - any tree of plain values
    """Return a tree of plain values as msgpack."""
    packed: bytes = msgpack.packb(value)
    return packed


def unpack(data: bytes, *, bytes_max: int) -> dict[str, Any]:
    """Return the one map that ``data`` is, whatever its shape: for what an actor wrote.

    Raises ``BadEntry``: ``too_large`` before decoding, ``decode`` when it is not exactly one map of
    distinct string keys.
    """
    _check_size(data, bytes_max)
    try:
        return _map(msgpack.unpackb(data, object_pairs_hook=_distinct, ext_hook=_no_extension))
    except _DECODE_ERRORS as error:
        raise _not("msgpack", error) from None


def unpack_message(data: bytes, *, any_text: bool = False) -> dict[str, Any]:
    """Return the one map that ``data`` is: one event, command or question, whoever wrote it.

    Raises ``BadEntry`` like ``unpack``, also when a map or list has more than ``ITEMS_MAX`` items or
    lies deeper than ``DEPTH_MAX``, and ``bad_name`` for a text that is not UTF-8. With ``any_text`` such
    a text comes with lone surrogates, so that whoever checks it can name it.
    """
    _check_size(data, MESSAGE_BYTES_MAX)
    try:
        message = msgpack.unpackb(
            data,
            object_pairs_hook=_distinct,
            ext_hook=_no_extension,
            max_array_len=ITEMS_MAX,
            max_map_len=ITEMS_MAX,
            unicode_errors=_ESCAPED if any_text else "strict",
        )
        _check_inside(_map(message))
    except UnicodeDecodeError as error:
        unpack_message(data, any_text=True)  # which refuses it under another reason if that is no message either
        raise BadEntry("bad_name", f"a text is not UTF-8: {error.reason}") from None
    except _DECODE_ERRORS as error:
        raise _not("msgpack", error) from None
    return _map(message)


def unpack_json(data: bytes) -> dict[str, Any]:
    """Return the one JSON object that ``data`` is, with any text. Raises ``BadEntry`` like ``unpack_message``."""
    _check_size(data, MESSAGE_BYTES_MAX)
    try:
        message = _json(data)
        _check_inside(_map(message))
    except _DECODE_ERRORS as error:
        raise _not("JSON", error) from None
    return _map(message)


def _json(data: bytes) -> Any:  # noqa: ANN401 - whatever it says
    try:
        return json.loads(data, object_pairs_hook=_distinct)
    except UnicodeDecodeError:
        return json.loads(data.decode(errors=_ESCAPED), object_pairs_hook=_distinct)


def unpack_batch(data: bytes, *, lists: Collection[str]) -> dict[str, Any]:
    """Return the one map that ``data`` is: a batch, whoever wrote it.

    The fields named in ``lists`` are lists, of any length, of scalars and small maps; no other field
    is a list. A text that is not UTF-8 comes with lone surrogates. Raises ``BadEntry`` like ``unpack``.
    """
    _check_size(data, BATCH_BYTES_MAX)
    unpacker = _batch_unpacker(data)
    try:
        fields = unpacker.read_map_header()
        if fields > ITEMS_MAX:
            raise ValueError("too many fields")
        batch = _distinct([_field(unpacker, data, lists) for _ in range(fields)])
        if unpacker.tell() != len(data):
            raise ValueError("bytes after the end")
    except _DECODE_ERRORS as error:
        raise _not("msgpack", error) from None
    return batch


def peek_batch(data: bytes, *, scalars: Collection[str]) -> dict[str, Any]:
    """Return those of the fields named in ``scalars`` that come before whatever is wrong with a batch.

    Whatever the bytes are, this does not raise, and looks at no more than ``BATCH_BYTES_MAX`` of them.
    """
    found: dict[str, Any] = {}
    unpacker = _batch_unpacker(data[:BATCH_BYTES_MAX])
    with suppress(*_DECODE_ERRORS):  # that it cannot be read to its end is why it is only peeked into
        for _ in range(min(unpacker.read_map_header(), ITEMS_MAX)):
            name = unpacker.unpack()
            if name in scalars:
                found[name] = unpacker.unpack()
            else:
                unpacker.skip()
            if len(found) == len(scalars):
                break
    return found


def _batch_unpacker(data: bytes) -> msgpack.Unpacker:
    unpacker = msgpack.Unpacker(
        object_pairs_hook=_distinct,
        ext_hook=_no_extension,
        max_buffer_size=BATCH_BYTES_MAX,
        max_array_len=0,
        max_map_len=ITEMS_MAX,
        unicode_errors=_ESCAPED,
    )
    unpacker.feed(data)
    return unpacker


def _field(unpacker: msgpack.Unpacker, data: bytes, lists: Collection[str]) -> tuple[Any, Any]:
    """Return the next name and value of a batch; a list grows with its items, whatever its header claims."""
    name = unpacker.unpack()
    if name not in lists or data.startswith(_NIL, unpacker.tell()):
        return name, unpacker.unpack()
    length = unpacker.read_array_header()
    items = list(islice(unpacker, length))
    if len(items) < length:
        raise ValueError("incomplete input")
    return name, items


def pack_tree(tree: dict[str, Any]) -> bytes:
    """Return one tree of a snapshot, which may hold numpy arrays, as msgpack."""
    packed: bytes = msgpack.packb(tree, default=_array_to_ext)
    return packed


def unpack_trees(data: bytes) -> list[dict[str, Any]]:
    """Return the trees of a segment, packed one after the other. Its checksum must have been verified before.

    Raises ``BadEntry`` when the last one is cut short.
    """
    unpacker = msgpack.Unpacker(ext_hook=_ext_to_array, strict_map_key=False, max_buffer_size=0)
    unpacker.feed(data)
    trees = []
    end = 0
    for tree in unpacker:
        trees.append(_map(tree))
        end = unpacker.tell()
    if end != len(data):
        raise BadEntry("decode", "not msgpack: incomplete input")
    return trees


def _check_size(data: bytes, bytes_max: int) -> None:
    if len(data) > bytes_max:
        raise BadEntry("too_large", f"{len(data)} bytes, at most {bytes_max} are read")


def _not(form: str, error: Exception) -> BadEntry:
    return BadEntry("decode", f"not {form}: {str(error) or type(error).__name__}")


def _map(value: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever was decoded
    if not isinstance(value, dict):
        raise BadEntry("decode", f"must be a map, not {type(value).__name__}")
    return value


def _distinct(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    if not _NAMES.issuperset(map(type, found)):
        raise ValueError("a key is no string")
    return found


def _check_inside(value: dict[str, Any] | list[Any], levels: int = DEPTH_MAX) -> None:
    """Refuse what lies deeper than ``levels``, and what is neither a scalar nor a map or list."""
    items = value.values() if isinstance(value, dict) else value
    if not _SCALARS.issuperset(map(type, items)):
        for item in items:
            if isinstance(item, (dict, list)):
                if levels == 1:
                    raise ValueError("nested too deep")
                _check_inside(item, levels - 1)
            elif type(item) not in _SCALARS:  # msgpack's own timestamp, which asks no hook
                raise ValueError("an extension type has no meaning here")


def _no_extension(code: int, data: bytes) -> NoReturn:
    del data
    message = f"extension type {code} has no meaning here"
    raise ValueError(message)


def _array_to_ext(value: Any) -> Any:  # noqa: ANN401 - called by msgpack for what it does not know
    if not isinstance(value, np.ndarray):
        message = f"a state holds no {type(value).__name__}"
        raise TypeError(message)
    content = value.tolist() if value.dtype == np.object_ else np.ascontiguousarray(value).tobytes()
    return msgpack.ExtType(_ARRAY_EXT, msgpack.packb([value.dtype.str, list(value.shape), content]))


def _ext_to_array(code: int, data: bytes) -> NDArray[Any]:
    if code != _ARRAY_EXT:
        _no_extension(code, data)
    dtype, shape, content = msgpack.unpackb(data)
    if isinstance(content, list):
        array = np.empty(len(content), dtype=np.object_)
        array[:] = content
        return array.reshape(shape)
    return np.frombuffer(content, dtype=dtype).reshape(shape)
