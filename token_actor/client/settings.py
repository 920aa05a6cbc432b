"""The settings of a client, as one small object."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from token_actor.client.deadline import check_timeout
from token_actor.core.analytics import check_number
from token_actor.core.usage import DIMENSIONS, check_name
from token_actor.errors import InvalidValue
from token_actor.wire.batches import EVENTS_MAX
from token_actor.wire.keys import check_namespace

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """Hold the settings of a client. Raises ``InvalidValue`` naming the one that is wrong.

    ``names`` are the dimensions of every record that does not say otherwise. A batch is sent when
    it holds ``batch_events_max`` events or its first one is ``batch_age_ms`` old. At most
    ``buffer_events_max`` events wait for the log. ``timeout_s`` is the deadline of a question, a
    flush and a close. ``lines_max`` questions are under way at once; more wait their turn.
    ``resend_share`` is for drills: that share of the batches is sent twice, as after a lost reply.
    """

    namespace: str = "default"
    names: Mapping[str, str] = field(default_factory=dict)
    batch_events_max: int = 500
    batch_age_ms: int = 20
    buffer_events_max: int = 100_000
    timeout_s: float = 5.0
    lines_max: int = 16
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
        ):
            value = getattr(self, setting)
            if type(value) is not int or not least <= value <= most:
                raise InvalidValue(setting, f"must be an int between {least} and {most}, not {value!r}")
        if check_timeout(self.timeout_s) == 0:
            raise InvalidValue("timeout_s", "must be above 0 seconds")
        if not 0 <= check_number("resend_share", self.resend_share) <= 1:
            raise InvalidValue("resend_share", f"must be between 0 and 1, not {self.resend_share!r}")
