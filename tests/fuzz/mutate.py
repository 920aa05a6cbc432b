"""Inputs that nobody thought of: those of a corpus, changed a little, the same ones for the same seed."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

CORPUS: Final = Path(__file__).parent / "corpus"
STEPS_MAX: Final = 6  # changes in a row: more of them leave nothing that is worth reading
SLICE_BYTES_MAX: Final = 64
BYTES_MAX: Final = 200_000  # no input grows for ever
PARTS_MAX: Final = 64  # of one input
INSIDE_SHARE: Final = 0.7  # of the changes: others break the frame, and nothing behind it is read

# What readers of msgpack, JSON and packed integers stumble over, if over anything.
INTERESTING: Final = (
    b"\x00", b"\xff", b"\x7f", b"\x80", b"\x90", b"\xc0", b"\xc1", b"\xc2", b"\xc3", b"\xa0", b"\xa1\xff",
    b"\xca\x7f\xc0\x00\x00", b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00", b"\xcf" + b"\xff" * 8, b"\xd3\x80" + b"\x00" * 7,
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xd4\x01\x00",
    b"\xd4\xff\x00", b"\xd6\xff\x00\x00\x00\x00", b"\xed\xa0\x80", b"\x1f", b"\n", b"__other__", b"NaN", b"1e999",
    b'"', b"{", b"[", b"\\ud800", b"-1", b"-9223372036854775808", b"18446744073709551616", b"9" * 40,
    (2**63 - 1).to_bytes(8, "little"), (2**63).to_bytes(8, "little"), (10**12 + 1).to_bytes(8, "little"),
)  # fmt: skip


def parts_of(data: bytes) -> list[tuple[int, bytes]]:
    """Return an input as (kind, bytes) pairs: a byte, a length of 4 bytes, and that many bytes, or what is left."""
    parts: list[tuple[int, bytes]] = []
    while data and len(parts) < PARTS_MAX:
        kind, length = data[0], int.from_bytes(data[1:5], "big")
        parts.append((kind, data[5 : 5 + length]))
        data = data[5 + length :]
    return parts


def joined(parts: list[tuple[int, bytes]]) -> bytes:
    """Return (kind, bytes) pairs as one input."""
    return b"".join(struct.pack(">BI", kind, len(value)) + value for kind, value in parts)


def corpus(target: str) -> list[bytes]:
    """Return the inputs kept for a target, in a fixed order."""
    return [path.read_bytes() for path in sorted((CORPUS / target).glob("*.bin"))]


def mutations(inputs: Sequence[bytes], rng: random.Random) -> Iterator[bytes]:
    """Yield changed inputs without end."""
    while True:
        data = rng.choice(inputs)
        for _ in range(rng.randint(1, STEPS_MAX)):
            changed = _changed_inside if rng.random() < INSIDE_SHARE else _changed
            data = changed(data, inputs, rng)[:BYTES_MAX]
        yield data


def _changed_inside(data: bytes, inputs: Sequence[bytes], rng: random.Random) -> bytes:
    """Change one part of an input that consists of parts, and leave the frame of all of them right."""
    parts = parts_of(data)
    if not parts:
        return data
    place = rng.randrange(len(parts))
    kind, value = parts[place]
    others = [value for _, value in parts_of(rng.choice(inputs))] or [b""]
    parts[place] = (kind, _changed(value, others, rng))
    return joined(parts)


def _changed(data: bytes, inputs: Sequence[bytes], rng: random.Random) -> bytes:
    start = rng.randint(0, len(data))
    stop = min(len(data), start + rng.randint(0, SLICE_BYTES_MAX))
    other = rng.choice(inputs)
    cut = rng.randint(0, len(other))
    interesting = rng.choice(INTERESTING)
    return rng.choice((
        lambda: data[:start] + bytes([rng.randrange(256)]) + data[start + 1 :],
        lambda: data[:start] + bytes(byte ^ 1 << rng.randrange(8) for byte in data[start:][:1]) + data[start + 1 :],
        lambda: data[:start] + interesting + data[start + len(interesting) :],
        lambda: data[:start] + interesting + data[start:],
        lambda: data[:start] + data[stop:],
        lambda: data[:stop] + data[start:],
        lambda: data[:start] + other[cut : cut + rng.randint(0, SLICE_BYTES_MAX)] + data[stop:],
        lambda: data[:start] + other[cut:],
    ))()  # fmt: skip
