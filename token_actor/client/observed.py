"""What providers say of their quotas, made the limits of the fleet."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from token_actor.client.limits import Limits
from token_actor.core.limits import AMOUNT_MAX, LIMIT_FIELDS, limit_of
from token_actor.core.pauses import PAUSE_MS_MAX
from token_actor.core.provider_limits import provider_selector, quota_limit
from token_actor.core.provider_quotas import read_quotas
from token_actor.errors import InvalidQuestion

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from token_actor.client.engine import Engine
    from token_actor.core.limits import Limit
    from token_actor.core.provider_quotas import ProviderQuotas

MODELS_MAX: Final = 1_000  # whose quotas are remembered; beyond that they are put in force again
log = logging.getLogger("token_actor.client")
_MINUTE_S: Final = 60
_DAY_S: Final = 86_400
_SECONDS: Final = {("groq", "requests"): _DAY_S}  # quotas that are not per minute; the headers do not say


class ObservedLimits(Limits):
    """Learn limits from responses of providers."""

    def __init__(self, engine: Engine) -> None:
        """Use ``engine`` for everything; nothing has been seen yet."""
        super().__init__(engine)
        self._amounts: dict[tuple[str, ...], dict[str, int]] = {}

    def observe_headers(
        self,
        headers: Mapping[str, str],
        *,
        status: int = 200,
        provider: str | None = None,
        model: str | None = None,
        tenant: str | None = None,
        timeout_s: float | None = None,
    ) -> ProviderQuotas:
        """Hold the whole fleet to what a provider says of its quotas; return what was understood.

        ``headers`` and ``status`` are those of a response to a call of this ``model`` of this ``provider``
        (``None``: the client's own). The limits are those of ``provider_limits``, of all tenants or of one;
        an amount that this client saw before costs nothing. After a 429 they grant nothing for as long as the
        response says, up to an hour; so they do after a 503 or 529 with a ``retry-after``. Waits for the actor only
        when there is something to tell it. Raises ``InvalidValue`` naming the dimension that is wrong.
        """
        names = self.client_names
        selector = provider_selector(provider or names.get("provider"), model or names.get("model"), tenant)
        told, left_s = read_quotas(headers, time.time()), self._time_left(timeout_s)
        self._put_amounts(selector, told.amounts, left_s)
        pause_s = told.pause_s(status)
        if pause_s:
            otherwise = _quota_limit(selector, "requests", told.amounts.get("requests", AMOUNT_MAX))
            for_ms = min(math.ceil(pause_s * 1000), PAUSE_MS_MAX)
            arguments = {"selector": selector, "for_ms": for_ms, "otherwise": otherwise.as_map()}
            try:
                self._engine.command("pause_limit", arguments, tenant=tenant, timeout_s=left_s())
            except InvalidQuestion as refused:  # there is no room for one more limit
                log.warning("A quota is not held", extra={"action": "quota_not_held", "problem": str(refused)})
        return told

    def _put_amounts(
        self, selector: Mapping[str, str], amounts: Mapping[str, int], left_s: Callable[[], float]
    ) -> None:
        """Put in force what differs from what was seen before."""
        key = tuple(selector.values())
        seen = self._amounts.get(key, {})
        for unit, amount in amounts.items():
            if seen.get(unit) != amount:
                self._put_quota(_quota_limit(selector, unit, amount), left_s)
                if len(self._amounts) >= MODELS_MAX:
                    self._amounts.clear()
                seen = self._amounts[key] = {**seen, unit: amount}

    def _put_quota(self, quota: Limit, left_s: Callable[[], float]) -> None:
        """Put a quota in force; of a limit of that name that is in force, only the amount is changed."""
        in_force = self.limits(top=0, tenant=quota.selector.get("tenant"), stale_ok=True, timeout_s=left_s())
        for fields in in_force:
            if fields["name"] == quota.name:
                known = limit_of({name: fields[name] for name in LIMIT_FIELDS if name in fields})
                quota = replace(known, amount=quota.amount)
        try:
            self.put_limit(quota, timeout_s=left_s())
        except InvalidQuestion as refused:
            log.warning("A quota is not held", extra={"action": "quota_not_held", "problem": str(refused)})


def _quota_limit(selector: Mapping[str, str], unit: str, amount: int) -> Limit:
    return quota_limit(selector, unit, amount, seconds=_SECONDS.get((selector["provider"], unit), _MINUTE_S))
