"""Every error that Pointsman itself raises, declared once.

The tree (each class carries a code of the catalogue, an HTTP status and an exit code of 1)::

    PointsmanError
    ├── RequestError      E40xx  what a caller sent
    ├── AccessError       E41xx  who may do it
    ├── ConfigError       E42xx  the YAML file, the environment, the command line
    ├── BundleError       E43xx  a strategy's bundle or pointer
    ├── SourceError       E44xx  where bundles come from: S3, files
    ├── DatabaseError     E45xx  Postgres, the query engine, migrations
    ├── ProcessError      E46xx  ports, directories, workers, set-up
    └── RoutingError      E47xx  no deployment, queue, budget, upstream

An error says *what* was wrong, *where* (file, line, key, URL) and how to *mend* it. `CATALOGUE` is the one table; the
documentation is generated from it and a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = [
    "CATALOGUE",
    "AccessError",
    "BundleError",
    "ConfigError",
    "DatabaseError",
    "ErrorSpec",
    "PointsmanError",
    "ProcessError",
    "RequestError",
    "RoutingError",
    "SourceError",
]


@dataclass(frozen=True, slots=True)
class ErrorSpec:
    """One row of the catalogue: the code, its HTTP status, a stable name and one sentence for the documentation."""

    code: str
    status: int
    name: str
    meaning: str


CATALOGUE: dict[str, ErrorSpec] = {
    spec.code: spec
    for spec in (
        ErrorSpec("E4001", 400, "bad_request", "The request is malformed."),
        ErrorSpec("E4004", 404, "not_found", "Nothing of that name exists."),
        ErrorSpec("E4009", 409, "conflict", "The request does not fit the present state."),
        ErrorSpec("E4010", 400, "override_value", "A header that chooses the strategy or the cost weight means nothing."),
        ErrorSpec("E4011", 413, "body_too_large", "The request's body is larger than the endpoint takes."),
        ErrorSpec("E4012", 400, "no_streaming", "Streaming is switched off for the model that is asked for."),
        ErrorSpec("E4101", 401, "unauthenticated", "A key is missing or unknown."),
        ErrorSpec("E4103", 403, "admin_only", "The endpoint wants an admin key."),
        ErrorSpec("E4110", 403, "override_forbidden", "The key may not choose its strategy or cost weight by header."),
        ErrorSpec("E4200", 400, "config_invalid", "The configuration has problems; each is listed."),
        ErrorSpec("E4201", 400, "config_unreadable", "The configuration file cannot be read or is not YAML."),
        ErrorSpec("E4202", 400, "config_unknown_key", "A key that Pointsman does not know."),
        ErrorSpec("E4203", 400, "config_value", "A value of the wrong type or range."),
        ErrorSpec("E4204", 400, "config_missing", "Something required is missing."),
        ErrorSpec("E4205", 400, "config_pickle", "A pickle was given where a bundle belongs."),
        ErrorSpec("E4206", 400, "config_strategy", "The strategy is unknown or not usable as configured."),
        ErrorSpec("E4207", 400, "llmrouter_missing", "LLMRouter is not installed where it is needed."),
        ErrorSpec("E4300", 422, "bundle_format", "The bundle is not a readable archive of the expected layout."),
        ErrorSpec("E4301", 422, "bundle_too_large", "The bundle is over the size limit."),
        ErrorSpec("E4302", 422, "bundle_digest", "The bytes do not have the promised sha256."),
        ErrorSpec("E4303", 422, "bundle_signature", "The pointer's signature is missing, unknown or wrong."),
        ErrorSpec("E4304", 422, "bundle_replayed", "The pointer's sequence number does not rise."),
        ErrorSpec("E4305", 422, "bundle_foreign", "The bundle or pointer belongs to another strategy."),
        ErrorSpec("E4306", 422, "bundle_schema", "The manifest does not fit its schema."),
        ErrorSpec("E4307", 422, "bundle_shape", "An array has the wrong shape or type."),
        ErrorSpec("E4308", 422, "bundle_not_finite", "An array holds NaN or infinity."),
        ErrorSpec("E4309", 422, "bundle_probe", "A probe's scores are not what the manifest promises."),
        ErrorSpec("E4310", 422, "bundle_path", "The archive names a file outside itself."),
        ErrorSpec("E4311", 422, "bundle_blocked", "The bundle was rolled back and is blocked."),
        ErrorSpec("E4312", 422, "pointer_format", "The pointer is not what it should be."),
        ErrorSpec("E4313", 409, "nothing_to_roll_back", "There is no earlier good bundle to return to."),
        ErrorSpec(
            "E4314", 422, "bundle_isolation", "Verifying the bundle in a process of its own crashed, hung or took too much."
        ),
        ErrorSpec("E4315", 422, "encoder_native", "An encoder's model or tokeniser is not accepted."),
        ErrorSpec("E4316", 422, "encoder_missing", "A file of the bundle's encoder is not on this machine."),
        ErrorSpec("E4317", 422, "bundle_code", "The archive holds code; none is ever taken from a bundle."),
        ErrorSpec("E4318", 422, "bundle_work", "A decision by the bundle would take too much work."),
        ErrorSpec("E4320", 400, "training_data", "The training data cannot be used."),
        ErrorSpec("E4321", 409, "import_mismatch", "What was imported does not do what LLMRouter does; nothing was written."),
        ErrorSpec("E4330", 422, "code_wheel", "The wheel is not one that is taken, or cannot be loaded."),
        ErrorSpec("E4400", 502, "source_unreachable", "The bundle's source cannot be reached."),
        ErrorSpec("E4401", 502, "source_credentials", "The bundle's source refuses the credentials, or there are none."),
        ErrorSpec("E4404", 502, "source_missing", "The bundle's source has no such object."),
        ErrorSpec("E4410", 507, "source_write", "Writing or publishing failed; nothing was left half-written."),
        ErrorSpec("E4500", 503, "database_unavailable", "The database cannot be reached."),
        ErrorSpec("E4501", 503, "migration_failed", "A migration failed; the schema is as it was before it."),
        ErrorSpec("E4502", 503, "migration_locked", "Another instance holds the migration lock."),
        ErrorSpec("E4503", 503, "engine_failed", "The query engine did not start or keep running."),
        ErrorSpec("E4504", 503, "database_url", "The database URL is missing or malformed."),
        ErrorSpec("E4505", 409, "adoption_refused", "The database cannot be adopted as it is; nothing was changed."),
        ErrorSpec("E4506", 500, "backup_failed", "A backup was not made, or is not as it was made."),
        ErrorSpec("E4507", 409, "restore_refused", "A backup was not restored; the database is as it was."),
        ErrorSpec("E4508", 503, "database_pooled", "Migrations need a direct connection, past poolers in transaction mode."),
        ErrorSpec("E4509", 503, "schema_behind", "The schema is not this version's, and this instance may not change it."),
        ErrorSpec("E4510", 503, "feedback_not_kept", "Feedback cannot be kept: there is no database, or it cannot be reached."),
        ErrorSpec("E4600", 500, "process_failed", "A part of the gateway did not start or stopped."),
        ErrorSpec("E4601", 500, "port_busy", "The port is taken."),
        ErrorSpec("E4602", 500, "data_directory", "The data directory cannot be used."),
        ErrorSpec("E4603", 500, "data_directory_in_use", "Another gateway owns the data directory."),
        ErrorSpec("E4604", 500, "setup_incomplete", "Something that set-up provides is missing."),
        ErrorSpec("E4605", 503, "not_ready", "The gateway is starting or draining."),
        ErrorSpec("E4606", 504, "supervisor_timeout", "The supervisor did not answer in time."),
        ErrorSpec("E4700", 503, "no_candidate", "No deployment may serve the request."),
        ErrorSpec("E4701", 503, "stream_cut", "The stream was cut because the gateway is shutting down."),
        ErrorSpec("E4702", 503, "all_rest", "All deployments of the model group rest, and no fallback answered."),
        ErrorSpec("E4710", 503, "strategy_unavailable", "A strategy outside the gateway's own process cannot decide now."),
        ErrorSpec("E4720", 429, "queue_full", "As many requests of its class wait in the gateway's queue as may."),
        ErrorSpec("E4721", 503, "queue_late", "The request's turn in the gateway's queue did not come in time."),
        ErrorSpec("E4722", 503, "queue_closing", "The gateway is shutting down, and the request's turn did not come before."),
        ErrorSpec("E4730", 504, "deadline", "The request's deadline passed before there was an answer."),
        ErrorSpec("E4731", 503, "retry_budget", "The request failed, and its group's retry budget allows no further try."),
        ErrorSpec("E4732", 503, "retry_after", "The provider asks to be left alone for longer than the gateway waits."),
        ErrorSpec("E4723", 499, "client_gone", "The client left while its request waited in the gateway's queue."),
    )
}


class PointsmanError(Exception):
    """Base of all errors of this package.

    Args:
        message: what was wrong, one sentence.
        code: a key of `CATALOGUE`; each class has a default.
        where: file with line, key path, URL or object that it is about.
        mend: what to do about it, one sentence.
    """

    default_code: ClassVar[str] = "E4600"

    def __init__(self, message: str, *, code: str | None = None, where: str | None = None, mend: str | None = None) -> None:
        self.message = message
        self.spec = CATALOGUE[code or self.default_code]
        self.where = where
        self.mend = mend
        super().__init__(message)

    @property
    def code(self) -> str:
        """The catalogue's code, e.g. ``E4302``."""
        return self.spec.code

    @property
    def status(self) -> int:
        """The HTTP status that an endpoint answers with."""
        return self.spec.status

    def __str__(self) -> str:
        text = f"{self.code} {self.spec.name}: {self.message}"
        if self.where:
            text += f" [{self.where}]"
        if self.mend:
            text += f" -> {self.mend}"
        return text

    def as_json(self) -> dict[str, Any]:
        """The body of an error answer, in the shape that OpenAI clients read."""
        body: dict[str, Any] = {"message": self.message, "type": self.spec.name, "param": self.where, "code": self.code}
        if self.mend:
            body["mend"] = self.mend
        return {"error": body}


class RequestError(PointsmanError):
    default_code = "E4001"


class AccessError(PointsmanError):
    default_code = "E4101"


class ConfigError(PointsmanError):
    default_code = "E4200"


class BundleError(PointsmanError):
    default_code = "E4300"


class SourceError(PointsmanError):
    default_code = "E4400"


class DatabaseError(PointsmanError):
    default_code = "E4500"


class ProcessError(PointsmanError):
    default_code = "E4600"


class RoutingError(PointsmanError):
    default_code = "E4700"
