"""TLS to a real Postgres: what a URL means to the engine it means to our other connections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from connections.agreement import by_libpq, by_the_engine
from pointsman.database_url import libpq_url, unreachable
from pointsman.errors import DatabaseError
from support.certificates import Authority, Pair
from support.debian import postgres_with_tls
from support.pg_cluster import PASSWORD, PgCluster

pytestmark = pytest.mark.slow("connections")

HBA = """
local   all all       scram-sha-256
hostnossl all guarded all reject
hostssl all guarded   all cert
hostssl all careful   all scram-sha-256 clientcert=verify-full
host    all all       all scram-sha-256
"""


@dataclass
class Site:
    """A server with TLS, and one without; the files of everybody."""

    server: PgCluster
    plain: PgCluster
    directory: Path
    authority: Authority
    stranger: Authority
    host: Pair
    late: Pair

    def url(
        self, parameters: str, *, user: str = "boss", password: str = PASSWORD, host: str = "localhost", plain: bool = False
    ) -> str:
        base = (self.plain if plain else self.server).url(user=user, password=password, host=host)
        return f"{base}?{parameters}".replace("DIR", str(self.directory)).replace("CA", str(self.authority.file))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("tls")
    authority, stranger = Authority(root, "authority"), Authority(root, "stranger")
    host, late = authority.sign("server", "localhost"), authority.sign("server", "localhost", days=-1)
    authority.sign("guarded")
    authority.sign("careful")
    authority.sign("careful", password="secret")
    stranger.sign("guarded", days=2)
    plain = PgCluster(root / "plain")
    plain.start()
    server = PgCluster(root / "server", hba=HBA, binaries=postgres_with_tls())
    server.install(host.certificate, "server.crt")
    server.install(host.key, "server.key")
    server.install(authority.file, "root.crt")
    server.configure({"ssl": "on", "ssl_ca_file": "root.crt"})
    server.start()
    server.execute(
        "CREATE ROLE guarded LOGIN", f"CREATE ROLE careful LOGIN PASSWORD '{PASSWORD.replace(chr(39), chr(39) * 2)}'"
    )
    yield Site(server, plain, root, authority, stranger, host, late)
    server.stop()
    plain.stop()


CLIENT = "&sslcert=DIR/guarded1.crt&sslkey=DIR/guarded1.key"
# What the URL says -> whether it connects, and then whether with TLS.
MATRIX: dict[str, bool | None] = {
    "": True,
    "sslmode=disable": False,
    "sslmode=allow": False,
    "sslmode=prefer": True,
    "sslmode=require": True,
    "sslmode=require&sslrootcert=CA": True,
    "sslmode=require&sslrootcert=DIR/stranger.crt": None,
    "sslmode=prefer&sslrootcert=DIR/stranger.crt": False,  # as libpq has it: then without
    "sslmode=verify-ca&sslrootcert=CA": True,
    "sslmode=verify-ca&sslrootcert=DIR/stranger.crt": None,
    "sslmode=verify-ca": None,
    "sslmode=verify-full&sslrootcert=CA": True,
    "sslmode=verify-full&sslrootcert=DIR/stranger.crt": None,
    "sslmode=verify-full&sslrootcert=DIR/nothing.crt": None,
    "sslmode=verify-full": None,  # the machine's authorities have not signed it
    "sslmode=verify-full&sslrootcert=system": None,
    "sslmode=require&sslrootcert=system": None,
    "sslrootcert=CA": True,
    "sslrootcert=DIR/stranger.crt": None,
    "sslaccept=strict&sslcert=CA": True,
    "sslmode=require&sslaccept=strict&sslcert=CA": True,
    "sslmode=require&sslaccept=strict&sslcert=DIR/stranger.crt": None,
    "sslmode=require&sslaccept=strict": None,
    "sslmode=require&sslaccept=accept_invalid_certs&sslcert=DIR/stranger.crt": True,
    "sslmode=disable&sslaccept=strict&sslcert=CA": False,
    "sslmode=sometimes": None,
    "sslmode=require&ssl_min_protocol_version=TLSv1.3": True,
    "sslmode=require&ssl_max_protocol_version=TLSv1.1&ssl_min_protocol_version=TLSv1": None,
    "sslmode=require&channel_binding=require": True,
    "sslmode=disable&channel_binding=require": None,
    "sslmode=require&channel_binding=disable": True,
    "require_auth=scram-sha-256": True,
    "require_auth=md5": None,
    "require_auth=!scram-sha-256": None,
    "requirepeer=root": None,
}


def agree(site: Site, urls: list[str], expected: list[Any]) -> None:
    """Both connect alike, or both refuse, as expected."""
    engine = by_the_engine(urls)
    libpq = [by_libpq(url, site.directory) for url in urls]
    told = {}
    for url, one, two, wanted in zip(urls, engine, libpq, expected, strict=True):
        got = [(None if isinstance(answer, str) else tuple(answer[:3])) for answer in (one, two)]
        if got != [wanted, wanted]:
            told[url.partition("?")[2]] = (one, two, wanted)
    assert not told


@pytest.mark.requirement("R-17")
def test_engine_and_libpq_agree_on_every_url(site: Site) -> None:
    urls = [site.url(parameters) for parameters in MATRIX]
    agree(site, urls, [None if tls is None else (tls, "", "boss") for tls in MATRIX.values()])


def test_the_hosts_name_counts_where_it_should(site: Site) -> None:
    """The certificate says `localhost`; by its address it is another's."""
    by_address = {
        "sslmode=verify-full&sslrootcert=CA": None,
        "sslmode=verify-ca&sslrootcert=CA": True,
        "sslmode=require": True,
        "sslaccept=strict&sslcert=CA": None,
    }
    urls = [site.url(parameters, host="127.0.0.1") for parameters in by_address]
    urls.append(site.url("sslmode=verify-full&sslrootcert=CA&hostaddr=127.0.0.1"))
    agree(site, urls, [tls and (tls, "", "boss") for tls in [*by_address.values(), True]])


