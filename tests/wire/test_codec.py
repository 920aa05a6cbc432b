"""Facts about bytes becoming plain values, whatever the bytes are."""

from __future__ import annotations

import json
import time
import tracemalloc

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import examples, plain
from token_actor.errors import BadEntry
from token_actor.wire.codec import (
    BATCH_BYTES_MAX,
    DEPTH_MAX,
    ITEMS_MAX,
    MESSAGE_BYTES_MAX,
    pack,
    pack_tree,
    unpack,
    unpack_batch,
    unpack_json,
    unpack_message,
    unpack_trees,
)

LISTS = {"k", "m"}


def unpack_trusted(data):
    return unpack(data, bytes_max=BATCH_BYTES_MAX)


def unpack_lists(data):
    return unpack_batch(data, lists=LISTS)


MSGPACK = [unpack_trusted, unpack_message, unpack_lists]
UNTRUSTED = [unpack_message, unpack_lists, unpack_json]


def refusal(decode, data):
    with pytest.raises(BadEntry) as refused:
        decode(data)
    return refused.value.reason, refused.value.detail


def read_or_refused(decode, data):
    """Return what was read, or the sentence of the refusal."""
    try:
        return decode(data)
    except BadEntry as bad:
        return str(bad)


def nested(levels):
    """Return a map with maps and lists in it, ``levels`` deep with itself."""
    value: object = 1
    for level in range(levels - 1):
        value = [value] if level % 2 else {"x": value}
    return {"x": value}


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("decode", MSGPACK)
def test_a_map_of_strings_is_read(decode):
    message = {"a": 1, "b": "é", "c": None, "d": b"\x00\xff", "e": True, "f": 0.5, "g": {"h": "i"}, "": -1}
    assert decode(pack(message)) == message


def test_a_json_object_is_read():
    assert unpack_json(b' {"a": [1, {"b": null}], "c": "\\u00e9"} ') == {"a": [1, {"b": None}], "c": "é"}


def test_a_list_is_read_where_a_batch_may_have_one():
    batch = {"k": ["a", "b"], "n": 2, "m": [None, {"a": "b"}]}
    assert unpack_lists(pack(batch)) == batch


def test_an_empty_list_and_no_list_are_read_where_a_batch_may_have_one():
    assert unpack_lists(pack({"k": [], "m": None})) == {"k": [], "m": None}


def test_a_list_of_a_batch_may_have_any_length():
    batch = {"m": ["x"] * 20_000}
    assert unpack_lists(pack(batch)) == batch


def test_a_message_may_be_as_deep_and_as_wide_as_this():
    message = nested(DEPTH_MAX)
    assert unpack_message(pack(message)) == unpack_json(json.dumps(message).encode()) == message
    wide = {str(number): list(range(ITEMS_MAX)) for number in range(ITEMS_MAX)}
    assert unpack_message(pack(wide)) == wide


@pytest.mark.parametrize(
    ("decode", "bytes_max"),
    [(unpack_trusted, BATCH_BYTES_MAX), (unpack_lists, BATCH_BYTES_MAX), (unpack_message, MESSAGE_BYTES_MAX)],
)
def test_a_map_may_be_as_long_as_its_bound_and_no_longer(decode, bytes_max):
    data = pack({"a": b"x" * (bytes_max - 6)})
    assert len(data) == bytes_max
    assert len(decode(data)["a"]) == bytes_max - 6
    assert refusal(decode, data + b"\xc0") == ("too_large", f"{bytes_max + 1} bytes, at most {bytes_max} are read")


def test_a_json_object_may_be_as_long_as_its_bound_and_no_longer():
    data = b'{"a":1}'.ljust(MESSAGE_BYTES_MAX)
    assert unpack_json(data) == {"a": 1}
    assert refusal(unpack_json, data + b" ")[0] == "too_large"


def test_what_is_too_large_is_not_even_looked_at():
    assert refusal(unpack_json, b"\xff" * (MESSAGE_BYTES_MAX + 1))[0] == "too_large"


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("decode", MSGPACK)
@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "not msgpack: "),
        (b"\xc1", "not msgpack: "),
        (b"\x81", "not msgpack: "),
        (b"\x81\xa1a", "not msgpack: "),
        (b"\x81\xa1a\xa5bc", "not msgpack: "),
        (b"\x80\x80", "not msgpack: "),
        (b"\x82\xa1a\x01\xa1a\x02", "not msgpack: a key occurs twice"),
        (b"\x81\xa1a\x82\xa1b\x01\xa1b\x02", "not msgpack: a key occurs twice"),
        (b"\x81\xc4\x01a\x01", "not msgpack: a key is no string"),
        (b"\x81\x07\x01", "not msgpack: "),
        (b"\x81\xc0\x01", "not msgpack: "),
        (b"\x81\x90\x01", "not msgpack: "),
        (b"\x81\xa1a\xd4\x05\x00", "not msgpack: extension type 5 has no meaning here"),
        (b"\x81\xd4\x05\x00\x01", "not msgpack: extension type 5 has no meaning here"),
        (b"\x81\xa1a\xd4\xff\x00", "not msgpack: "),
        (b"\xdf\xff\xff\xff\xff", "not msgpack: "),
        (b"\x81\xa1k\xdd\xff\xff\xff\xff", "not msgpack: "),
        (b"\x81\xa1k\xc6\xff\xff\xff\xff", "not msgpack: "),
        (b"\x81" * 5000, "not msgpack: "),
    ],
    ids=repr,
)
def test_bytes_that_are_no_map_of_distinct_strings_are_refused(decode, data, detail):
    reason, said = refusal(decode, data)
    assert reason == "decode"
    assert said.startswith(detail)
    assert len(said) > len("not msgpack: ")


