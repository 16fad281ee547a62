"""Passwords that change: database tokens of AWS (RDS IAM) and files that somebody rotates (Kubernetes, Vault).

One owner writes them into one private file in libpq's own format, and whoever opens a connection reads it then: psycopg and
PostgreSQL's tools by `passfile` in the URL, the query engine by its passfile.mjs. Open connections are not asked again.
https://www.postgresql.org/docs/current/libpq-pgpass.html ;
https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/UsingWithRDS.IAMDBAuth.html (tokens live 15 minutes).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pointsman.database_parts import Host, Parts
from pointsman.database_url import parts_of, token_auth
from pointsman.errors import ConfigError, DatabaseError

__all__ = ["DatabaseAccess", "Sign", "sign_with_aws"]

TOKEN_SECONDS = 300.0
"""Between two tokens: a third of what one lives, so that two renewals may fail."""

FILE_SECONDS = 1.0
"""Between two looks at the password file."""

RETRY_SECONDS = 10.0
"""Before a renewal that failed is tried again."""

Sign = Callable[[Host, str], str]
"""Makes the password for a host and a user; may block for a second."""

logger = logging.getLogger("pointsman.database")
_REGION = re.compile(r"\.([a-z]{2}(?:-[a-z]+)+-\d)\.rds\.amazonaws\.com")


class DatabaseAccess:
    """Database URLs as everybody gets them, with what is secret or fleeting in files beside.

    Args:
        env: the environment: `DATABASE_PASSWORD_FILE`, `IAM_TOKEN_DB_AUTH` and what AWS wants to know.
        directory: private (0700), of this run.
        sign: makes tokens; AWS's way by default.
        interval: seconds between two renewals, by default those above.

    Raises:
        ConfigError: E4203, two sources of the password, or one that we do not have.
    """

    def __init__(
        self, env: Mapping[str, str], directory: Path, *, sign: Sign | None = None, interval: float | None = None
    ) -> None:
        self._path = directory / "pgpass"
        self._directory = directory
        file = env.get("DATABASE_PASSWORD_FILE")
        tokens = token_auth(env)
        if file and tokens:
            raise ConfigError(
                "the database's password cannot come from a file and from tokens at once",
                code="E4203",
                where="DATABASE_PASSWORD_FILE, IAM_TOKEN_DB_AUTH",
                mend="unset one of them",
            )
        self._file = Path(file) if file else None
        self._sign = (sign or (lambda host, user: sign_with_aws(env, host, user))) if tokens else None
        self._interval = interval or (FILE_SECONDS if file else TOKEN_SECONDS)
        self._wanted: dict[tuple[Host, str], None] = {}
        self._written: str | None = None

    @property
    def changing(self) -> bool:
        """Whether there is anything to keep fresh."""
        return self._file is not None or self._sign is not None

    def url(self, url: str) -> str:
        """The URL as everybody gets it: the password by `passfile`, a PKCS#12 identity as the files that libpq knows.

        A URL that has a password keeps it. Tokens go only over TLS unless the URL says otherwise.

        Raises:
            DatabaseError: E4504, the URL or its PKCS#12 file cannot be read; E4500, there is no password to be had.
        """
        parts = _unpacked(parts_of(url), self._directory)
        if not self.changing or parts.password is not None:
            return str(parts)
        if self._sign is not None:
            parts = parts.missing([] if parts.get("sslrootcert") or parts.get("sslaccept") else [("sslmode", "require")])
            self._wanted |= {(host, parts.user or ""): None for host in parts.hosts}
        self.refresh()
        return str(parts.having(passfile=str(self._path)))

    def refresh(self) -> None:
        """Write the file anew, whole or not at all; blocks.

        Raises:
            DatabaseError: E4500, the password file cannot be read or AWS gives no token; what was written last stays.
        """
        if self._file is not None:
            try:
                password = self._file.read_text("utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                raise DatabaseError(
                    f"the database's password cannot be read: {error}",
                    where=f"DATABASE_PASSWORD_FILE: {self._file}",
                    mend="mount the file where this process can read it",
                ) from error
            text = f"*:*:*:*:{_escaped(password)}\n"
        elif self._sign is not None:
            lines = [(host.name, str(host.port), "*", user, self._sign(host, user)) for host, user in self._wanted]
            text = "".join(":".join(part if part == "*" else _escaped(part) for part in line) + "\n" for line in lines)
        else:
            return
        if text != self._written:
            _write(self._path, text.encode())
            self._written = text

    async def run(self) -> None:
        """Keep the file fresh until cancelled; a failure is logged and tried again."""
        failing = False
        while self.changing:
            await asyncio.sleep(min(RETRY_SECONDS, self._interval) if failing else self._interval)
            try:
                await asyncio.to_thread(self.refresh)
            except DatabaseError as error:
                if not failing or self._sign is not None:
                    logger.error("the database's password is not renewed: %s", error)
                failing = True
            else:
                if failing:
                    logger.warning("the database's password is renewed again")
                failing = False


def sign_with_aws(env: Mapping[str, str], host: Host, user: str) -> str:
    """A token for one role of one RDS or Aurora server; signed here, so only the credentials themselves may need the network.

    Args:
        env: `AWS_REGION_NAME`, `AWS_REGION` or `AWS_DEFAULT_REGION` (else the host's name tells); `AWS_PROFILE_NAME`;
            `AWS_ROLE_NAME` with `AWS_SESSION_NAME`: a role to take on. For the rest boto3 looks where it always does.

    Raises:
        DatabaseError: E4500 with boto3's reason.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    found = _REGION.search(host.name)
    region = env.get("AWS_REGION_NAME") or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or (found and found[1])
    try:
        session = boto3.Session(region_name=region or None, profile_name=env.get("AWS_PROFILE_NAME"))
        given: dict[str, Any] = {}
        if (role := env.get("AWS_ROLE_NAME")) and (name := env.get("AWS_SESSION_NAME")):
            answer = session.client("sts").assume_role(RoleArn=role, RoleSessionName=name)["Credentials"]
            given = {
                "aws_access_key_id": answer["AccessKeyId"],
                "aws_secret_access_key": answer["SecretAccessKey"],
                "aws_session_token": answer["SessionToken"],
            }
        client = session.client("rds", **given)
        return str(client.generate_db_auth_token(DBHostname=host.name, Port=host.port, DBUsername=user))
    except (BotoCoreError, ClientError, ValueError) as error:
        raise DatabaseError(
            f"AWS gives no token for the database: {error}",
            where=f"{host.name}:{host.port}",
            mend="set AWS_REGION, and give this process AWS credentials whose policy allows rds-db:connect for the role",
        ) from error


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(":", "\\:")


def _write(path: Path, data: bytes) -> None:
    """Mode 0600 from the start; renamed, so that nobody reads half of it."""
    temporary = path.with_name(f"{path.name}.new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    temporary.replace(path)


def _unpacked(parts: Parts, directory: Path) -> Parts:
    """Prisma's `sslidentity` (PKCS#12) as certificate and key in PEM: libpq knows no other."""
    identity = parts.get("sslidentity")
    if identity is None:
        return parts
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs12

    password = parts.get("sslpassword")
    try:
        key, certificate, others = pkcs12.load_key_and_certificates(
            Path(identity).read_bytes(), password.encode() if password else None
        )
        if key is None or certificate is None:
            raise ValueError("it has no key or no certificate")
    except (OSError, ValueError) as error:
        raise DatabaseError(
            f"the PKCS#12 file cannot be used: {error}",
            code="E4504",
            where=f"sslidentity: {identity}",
            mend="check sslpassword",
        ) from error
    name = f"client-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    written = (directory / f"{name}.crt", directory / f"{name}.key")
    _write(written[0], b"".join(one.public_bytes(Encoding.PEM) for one in (certificate, *others)))
    _write(written[1], key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    authority = parts.get("sslcert")
    if authority and parts.get("sslaccept") == "strict":
        parts = parts.missing([("sslrootcert", authority)])
    parts = parts.without("sslidentity", "sslpassword")
    return parts.having(sslcert=str(written[0]), sslkey=str(written[1]))
