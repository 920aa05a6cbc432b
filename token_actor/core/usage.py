"""What one call used: the words, the bounds, and the checks that every way in shares.

Rules of this file: every number is an integer, money is nano-USD, and the four token kinds are
disjoint. ``reasoning_tokens`` is *of which* output, and is never added to a total.
"""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from token_actor.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Mapping

DIMENSIONS: Final = ("tenant", "project", "user", "agent", "session", "provider", "model")
TOKEN_KINDS: Final = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
COUNTS: Final = (*TOKEN_KINDS, "reasoning_tokens")

DEFAULT_TENANT: Final = "default"
SEPARATOR: Final = "\x1f"  # joins the names of a series; control characters cannot occur in a name
RESERVED_PREFIX: Final = "__"  # names of our own, such as __other__

TOKENS_MAX: Final = 10**12  # a call of more is a fault of its sender; int64 sums stay exact for 9 million such calls
COST_NANOUSD_MAX: Final = 10**12  # a thousand dollars for one call; as many calls as above fit an int64
NAME_BYTES_MAX: Final = 128
MESSAGE_ID_BYTES_MAX: Final = 256
TAGS_MAX: Final = 16
NANO_PER_USD: Final = 10**9

EXACTNESS: Final = ("exact", "estimated", "lower_bound", "aborted")

_SERIES_CACHED: Final = 16_384  # keys made by series_key; a process reports far fewer

TIME_MS_MAX: Final = 2**62 - 1  # whatever a sender claims, the difference of two times fits an int64

# Flag bits of one event. The two low bits are the index into EXACTNESS.
EXACTNESS_MASK: Final = 0b11
UNPRICED: Final = 1 << 2
CLAMPED: Final = 1 << 3
INCONSISTENT: Final = 1 << 4


class Event(NamedTuple):
    """Hold the usage of one call, checked.

    A tuple, because thousands of them are turned into columns at once. ``cost_nanousd`` is 0 where
    ``flags`` has ``UNPRICED``. ``timestamp_ms`` is unix milliseconds, ``None`` means "when the log
    took it".
    """

    series: str
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nanousd: int = 0
    flags: int = UNPRICED
    timestamp_ms: int | None = None
    message_id: str | None = None
    tags: Mapping[str, str] | None = None


def check_count(field: str, value: object) -> int:
    """Return ``value`` if it is a usable token count.

    Raises ``InvalidValue`` naming ``field`` when it is not an int (a bool is not), negative,
    or above ``TOKENS_MAX``.
    """
    if type(value) is not int:
        raise InvalidValue(field, f"must be an int, not {_shown(value)}", reason="type")
    if not 0 <= value <= TOKENS_MAX:
        raise InvalidValue(field, f"must be between 0 and {TOKENS_MAX}, not {_shown(value)}")
    return value


def check_name(field: str, value: object) -> str:
    """Return ``value`` if it can name a tenant, agent, model, ...; ``None`` becomes ``""``.

    Raises ``InvalidValue`` naming ``field`` when it is not a string, longer than
    ``NAME_BYTES_MAX`` bytes of UTF-8, holds a control character, or starts with ``__``.
    """
    if value is None or value == "":
        return ""
    if type(value) is not str:
        raise InvalidValue(field, f"must be a string, not {_shown(value)}", reason="type")
    if not _fits(value, NAME_BYTES_MAX):
        raise InvalidValue(field, f"must be at most {NAME_BYTES_MAX} bytes of UTF-8", reason="bad_name")
    if not value.isprintable() and any(ch < " " or "\x7f" <= ch <= "\x9f" for ch in value):
        raise InvalidValue(field, "must not contain control characters", reason="bad_name")
    if value.startswith(RESERVED_PREFIX):
        raise InvalidValue(field, f"must not start with {RESERVED_PREFIX!r}, which is reserved", reason="bad_name")
    return value


def check_message_id(value: object) -> str | None:
    """Return ``value`` if it can identify a call; ``None`` and ``""`` mean "no id".

    Raises ``InvalidValue`` when it is not a string or longer than ``MESSAGE_ID_BYTES_MAX`` bytes.
    """
    if value is None or value == "":
        return None
    if type(value) is not str:
        raise InvalidValue("message_id", f"must be a string, not {_shown(value)}", reason="type")
    if not _fits(value, MESSAGE_ID_BYTES_MAX):
        raise InvalidValue("message_id", f"must be at most {MESSAGE_ID_BYTES_MAX} bytes of UTF-8", reason="bad_name")
    return value