def test_a_text_that_is_not_utf_8_is_refused_or_escaped_as_asked_for():
    assert refusal(unpack_message, b"\xa1\xff") == ("decode", "must be a map, not str")
    for data in (b"\x81\xa1\xff\x01", b"\x81\xa1a\xa1\xff"):
        assert refusal(unpack_trusted, data)[0] == "decode"
        assert refusal(unpack_message, data) == ("bad_name", "a text is not UTF-8: invalid start byte")
    assert unpack_message(b"\x81\xa1a\xa1\xff", any_text=True) == {"a": "\udcff"}
    assert unpack_json(b'{"a": "\xff"}') == unpack_lists(b"\x81\xa1a\xa1\xff") == {"a": "\udcff"}


@pytest.mark.parametrize("decode", MSGPACK)
@pytest.mark.parametrize("value", [1, "a", None, [], [1]])
def test_a_value_that_is_no_map_is_refused(decode, value):
    assert refusal(decode, pack(value))[0] == "decode"


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"{}{}", b"{'a': 1}", b'{"a": 1,}', b"[]", b"1", b"null", b'"a"', b"\xff\xfe",
        b'{"a": 1, "a": 2}', b'{"x": {"a": 1, "a": 2}}', b'{"a": ' + b"9" * 5000 + b"}", b"[" * 16_000, b'{"a":' * 3000,
        b'{"a": 01}', b'{"a": "\n"}',
    ],
    ids=lambda data: repr(data[:20]),
)  # fmt: skip
def test_bytes_that_are_no_json_object_are_refused(data):
    assert refusal(unpack_json, data)[0] == "decode"


@pytest.mark.parametrize("decode", UNTRUSTED)
def test_a_message_that_is_nested_too_deep_is_refused(decode):
    message = nested(DEPTH_MAX + 1)
    data = json.dumps(message).encode() if decode is unpack_json else pack(message)
    assert refusal(decode, data)[0] == "decode"


@pytest.mark.parametrize("message", [dict.fromkeys(map(str, range(ITEMS_MAX + 1))), {"a": [1] * (ITEMS_MAX + 1)}])
def test_a_message_with_too_many_items_is_refused(message):
    assert refusal(unpack_message, pack(message))[0] == "decode"


@pytest.mark.parametrize("place", ["value", "list", "map"])
def test_the_timestamps_of_msgpack_have_no_meaning_here(place):
    moment = msgpack.Timestamp(5)
    value = {"value": moment, "list": ["x", moment], "map": {"x": 1, "y": moment}}[place]
    assert refusal(unpack_message, pack({"a": 1, "b": value})) == (
        "decode",
        "not msgpack: an extension type has no meaning here",
    )


def test_a_field_of_a_batch_that_is_a_list_where_none_may_be_is_refused():
    assert refusal(unpack_lists, pack({"n": [1]}))[0] == "decode"
    assert refusal(unpack_lists, pack({"k": [["a"]]}))[0] == "decode"
    assert refusal(unpack_lists, pack({"k": [{"a": ["b"]}]}))[0] == "decode"


def test_a_field_of_a_batch_that_is_no_list_where_one_must_be_is_refused():
    assert refusal(unpack_lists, pack({"k": "a"}))[0] == "decode"


def test_a_list_that_claims_more_items_than_it_has_is_refused():
    assert refusal(unpack_lists, b"\x81\xa1k\x93\xa1a\xa1b") == ("decode", "not msgpack: incomplete input")
    assert refusal(unpack_lists, b"\x81\xa1k\xdd\xff\xff\xff\xff" + b"\xa1a" * 100)[0] == "decode"


# --- what it costs --------------------------------------------------------------------------------

