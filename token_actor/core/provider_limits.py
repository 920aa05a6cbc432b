"""Limits in the shape in which providers set them: requests and tokens per minute of one model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from token_actor.core.limits import Limit
from token_actor.core.usage import check_name
from token_actor.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Mapping

QUOTA_UNITS: Final = ("requests", "tokens", "input_tokens", "output_tokens")
_WEIGHTS: Final = {  # what a provider counts as input: also what it writes to its cache, but not what it reads there
    "input_tokens": {"cache_read_tokens": 0, "cache_write_tokens": 1},
}


def provider_limits(  # noqa: PLR0913 - one keyword for each quota that providers set
    provider: str,
    model: str,
    *,
    tokens_per_minute: int | None = None,
    input_tokens_per_minute: int | None = None,
    output_tokens_per_minute: int | None = None,
    requests_per_minute: int | None = None,
    tenant: str | None = None,
    **options: Any,  # noqa: ANN401 - fields of a limit
) -> list[Limit]:
    """Return the limits of one model of a provider, to be put in force; ``None`` means no such limit.

    They are named like ``anthropic/claude-x/input_tokens``, before that the ``tenant``, if only its calls
    are covered. Input is what is sent anew or written to the cache; what is read from the cache counts in
    ``tokens_per_minute`` only. ``options`` are other fields of a ``Limit``, the same for all: ``seconds`` for a
    quota per day, ``mode``, ``by``. Raises ``InvalidValue`` naming the field that is wrong.
    """
    amounts = {
        "requests": requests_per_minute,
        "tokens": tokens_per_minute,
        "input_tokens": input_tokens_per_minute,
        "output_tokens": output_tokens_per_minute,
    }
    selector = provider_selector(provider, model, tenant)
    given = {unit: amount for unit, amount in amounts.items() if amount is not None}
    return [quota_limit(selector, unit, amount, **options) for unit, amount in given.items()]


def provider_selector(provider: str | None, model: str | None, tenant: str | None = None) -> dict[str, str]:
    """Return what selects the calls of one model, of one tenant or (``None``) of all. Raises ``InvalidValue``."""
    given = {"tenant": tenant, "provider": provider, "model": model}
    names = {dimension: check_name(dimension, name) for dimension, name in given.items()}
    for dimension in ("provider", "model"):
        if not names[dimension]:
            raise InvalidValue(dimension, "must be named", reason="bad_name")
    return {dimension: name for dimension, name in names.items() if name}


def quota_limit(selector: Mapping[str, str], unit: str, amount: int, **options: Any) -> Limit:  # noqa: ANN401
    """Return the limit of one unit that a provider sets on what is selected. Raises ``InvalidValue``."""
    name = "/".join([*selector.values(), unit])
    fields: dict[str, Any] = {"unit": unit, "selector": dict(selector), "weights": _WEIGHTS.get(unit), **options}
    return Limit(name, amount, **fields)