def check_tags(value: object) -> dict[str, str] | None:
    """Return ``value`` if it is a map of at most ``TAGS_MAX`` short strings; empty means ``None``.

    Raises ``InvalidValue`` naming ``tags``.
    """
    if value is None or value == {}:
        return None
    if not isinstance(value, dict):
        raise InvalidValue("tags", f"must be a map of strings, not {_shown(value)}", reason="type")
    if len(value) > TAGS_MAX:
        raise InvalidValue("tags", f"must have at most {TAGS_MAX} entries, not {len(value)}")
    for name, text in value.items():
        if not check_name("tags", name) or type(text) is not str:
            raise InvalidValue("tags", "must map non-empty strings to strings", reason="type")
        check_name("tags", text)
    return value


def check_exactness(value: object) -> int:
    """Return the index of ``value`` in ``EXACTNESS``; ``None`` means ``exact``.

    Raises ``InvalidValue`` when it is none of them.
    """
    if value is None:
        return 0
    if value not in EXACTNESS:
        raise InvalidValue("exactness", f"must be one of {', '.join(EXACTNESS)}, not {_shown(value)}", reason="type")
    return EXACTNESS.index(value)


def cost_to_nanousd(value: object) -> int | None:
    """Return a cost in US dollars as integer nano-dollars; ``None`` stays ``None`` (unpriced).

    Accepts ``Decimal``, int, float (through its shortest decimal form) and decimal strings.
    Raises ``InvalidValue`` naming ``cost_usd`` when it is no finite number, negative, or above
    ``COST_NANOUSD_MAX``.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        raise InvalidValue("cost_usd", f"must be a decimal string or a number, not {_shown(value)}", reason="type")
    try:
        amount = Decimal(value) if isinstance(value, int) else Decimal(str(value))
    except InvalidOperation:
        raise InvalidValue("cost_usd", f"must be a decimal number, not {_shown(value)}", reason="type") from None
    if not amount.is_finite():
        raise InvalidValue("cost_usd", f"must be finite, not {_shown(value)}", reason="type")
    if not 0 <= amount <= COST_NANOUSD_MAX // NANO_PER_USD:
        raise InvalidValue("cost_usd", f"must be between 0 and {COST_NANOUSD_MAX // NANO_PER_USD}, not {_shown(value)}")
    return int((amount * NANO_PER_USD).to_integral_value())


def seconds_to_ms(field: str, value: object) -> int:
    """Return unix seconds (int or finite float) as integer milliseconds.

    Raises ``InvalidValue`` naming ``field``. Any magnitude is accepted: the ledger clamps.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidValue(field, f"must be unix seconds, not {_shown(value)}", reason="type")
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidValue(field, "must be finite", reason="type")
    most = TIME_MS_MAX // 1000
    return round(max(-most, min(most, value)) * 1000)


@lru_cache(maxsize=_SERIES_CACHED)
def series_key(  # noqa: PLR0913, PLR0917 - one argument for each dimension, in their order
    tenant: object = None,
    project: object = None,
    user: object = None,
    agent: object = None,
    session: object = None,
    provider: object = None,
    model: object = None,
) -> str:
    """Return the canonical key of a series: its seven names in order, joined by ``SEPARATOR``.

    An absent name (``None``) is empty; an absent tenant is ``DEFAULT_TENANT``. Raises
    ``InvalidValue`` naming the dimension, ``TypeError`` when a name cannot be hashed.
    """
    names = (DEFAULT_TENANT if tenant in (None, "") else tenant, project, user, agent, session, provider, model)
    return SEPARATOR.join([check_name(dimension, name) for dimension, name in zip(DIMENSIONS, names, strict=True)])


def series_of(names: Mapping[str, object]) -> str:
    """Return the canonical key of what a map says of the dimensions. Raises ``InvalidValue`` naming the dimension."""
    found = [names.get(dimension) for dimension in DIMENSIONS]
    try:
        return series_key(*found)
    except TypeError:  # a list or a map cannot be looked up in a cache; without the cache, it is refused by name
        return series_key.__wrapped__(*found)


def check_series_key(key: object) -> str:
    """Return ``key`` if it is a canonical series key made by ``series_key``.

    Raises ``InvalidValue`` naming the wrong dimension.
    """
    if type(key) is not str:
        raise InvalidValue("series", f"must be a string, not {_shown(key)}", reason="type")
    names = key.split(SEPARATOR)
    if len(names) != len(DIMENSIONS):
        raise InvalidValue("series", f"must have {len(DIMENSIONS)} names, not {len(names)}", reason="decode")
    for dimension, name in zip(DIMENSIONS, names, strict=True):
        check_name(dimension, name)
    if not names[0]:
        raise InvalidValue("tenant", "must not be empty", reason="bad_name")
    return key


def _fits(text: str, bytes_max: int) -> bool:
    if len(text) * 4 <= bytes_max and text.isascii():  # the common case, without encoding
        return True
    try:
        return len(text.encode()) <= bytes_max
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8 form
        return False


def _shown(value: object) -> str:
    if type(value) is int and value.bit_length() > TOKENS_MAX.bit_length() * 2:
        return "a huge int"  # Python refuses to write out the largest ones
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."  # noqa: PLR2004 - one line of an error message
