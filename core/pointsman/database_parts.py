"""The parts of a database URL. `urllib` refuses what libpq and Prisma allow: several hosts, a directory as the host.

https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, quote, unquote, urlencode

__all__ = ["DEFAULT_PORT", "Host", "Parts"]

DEFAULT_PORT = 5432
_SHAPE = re.compile(
    r"(?P<scheme>\w[\w+.-]*)://(?:(?P<userinfo>.*?)@(?=[^@/]*(?:[/?]|$)))?(?P<authority>[^/?#]*)(?:/(?P<path>[^?#]*))?(?:\?(?P<query>[^#]*))?",
    re.DOTALL,
)
_HOST = re.compile(r"(?:\[(?P<bracketed>[^\]]*)\]|(?P<plain>[^:\[\]]*))(?::(?P<port>\d*))?")


@dataclass(frozen=True, slots=True)
class Host:
    """Where one server listens: a name, an address, or the directory of a Unix socket."""

    name: str
    port: int


@dataclass(frozen=True, slots=True)
class Parts:
    """A database URL, taken apart; what is encoded stays so, `str` puts it together again.

    Attributes:
        userinfo: `user:password`, encoded; None when there is no `@`.
        authority: hosts and ports as written.
        path: the database's name, encoded.
        query: names and values, decoded, in order.
    """

    scheme: str
    userinfo: str | None
    authority: str
    path: str | None
    query: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, url: str) -> Parts:
        """Take a URL apart.

        Raises:
            ValueError: it is none, or its hosts and ports make no sense; the message never has the password.
        """
        found = _SHAPE.fullmatch(url)
        if found is None:
            raise ValueError("not of the form postgresql://user:password@host:port/database")
        query = tuple(parse_qsl(found["query"] or "", keep_blank_values=True))
        return cls(found["scheme"], found["userinfo"], found["authority"], found["path"], query)

    def __str__(self) -> str:
        user = "" if self.userinfo is None else f"{self.userinfo}@"
        path = "" if self.path is None else f"/{self.path}"
        query = f"?{urlencode(self.query, quote_via=quote)}" if self.query else ""
        return f"{self.scheme}://{user}{self.authority}{path}{query}"

    def get(self, name: str) -> str | None:
        """A parameter's value, the last if there are several; None when it is missing or empty."""
        return dict(self.query).get(name) or None

    def without(self, *names: str) -> Parts:
        """The same without these parameters."""
        return replace(self, query=tuple(pair for pair in self.query if pair[0] not in names))

    def having(self, **values: str) -> Parts:
        """The same with these parameters, in place of those of the same names."""
        return replace(self, query=(*self.without(*values).query, *values.items()))

    def missing(self, values: Iterable[tuple[str, str]]) -> Parts:
        """The same with those of the parameters that it does not have."""
        have = {name for name, _ in self.query}
        return replace(self, query=(*self.query, *((name, value) for name, value in values if name not in have)))

    @property
    def user(self) -> str | None:
        """The role, decoded."""
        return unquote((self.userinfo or "").partition(":")[0]) or self.get("user")

    @property
    def password(self) -> str | None:
        """The password, decoded."""
        return unquote((self.userinfo or "").partition(":")[2]) or self.get("password")

    @property
    def database(self) -> str | None:
        """The database's name, decoded."""
        return self.get("dbname") or unquote(self.path or "") or self.user

    def without_password(self) -> Parts:
        """The same without a password."""
        user = None if self.userinfo is None else self.userinfo.partition(":")[0]
        return replace(self.without("password"), userinfo=user)

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The hosts in turn. As in libpq, the parameters `host`, `hostaddr`, `port` take lists, and one port is for all.

        Raises:
            ValueError: a port is no port, or the lists have different lengths.
        """
        written = [self._written(text) for text in self.authority.split(",")]
        names, addresses, ports = (
            [*text.split(",")] if (text := self.get(name)) else [] for name in ("host", "hostaddr", "port")
        )
        if not names and any(name for name, _ in written):
            names = [name for name, _ in written]
        names = names or [""] * max(1, len(addresses), len(written) if len(written) > 1 else 0)
        ports = ports or [port for _, port in written]
        if len(ports) not in (1, len(names)) or len(addresses) not in (0, len(names)):
            raise ValueError("as many ports and addresses as hosts")
        result = []
        for index, name in enumerate(names):
            port = int(ports[index if len(ports) > 1 else 0] or DEFAULT_PORT)
            if not 0 < port < 65536:
                raise ValueError("a port is between 1 and 65535")
            result.append(Host(name or (addresses[index] if addresses else "localhost"), port))
        return tuple(result)

    @staticmethod
    def _written(text: str) -> tuple[str, str]:
        found = _HOST.fullmatch(text)
        if found is None:
            raise ValueError("a host or port cannot be understood")
        bracketed: str | None = found["bracketed"]
        return bracketed if bracketed is not None else unquote(found["plain"]), found["port"] or ""
