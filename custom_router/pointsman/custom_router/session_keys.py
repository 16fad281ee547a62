"""By what a session is known: keyed digests, so that nobody can name, guess or reach another tenant's session."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence

from pointsman.custom_router.conversation import PREFIX_CHARS, digest_of
from pointsman.custom_router.request import Session

__all__ = ["KEY_BYTES", "TENANT_BYTES", "pull", "session_key", "session_secret"]

KEY_BYTES, TENANT_BYTES = 24, 8
"""Of a session's key, and of the tenant's digest with which it begins."""


def session_secret(env: Mapping[str, str], master_key: str | None = None) -> bytes:
    """The key of the sessions' digests: the same in all that share a salt key (or master key), else of this process alone.

    It goes from the supervisor to its own workers, and nowhere else; neither key can be told from it.

    Args:
        env: of the workers.
        master_key: of the configuration, which need not be in the environment.
    """
    secret = env.get("LITELLM_SALT_KEY") or master_key or env.get("LITELLM_MASTER_KEY")
    if not secret:
        return os.urandom(32)
    return hashlib.blake2b(secret.encode("utf-8", "replace"), digest_size=32, person=b"pointsman pins").digest()


def session_key(secret: bytes, tenant: Sequence[str | None], group: str, session: Session) -> bytes | None:
    """A tenant's digest and the session's. None without a tenant, who could be anybody.

    Args:
        secret: of `session_secret`.
        tenant: hash of the key, team, user.
        group: model group.
        session: its id; of one that is too long the beginning counts.
    """
    if not any(tenant):
        return None
    parts = ("session", *tenant, group, session.source, session.value[:PREFIX_CHARS])
    return digest_of(("tenant", *tenant), secret, TENANT_BYTES) + digest_of(parts, secret, KEY_BYTES - TENANT_BYTES)


def pull(session: bytes, deployment_id: str) -> int:
    """How much a session is drawn to a deployment; of several that are as good as each other the highest has it.

    The same wherever it is asked, so workers agree before they have heard of each other, and spread over all. Highest random
    weight (Thaler and Ravishankar, 1998): when a deployment leaves, only its own sessions go elsewhere.
    """
    return int.from_bytes(hashlib.blake2b(deployment_id.encode("utf-8", "replace"), digest_size=8, key=session).digest())
