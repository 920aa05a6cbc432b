"""The key dictionary: every key this package uses, and nothing else knows how they are spelt.

All keys of a partition share one hash tag, so they live in one slot of a cluster.

=================================  ======  ================================================  ====================
key                                type    what                                              who writes
=================================  ======  ================================================  ====================
``{ns:p}:log``                     stream  usage and commands in order; the source of truth  clients, the leader
``{ns:p}:ask``                     stream  read-only questions                               clients
``{ns:p}:inbox:<client>``          stream  answers to one client; short-lived                the leader
``{ns:p}:dead``                    stream  what could not be applied, with the reason        the leader
``{ns:p}:notices``                 stream  thresholds of budgets that were reached                   the leader
``{ns:p}:notified:<consumer>``     string  the last notice that a consumer was given                 ``notify``
``{ns:p}:escrow``                  hash    calls that may be taken, by number of the escrow  the leader; clients take
``{ns:p}:leader``                  string  who leads, as ``<epoch>:<holder>``; with a TTL     actors
``{ns:p}:epoch``                   string  the last epoch given to a leader                  actors
``{ns:p}:snapshots``               stream  manifests, with the id ``<epoch>-<n>``            the leader
``{ns:p}:chunk:<epoch>-<n>:<i>``   string  parts of a snapshot                               the leader
``ns:meta``                        hash    number of partitions, version of the schema       the first actor
=================================  ======  ================================================  ====================
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

from token_actor.errors import InvalidValue

_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CLIENT = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Keys:
    """Spell the keys of one partition of a namespace. Raises ``InvalidValue`` for a bad namespace."""

    namespace: str = "default"
    partition: int = 0

    def __post_init__(self) -> None:
        """Check the namespace: it is part of every key."""
        check_namespace(self.namespace)

    def _key(self, rest: str) -> bytes:
        return f"{{{self.namespace}:{self.partition}}}:{rest}".encode()

    @property
    def log(self) -> bytes:
        """Return the key of the log."""
        return self._key("log")

    @property
    def ask(self) -> bytes:
        """Return the key of the stream of questions."""
        return self._key("ask")

    @property
    def dead(self) -> bytes:
        """Return the key of the stream of dead letters."""
        return self._key("dead")

    @property
    def notices(self) -> bytes:
        """Return the key of the stream of notices."""
        return self._key("notices")

    def notified(self, consumer: str) -> bytes:
        """Return the key of the last notice that a consumer was given."""
        return self._key(f"notified:{check_client(consumer)}")

    @property
    def leader(self) -> bytes:
        """Return the key of the lease of leadership."""
        return self._key("leader")

    @property
    def epoch(self) -> bytes:
        """Return the key of the counter of epochs."""
        return self._key("epoch")

    @property
    def snapshots(self) -> bytes:
        """Return the key of the stream of manifests."""
        return self._key("snapshots")

    @property
    def escrow(self) -> bytes:
        """Return the key of the counters of what is set aside."""
        return self._key("escrow")

    def inbox(self, client: str) -> bytes:
        """Return the key of the answers to one client."""
        return self._key(f"inbox:{check_client(client)}")

    def chunk(self, snapshot_id: bytes, index: int) -> bytes:
        """Return the key of one part of a snapshot."""
        return self._key(f"chunk:{snapshot_id.decode()}:{index}")

    @property
    def meta(self) -> bytes:
        """Return the key of what holds for the namespace as a whole."""
        return f"{self.namespace}:meta".encode()


def check_namespace(value: str) -> str:
    """Return a namespace that can be part of a key. Raises ``InvalidValue``."""
    if not _NAMESPACE.fullmatch(value):
        raise InvalidValue("namespace", f"must be 1 to 64 letters, digits, '_', '.' or '-', not {value!r}")
    return value


def check_client(value: str) -> str:
    """Return a client id that can be part of a key. Raises ``InvalidValue``."""
    if not _CLIENT.fullmatch(value):
        raise InvalidValue("client", "must be 1 to 64 letters, digits, '_' or '-'", reason="bad_name")
    return value


def partition_of(tenant: str, partitions: int) -> int:
    """Return the partition a tenant lives in: CRC-32 (as in zlib) of its UTF-8 name, modulo ``partitions``."""
    return zlib.crc32(tenant.encode()) % partitions
