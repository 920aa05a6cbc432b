"""Headers: what a decision says of the limits, as HTTP response headers.

``rate_limit_headers`` follows draft-ietf-httpapi-ratelimit-headers-11, ``vendor_headers`` what providers of
models send (``x-ratelimit-remaining-tokens``). Both take a *decision* (what ``reserve`` or ``explain`` was
answered, or ``decision_of`` a refusal) and the *limits* that cover the call, as ``client.limits()`` has them.

Rules of this file: a number is never negative, and never above what a structured field can hold. A time is
rounded up, and one that nobody knows is left out. What a shadow limit says is not told: it refuses nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

from token_actor.core.limits import CONCURRENCY
from token_actor.core.usage import RESERVED_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from token_actor.errors import RateLimited

SF_INTEGER_MAX: Final = 10**15 - 1  # RFC 9651: a structured field's integer has at most 15 digits
DAY_S: Final = 86_400
PERIODS_S: Final = {"day": DAY_S, "week": 7 * DAY_S, "month": 31 * DAY_S}  # the longest there is, clock changes apart
BURST: Final = "token-actor-burst"  # the draft wants parameters of one's own to name their vendor

# ``requests`` is what the draft assumes. Tokens and money are in no registry yet; left out, they would be taken for it.
_QUOTA_UNITS: Final = {
    "tokens": "tokens",
    "input_tokens": "input-tokens",
    "output_tokens": "output-tokens",
    "cost_nanousd": "nano-usd",
    CONCURRENCY: "concurrent-requests",
}
_PRINTABLE: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


class Quota(NamedTuple):
    """Say what is left of one limit. ``reset_ms`` is when it is whole again, ``None`` where nobody knows.

    ``wait_ms`` is how long a call that it refuses has to wait, ``None`` when it refuses none, or for ever.
    """

    limit: Mapping[str, Any]
    remaining: int
    fits: bool
    reset_ms: int | None
    wait_ms: int | None


def decision_of(error: RateLimited) -> dict[str, Any]:
    """Return the decision that a refusal tells of."""
    return {
        "granted": False,
        "limit": error.limit,
        "used": error.used,
        "reserved": error.reserved,
        "remaining": error.remaining,
        "retry_after_ms": None if error.retry_after_s is None else round(error.retry_after_s * 1000),
    }


def limits_covering(limits: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """Return those limits whose selector a call of these dimensions has."""
    return [each for each in limits if all(names.get(name) == value for name, value in each["selector"].items())]


def rate_limit_headers(decision: Mapping[str, Any], limits: Sequence[Mapping[str, Any]] = ()) -> dict[str, str]:
    """Return ``RateLimit-Policy``, ``RateLimit``, and ``Retry-After`` when the call is refused.

    ``limits`` make up the policy; a limit that the decision names and that is not among them has no window.
    """
    headers = {}
    policies = [_policy(limit) for limit in limits if limit["mode"] == "enforce"]
    if policies:
        headers["RateLimit-Policy"] = ", ".join(policies)
    items = [_service_limit(quota, granted=decision["granted"]) for quota in _quotas(decision, limits)]
    if items:
        headers["RateLimit"] = ", ".join(items)
    return {**headers, **_retry_after(decision)}


def vendor_headers(decision: Mapping[str, Any], limits: Sequence[Mapping[str, Any]] = ()) -> dict[str, str]:
    """Return ``x-ratelimit-limit-…``, ``-remaining-…`` and ``-reset-…`` by unit, as providers of models do.

    Of several limits of one unit the tightest is told. A limit that is not among ``limits`` has no unit, and is
    left out. A refusal has ``Retry-After``, and ``retry-after-ms`` for the clients that know it.
    """
    headers = {}
    for quota in sorted(_quotas(decision, limits), key=_share, reverse=True):
        if "unit" in quota.limit:
            unit = quota.limit["unit"].replace("_", "-")
            headers[f"x-ratelimit-limit-{unit}"] = str(_capacity(quota.limit))
            headers[f"x-ratelimit-remaining-{unit}"] = str(quota.remaining)
            headers.pop(f"x-ratelimit-reset-{unit}", None)
            if quota.reset_ms is not None:
                headers[f"x-ratelimit-reset-{unit}"] = duration(quota.reset_ms)
    headers.update(_retry_after(decision))
    if "Retry-After" in headers:
        headers["retry-after-ms"] = str(max(0, decision["retry_after_ms"]))
    return headers


def duration(milliseconds: int) -> str:
    """Return a length of time as providers write it: ``20ms``, ``1.5s``, ``6m0s``, ``1h0m0s``."""
    seconds, rest_ms = divmod(max(0, milliseconds), 1000)
    if rest_ms and not seconds:
        return f"{rest_ms}ms"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{rest_ms:03}".rstrip("0") if rest_ms else ""
    larger = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{larger}{seconds}{fraction}s"


def _quotas(decision: Mapping[str, Any], limits: Sequence[Mapping[str, Any]]) -> Iterator[Quota]:
    """Yield how each limit stands that a decision has figures of: all of them, or the binding one."""
    known = {limit["name"]: limit for limit in limits}
    told = decision.get("limits") or [{**decision, "name": decision.get("limit"), "fits": decision["granted"]}]
    for figures in told:
        name, remaining = figures["name"], figures["remaining"]
        if name is None or remaining is None or name.startswith(RESERVED_PREFIX):
            continue  # nothing covers the call; or what refuses is a bound of the actor, of which these are no figures
        limit = known.get(name, {"name": name})
        if "shadow" not in {limit.get("mode"), figures.get("mode")}:
            wait_ms = None if figures["fits"] else figures["retry_after_ms"]
            yield Quota(limit, _whole(remaining), figures["fits"], _reset_ms(limit, remaining, wait_ms), wait_ms)


def _reset_ms(limit: Mapping[str, Any], remaining: int, wait_ms: int | None) -> int | None:
    """Return when a limit is whole again if nobody uses anything; ``None`` where nobody knows.

    A window that anything is taken of says its length: when exactly what was taken leaves it, no decision tells.
    """
    if limit.get("kind") not in {"window", "bucket"}:
        return wait_ms
    missing = max(0, _capacity(limit) - remaining)
    window_ms: int = round(limit["seconds"] * 1000)
    amount: int = limit["amount"]
    whole_ms = -(-missing * window_ms // amount) if limit["kind"] == "bucket" else window_ms if missing else 0
    return max(wait_ms or 0, whole_ms)


def _policy(limit: Mapping[str, Any]) -> str:
    unit = "" if limit["unit"] not in _QUOTA_UNITS else f';qu="{_QUOTA_UNITS[limit["unit"]]}"'
    window_s = _window_s(limit)
    window = "" if window_s is None else f";w={_whole(window_s)}"
    burst = "" if limit.get("burst") in {None, limit["amount"]} else f";{BURST}={_whole(limit['burst'])}"
    return f"{_string(limit['name'])};q={_whole(limit['amount'])}{unit}{window}{burst}"


def _window_s(limit: Mapping[str, Any]) -> int | None:
    """Return the seconds that an amount is for, rounded up; ``None`` for what is in use at once."""
    if limit["kind"] == CONCURRENCY:
        return None
    if limit["kind"] == "calendar":
        return PERIODS_S.get(limit["period"])
    return max(1, _seconds(round(limit["seconds"] * 1000)))


def _service_limit(quota: Quota, *, granted: bool) -> str:
    """Return the item of one limit. Beside ``Retry-After`` no other window may end later than that."""
    window_ms = quota.reset_ms if granted else quota.wait_ms
    effective = "" if window_ms is None else f";t={_whole(_seconds(window_ms))}"
    return f"{_string(quota.limit['name'])};r={quota.remaining}{effective}"


def _retry_after(decision: Mapping[str, Any]) -> dict[str, str]:
    if decision["granted"] or decision["retry_after_ms"] is None:
        return {}
    return {"Retry-After": str(max(0, _seconds(decision["retry_after_ms"])))}


def _share(quota: Quota) -> float:
    return quota.remaining / max(1, _capacity(quota.limit)) if "kind" in quota.limit else 1.0


def _capacity(limit: Mapping[str, Any]) -> int:
    burst: int | None = limit.get("burst")
    amount: int = limit["amount"]
    return amount if burst is None else burst


def _seconds(milliseconds: int) -> int:
    return -(-milliseconds // 1000)


def _whole(value: int) -> int:
    return min(max(0, value), SF_INTEGER_MAX)


def _string(name: str) -> str:
    """Return a name as a structured field's string, which is ASCII: other characters are percent-encoded."""
    escaped = quote(name, safe=_PRINTABLE).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
