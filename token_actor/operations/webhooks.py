"""Webhooks: every notice of a namespace is posted to an address, at least once, in the order of the log.

What was delivered is remembered on the server under the name of a consumer, so a notifier that is
started again goes on from there. What an answer means:

=========================  ====================================================================
2xx                        delivered
408, 425, 429, 5xx, none   the receiver is away: tried again until it takes it, less and less often
everything else            refused: tried ``ATTEMPTS_MAX`` times, then left out, and said in the log
=========================  ====================================================================
"""

from __future__ import annotations

import hmac
import json
import logging
import urllib.error
import urllib.request
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from token_actor.client.notices import NoticeReader, last_notice
from token_actor.errors import InvalidValue, ServerRefused, TransportError
from token_actor.operations.places import all_keys, partition_count
from token_actor.transport.ports import Put
from token_actor.wire.keys import check_client
from token_actor.wire.notices import place_of

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence
    from email.message import Message
    from http.client import HTTPResponse
    from typing import IO

    from token_actor.transport.ports import Connection
    from token_actor.wire.keys import Keys

ATTEMPTS_MAX: Final = 5  # at a notice that the receiver refuses; others must not wait for it for ever
AWAY: Final = frozenset({408, 425, 429})  # with all of 5xx: not now, but later
TIMEOUT_S: Final = 10.0  # for each step of a request; receivers are asked to answer at once
WAIT_S: Final = (1.0, 60.0)  # between attempts: the first wait, and the longest
NEWS_MS: Final = 1_000  # between looks for new notices
SIGNATURE: Final = "Token-Actor-Signature"
OLDEST: Final = "0"  # in the place of an id: from the oldest notice that is kept

log = logging.getLogger(__name__)


