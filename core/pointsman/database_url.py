"""Database URLs: LiteLLM's are in Prisma's dialect, libpq (psycopg) wants its own.

Prisma's parameters: https://www.prisma.io/docs/orm/overview/databases/postgresql#arguments ;
libpq's: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote

from pointsman.database_parts import Parts
from pointsman.errors import ConfigError, DatabaseError

__all__ = [
    "address",
    "check",
    "environment_url",
    "libpq_url",
    "migration_url",
    "own_schema",
    "parts_of",
    "redact",
    "schema_of",
    "token_auth",
    "unreachable",
]

_NAME_BYTES = 63
_SCHEMES = ("postgresql", "postgres")
# What LiteLLM takes for yes and no.
_YES, _NO = {"1", "on", "t", "true", "y", "yes"}, {"", "0", "f", "false", "n", "no", "off"}
_MEND = "write it as postgresql://user:password@host:5432/database; percent-encode special characters of the password"
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
        "load_balance_hosts",
        "options",
        "passfile",
        "password",
        "port",
        "require_auth",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
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
    }
)
# The query engine's driver cannot do these; passed over in silence they would be holes.
_UNSUPPORTED = ("krbsrvname", "requirepeer", "service", "sslcertmode", "sslcrldir")
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def parts_of(url: str) -> Parts:
    """A database URL, taken apart and checked.

    Raises:
        DatabaseError: E4504; the message never has the URL's password.
    """
    try:
        parts = Parts.of(url)
        _ = parts.hosts
    except ValueError as error:  # never quote the URL itself: its password may be what is malformed
        raise DatabaseError("the database URL is malformed", code="E4504", where="DATABASE_URL", mend=_MEND) from error
    if parts.scheme not in _SCHEMES:
        raise DatabaseError(
            f"the database URL's scheme is not postgresql (it is {parts.scheme[:20]!r})",
            code="E4504",
            where="DATABASE_URL",
            mend=_MEND,
        )
    for name in _UNSUPPORTED:
        if parts.get(name):
            raise DatabaseError(
                f"{name} in the database URL is not supported",
                code="E4504",
                where="DATABASE_URL",
                mend="leave it out; docs/database.md lists what there is",
            )
    return parts


def check(url: str) -> None:
    """Refuse what is no PostgreSQL URL.

    Raises:
        DatabaseError: E4504; the message never has the URL's password.
    """
    parts_of(url)


def schema_of(url: str) -> str:
    """The schema that Prisma works in: the parameter `schema`, by default `public`."""
    return Parts.of(url).get("schema") or "public"


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


def token_auth(env: Mapping[str, str]) -> bool:
    """Whether the password is a token of AWS (`IAM_TOKEN_DB_AUTH`, LiteLLM's name).

    Raises:
        ConfigError: E4203, neither a yes nor a no; or Azure's tokens are asked for, which we do not have.
    """
    values = {}
    for name in ("IAM_TOKEN_DB_AUTH", "AZURE_POSTGRESQL_AUTH"):
        text = env.get(name, "").strip().lower()
        if text not in _YES | _NO:
            raise ConfigError(f"{name} is neither true nor false", code="E4203", where=name, mend="write True or False")
        values[name] = text in _YES
    if values["AZURE_POSTGRESQL_AUTH"]:
        raise ConfigError(
            "database tokens of Azure are not supported",
            code="E4203",
            where="AZURE_POSTGRESQL_AUTH",
            mend="unset it; keep a token fresh in a file and name that in DATABASE_PASSWORD_FILE",
        )
    return values["IAM_TOKEN_DB_AUTH"]


def environment_url(env: Mapping[str, str]) -> str | None:
    """The database URL that the environment names: `DATABASE_URL`, else made from LiteLLM's single variables.

    Those are `DATABASE_HOST`, `DATABASE_PORT`, `DATABASE_USER` (or `_USERNAME`), `DATABASE_PASSWORD`, `DATABASE_NAME`,
    `DATABASE_SCHEMA`, `DATABASE_SSLMODE` and `DATABASE_SSLROOTCERT`. With `IAM_TOKEN_DB_AUTH` they come first, as in LiteLLM.

    Raises:
        ConfigError: E4203; E4204, tokens are asked for and nothing says for which database.
    """
    tokens = token_auth(env)
    host, name = env.get("DATABASE_HOST"), env.get("DATABASE_NAME")
    user = env.get("DATABASE_USER") or env.get("DATABASE_USERNAME")
    url = env.get("DATABASE_URL") or None
    if url is not None and not (tokens and host and user and name):
        return url
    if not (host and user and name):
        if tokens:
            raise ConfigError(
                "IAM_TOKEN_DB_AUTH is set, and nothing says for which database",
                code="E4204",
                where="DATABASE_HOST, DATABASE_USER, DATABASE_NAME",
                mend="set all three, or DATABASE_URL without a password",
            )
        return None
    password = None if tokens or env.get("DATABASE_PASSWORD_FILE") else env.get("DATABASE_PASSWORD")
    userinfo = quote(unquote(user) if tokens else user, safe="") + (f":{quote(password, safe='')}" if password else "")
    names = (("schema", "DATABASE_SCHEMA"), ("sslmode", "DATABASE_SSLMODE"), ("sslrootcert", "DATABASE_SSLROOTCERT"))
    query = tuple((key, env[variable]) for key, variable in names if env.get(variable))
    authority = f"[{host}]" if ":" in host and not host.startswith("[") and host.count(":") > 1 else host
    if port := env.get("DATABASE_PORT"):
        authority = f"{authority}:{port}"
    return str(Parts("postgresql", userinfo, authority, quote(name, safe=""), query))


def migration_url(env: Mapping[str, str], url: str | None = None) -> str | None:
    """Where the schema is changed: `DIRECT_URL` (LiteLLM's and Prisma's name), which goes past a connection pooler.

    Args:
        env: the environment.
        url: the gateway's own database URL; that of `env` by default, and the answer where there is no `DIRECT_URL`.

    Returns:
        None when there is neither. A `schema` that only the gateway's URL names holds for both: it is the same database.
    """
    url = url or environment_url(env)
    direct = env.get("DIRECT_URL") or None
    if direct is None or url is None:
        return direct or url
    return str(Parts.of(direct).missing([("schema", schema_of(url))])) if schema_of(url) != "public" else direct


def libpq_url(url: str) -> str:
    """The same database as a URL for psycopg and PostgreSQL's own tools; the engine's url.mjs and tls.mjs read it alike.

    Prisma's `sslcert` is the authority's certificate (libpq: `sslrootcert`), and it checks it only with `sslaccept=strict`;
    with an `sslkey` beside it, it is libpq's client certificate and stays. Of several hosts the one that can be written to.

    Raises:
        DatabaseError: E4504.
    """
    parts = parts_of(url)
    given = dict(parts.query)
    kept = {name: value for name, value in given.items() if name in _KEPT}
    _translate_tls(given, kept)
    if kept.get("connect_timeout") == "0":
        del kept["connect_timeout"]
    if len(parts.hosts) > 1:
        kept.setdefault("target_session_attrs", "read-write")
    return str(Parts(parts.scheme, parts.userinfo, parts.authority, parts.path, tuple(kept.items())))


def _translate_tls(given: Mapping[str, str], kept: dict[str, str]) -> None:
    authority = None if "sslkey" in given else kept.pop("sslcert", None)
    if given.get("sslmode") == "disable":
        pass
    elif given.get("sslaccept") == "strict":
        if authority:
            kept.setdefault("sslrootcert", authority)
        kept["sslmode"] = "verify-full"
    elif given.get("sslrootcert"):
        kept.setdefault("sslmode", "verify-full")
    mode, root = kept.get("sslmode"), kept.get("sslrootcert")
    if (mode == "verify-ca" and not root) or (root == "system" and mode != "verify-full"):
        raise DatabaseError(
            f"sslmode={mode} in the database URL cannot be done with {'sslrootcert=system' if root else 'no sslrootcert'}",
            code="E4504",
            where="DATABASE_URL",
            mend="name the file of your authority's certificate in sslrootcert, or use sslmode=verify-full",
        )
    if mode == "verify-full" and root in (None, "", "system"):
        kept["sslrootcert"] = _system_bundle()


def _system_bundle() -> str:
    """The machine's certificate authorities; libpq's own idea of them is where its OpenSSL was built."""
    named = (ssl.get_default_verify_paths().cafile, *_BUNDLES)  # honours SSL_CERT_FILE
    return next((path for path in named if path and Path(path).is_file()), "system")


def address(url: str) -> str:
    """`host:port/database` for messages, several hosts with commas; never user or password."""
    try:
        parts = Parts.of(url)
        hosts = ",".join(f"{f'[{h.name}]' if ':' in h.name else h.name}:{h.port}" for h in parts.hosts)
    except ValueError:
        return "(malformed URL)"
    return f"{hosts}/{parts.path}" if parts.path else hosts


def redact(text: str, url: str) -> str:
    """`text` without the passwords of `url`, encoded or not."""
    try:
        parts = Parts.of(url)
    except ValueError:
        return "(not shown: the database URL is malformed)"
    secrets = [(parts.userinfo or "").partition(":")[2], *(v for k, v in parts.query if k in ("password", "sslpassword"))]
    for secret in sorted({*secrets, *map(unquote, secrets)}, key=len, reverse=True):
        if secret:
            text = text.replace(secret, "***")
    return text


# What libpq or the server says -> what to do about it; the first that fits.
_MENDS = (
    (
        "certificate authentication failed",
        "the client certificate (sslcert, sslkey) must name the role that DATABASE_URL names",
    ),
    ("authentication failed", "check user and password in DATABASE_URL"),
    ("no password supplied", "check user and password in DATABASE_URL"),
    (
        "does not match host name",
        "write the name that the certificate has (hostaddr= can say the address), or sslmode=verify-ca",
    ),
    ("certificate has expired", "renew the server's certificate"),
    ("certificate verify failed", "name the authority that signed the server's certificate, still valid, in sslrootcert"),
    ("root certificate file", "name a readable file with the authority's certificate in sslrootcert"),
    ("has group or world access", "chmod 600 the file named in sslkey"),
    ("server does not support SSL", "turn on TLS at the server, or write sslmode=disable in DATABASE_URL"),
    ("pg_hba.conf", "allow this user and address in the server's pg_hba.conf; `no encryption` there: write sslmode=require"),
    ("permission denied for database", "GRANT CONNECT ON DATABASE ... TO the role"),
    (" does not exist", "create the database (or user), or correct its name in DATABASE_URL"),
    ("SSL", "check sslmode and certificates in DATABASE_URL"),
    ("certificate", "check sslmode and certificates in DATABASE_URL"),
    ("too many clients", "raise the server's max_connections or lower connection_limit"),
    ("remaining connection slots", "raise the server's max_connections or lower connection_limit"),
    ("session is read-only", "none of the hosts takes writes: promote one, or name the one that does"),
    ("hot standby", "none of the hosts takes writes: promote one, or name the one that does"),
)


def unreachable(url: str, error: BaseException) -> DatabaseError:
    """E4500 for a failed connection, with host and port and the mend that fits what the server said."""
    said = " ".join(redact(str(error), url).split())
    otherwise = "check that the server runs and that host and port in DATABASE_URL are right"
    mend = next((mend for words, mend in _MENDS if words in said), otherwise)
    return DatabaseError(f"the database cannot be reached: {said}", where=address(url), mend=mend)
