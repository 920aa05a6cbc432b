"""Meter the LLM tokens of a fleet of agents: every call counted exactly once, by one actor.

``TokenManager`` counts one session in this process. ``TokenClient`` and ``AsyncTokenClient`` report
to the fleet's log and ask its actor. Errors are in ``token_actor.errors``.
"""

from token_actor.client.lease_blocks import LeasedCall
from token_actor.client.leases import Lease
from token_actor.client.limits import Reservation
from token_actor.core.limit_headers import decision_of, rate_limit_headers, vendor_headers
from token_actor.core.limits import Limit
from token_actor.core.provider_limits import provider_limits
from token_actor.errors import (
    ActorUnavailable,
    BufferFull,
    InvalidQuestion,
    InvalidValue,
    LogUnavailable,
    RateLimited,
    RateLimitExceeded,
    TokenActorError,
    TokenManagerException,
)
from token_actor.manager import TokenManager
from token_actor.service import AsyncTokenClient, TokenClient

__version__ = "0.1.0"

__all__ = [
    "ActorUnavailable",
    "AsyncTokenClient",
    "BufferFull",
    "InvalidQuestion",
    "InvalidValue",
    "Lease",
    "LeasedCall",
    "Limit",
    "LogUnavailable",
    "RateLimitExceeded",
    "RateLimited",
    "Reservation",
    "TokenActorError",
    "TokenClient",
    "TokenManager",
    "TokenManagerException",
    "decision_of",
    "provider_limits",
    "rate_limit_headers",
    "vendor_headers",
]
