"""Database URLs: LiteLLM's are in Prisma's dialect, libpq (psycopg) wants its own.

Prisma's parameters: https://www.prisma.io/docs/orm/overview/databases/postgresql#arguments ;
libpq's: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from pointsman.errors import DatabaseError

__all__ = ["address", "check", "libpq_url", "migration_url", "own_schema", "redact", "schema_of", "unreachable"]

DEFAULT_PORT = 5432
_NAME_BYTES = 63
_SCHEMES = ("postgresql", "postgres")
# What both understand alike, or libpq alone. Prisma-only and dropped: schema, connection_limit, pool_timeout, socket_timeout,
# pgbouncer, statement_cache_size, sslidentity, sslaccept, and what LiteLLM adds.
_KEPT = frozenset(
    {
        "application_name",
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "dbname",
        "gssencmode",
        "host",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "krbsrvname",
        "load_balance_hosts",
        "options",
        "passfile",
        "port",
        "require_auth",
        "service",
        "sslcert",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslpassword",
        "sslrootcert",
        "target_session_attrs",
        "tcp_user_timeout",
        "user",
        "password",
    }
)


def check(url: str) -> None:
    """Refuse what is no PostgreSQL URL.

    Raises:
        DatabaseError: E4504; the message never has the URL's password.
    """
    mend = "write it as postgresql://user:password@host:5432/database; percent-encode special characters of the password"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:  # never quote the URL itself: its password may be what is malformed
        raise DatabaseError("the database URL is malformed", code="E4504", where="DATABASE_URL", mend=mend) from error
    if parts.scheme not in _SCHEMES:
        raise DatabaseError(
            f"the database URL's scheme is not postgresql (it is {parts.scheme[:20]!r})",
            code="E4504",
            where="DATABASE_URL",
            mend=mend,
        )
    if port == 0:
        raise DatabaseError("the database URL's port is 0", code="E4504", where="DATABASE_URL", mend=mend)


def schema_of(url: str) -> str:
    """The schema that Prisma works in: the parameter `schema`, by default `public`."""
    return dict(parse_qsl(urlsplit(url).query)).get("schema") or "public"


def own_schema(url: str) -> str:
    """The schema of our tables, beside LiteLLM's: there, LiteLLM's own repair of a schema would drop what it does not know.

    Not `pointsman`: Postgres looks first in a schema that is named as the role is (`"$user"` in the search path), for LiteLLM's
    tables too.
    """
    theirs = schema_of(url)
    name = f"{theirs}_pointsman"
    if len(name.encode()) > _NAME_BYTES:  # Postgres would cut it, perhaps down to LiteLLM's own
        digest = hashlib.sha256(theirs.encode()).hexdigest()[:8]
        name = f"{theirs.encode()[:40].decode(errors='ignore')}_{digest}_pointsman"
    return name


def migration_url(env: Mapping[str, str], url: str | None = None) -> str | None:
    """Where the schema is changed: `DIRECT_URL` (LiteLLM's and Prisma's name), which goes past a connection pooler.

    Args:
        env: the environment.
        url: the gateway's own database URL; `DATABASE_URL` of `env` by default, and the answer where there is no `DIRECT_URL`.

    Returns:
        None when there is neither. A `schema` that only the gateway's URL names holds for both: it is the same database.
    """
    url = url or env.get("DATABASE_URL") or None
    direct = env.get("DIRECT_URL") or None
    if direct is None or url is None:
        return direct or url
    parts = urlsplit(direct)
    query = parse_qsl(parts.query, keep_blank_values=True)
    if schema_of(url) == "public" or "schema" in dict(query):
        return direct
    return urlunsplit(parts._replace(query=urlencode([*query, ("schema", schema_of(url))], quote_via=quote)))


def libpq_url(url: str) -> str:
    """The same database as a URL for psycopg.

    Prisma's `sslcert` is the authority's certificate (libpq: `sslrootcert`), and it checks it only with `sslaccept=strict`;
    with an `sslkey` beside it, it is libpq's client certificate and stays.

    Raises:
        DatabaseError: E4504.
    """
    check(url)
    parts = urlsplit(url)
    pairs = dict(parse_qsl(parts.query, keep_blank_values=True))
    kept = {name: value for name, value in pairs.items() if name in _KEPT}
    if "sslcert" in kept and "sslkey" not in kept:
        authority = kept.pop("sslcert")
        if pairs.get("sslaccept") == "strict" and kept.get("sslmode") != "disable":
            kept.setdefault("sslrootcert", authority)
            kept["sslmode"] = "verify-full"
    if kept.get("connect_timeout") == "0":
        del kept["connect_timeout"]
    return urlunsplit(parts._replace(query=urlencode(kept, quote_via=quote)))


def address(url: str) -> str:
    """`host:port/database` for messages; never user or password."""
    try:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        host = query.get("host") or parts.hostname or "localhost"
        return f"{host}:{query.get('port') or parts.port or DEFAULT_PORT}{parts.path}"
    except ValueError:
        return "(malformed URL)"


def redact(text: str, url: str) -> str:
    """`text` without the passwords of `url`, encoded or not."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(not shown: the database URL is malformed)"
    secrets = [parts.password or "", *(v for k, v in parse_qsl(parts.query) if k in ("password", "sslpassword"))]
    for secret in sorted({*secrets, *map(unquote, secrets)}, key=len, reverse=True):
        if secret:
            text = text.replace(secret, "***")
    return text


def unreachable(url: str, error: BaseException) -> DatabaseError:
    """E4500 for a failed connection, with host and port and the mend that fits what the server said."""
    said = " ".join(redact(str(error), url).split())
    if "authentication failed" in said or "no password supplied" in said:
        mend = "check user and password in DATABASE_URL"
    elif "does not exist" in said:
        mend = "create the database (or user), or correct its name in DATABASE_URL"
    elif "SSL" in said or "certificate" in said:
        mend = "check sslmode and certificates in DATABASE_URL"
    elif "too many clients" in said or "remaining connection slots" in said:
        mend = "raise the server's max_connections or lower connection_limit"
    else:
        mend = "check that the server runs and that host and port in DATABASE_URL are right"
    return DatabaseError(f"the database cannot be reached: {said}", where=address(url), mend=mend)
