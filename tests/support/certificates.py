"""Certificates for tests: an authority, and what it signs. Elliptic curves, because they are made in a millisecond."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    pkcs12,
)
from cryptography.x509.oid import NameOID

__all__ = ["Authority", "Pair"]


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in files."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates into files of `directory`."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._make(self._name, self._key, authority=True, days=1)
        self.file = directory / f"{name}.crt"
        self.file.write_bytes(self._certificate.public_bytes(Encoding.PEM))

    def _make(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        authority: bool = False,
        days: int,
        hosts: tuple[str, ...] = (),
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=9))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if hosts:
            names = [x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host) for host in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def sign(self, name: str, *hosts: str, days: int = 1, password: str | None = None) -> Pair:
        """A certificate for a common name, and host names or addresses; with `days` below 0 it has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._make(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, days=days, hosts=hosts)
        pair = Pair(self._directory / f"{name}{days}.crt", self._directory / f"{name}{days}{'x' if password else ''}.key")
        pair.certificate.write_bytes(made.public_bytes(Encoding.PEM))
        how: KeySerializationEncryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
        pair.key.touch(mode=0o600)
        pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))
        identity = pkcs12.serialize_key_and_certificates(name.encode(), key, made, None, BestAvailableEncryption(b"secret"))
        pair.certificate.with_suffix(".p12").write_bytes(identity)
        return pair
