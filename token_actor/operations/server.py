"""Server: which settings of a Redis or Valkey server endanger the log, as its own words tell."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from token_actor.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Level: TypeAlias = Literal["ok", "warning", "problem"]

VERSIONS_MIN: Final = {"redis": 7, "valkey": 8}
REQUIRED: Final = frozenset({"version", "role", "eviction", "persistence"})  # a full disk passes, these do not
MEMORY_NAME: Final = "memory"  # how the server of ``transport.memory`` calls itself
_APPEND: Final = "CONFIG SET appendonly yes, and in the server's configuration file"
FULL_SHARE: Final = 0.9  # of maxmemory: time to act while writes are still taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Hold one thing that was looked at: how bad it is, what was found, and what to do, if anything."""

    level: Level
    subject: str
    found: str
    advice: str | None = None

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def check_server(facts: Mapping[str, str], *, with_password: bool, accept_data_loss: bool = False) -> list[Finding]:
    """Return what an actor should warn of before it works on a server.

    Raises ``SetupError``, which says what to change, when the log would not be safe there; with
    ``accept_data_loss`` that is among the warnings instead. A server in this process is as safe as this process.
    """
    if facts.get("server_name") == MEMORY_NAME:
        return []
    findings = [found for found in server_findings(facts, with_password=with_password) if found.level != "ok"]
    refused = [found for found in findings if found.level == "problem" and found.subject in REQUIRED]
    if refused and not accept_data_loss:
        reasons = "; ".join(f"{found.found} ({found.advice})" for found in refused)
        raise SetupError(
            f"the log is not safe on this server: {reasons}. 'serve --accept-data-loss' starts all the same"
        )
    return findings


def server_findings(facts: Mapping[str, str], *, with_password: bool) -> list[Finding]:
    """Return what ``Connection.server_facts`` says about a server, in the order a person would ask."""
    return [
        *_version(facts),
        *_role(facts),
        *_memory(facts),
        *_persistence(facts),
        *_last_writes(facts),
        *_access(with_password),
    ]


def _version(facts: Mapping[str, str]) -> Iterator[Finding]:
    kind = "valkey" if "valkey_version" in facts else "redis"
    version = facts.get(f"{kind}_version", "")
    major = version.partition(".")[0]
    least = VERSIONS_MIN[kind]
    if not major.isdecimal():
        yield Finding(
            level="warning",
            subject="version",
            found="the server does not tell its version",
            advice=f"make sure that it is Redis {VERSIONS_MIN['redis']} or Valkey {VERSIONS_MIN['valkey']}, or newer",
        )
    elif int(major) < least:
        yield Finding(
            level="problem",
            subject="version",
            found=f"{kind.capitalize()} {version} is too old: entries of a stream are not counted",
            advice=f"use Redis {VERSIONS_MIN['redis']} or Valkey {VERSIONS_MIN['valkey']}, or newer",
        )
    else:
        yield Finding(level="ok", subject="version", found=f"{kind.capitalize()} {version}")


def _role(facts: Mapping[str, str]) -> Iterator[Finding]:
    role = facts.get("role")
    if role == "master":
        yield Finding(level="ok", subject="role", found="takes writes (role master)")
    elif role is None:
        yield Finding(
            level="warning",
            subject="role",
            found="the server does not tell its role",
            advice="let the user of the address ask INFO, or make sure that this is no replica",
        )
    else:
        yield Finding(
            level="problem",
            subject="role",
            found=f"the server's role is {role}: it takes no writes",
            advice="name its primary with --redis",
        )


def _memory(facts: Mapping[str, str]) -> Iterator[Finding]:
    policy = facts.get("config:maxmemory-policy") or facts.get("maxmemory_policy")
    bound = _whole(facts.get("config:maxmemory") or facts.get("maxmemory"))
    if policy == "noeviction":
        yield Finding(level="ok", subject="eviction", found="full means refused (maxmemory-policy noeviction)")
    else:
        yield _eviction(policy, bounded=bound > 0)
    used = _whole(facts.get("used_memory"))
    if bound and used > bound * FULL_SHARE:
        yield Finding(
            level="problem",
            subject="memory",
            found=f"{used / bound:.0%} of maxmemory is in use ({used:,} of {bound:,} bytes)",
            advice="raise maxmemory: a full server refuses usage, and clients can only buffer it",
        )


def _eviction(policy: str | None, *, bounded: bool) -> Finding:
    if policy is None:
        return Finding(
            level="warning",
            subject="eviction",
            found="the server does not tell what it does when it is full",
            advice="make sure that its maxmemory-policy is noeviction",
        )
    full = "a full server" if bounded else "with a maxmemory, a full server"
    what = "leases and answers" if policy.startswith("volatile-") else "the log"
    return Finding(
        level="problem",
        subject="eviction",
        found=f"maxmemory-policy is {policy}: {full} throws {what} away",
        advice="CONFIG SET maxmemory-policy noeviction, and in the server's configuration file",
    )


def _persistence(facts: Mapping[str, str]) -> Iterator[Finding]:
    appends = facts.get("config:appendonly") or {"1": "yes", "0": "no"}.get(facts.get("aof_enabled", ""))
    if appends == "yes":
        yield _fsync(facts.get("config:appendfsync", "unknown"))
    elif appends is None:
        yield Finding(
            level="warning",
            subject="persistence",
            found="the server does not tell whether it has an append-only file",
            advice="make sure that a restart of the server keeps the log",
        )
    else:
        yield Finding(level="problem", subject="persistence", found=_lost_without_aof(facts), advice=_APPEND)


def _lost_without_aof(facts: Mapping[str, str]) -> str:
    if facts.get("config:save"):
        return f"only dumps are written (save {facts['config:save']}): a crash loses all since the last one"
    if "config:save" in facts:
        return "nothing is written to disk (appendonly no, save empty): a restart loses the log"
    return "there is no append-only file: a restart of the server may lose the log"


def _fsync(fsync: str) -> Finding:
    if fsync == "always":
        return Finding(
            level="ok", subject="persistence", found="every acknowledged write is on disk (appendfsync always)"
        )
    loss = {
        "everysec": "a crash of the machine can lose the last second",
        "no": "a crash of the machine can lose the last half minute or more",
    }.get(fsync, "how much a crash of the machine loses, the server does not tell")
    return Finding(
        level="warning",
        subject="persistence",
        found=f"appendonly yes, appendfsync {fsync}: {loss}",
        advice="CONFIG SET appendfsync always, if that is too much; it costs a disk sync for every write",
    )


def _last_writes(facts: Mapping[str, str]) -> Iterator[Finding]:
    """Say whether the last attempts to write to disk went well; a server without a disk says nothing."""
    for fact, what in (
        ("aof_last_write_status", "the last write to the append-only file"),
        ("aof_last_bgrewrite_status", "the last rewrite of the append-only file"),
        ("rdb_last_bgsave_status", "the last dump"),
    ):
        if facts.get(fact, "ok") != "ok":
            yield Finding(
                level="problem",
                subject="disk",
                found=f"{what} failed ({fact} {facts[fact]})",
                advice="look at the server's log, at its disk space and at the permissions of its directory",
            )


def _access(with_password: bool) -> Iterator[Finding]:  # noqa: FBT001 - named by its one caller
    if not with_password:
        yield Finding(
            level="warning",
            subject="access",
            found="the server lets anybody in who can reach it, without a password",
            advice="fine where only this machine can; else set a password (requirepass, or an ACL) and put it into "
            "the address: redis://user:password@host:port/0",
        )
    else:
        yield Finding(level="ok", subject="access", found="a password is asked for")


def _whole(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
