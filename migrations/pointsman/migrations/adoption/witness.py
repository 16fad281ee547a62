"""A process with LiteLLM in it, that answers whether keys open ciphertext and whether LiteLLM can read rows.

The command line does not import LiteLLM (it takes seconds and reaches for the internet); and what is secret goes to this
process by a pipe, not on a command line or in an environment. It answers with names and places, never with a value.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from pointsman.errors import DatabaseError

__all__ = ["Witness", "main"]

_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOG": "ERROR",
    "LC_ALL": "C.UTF-8",
    "PATH": os.defpath,
}


class Witness:
    """The process, from the caller's side; a context manager.

    Raises:
        DatabaseError: E4505 when LiteLLM cannot be loaded, or the process ends.
    """

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env=_ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd="/",
        )

    def __enter__(self) -> Witness:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # what it had no time to read is of no interest any more
            if self._process.stdin:
                self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._errors.close()

    def open(self, values: Sequence[str], keys: Sequence[tuple[str, str]]) -> list[str | None]:
        """For each value the name of the first key that opens it."""
        opened: list[str | None] = self._ask({"op": "open", "values": list(values), "keys": list(keys)})
        return opened

    def unreadable(self, kind: str, rows: Sequence[dict[str, Any]], key: str | None) -> list[tuple[str, str]]:
        """Rows that LiteLLM's own types refuse, as (id, which fields).

        Args:
            kind: `models`, `agents` or `servers`.
            rows: as Postgres's `to_jsonb` gives them.
            key: opens what is encrypted in them.
        """
        return [(row, why) for row, why in self._ask({"op": kind, "rows": list(rows), "key": key})]

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin is not None  # noqa: S101 - for the type checker: both are pipes
        assert self._process.stdout is not None  # noqa: S101
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer:
            status = self._process.wait(30)
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            # Only what an import says: later lines might quote what they were given.
            last = next((line for line in reversed(lines) if "ImportError" in line or "ModuleNotFoundError" in line), "")
            raise DatabaseError(
                f"LiteLLM could not be asked (status {status}) {last[:300]}".strip(),
                code="E4505",
                where="litellm",
                mend="run `make setup` again",
            )
        return json.loads(answer)["answer"]


def main() -> None:
    """The process's side: one JSON question a line on standard input, one answer a line on standard output."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # whatever a library prints is no answer
        for line in sys.stdin:
            question = json.loads(line)
            answer = _open(question) if question["op"] == "open" else _parse(question)
            answers.write(json.dumps({"answer": answer}) + "\n")
            answers.flush()


def _open(question: dict[str, Any]) -> list[str | None]:
    from litellm.proxy.common_utils.encrypt_decrypt_utils import decrypt_if_encrypted_with

    return [
        next((name for name, key in question["keys"] if decrypt_if_encrypted_with(value, key) is not None), None)
        for value in question["values"]
    ]


def _parse(question: dict[str, Any]) -> list[tuple[str, str]]:
    from litellm.proxy._types import LiteLLM_MCPServerTable
    from litellm.proxy.common_utils.encrypt_decrypt_utils import decrypt_if_encrypted_with
    from litellm.types.agents import AgentResponse
    from litellm.types.router import LiteLLM_Params
    from pydantic import ValidationError

    def plain(value: Any) -> Any:
        opened = decrypt_if_encrypted_with(value, question["key"]) if isinstance(value, str) and question["key"] else None
        return value if opened is None else opened

    kind = question["op"]
    found: list[tuple[str, str]] = []
    for row in question["rows"]:
        try:
            if kind == "models":
                LiteLLM_Params.model_validate({name: plain(value) for name, value in row["litellm_params"].items()})
            elif kind == "agents":
                AgentResponse.model_validate(row)
            else:
                LiteLLM_MCPServerTable.model_validate({**row, "static_headers": None, "env": {}, "credentials": None})
        except ValidationError as error:
            # Places and kinds only: pydantic's own text quotes the input.
            fields = sorted({".".join(map(str, one["loc"])) + ": " + one["type"] for one in error.errors()})
            found.append((str(row.get("model_id") or row.get("agent_id") or row.get("server_id")), ", ".join(fields[:4])))
    return found


if __name__ == "__main__":
    main()
