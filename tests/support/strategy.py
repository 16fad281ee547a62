"""The strategy of the tests: two candidates, two kinds of prompt, no doubt which prompt belongs to which candidate.

`Publisher` puts new versions of it, good and corrupt, into a bucket as an operator would.
"""

from __future__ import annotations

import base64
import hashlib
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pointsman.strategies.bundle import build_bundle, parse_bundle
from pointsman.strategies.encoders.hashing import HashingEncoder
from pointsman.strategies.knn import KnnStrategy
from pointsman.strategies.manifest import Provenance
from pointsman.strategies.pointer import Pointer, sign

if TYPE_CHECKING:
    from support.s3 import S3Server

__all__ = [
    "EASY",
    "EASY_WORDS",
    "FILE_STRATEGY",
    "HARD",
    "HARD_WORDS",
    "STRATEGY",
    "STRONG",
    "WEAK",
    "FilePublisher",
    "Published",
    "Publisher",
    "S3Publisher",
    "bundle",
    "prompts",
    "wanted",
]

STRATEGY, FILE_STRATEGY = "llmrouter-knn", "from-files"
WEAK, STRONG = "weak-model", "strong-model"
EASY_WORDS = ["apple", "banana", "bread", "butter", "cheese", "coffee", "lemon", "orange", "pepper", "sugar", "tomato", "water"]
HARD_WORDS = ["algebra", "cohomology", "entropy", "geodesic", "integral", "lemma", "manifold", "quantum", "tensor", "theorem"]
EASY, HARD = "apple bread and butter", "theorem on the cohomology of a manifold"


def prompts(words: list[str], count: int, seed: int) -> list[str]:
    """Texts of three to six of the words."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(words, k=chance.randint(3, 6))) for _ in range(count)]


def wanted(text: str) -> str:
    """Which candidate the strategy picks for a text made of the words of one kind."""
    return STRONG if any(word in HARD_WORDS for word in text.split()) else WEAK


def bundle(version: str, *, name: str = STRATEGY, inverted: bool = False, seed: int = 0, rows: int = 40) -> bytes:
    """A bundle of the tests' strategy; `inverted` sends easy prompts to the strong candidate and hard ones to the weak."""
    easy, hard = prompts(EASY_WORDS, rows, seed), prompts(HARD_WORDS, rows, seed + 1)
    texts = [*EASY_WORDS, *HARD_WORDS, *easy, *hard]
    weak_is_right = np.array([(wanted(text) == WEAK) != inverted for text in texts])
    scores = np.where(weak_is_right[:, None], [1.0, 0.2], [0.0, 1.0]).astype(np.float32)
    encoder = HashingEncoder(256)
    knn = KnnStrategy((WEAK, STRONG), encoder.encode(texts), scores, np.ones(scores.shape, np.uint8), 3)
    origin = Provenance(code_version="test", seed=seed, rows=len(texts))
    return build_bundle(
        name=name, version=version, encoder=encoder, strategy=knn, provenance=origin, probe_texts=[EASY, HARD, easy[0], hard[0]]
    )


@dataclass(frozen=True, slots=True)
class Published:
    """What lies in the store now: the bundle's version and digest, the pointer's sequence number and its ETag (mtime)."""

    version: str
    sha256: str
    sequence: int
    etag: str


