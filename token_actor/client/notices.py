"""Notices as a client sees them: read from their stream, or followed by a thread that calls back."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from token_actor.client.limits import Limits
from token_actor.client.questions import tenant_of
from token_actor.core.usage import check_count
from token_actor.errors import BadEntry, ClosedError, TransportError
from token_actor.transport.ports import FIRST
from token_actor.wire.entries import id_pair
from token_actor.wire.notices import NOTICES_MAX, NoticeEntry, place_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from token_actor.client.engine import Engine
    from token_actor.transport.ports import Connection, Connector, Entry
    from token_actor.wire.keys import Keys

NoticeMap: TypeAlias = dict[str, Any]

ENTRIES_PER_READ: Final = 100
WAIT_MS: Final = 1_000  # for news; then the stream is looked at, in case the server has lost it
_RETRY_S: Final = 1.0  # after a lost connection
_JOIN_S: Final = 1.0  # for a callback under way when its watch is stopped

log = logging.getLogger("token_actor.client")


class NoticeReader:
    """Read the notices of one partition in order, each once, from behind an id on; ``None`` means from the oldest."""

    def __init__(self, connection: Connection, keys: Keys, after: str | None) -> None:
        """Prepare. Raises ``InvalidValue`` when ``after`` is no id of a notice."""
        self._connection = connection
        self._key = keys.notices
        self._entry, self._place = (FIRST, NOTICES_MAX) if after is None else place_of(after)
        self.at_end = False  # whether the last read has found that there is no more

    def read(self, *, block_ms: int | None) -> list[NoticeMap]:
        """Return the next notices; waits for the first one up to ``block_ms`` milliseconds."""
        if self._place < NOTICES_MAX:  # some of that entry may be left
            entries = self._connection.range(self._key, start=self._entry, end=self._entry, count=1)
            after, self._place = self._place, NOTICES_MAX
            if entries:
                return _documents(entries[0], after)
        read = self._connection.read({self._key: self._entry}, count=ENTRIES_PER_READ, block_ms=block_ms)
        entries = read.get(self._key, [])
        self.at_end = not entries
        if self.at_end:
            self._look()
            return []
        self._entry = entries[-1][0]
        return [notice for entry in entries for notice in _documents(entry)]

    def _look(self) -> None:
        """Begin anew when the server has lost the stream: what it holds now is new."""
        stream = None if self._entry == FIRST else self._connection.stream_state(self._key)
        if stream is None or id_pair(stream.last_id) < id_pair(self._entry):
            self._entry = FIRST


def _documents(entry: Entry, after: int = -1) -> list[NoticeMap]:
    """Return the notices of an entry; none of one that this program cannot read."""
    entry_id, fields = entry
    try:
        found = NoticeEntry.read(entry_id, fields)
    except BadEntry as bad:
        extra = {"action": "notice_unread", "id": entry_id.decode(), "problem": str(bad)}
        log.warning("A notice cannot be read", extra=extra)
        return []
    if found.left_out:
        more: dict[str, Any] = {"action": "notices_left_out", "id": entry_id.decode(), "left_out": found.left_out}
        log.warning("More was reached at once than is told", extra=more)
    return found.documents(after)


def last_notice(connection: Connection, keys: Keys) -> str:
    """Return an id behind which only notices to come are."""
    stream = connection.stream_state(keys.notices)
    return (FIRST if stream is None else stream.last_id).decode()


class Watch:
    """Call back for every notice behind an id, from a thread with a connection of its own, until it is stopped.

    A callback that fails is logged, and changes nothing. ``ended`` is called when there is nothing more to come.
    """

    def __init__(
        self, keys: Keys, after: str, callback: Callable[[NoticeMap], object], ended: Callable[[], object] | None
    ) -> None:
        """Prepare; ``start`` begins."""
        self._keys = keys
        self._after = after
        self._callback = callback
        self._ended = ended
        self._stop = threading.Event()
        self._away = False
        self._connected = False
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="token-actor-notices", daemon=True)

    def start(self, connector: Connector) -> None:
        """Begin."""
        self._connection = connector.connect()
        self._thread.start()

    @property
    def running(self) -> bool:
        """Tell whether it has not ended yet."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End it, and wait a little for a callback that is under way; stopping twice is fine."""
        self.leave()
        if self.running and threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_S)

    def leave(self) -> None:
        """End it without waiting."""
        self._stop.set()
        if self._connection is not None and self._connected:  # what has not connected yet looks for a stop by itself
            self._connection.close()

    def _run(self) -> None:
        assert self._connection is not None, "start has made it"
        reader = NoticeReader(self._connection, self._keys, self._after)
        try:
            while not self._stop.is_set():
                for notice in self._read(reader):
                    if not self._stop.is_set():
                        self._tell(notice)
        finally:
            self._connection.close()
            if self._ended is not None:
                self._ended()

    def _read(self, reader: NoticeReader) -> list[NoticeMap]:
        try:
            notices = reader.read(block_ms=WAIT_MS if self._connected else None)
        except (TransportError, ClosedError) as error:
            if not (self._away or self._stop.is_set()):
                extra = {"action": "notices_unread", "problem": str(error)}
                log.warning("Notices cannot be read; it is tried again", extra=extra)
            self._away, self._connected = True, False
            self._stop.wait(_RETRY_S)
            return []
        self._away, self._connected = False, True
        return notices

    def _tell(self, notice: NoticeMap) -> None:
        try:
            self._callback(notice)
        except Exception:  # it is somebody else's, and must not keep the next one from being told
            extra = {"action": "callback_failed", "id": notice["id"]}
            log.exception("A callback for notices has failed", extra=extra)