BOMBS = {
    "nested lists": (b"\x81\xa1k" + b"\xdd\x00\x00\xff\xf0" * 13_100)[:BATCH_BYTES_MAX],
    "nested small lists": (b"\x81\xa1k" + b"\xdc\x27\x10" * 21_800)[:BATCH_BYTES_MAX],
    "nested maps": (b"\xdf\x00\x00\x7f\xf0\xa1a" * 9_300)[:BATCH_BYTES_MAX],
    "nested single lists": b"\x81\xa1k" + b"\x91" * 65_000,
    "nested single maps": b"\x81\xa1k" * 20_000,
    "many lists": (b"\x81\xa1k\xdc\xff\xf0" + b"\xdc\xff\x00" * 21_800)[:BATCH_BYTES_MAX],
    "many items": b"\x81\xa1k\xdd\x00\x00\xff\x00" + b"\xc0" * 65_000,
    "many maps": b"\x81\xa1k\xdd\x00\x00\xff\x00" + b"\x80" * 65_000,
    "many keys": b"\xde\xff\xff" + b"\xa0\xc0" * 32_000,
    "a long string": b"\x81\xa1k\xdb\xff\xff\xff\xff",
    "a long extension": b"\x81\xa1k\xc9\xff\xff\xff\xff\x05",
}


def cost_of(decode, data):
    """Return the peak of memory in bytes, and the seconds it took without measuring the memory."""
    tracemalloc.start()
    try:
        with pytest.raises(BadEntry):
            decode(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    started = time.perf_counter()
    with pytest.raises(BadEntry):
        decode(data)
    return peak, time.perf_counter() - started


@pytest.mark.parametrize("name", BOMBS)
def test_a_batch_that_claims_much_costs_little(name):
    peak, seconds = cost_of(unpack_lists, BOMBS[name])
    assert peak < 8_000_000 if name == "many maps" else peak < 1_500_000  # an empty map of Python has 64 bytes
    assert seconds < 0.25  # it is milliseconds; this machine may be busy


@pytest.mark.parametrize("name", BOMBS)
def test_a_message_that_claims_much_costs_little(name):
    peak, seconds = cost_of(unpack_message, BOMBS[name][:MESSAGE_BYTES_MAX])
    assert peak < 1_500_000
    assert seconds < 0.25


@pytest.mark.parametrize("data", [b"[" * 16_000, b'{"a":' * 3_200, b'{"a":"' + b"x" * 16_000, b'{"a":' + b"9" * 16_000])
def test_json_that_claims_much_costs_little(data):
    peak, seconds = cost_of(unpack_json, data)
    assert peak < 1_500_000
    assert seconds < 0.25


# --- anything at all ------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.text(max_size=3), PLAIN, max_size=6))
@examples(200)
def test_what_is_packed_unpacks_to_the_same(value):
    data = pack(value)
    assert unpack_trusted(data) == value
    read = read_or_refused(unpack_message, data)
    assert read in (value, "decode: not msgpack: nested too deep")


@pytest.mark.parametrize("decode", [*MSGPACK, unpack_json])
@given(data=st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: b"\x82\xa1k\x92\xa1a\xc0" + tail))
@examples(150)
def test_random_bytes_are_a_map_or_refused(decode, data):
    read = read_or_refused(decode, data)
    assert type(read) is dict or read.startswith(("decode: ", "bad_name: "))


# --- states ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        np.arange(5),
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.arange(12).reshape(3, 4)[:, 1:3],
        np.array([1, 255], dtype=np.uint8),
        np.empty(0, dtype=np.int64),
        np.zeros((7, 0), dtype=np.int64),
        np.array(["a", None, {"b": "c"}], dtype=np.object_),
        np.array([{"a": "b"}], dtype=np.object_),
        np.empty(0, dtype=np.object_),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_an_array_in_a_tree_comes_back_as_it_was(array):
    (again,) = unpack_trees(pack_tree({"array": array}))
    assert plain(again) == plain({"array": array})


def test_a_tree_may_hold_maps_with_any_keys():
    assert unpack_trees(pack_tree({"a": {1: "b", "c": [None, b"d"]}})) == [{"a": {1: "b", "c": [None, b"d"]}}]


def test_the_trees_of_a_segment_lie_one_after_the_other():
    assert unpack_trees(pack_tree({"a": 1}) + pack_tree({}) + pack_tree({"b": 2})) == [{"a": 1}, {}, {"b": 2}]
    assert unpack_trees(b"") == []


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_segment_that_is_cut_short_is_refused(cut):
    with pytest.raises(BadEntry, match="incomplete"):
        unpack_trees((pack_tree({"a": 1}) + pack_tree({"b": 2}))[:-cut])


def test_a_tree_holds_nothing_else():
    with pytest.raises(TypeError, match="a state holds no set"):
        pack_tree({"a": {1}})


def test_a_tree_with_an_extension_that_is_no_array_is_refused():
    with pytest.raises(ValueError, match="extension type 9"):
        unpack_trees(msgpack.packb({"a": msgpack.ExtType(9, b"")}))


def test_a_tree_is_a_map():
    with pytest.raises(BadEntry, match="must be a map, not list"):
        unpack_trees(b"\x90")