def test_a_server_without_tls(site: Site) -> None:
    without = {
        "": False,
        "sslmode=prefer": False,
        "sslmode=require": None,
        "sslmode=verify-full&sslrootcert=CA": None,
        "sslrootcert=CA": None,
    }
    urls = [site.url(parameters, plain=True) for parameters in without]
    agree(site, urls, [None if tls is None else (tls, "", "boss") for tls in without.values()])


def test_client_certificates(site: Site) -> None:
    """`cert` in pg_hba.conf: no password; `clientcert=verify-full`: both. PKCS#12 is Prisma's, a locked key libpq's."""
    full = "sslmode=verify-full&sslrootcert=CA"
    guarded = {
        f"{full}{CLIENT}": True,
        f"sslmode=require{CLIENT}": True,
        f"sslmode=allow{CLIENT}": True,  # refused without TLS, so with
        full: None,
        "sslmode=disable": None,
        f"{full}&sslcert=DIR/guarded2.crt&sslkey=DIR/guarded2.key": None,  # the stranger's
        f"{full}&sslcert=DIR/careful1.crt&sslkey=DIR/careful1.key": None,  # another role's
        f"{full}&sslidentity=DIR/guarded1.p12&sslpassword=secret": True,
        "sslaccept=strict&sslcert=CA&sslidentity=DIR/guarded1.p12&sslpassword=secret": True,
        f"{full}&sslidentity=DIR/guarded1.p12&sslpassword=wrong": None,
    }
    urls = [site.url(parameters, user="guarded", password="") for parameters in guarded]
    agree(site, urls, [known and (True, "/CN=guarded", "guarded") for known in guarded.values()])
    careful = {
        f"{full}&sslcert=DIR/careful1.crt&sslkey=DIR/careful1x.key&sslpassword=secret": True,
        f"{full}&sslcert=DIR/careful1.crt&sslkey=DIR/careful1x.key&sslpassword=wrong": None,
        full: None,
    }
    urls = [site.url(parameters, user="careful") for parameters in careful]
    agree(site, urls, [known and (True, "/CN=careful", "careful") for known in careful.values()])
    agree(site, [site.url(next(iter(careful)), user="careful", password="wrong")], [None])


def test_an_expired_certificate_and_one_that_is_renewed(site: Site) -> None:
    full = site.url("sslmode=verify-full&sslrootcert=CA")
    site.server.install(site.late.certificate, "server.crt")
    site.server.install(site.late.key, "server.key")
    site.server.reload()
    try:
        assert "expired" in by_the_engine([full])[0]
        assert "certificate verify failed" in by_libpq(full, site.directory)
    finally:
        site.server.install(site.host.certificate, "server.crt")
        site.server.install(site.host.key, "server.key")
        site.server.reload()
    agree(site, [full], [(True, "", "boss")])


@pytest.mark.parametrize(
    ("parameters", "host", "mend"),
    [
        ("sslmode=verify-full&sslrootcert=CA", "127.0.0.1", "verify-ca"),
        ("sslmode=verify-full&sslrootcert=DIR/stranger.crt", "localhost", "sslrootcert"),
        ("sslmode=verify-full&sslrootcert=DIR/nothing.crt", "localhost", "sslrootcert"),
        ("sslmode=require&sslnegotiation=direct&plain", "localhost", "sslmode"),
    ],
)
def test_a_refusal_says_what_to_do(parameters: str, host: str, mend: str, site: Site) -> None:
    url = site.url(parameters.removesuffix("&plain"), host=host, plain=parameters.endswith("&plain"))
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(libpq_url(url))
    told = unreachable(url, caught.value)
    assert isinstance(told, DatabaseError)
    assert told.code == "E4500"
    assert mend in (told.mend or "")
    assert PASSWORD not in str(told)
