"""Bytes to plain values and back, within limits, whatever the bytes are.

Nothing here trusts its input: lengths are bounded before anything is allocated, and whatever the
decoders raise becomes one ``BadEntry``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgpack
import numpy as np

from token_actor.errors import BadEntry

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH_BYTES_MAX: Final = 64 * 1024
MESSAGE_BYTES_MAX: Final = 16 * 1024  # one event, command or question
_ARRAY_EXT: Final = 1  # msgpack extension type of an array in a snapshot
_DECODE_ERRORS: Final = (ValueError, TypeError, RecursionError, OverflowError)


def pack(value: Any) -> bytes:  # noqa: ANN401 - any tree of plain values
    """Return a tree of plain values as msgpack."""
    packed: bytes = msgpack.packb(value)
    return packed


def unpack(data: bytes, *, bytes_max: int) -> dict[str, Any]:
    """Return the one map that ``data`` is.

    Raises ``BadEntry``: ``too_large`` before decoding, ``decode`` when it is not exactly one map of
    distinct string keys, or is nested deeper than a message can be.
    """
    _check_size(data, bytes_max)
    try:
        value = msgpack.unpackb(data, strict_map_key=True, object_pairs_hook=_distinct, ext_hook=_no_extension)
    except _DECODE_ERRORS as error:
        raise BadEntry("decode", f"not msgpack: {error!s}") from None
    return _map(value)


def unpack_json(data: bytes, *, bytes_max: int) -> dict[str, Any]:
    """Return the one JSON object that ``data`` is. Raises ``BadEntry`` like ``unpack``."""
    _check_size(data, bytes_max)
    try:
        value = json.loads(data, object_pairs_hook=_distinct)
    except _DECODE_ERRORS as error:
        raise BadEntry("decode", f"not JSON: {error}") from None
    return _map(value)


def pack_state(state: dict[str, Any]) -> bytes:
    """Return the tree of a snapshot, which may hold numpy arrays, as msgpack."""
    packed: bytes = msgpack.packb(state, default=_array_to_ext)
    return packed


def unpack_state(data: bytes) -> dict[str, Any]:
    """Return the tree of a snapshot. Its checksum must have been verified before."""
    return _map(msgpack.unpackb(data, ext_hook=_ext_to_array, strict_map_key=False))


def _check_size(data: bytes, bytes_max: int) -> None:
    if len(data) > bytes_max:
        raise BadEntry("too_large", f"{len(data)} bytes, at most {bytes_max} are read")


def _map(value: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever was decoded
    if not isinstance(value, dict):
        raise BadEntry("decode", f"must be a map, not {type(value).__name__}")
    return value


def _distinct(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


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