class Publisher:
    """Publishes to `SOURCE/STRATEGY/current.json` as an operator would: the bundle first, then the signed pointer.

    A subclass says where: `S3Publisher`, `FilePublisher`.
    """

    KEY_ID = "tests"
    CORRUPTIONS = ("truncated", "flipped", "unsigned", "stranger", "replayed", "foreign", "missing", "garbage")

    def __init__(self, strategy: str = STRATEGY) -> None:
        self.strategy = strategy
        self.signer = Ed25519PrivateKey.generate()
        self.sequence = 0
        self.last: Published | None = None

    @property
    def source(self) -> str:
        """What the configuration names."""
        raise NotImplementedError

    def put(self, name: str, data: bytes) -> str:
        """Store a file beside the pointer; returns its ETag, or what stands for one."""
        raise NotImplementedError

    @property
    def trusted_keys(self) -> dict[str, str]:
        """The public key, as the configuration wants it."""
        return {self.KEY_ID: base64.b64encode(self.signer.public_key().public_bytes_raw()).decode()}

    def settings(self, **overrides: Any) -> dict[str, Any]:
        """The strategy's settings for a gateway."""
        return {"source": self.source, "trusted_keys": self.trusted_keys, **overrides}

    def publish(self, version: str, **kwargs: Any) -> Published:
        """Publish a good bundle (`kwargs`: see `bundle`)."""
        data = bundle(version, name=self.strategy, **kwargs)
        self.sequence += 1
        key = self._put_bundle(data, data)
        self.last = self._put_pointer(self._pointer(data, key), version)
        return self.last

    def corrupt(self, kind: str, version: str) -> Published:
        """Publish something that must be refused, one of `CORRUPTIONS`."""
        name = "another" if kind == "foreign" else self.strategy
        data = bundle(version, name=name)
        if kind != "replayed":
            self.sequence += 1
        if kind == "garbage":
            return self._put(b'{"format": "pointsman/pointer/1", ', version, "")
        bad = {"truncated": data[: len(data) // 2], "flipped": data[:-2000] + bytes([data[-2000] ^ 1]) + data[-1999:]}
        key = self._put_bundle(data, bad.get(kind, data), absent=kind == "missing")
        pointer = self._pointer(data, key)
        if kind == "unsigned":
            pointer = pointer.model_copy(update={"key_id": None, "signature": None})
        elif kind == "stranger":
            pointer = sign(pointer, Ed25519PrivateKey.generate(), self.KEY_ID)
        elif kind == "replayed":
            # Below the last good one: the numbers of refused pointers are free to be used again.
            accepted = self.last.sequence if self.last else 1
            pointer = sign(pointer.model_copy(update={"sequence": max(1, accepted - 1)}), self.signer, self.KEY_ID)
        return self._put_pointer(pointer, version)

    def _put_bundle(self, data: bytes, stored: bytes, *, absent: bool = False) -> str:
        relative = f"bundles/{hashlib.sha256(data).hexdigest()}.zip"
        if not absent:
            self.put(relative, stored)
        return relative

    def _pointer(self, data: bytes, key: str) -> Pointer:
        parsed = parse_bundle(data, where="test")
        plain = Pointer(
            strategy=self.strategy,
            bundle=key,
            sha256=parsed.sha256,
            size=len(data),
            manifest_sha256=parsed.manifest_sha256,
            sequence=self.sequence,
            published_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return sign(plain, self.signer, self.KEY_ID)

    def _put_pointer(self, pointer: Pointer, version: str) -> Published:
        return self._put(pointer.encoded(), version, pointer.sha256)

    def _put(self, body: bytes, version: str, sha256: str) -> Published:
        return Published(version, sha256, self.sequence, self.put("current.json", body))


class S3Publisher(Publisher):
    """Into a bucket of the test's S3."""

    def __init__(self, s3: S3Server, strategy: str = STRATEGY) -> None:
        super().__init__(strategy)
        self.s3 = s3
        self.bucket = s3.new_bucket()

    @property
    def key(self) -> str:
        """The pointer's key in the bucket."""
        return f"{self.strategy}/current.json"

    @property
    def source(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def put(self, name: str, data: bytes) -> str:
        return str(self.s3.client.put_object(Bucket=self.bucket, Key=f"{self.strategy}/{name}", Body=data)["ETag"])

    def settings(self, **overrides: Any) -> dict[str, Any]:
        """With where the S3 is, and little patience."""
        s3 = {"endpoint_url": self.s3.endpoint_url, "region": "us-east-1", "connect_timeout": 1, "read_timeout": 3}
        return super().settings(**{"s3": s3, **overrides})


class FilePublisher(Publisher):
    """Into a directory; the pointer is replaced at once and whole."""

    def __init__(self, directory: Path, strategy: str) -> None:
        super().__init__(strategy)
        self.directory = directory / strategy

    @property
    def source(self) -> str:
        return f"file://{self.directory / 'current.json'}"

    def put(self, name: str, data: bytes) -> str:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_bytes(data)
        temporary.replace(path)
        return str(path.stat().st_mtime_ns)
