"""Kill and revive: refuse every reservation of an agent, a session, or any other selection."""

from __future__ import annotations

from token_actor.cli.options import (
    TIMEOUT_S,
    Agent,
    AsJson,
    Model,
    Namespace,
    Project,
    Provider,
    Redis,
    Session,
    Tenant,
    Timeout,
    User,
    open_client,
    selector_of,
)
from token_actor.cli.output import answers, print_json
from token_actor.errors import TokenActorError


def kill(
    *,
    redis: Redis = None,
    namespace: Namespace = None,
    timeout: Timeout = TIMEOUT_S,
    tenant: Tenant = None,
    project: Project = None,
    user: User = None,
    agent: Agent = None,
    session: Session = None,
    provider: Provider = None,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Refuse every reservation of what is selected, until it is revived."""
    selector = selector_of(
        tenant=tenant, project=project, user=user, agent=agent, session=session, provider=provider, model=model
    )
    with open_client(redis, namespace, timeout) as client:
        limit = client.kill(**selector)
    if as_json:
        print_json({"killed": selector, "limit": limit})
    else:
        answers().print(f"killed, by the limit {limit}")


def revive(
    *,
    redis: Redis = None,
    namespace: Namespace = None,
    timeout: Timeout = TIMEOUT_S,
    tenant: Tenant = None,
    project: Project = None,
    user: User = None,
    agent: Agent = None,
    session: Session = None,
    provider: Provider = None,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """End what a kill of the same selection began."""
    selector = selector_of(
        tenant=tenant, project=project, user=user, agent=agent, session=session, provider=provider, model=model
    )
    with open_client(redis, namespace, timeout) as client:
        revived = client.revive(**selector)
    if as_json:
        print_json({"revived": selector if revived else None})
    elif revived:
        answers().print("revived")
    if not revived:
        raise TokenActorError("nothing of exactly this selection was killed")
