"""Limits in a file: read them, and bring what is in force in line with them.

A file is TOML, with one table ``[[limit]]`` for each limit and the fields of ``Limit`` in it. Two are for
people: ``seconds`` may be text with a unit (``"90s"``, ``"1h"``), and ``amount_usd`` is an amount of dollars,
instead of ``amount`` and ``unit``.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final

from token_actor.core.killing import is_killed
from token_actor.core.limit_table import LIMITS_MAX
from token_actor.core.limits import AMOUNT_MAX, LIMIT_FIELDS, MONEY, Limit, limit_of
from token_actor.core.usage import NANO_PER_USD
from token_actor.errors import InvalidValue, SetupError
from token_actor.wire.keys import partition_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from token_actor.client.limits import Limits

_UNIT_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_LENGTH: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")


@dataclass(frozen=True, slots=True)
class Change:
    """Say what became of one limit: ``new``, ``changed``, ``same``, or ``deleted``.

    ``was`` has the former values of the fields that differ. ``counters_kept`` tells whether what was counted
    before still counts.
    """

    limit: Limit
    what: str
    was: Mapping[str, Any]
    counters_kept: bool

    def document(self) -> dict[str, Any]:
        """Return it as a map of plain values."""
        return {
            "limit": self.limit.as_map(),
            "change": self.what,
            "was": dict(self.was),
            "counters_kept": self.counters_kept,
        }


def read_limits(path: Path) -> list[Limit]:
    """Return the limits of a file, in its order. Raises ``SetupError`` naming the file, the limit and the field."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, not TOML, or a number of thousands of digits
        raise SetupError(f"{path} is no TOML: {error}") from None
    tables = document.pop("limit", [])
    if document:
        raise SetupError(f"{path}: {next(iter(document))!r} is not known; each limit is a table [[limit]]")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise SetupError(f"{path}: each limit is a table of its own, and begins with [[limit]], in double brackets")
    limits: dict[str, Limit] = {}
    for number, table in enumerate(tables, 1):
        name = f"limit {table['name']!r}" if "name" in table else f"the limit at place {number}"
        try:
            limit = limit_of(fields_of(table))
        except InvalidValue as problem:
            raise SetupError(f"{path}: {name}: {problem}") from None
        if limit.name in limits:
            raise SetupError(f"{path}: {name} is there twice; each name stands for one limit")
        limits[limit.name] = limit
    if len(limits) > LIMITS_MAX:
        raise SetupError(f"{path} has {len(limits)} limits; at most {LIMITS_MAX} can be in force")
    return list(limits.values())


def fields_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a limit from what people write. Raises ``InvalidValue`` naming the field."""
    fields = {name: _plain(value) for name, value in given.items() if name != "amount_usd"}
    if isinstance(fields.get("seconds"), str):
        fields["seconds"] = _length_s(fields["seconds"])
    if "amount_usd" in given:
        if "amount" in given or given.get("unit", MONEY) != MONEY:
            raise InvalidValue("amount_usd", f"stands for amount and the unit {MONEY}; leave those out")
        fields |= {"amount": nanousd_of(given["amount_usd"]), "unit": MONEY}
    return fields


def _plain(value: Any) -> Any:  # noqa: ANN401 - what TOML can hold; ``Limit`` checks it
    if isinstance(value, Decimal):
        return float(value)
    return {name: _plain(each) for name, each in value.items()} if isinstance(value, dict) else value


def _length_s(text: str) -> float:
    found = _LENGTH.fullmatch(text)
    if found is None:
        raise InvalidValue("seconds", f"must be a number, or text as in '90s', '15m', '1h', '7d', not {text!r}")
    seconds = float(found[1]) * _UNIT_S[found[2]]
    return int(seconds) if seconds.is_integer() else seconds


def nanousd_of(amount: object) -> int:
    """Return dollars as nano-dollars, exactly. Raises ``InvalidValue`` naming ``amount_usd``."""
    most = AMOUNT_MAX // NANO_PER_USD
    try:
        dollars = Decimal(str(amount)) if isinstance(amount, int | str | Decimal) else Decimal("nan")
    except InvalidOperation:
        dollars = Decimal("nan")
    if isinstance(amount, bool) or not dollars.is_finite():
        raise InvalidValue("amount_usd", f"must be a number of dollars, not {amount!r}", reason="type")
    if not 0 <= dollars <= most or (dollars * NANO_PER_USD) % 1:
        raise InvalidValue("amount_usd", f"must be between 0 and {most}, with at most 9 places, not {amount}")
    return int(dollars * NANO_PER_USD)


def limits_of_partition(limits: Sequence[Limit], partition: int, partitions: int) -> list[Limit]:
    """Return those limits whose tenant lives in a partition.

    Raises ``SetupError`` for one without a tenant where there are several: it would have to be held in all.
    """
    if partitions == 1:
        return list(limits)
    for limit in limits:
        if "tenant" not in limit.selector:
            advice = "name one in its selector"
            raise SetupError(f"limit {limit.name!r} has no tenant, and there are {partitions} partitions; {advice}")
    return [limit for limit in limits if partition_of(limit.selector["tenant"], partitions) == partition]


def put_limits(client: Limits, limits: Sequence[Limit], *, exact: bool = False) -> list[Change]:
    """Put those limits in force that differ from what is; return what became of each, in their order.

    With ``exact``, others that are in force where these are held are deleted first, but no kill switch. Waits for
    the actor; raises ``ActorUnavailable`` at the client's deadline, and ``InvalidQuestion`` when there are too many.
    May be done again after either.
    """
    tenants = dict.fromkeys(limit.selector.get("tenant") for limit in limits)
    in_force = {each["name"]: each for tenant in tenants for each in client.limits(top=0, tenant=tenant)}
    names = {limit.name for limit in limits}
    others = [each for name, each in in_force.items() if name not in names and not is_killed(name, each["amount"])]
    gone = [_delete(client, each) for each in others if exact]
    return [*gone, *(_put(client, limit, in_force.get(limit.name)) for limit in limits)]


def _put(client: Limits, limit: Limit, in_force: Mapping[str, Any] | None) -> Change:
    """Put one limit in force, unless it is."""
    if in_force is None:
        return Change(limit, "new", {}, client.put_limit(limit))
    was = {name: in_force.get(name) for name, value in limit.as_map().items() if in_force.get(name) != value}
    if not was:
        return Change(limit, "same", {}, counters_kept=True)
    return Change(limit, "changed", was, client.put_limit(limit))


def _delete(client: Limits, in_force: Mapping[str, Any]) -> Change:
    limit = limit_of({name: value for name, value in in_force.items() if name in LIMIT_FIELDS})
    client.delete_limit(limit.name, tenant=limit.selector.get("tenant"))
    return Change(limit, "deleted", {}, counters_kept=False)