def consumer_of(url: str) -> str:
    """Return the name under which is remembered what an address was given."""
    return f"webhook-{sha256(url.encode()).hexdigest()[:16]}"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: what is posted would be lost on the way."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        """Refuse; the redirect is then an error as any other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Post notices to ``url``; with a ``secret``, signed. Raises ``InvalidValue`` for what is no address."""

    url: str
    secret: bytes | None = None
    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        """Refuse what is not of the web: other schemes would read files."""
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InvalidValue("webhook", f"must be an address such as https://host/path, not {self.url!r}")
        if self.secret == b"":
            raise InvalidValue("secret", "must not be empty")

    def post(self, notice: Mapping[str, Any]) -> tuple[int | None, str]:
        """Post one notice; return the status of the answer, ``None`` for no answer, and what is wrong with it."""
        body = json.dumps(notice, ensure_ascii=False).encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "token-actor",
            "Idempotency-Key": notice["id"],
        }
        if self.secret is not None:
            headers[SIGNATURE] = f"sha256={hmac.new(self.secret, body, sha256).hexdigest()}"
        request = urllib.request.Request(self.url, body, headers, method="POST")  # noqa: S310 - checked above
        opener = urllib.request.build_opener(_NoRedirects)
        try:
            response: HTTPResponse
            with opener.open(request, timeout=self.timeout_s) as response:
                return response.status, ""
        except urllib.error.HTTPError as error:
            error.close()
            return error.code, f"{error.code} {error.reason}"
        except (OSError, HTTPException) as error:  # no connection, a timeout, or no HTTP
            return None, str(error) or type(error).__name__


class Notifier:
    """Give every notice of a namespace to a webhook, and remember which it was given.

    ``since`` is the id of a notice to go on behind, ``OLDEST`` means all that are kept. ``None`` goes on
    where this ``consumer`` was; one that is new is given those to come. Raises ``InvalidValue``.
    """

    def __init__(
        self,
        connection: Connection,
        namespace: str,
        webhook: Webhook,
        *,
        consumer: str | None = None,
        since: str | None = None,
        wait_s: tuple[float, float] = WAIT_S,
    ) -> None:
        """Prepare; nothing is read yet."""
        if since is not None and since != OLDEST:
            place_of(since)
        self._connection = connection
        self._namespace = namespace
        self._webhook = webhook
        self._consumer = check_client(consumer or consumer_of(webhook.url))
        self._since = since
        self._given: dict[int, str] = {}  # by partition: the last notice that was delivered
        self._wait_s = wait_s

    def run(self, stop: threading.Event) -> None:
        """Deliver until ``stop`` is set, through every loss of the server and of the receiver."""
        readers: list[tuple[Keys, NoticeReader]] = []
        away = False
        while not stop.is_set():
            try:
                readers = readers or self._readers()
                self._deliver_new(readers, stop)
                away = False
            except TransportError as error:
                readers = []  # what they had read is not delivered
                if not away:
                    extra = {"action": "notices_unread", "problem": str(error)}
                    log.warning("Notices cannot be read; it is tried again", extra=extra)
                away = True
                stop.wait(self._wait_s[0])

    def _readers(self) -> list[tuple[Keys, NoticeReader]]:
        """Return what reads each partition, from where this consumer is; nothing while nobody has ever served one."""
        if partition_count(self._connection, self._namespace) is None:
            self._since = self._since or OLDEST  # whatever comes is new
            return []
        return [
            (keys, NoticeReader(self._connection, keys, self._begin(keys)))
            for keys in all_keys(self._connection, self._namespace)
        ]

    def _begin(self, keys: Keys) -> str | None:
        if keys.partition in self._given:
            return self._given[keys.partition]
        if self._since is not None:
            return None if self._since == OLDEST else self._since
        known = self._connection.get(keys.notified(self._consumer))
        if known is not None:
            return known.decode()
        begin = last_notice(self._connection, keys)
        self._remember(keys, begin)  # now: what comes before the first delivery counts as new also after a restart
        return begin

    def _remember(self, keys: Keys, notice_id: str) -> None:
        """Write down what was given. A server that is full has no room for that, and another start repeats some."""
        (outcome,) = self._connection.write([Put(key=keys.notified(self._consumer), value=notice_id.encode())])
        if isinstance(outcome, ServerRefused):
            extra = {"action": "write_refused", "problem": str(outcome), "id": notice_id}
            log.error("The server does not remember what was delivered", extra=extra)

    def _deliver_new(self, readers: Sequence[tuple[Keys, NoticeReader]], stop: threading.Event) -> None:
        """Deliver what there is; waits a little when that is nothing."""
        block_ms = NEWS_MS if len(readers) == 1 else None
        found = 0
        for keys, reader in readers:
            for notice in reader.read(block_ms=block_ms):
                found += 1
                if not self._deliver(notice, stop):
                    return
                self._given[keys.partition] = notice["id"]
                self._remember(keys, notice["id"])
        if not found and block_ms is None:
            stop.wait(NEWS_MS / 1000)

    def _deliver(self, notice: Mapping[str, Any], stop: threading.Event) -> bool:
        """Post a notice until it is taken or given up; tell whether it need not be posted again."""
        refused, wait_s = 0, self._wait_s[0]
        while not stop.is_set():
            status, problem = self._webhook.post(notice)
            told = {"id": notice["id"], "limit": notice["limit"], "threshold_pct": notice["threshold_pct"]}
            if status is not None and 200 <= status < 300:  # noqa: PLR2004 - what HTTP calls a success
                log.info("Delivered a notice", extra={"action": "webhook_delivered", **told})
                return True
            is_away = status is None or status in AWAY or status >= 500  # noqa: PLR2004 - a fault of the server
            refused += not is_away
            if refused >= ATTEMPTS_MAX:
                extra = {"action": "webhook_refused", "problem": problem, **told}
                log.error("The webhook refuses a notice, which is left out", extra=extra)
                return True
            extra = {"action": "webhook_failed", "problem": problem, **told}
            log.warning("The webhook has not taken a notice; it is posted again", extra=extra)
            stop.wait(wait_s)
            wait_s = min(2 * wait_s, self._wait_s[1])
        return False
