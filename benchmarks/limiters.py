"""The contestants of ``limits_bench``: each decides over the same rules, on the same server, as its manual says.

A rule is an amount of tokens in so many seconds, for each scope. Several rules are one decision: what one call
of an agent needs. How each library is told so:

* ``limits``: one ``hit`` per rule, one after the other, until one refuses (its own advice, and what its
  integrations do). What the earlier ones took stays taken.
* ``throttled-py``: one ``limit`` per rule, in the same way.
* ``pyrate-limiter``: all rules are rates of one bucket, so a decision is one call of one script. This works for
  rules of one scope alone, as here. For rules of several scopes (an organisation's, a model's, an agent's) it takes
  a bucket and a call for each, as with the others: that is ``each``. Its log keeps an entry per token, ``GCRA`` a
  number per rule, of which nothing ever has to be cleared away.
* ``token-actor``: one ``reserve`` over all of them, or a lease, which decides from a block of quota that the client
  holds. What a lease has granted is released where nothing is ever full, and settled where windows are counted.

The foreign libraries are imported where they are used, so that this file can be read without them.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import redis

from token_actor.core.limits import Limit
from token_actor.errors import RateLimited
from token_actor.service import TokenClient

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

COST: Final = 4_000
TTL_S: Final = 5.0  # of a reservation that nobody settles: in five seconds it expires, and that is part of the cost
NAMESPACE: Final = "bench"
AGENT: Final = "bench"


class Rule(NamedTuple):
    """Allow so many tokens in so many seconds, for each scope."""

    amount: int
    seconds: int


class Deciding(NamedTuple):
    """Decide for a scope, and let go of the connections at the end.

    ``after`` ends what was granted last; it is no part of the decision.
    """

    decide: Callable[[str], bool]
    close: Callable[[], None]
    after: Callable[[], None] | None = None


Contestant: TypeAlias = "Callable[[str, Sequence[Rule]], Deciding]"


def ping_bare(url: str, rules: Sequence[Rule]) -> Deciding:
    """Send PING and read the reply, with redis-py's connection and nothing around it."""
    del rules
    wire: Any = redis.ConnectionPool.from_url(url, protocol=2).get_connection()

    def decide(scope: str) -> bool:
        del scope
        wire.send_packed_command([b"*1\r\n$4\r\nPING\r\n"], check_health=False)
        return bool(wire.read_response(disable_decoding=True))

    return Deciding(decide, wire.disconnect)


def ping(url: str, rules: Sequence[Rule]) -> Deciding:
    """Call redis-py's ``ping``, which all the other libraries' calls are like."""
    del rules
    client = redis.Redis.from_url(url)

    def decide(scope: str) -> bool:
        del scope
        return bool(client.ping())

    return Deciding(decide, client.close)


def limits_fixed(url: str, rules: Sequence[Rule]) -> Deciding:
    """Count in windows that begin with the first hit."""
    from limits import strategies  # noqa: PLC0415

    return _limits(strategies.FixedWindowRateLimiter, url, rules)


def limits_sliding(url: str, rules: Sequence[Rule]) -> Deciding:
    """Count in two windows, and estimate what slid out."""
    from limits import strategies  # noqa: PLC0415

    return _limits(strategies.SlidingWindowCounterRateLimiter, url, rules)


def _limits(strategy: Any, url: str, rules: Sequence[Rule]) -> Deciding:  # noqa: ANN401 - a class of a library
    from limits import RateLimitItemPerSecond, storage  # noqa: PLC0415

    stored = storage.RedisStorage(url)
    limiter = strategy(stored)
    items = [RateLimitItemPerSecond(rule.amount, rule.seconds) for rule in rules]
    return Deciding(
        lambda scope: all(limiter.hit(item, scope, cost=COST) for item in items), stored.get_connection().close
    )


def throttled_gcra(url: str, rules: Sequence[Rule]) -> Deciding:
    """Keep the time at which the bucket is empty."""
    return _throttled("gcra", url, rules)


def throttled_bucket(url: str, rules: Sequence[Rule]) -> Deciding:
    """Keep what is in the bucket, to the second."""
    return _throttled("token_bucket", url, rules)


def _throttled(kind: str, url: str, rules: Sequence[Rule]) -> Deciding:
    from throttled import Throttled, rate_limiter, store  # noqa: PLC0415

    stored = store.RedisStore(server=url)
    each = [
        Throttled(
            using=kind,
            quota=rate_limiter.per_duration(timedelta(seconds=rule.seconds), limit=rule.amount, burst=rule.amount),
            store=stored,
            key_prefix=f"rule{place}",
        )
        for place, rule in enumerate(rules)
    ]
    return Deciding(lambda scope: not any(one.limit(scope, cost=COST).limited for one in each), lambda: None)


def pyrate_log(url: str, rules: Sequence[Rule]) -> Deciding:
    """Keep an entry for each token, which is exact."""
    from pyrate_limiter import Limiter, RedisBucket  # noqa: PLC0415

    def limiter(rates: Any, client: redis.Redis, scope: str) -> Any:  # noqa: ANN401 - of a library
        return Limiter(RedisBucket.init(rates, client, f"log:{scope}"))

    return _pyrate(limiter, url, rules)