class Notices(Limits):
    """Tell what budgets have reached.

    A notice is a map: ``id``, ``limit``, ``scope``, ``threshold_pct``, ``unit``, ``mode``, ``amount``, ``used`` when
    it was reached, ``period_start_ms``, ``period_end_ms``, ``log_ms``. A tenant's are in its partition.
    """

    def notices(
        self,
        after: str | None = None,
        limit: int = 100,
        *,
        tenant: str | None = None,
        timeout_s: float | None = None,
    ) -> list[NoticeMap]:
        """Return at most ``limit`` notices behind the one with the id ``after``, the oldest first.

        ``None`` means from the oldest that is kept; about 10,000 entries of the log are. What was just
        recorded may still be to come. Raises ``InvalidValue`` naming a wrong argument.
        """
        count = check_count("limit", limit)
        _check_after(after)

        def find(connection: Connection, keys: Keys) -> list[NoticeMap]:
            reader, found = NoticeReader(connection, keys, after), list[NoticeMap]()
            while len(found) < count and not reader.at_end:
                found += reader.read(block_ms=None)
            return found[:count]

        return self._engine.look(find, tenant=self._only_tenant(tenant)["tenant"], timeout_s=timeout_s)

    def on_notice(
        self,
        callback: Callable[[NoticeMap], object],
        after: str | None = None,
        *,
        ended: Callable[[], object] | None = None,
        tenant: str | None = None,
        timeout_s: float | None = None,
    ) -> Watch:
        """Call ``callback`` for every notice from now on, in a thread of its own; return what stops that.

        ``after`` is the id of a notice to go on behind, ``None`` means those to come. Waits until it is known
        where they begin, and raises ``ActorUnavailable`` at its deadline. It ends when the client is closed;
        a child process does not inherit it; ``ended`` is called then. A callback that fails is logged.
        """
        watch = Watch(*beginning(self._engine, after, tenant, timeout_s), callback, ended)
        self._engine.follow(watch)
        return watch


def beginning(engine: Engine, after: str | None, tenant: str | None, timeout_s: float | None) -> tuple[Keys, str]:
    """Return where a watch begins: in which partition, behind which id. Arguments as for ``on_notice``."""
    _check_after(after)

    def find(connection: Connection, keys: Keys) -> tuple[Keys, str]:
        return keys, last_notice(connection, keys) if after is None else after

    return engine.look(find, tenant=tenant_of(engine.settings.names, tenant), timeout_s=timeout_s)


def _check_after(after: str | None) -> None:
    if after is not None:
        place_of(after)
