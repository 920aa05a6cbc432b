"""Facts about the key dictionary."""

from __future__ import annotations

import inspect
import re
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import examples
from token_actor.errors import InvalidValue
from token_actor.wire import keys as keys_module
from token_actor.wire.keys import Keys, check_client, check_namespace, partition_of

KEYS = Keys("ns", 3)
MADE = {  # every key, as the dictionary spells it
    "{ns:p}:log": KEYS.log,
    "{ns:p}:ask": KEYS.ask,
    "{ns:p}:inbox:<client>": KEYS.inbox("c-1_X"),
    "{ns:p}:dead": KEYS.dead,
    "{ns:p}:notices": KEYS.notices,
    "{ns:p}:notified:<consumer>": KEYS.notified("w-1"),
    "{ns:p}:escrow": KEYS.escrow,
    "{ns:p}:leader": KEYS.leader,
    "{ns:p}:epoch": KEYS.epoch,
    "{ns:p}:snapshots": KEYS.snapshots,
    "{ns:p}:chunk:<epoch>-<n>:<i>": KEYS.chunk(b"7-2", 5),
    "ns:meta": KEYS.meta,
}


def test_the_dictionary_in_the_docstring_names_every_key_and_no_other():
    assert set(re.findall(r"^``([^`]+)``", keys_module.__doc__ or "", re.MULTILINE)) == set(MADE)


def test_there_is_no_key_besides():
    public = {name for name, _ in inspect.getmembers(Keys) if not name.startswith("_")} - {"namespace", "partition"}
    assert public == {
        "log", "ask", "inbox", "dead", "notices", "notified", "leader", "escrow", "epoch", "snapshots", "chunk", "meta",
    }  # fmt: skip
    assert len(public) == len(MADE)


@pytest.mark.parametrize("pattern", MADE)
def test_a_key_is_spelt_as_the_dictionary_says(pattern):
    spelt = pattern.replace("{ns:p}", "{ns:3}")
    for variable, value in (("<client>", "c-1_X"), ("<consumer>", "w-1"), ("<epoch>-<n>", "7-2"), ("<i>", "5")):
        spelt = spelt.replace(variable, value)
    assert MADE[pattern] == spelt.encode()


def test_all_keys_of_a_partition_share_one_hash_tag():
    tags = {key[key.index(b"{") + 1 : key.index(b"}")] for pattern, key in MADE.items() if pattern != "ns:meta"}
    assert tags == {b"ns:3"}


def test_the_namespace_is_default_and_the_partition_0_unless_told_otherwise():
    assert Keys().log == b"{default:0}:log"


@pytest.mark.parametrize("namespace", ["a", "A-b_c.9", "x" * 64])
def test_a_namespace_can_be_part_of_a_key(namespace):
    assert check_namespace(namespace) == namespace


@pytest.mark.parametrize("namespace", ["", "x" * 65, "a:b", "a b", "{a}", "a\n", "ä", "*"])
def test_any_other_namespace_is_refused(namespace):
    with pytest.raises(InvalidValue) as refused:
        Keys(namespace)
    assert refused.value.field == "namespace"


@pytest.mark.parametrize("client", ["", "x" * 65, "a:b", "a.b", "a b", "a}", "a\n", "ä", "../x"])
def test_a_client_that_could_write_elsewhere_is_refused(client):
    with pytest.raises(InvalidValue) as refused:
        KEYS.inbox(client)
    assert (refused.value.field, refused.value.reason) == ("client", "bad_name")


def test_a_client_is_kept_as_given():
    assert check_client("Worker_9-a") == "Worker_9-a"


@pytest.mark.parametrize(
    ("tenant", "partition"), [("default", 15), ("acme", 14), ("名前", 0), ("", 0), ("tenant-42", 12)]
)
def test_a_tenant_stays_in_its_partition_for_ever(tenant, partition):
    assert partition_of(tenant, 16) == partition


def test_one_partition_holds_every_tenant():
    assert partition_of("anyone", 1) == 0


@given(st.text(max_size=20).filter(str.isprintable), st.integers(1, 1000))
@examples(100)
def test_a_partition_follows_from_the_bytes_of_the_name(tenant, partitions):
    assert partition_of(tenant, partitions) == zlib.crc32(tenant.encode()) % partitions