def pyrate_gcra(url: str, rules: Sequence[Rule], prefix: str = "gcra") -> Deciding:
    """Keep a number for each rate of a bucket."""
    from pyrate_limiter import GCRA, Limiter, RedisStateStore, SingleBucketFactory, StateBucket  # noqa: PLC0415

    def limiter(rates: Any, client: redis.Redis, scope: str) -> Any:  # noqa: ANN401 - of a library
        bucket = StateBucket(rates, algorithm=GCRA(), store=RedisStateStore(client, f"{prefix}:{scope}"))
        return Limiter(SingleBucketFactory(bucket, schedule_leak=False))

    return _pyrate(limiter, url, rules)


def pyrate_gcra_each(url: str, rules: Sequence[Rule]) -> Deciding:
    """Have a bucket for each rule, as for rules of several scopes."""
    each = [pyrate_gcra(url, [rule], f"gcra{place}") for place, rule in enumerate(rules)]

    def close() -> None:
        for one in each:
            one.close()

    return Deciding(lambda scope: all(one.decide(scope) for one in each), close)


def _pyrate(limiter: Callable[[Any, redis.Redis, str], Any], url: str, rules: Sequence[Rule]) -> Deciding:
    from pyrate_limiter import Rate  # noqa: PLC0415

    client = redis.Redis.from_url(url)
    rates = [Rate(rule.amount, rule.seconds * 1_000) for rule in sorted(rules, key=lambda rule: rule.seconds)]
    limiters: dict[str, Any] = {}

    def decide(scope: str) -> bool:
        if scope not in limiters:
            limiters[scope] = limiter(rates, client, scope)
        return bool(limiters[scope].try_acquire(scope, weight=COST, blocking=False))

    def close() -> None:
        for each in limiters.values():
            each.close()
        client.close()

    return Deciding(decide, close)


def reserve(url: str, rules: Sequence[Rule]) -> Deciding:
    """Decide over all rules at once; what is reserved expires. The rules must be in force: see ``in_force``."""
    del rules
    client = _client(url)

    def decide(scope: str) -> bool:
        with suppress(RateLimited):
            client.reserve(COST, user=scope, ttl_s=TTL_S)
            return True
        return False

    return Deciding(decide, client.close)


def reserve_and_settle(url: str, rules: Sequence[Rule]) -> Deciding:
    """Decide, and make it right after the call: two round trips, which no other contestant has anything like."""
    del rules
    client = _client(url)

    def decide(scope: str) -> bool:
        with suppress(RateLimited):
            client.reserve(COST, user=scope, ttl_s=TTL_S).settle(COST)
            return True
        return False

    return Deciding(decide, client.close)


def leased(url: str, rules: Sequence[Rule]) -> Deciding:
    """Decide from what a lease holds, and release it."""
    return _leased(url, rules, lambda call: call.release())


def leased_and_settled(url: str, rules: Sequence[Rule]) -> Deciding:
    """Decide from what a lease holds, and settle it."""
    return _leased(url, rules, lambda call: call.settle(COST))


def _leased(url: str, rules: Sequence[Rule], end: Callable[[Any], None]) -> Deciding:
    del rules
    client: Any = _client(url)
    leases: dict[str, Any] = {}
    calls: list[Any] = []

    def decide(scope: str) -> bool:
        lease = leases.get(scope)
        if lease is None:
            lease = leases[scope] = client.lease(user=scope, held_s=TTL_S)
        with suppress(RateLimited):
            calls.append(lease.reserve(COST))
            return True
        return False

    def after() -> None:
        while calls:
            end(calls.pop())

    def close() -> None:
        for lease in leases.values():
            lease.close()
        client.close()

    return Deciding(decide, close, after)


def _client(url: str) -> TokenClient:
    return TokenClient(url, namespace=NAMESPACE, agent=AGENT, timeout_s=10.0)


def in_force(url: str, rules: Sequence[Rule]) -> None:
    """Put exactly these rules in force at the actor."""
    with _client(url) as client:
        for limit in client.limits():
            client.delete_limit(limit["name"])
        for place, rule in enumerate(rules):
            client.put_limit(Limit(f"rule{place}", rule.amount, seconds=rule.seconds, by=("user",)))


OTHERS: Final[Mapping[str, Contestant]] = {
    "limits, fixed window": limits_fixed,
    "limits, sliding window counter": limits_sliding,
    "throttled-py, gcra": throttled_gcra,
    "throttled-py, token bucket": throttled_bucket,
    "pyrate-limiter, GCRA, one bucket": pyrate_gcra,
    "pyrate-limiter, GCRA, each": pyrate_gcra_each,
    "pyrate-limiter, log": pyrate_log,
}
OURS: Final[Mapping[str, Contestant]] = {
    "token-actor, reserve": reserve,
    "token-actor, reserve and settle": reserve_and_settle,
    **({"token-actor, leased": leased} if hasattr(TokenClient, "lease") else {}),
}
STRICT: Final[Mapping[str, Contestant]] = {
    "token-actor, reserve": reserve,
    **({"token-actor, leased": leased_and_settled} if hasattr(TokenClient, "lease") else {}),
}
PINGS: Final[Mapping[str, Contestant]] = {"PING, bare": ping_bare, "PING, redis-py": ping}
EVERYBODY: Final[Mapping[str, Contestant]] = {**PINGS, **OTHERS, **OURS}
SLOW: Final = frozenset({"pyrate-limiter, log"})  # 4,000 entries of a sorted set per decision: milliseconds each
