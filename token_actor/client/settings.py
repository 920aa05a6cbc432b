"""The settings of a client, as one small object."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from token_actor.client.deadline import check_timeout
from token_actor.core.analytics import check_number
from token_actor.core.usage import DIMENSIONS, check_name
from token_actor.errors import InvalidValue
from token_actor.wire.batches import EVENTS_MAX
from token_actor.wire.keys import check_namespace

if TYPE_CHECKING:
    from collections.abc import Mapping

SPOOL_FULL: Final = ("block", "raise")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """Hold the settings of a client. Raises ``InvalidValue`` naming the one that is wrong.

    ``names`` are the dimensions of every record that does not say otherwise. A batch is sent when
    it holds ``batch_events_max`` events or its first one is ``batch_age_ms`` old. At most
    ``buffer_events_max`` events wait for the log. ``timeout_s`` is the deadline of a question, a
    flush and a close. ``lines_max`` questions are under way at once; more wait their turn.
    ``spool_dir`` is a folder in which batches wait until a snapshot covers them, at most
    ``spool_bytes_max`` of them by this client; ``spool_full`` says what ``record`` does beyond: ``block``
    or ``raise``. ``None`` or ``""`` keeps everything in memory.
    ``resend_share`` is for drills: that share of the batches is sent twice, as after a lost reply.
    """

    namespace: str = "default"
    names: Mapping[str, str] = field(default_factory=dict)
    batch_events_max: int = 500
    batch_age_ms: int = 20
    buffer_events_max: int = 100_000
    timeout_s: float = 5.0
    lines_max: int = 16
    spool_dir: str | None = None
    spool_bytes_max: int = 256 * 1024 * 1024
    spool_full: str = "block"
    resend_share: float = 0.0

    def __post_init__(self) -> None:
        """Check every setting, so that nothing fails later and elsewhere."""
        check_namespace(self.namespace)
        for dimension, name in self.names.items():
            if dimension not in DIMENSIONS:
                raise InvalidValue(dimension, "is not a dimension")
            check_name(dimension, name)
        for setting, least, most in (
            ("batch_events_max", 1, EVENTS_MAX),
            ("batch_age_ms", 0, 60_000),
            ("buffer_events_max", 1, 100_000_000),
            ("lines_max", 1, 1_000),
            ("spool_bytes_max", 1, 2**40),
        ):
            value = getattr(self, setting)
            if type(value) is not int or not least <= value <= most:
                raise InvalidValue(setting, f"must be an int between {least} and {most}, not {value!r}")
        if check_timeout(self.timeout_s) == 0:
            raise InvalidValue("timeout_s", "must be above 0 seconds")
        if self.spool_full not in SPOOL_FULL:
            raise InvalidValue("spool_full", f"must be one of {', '.join(SPOOL_FULL)}, not {self.spool_full!r}")
        if self.spool_dir is not None and not isinstance(self.spool_dir, str):
            raise InvalidValue("spool_dir", f"must be the name of a folder, not {self.spool_dir!r}", reason="type")
        if not self.spool_dir:
            object.__setattr__(self, "spool_dir", None)
        if not 0 <= check_number("resend_share", self.resend_share) <= 1:
            raise InvalidValue("resend_share", f"must be between 0 and 1, not {self.resend_share!r}")
