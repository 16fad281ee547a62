"""Bundles from an S3 API, by conditional GET: `If-None-Match` with the ETag that is known, 304 when it still holds.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html. Credentials come from boto3's own chain. The client is made
at the first use, in the thread that uses it: importing boto3 takes a third of a second.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from pointsman.errors import SourceError
from pointsman.settings import S3Settings
from pointsman.strategies.sources import CHUNK, Opened

__all__ = ["S3Source", "make_client", "split_location", "translate"]

ATTEMPTS = 2
"""Tries of one call; the next poll is the real retry."""

_CREDENTIALS = {
    "403",
    "AccessDenied",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "UnauthorizedAccess",
}
_MISSING = {"404", "NoSuchKey", "NoSuchBucket", "NoSuchVersion"}


def split_location(location: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`."""
    bucket, _, key = location.removeprefix("s3://").partition("/")
    return bucket, key


def make_client(settings: S3Settings) -> Any:
    """A boto3 client with bounded waits.

    Raises:
        botocore.exceptions.BotoCoreError: e.g. an unknown profile; see `translate`.
    """
    import boto3
    from botocore.config import Config

    style = {"addressing_style": "path"} if settings.endpoint_url else {}
    config = Config(
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.read_timeout,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        s3=style,
        max_pool_connections=2,
    )
    # A session of its own: boto3's default one is shared by the whole process and not safe to make clients from in threads.
    session = boto3.session.Session()
    # An S3-compatible store mostly ignores the region, but a request cannot be signed without one.
    region = settings.region or session.region_name or ("us-east-1" if settings.endpoint_url else None)
    return session.client("s3", endpoint_url=settings.endpoint_url, region_name=region, config=config)


def translate(error: Exception, where: str, endpoint: str | None) -> SourceError | None:
    """The `SourceError` for what boto3 raised, or None for 304 Not Modified. Errors that are not boto3's are raised again."""
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        detail = error.response.get("Error", {})
        code = str(detail.get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        said = f"{code}: {detail.get('Message', '')}".strip(": ")
        if status == 304 or code == "304":
            return None
        if code in _MISSING or status == 404:
            what = "bucket" if code == "NoSuchBucket" else "object"
            return SourceError(
                f"there is no such {what} ({said})",
                code="E4404",
                where=where,
                mend="publish a bundle there, or correct `source`",
            )
        if code in _CREDENTIALS or status in (401, 403):
            return SourceError(
                f"the credentials are refused ({said})",
                code="E4401",
                where=where,
                mend="check them and their right to s3:GetObject (without s3:ListBucket a missing object answers 403 too)",
            )
        return SourceError(f"S3 answered {status} ({said})", where=where, mend="it is tried again at the next poll")
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        return SourceError(
            f"there are no usable AWS credentials ({error})",
            code="E4401",
            where=where,
            mend="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or give the machine a role",
        )
    if isinstance(error, boto.ProfileNotFound | boto.NoRegionError | boto.TokenRetrievalError | boto.SSOError):
        return SourceError(
            f"the AWS configuration does not do ({error})", code="E4401", where=where, mend="check profile, region and sign-on"
        )
    if isinstance(error, boto.BotoCoreError | boto.HTTPClientError | OSError | ValueError):
        return SourceError(
            f"{endpoint or 'AWS S3'} cannot be reached: {error}",
            where=where,
            mend="check the endpoint, the network and the proxy; what is in service stays",
        )
    raise error


class S3Source:
    """See `Source`."""

    def __init__(self, location: str, settings: S3Settings) -> None:
        self.location = location
        self._settings = settings
        self._bucket, self._key = split_location(location)
        self._client: Any = None
        self._lock = threading.Lock()

    def open(self, key: str | None = None, known: str | None = None) -> Opened | None:
        """See `Source.open`."""
        directory, slash, _ = self._key.rpartition("/")
        full = self._key if key is None else f"{directory}{slash}{key}"
        where = f"s3://{self._bucket}/{full}"
        condition = {"IfNoneMatch": known} if known else {}
        try:
            with self._lock:
                if self._client is None:
                    self._client = make_client(self._settings)
                client = self._client
            answer = client.get_object(Bucket=self._bucket, Key=full, **condition)
        except Exception as error:  # boto3's errors share no base class; what is not its own is raised again
            translated = translate(error, where, self._settings.endpoint_url)
            if translated is None:
                return None
            raise translated from error
        body, modified = answer["Body"], answer.get("LastModified")
        return Opened(
            where,
            answer["ETag"],
            answer["ContentLength"],
            self._chunks(body, where),
            modified.timestamp() if modified else None,
            body.close,
        )

    def close(self) -> None:
        """See `Source.close`."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _chunks(self, body: Any, where: str) -> Iterator[bytes]:
        from urllib3.exceptions import HTTPError

        try:
            yield from body.iter_chunks(CHUNK)
        except HTTPError as error:
            raise SourceError(f"the connection was cut: {error}", where=where) from error
        except Exception as error:  # as above
            raise translate(error, where, self._settings.endpoint_url) or error from error
