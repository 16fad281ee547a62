"""What is judged safe while instances roll; and that our own files are."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pointsman
from pointsman.migrations.safety import Level, review
from pointsman.migrations.sources import Migration, litellm_migrations, our_migrations
from support.files import ROOT

SAFE = [
    "CREATE TABLE n (x int PRIMARY KEY); CREATE INDEX n_x ON n (x); ALTER TABLE n ADD CHECK (x > 0); DELETE FROM n",
    "ALTER TABLE t ADD COLUMN c text",
    'ALTER TABLE "T" ADD COLUMN IF NOT EXISTS "c" TEXT NOT NULL DEFAULT \'a, b\', ADD d jsonb',
    "ALTER TABLE t ADD COLUMN c timestamptz NOT NULL DEFAULT now()",
    "ALTER TABLE t ALTER COLUMN c DROP NOT NULL, ALTER c SET DEFAULT 1",
    "ALTER TABLE t DROP CONSTRAINT IF EXISTS t_c_fkey",
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS t_c ON s.t USING gin (c)",
    "DROP INDEX IF EXISTS t_c_idx",
    "CREATE OR REPLACE FUNCTION f() RETURNS trigger AS $$ BEGIN DELETE FROM t; DROP TABLE t; END $$ LANGUAGE plpgsql",
    "INSERT INTO t VALUES (1)",
    "COMMENT ON TABLE t IS 'DROP TABLE t; here'",
    "DROP TRIGGER IF EXISTS g ON t; CREATE TRIGGER g AFTER INSERT ON t EXECUTE FUNCTION f()",
    "DO $$ BEGIN IF NOT EXISTS (SELECT 1) THEN ALTER TABLE t ADD COLUMN c text; END IF; END $$",
]
LOCKS = [
    "CREATE INDEX t_c ON t (c)",
    "ALTER TABLE t ADD COLUMN c uuid DEFAULT gen_random_uuid()",
    "ALTER TABLE t ADD COLUMN c bigserial",
    "ALTER TABLE t ADD COLUMN c text REFERENCES other (x)",
    "UPDATE t SET c = 1",
    "CREATE TABLE t_1 PARTITION OF t DEFAULT",
    "ALTER TABLE t ATTACH PARTITION p FOR VALUES IN (1)",
]
BREAKING = [
    "DROP TABLE t",
    "DROP TABLE IF EXISTS n; CREATE TABLE n (x int)",
    "ALTER TABLE t DROP COLUMN c",
    "ALTER TABLE t DROP c",
    "ALTER TABLE t RENAME COLUMN a TO b",
    "alter table t rename to u",
    "ALTER TABLE t ALTER COLUMN c TYPE bigint",
    "ALTER TABLE t ALTER c SET DATA TYPE bigint",
    "ALTER TABLE t ALTER COLUMN c SET NOT NULL",
    "ALTER TABLE t ALTER COLUMN c DROP DEFAULT",
    "ALTER TABLE t ADD COLUMN c text NOT NULL",
    "ALTER TABLE t ADD COLUMN a text, ADD COLUMN c int NOT NULL",
    "ALTER TABLE t ADD CONSTRAINT k CHECK (c > 0) NOT VALID",
    "ALTER TABLE t ADD FOREIGN KEY (c) REFERENCES u (c)",
    "ALTER TABLE t SET SCHEMA s",
    "ALTER TYPE e ADD VALUE 'x'",
    "ALTER TYPE e RENAME TO f",
    "CREATE UNIQUE INDEX CONCURRENTLY t_c ON t (c)",
    "DROP INDEX t_c_key",
    "ALTER TABLE t DROP CONSTRAINT t_pkey",
    "DROP VIEW v",
    "DROP TYPE e",
    "DROP SCHEMA s CASCADE",
    "DROP TRIGGER g ON t",
    "DELETE FROM t",
    "TRUNCATE t",
    "REVOKE SELECT ON t FROM r",
    "DO $$ BEGIN EXECUTE 'DROP TABLE t'; END $$",
    "DO $x$ BEGIN IF EXISTS (SELECT 1) THEN ALTER TABLE t DROP COLUMN c; END IF; END $x$",
    "VACUUM FULL t",
]
CASES: list[tuple[str, Level]] = (
    [(s, "safe") for s in SAFE] + [(s, "locks") for s in LOCKS] + [(s, "breaking") for s in BREAKING]
)


def migration(text: str) -> Migration:
    return Migration("9999_x", Path("9999_x.sql"), text, hashlib.sha256(text.encode()).hexdigest())


@pytest.mark.parametrize(("text", "level"), CASES, ids=[text[:50] for text, _ in CASES])
def test_levels(text: str, level: Level) -> None:
    assert review(migration(text)).level == level


@given(
    st.lists(st.sampled_from(CASES), min_size=1, max_size=5), st.sampled_from(["\n", " /* DROP TABLE x; */ ", " -- ALTER\n"])
)
def test_a_file_is_as_bad_as_its_worst_statement(cases: list[tuple[str, Level]], filler: str) -> None:
    """Whatever stands around it. (Each of a file's tables has a name of its own here: what a file makes, it may change.)"""
    texts = [re.sub(r"\b(t|T|n|g)\b", rf"\g<1>{number}", text) for number, (text, _) in enumerate(cases)]
    worst = max((level for _, level in cases), key=("safe", "locks", "breaking").index)
    found = review(migration(f";{filler}".join(texts)))
    assert found.level == worst
    assert {one.level for one in found.findings} <= {"locks", "breaking"}


def test_tables_of_the_same_run_have_no_users_yet() -> None:
    first = review(migration("CREATE TABLE IF NOT EXISTS public.t (x int)"))
    assert first.made == {"t"}
    for text, _ in CASES:
        if re.match(r"(ALTER TABLE|CREATE (UNIQUE )?INDEX|UPDATE|DELETE FROM) ?.*\bt\b", text):
            assert review(migration(text), first.made).level == "safe", text


def test_declarations() -> None:
    text = "-- a\n-- rolling-safe: tests/x.py::y\nALTER TABLE t DROP c"
    assert review(migration(text)).declared == ("rolling-safe", "tests/x.py::y")
    assert review(migration(text)).level == "safe"
    assert review(migration("-- contract: unused since 0.1.0\nDROP VIEW v")).level == "breaking"
    assert review(migration("SELECT '\n -- rolling-safe: no'; DROP VIEW v")).level == "breaking"


def lint(one: Migration) -> list[str]:
    """What keeps a file of ours from being released."""
    found = review(one)
    problems = [f"line {finding.line}: {finding.reason}" for finding in found.findings]
    if one.concurrent and "IF NOT EXISTS" not in one.text.upper():
        problems.append("an index that is built concurrently may be begun twice: IF NOT EXISTS")
    if found.declared is None:
        return problems
    kind, said = found.declared
    if kind == "rolling-safe":
        file, _, test = said.partition("::")
        proof = (ROOT / file).read_text() if (ROOT / file).is_file() else ""
        return [] if re.search(rf"^(async )?def {test}\(", proof, re.MULTILINE) else [f"there is no test {said}"]
    since = re.fullmatch(r"unused since (\d+)\.(\d+)\.\d+", said)
    if since is None:
        return [f"not a version since when nobody uses it: {said!r}"]
    version = tuple(int(number) for number in re.findall(r"\d+", pointsman_version())[:2])
    # The version that stopped using it must be out: instances of it are what this one rolls beside.
    return [] if tuple(map(int, since.groups())) < version else [f"{said}, and this is {pointsman_version()}"]


def pointsman_version() -> str:
    from importlib.metadata import version

    assert pointsman.__name__ == "pointsman"
    return version("pointsman")


@pytest.mark.requirement("R-16")
@pytest.mark.parametrize("one", our_migrations(), ids=lambda one: one.name)
def test_ours_are_safe_while_instances_roll(one: Migration) -> None:
    assert lint(one) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ALTER TABLE pointsman_decisions DROP COLUMN prompt;", "drops a column"),
        ("ALTER TABLE pointsman_decisions ALTER COLUMN prompt TYPE jsonb;", "type of a column"),
        ("-- contract: some day\nDROP VIEW pointsman_rollout;", "not a version"),
        ("-- contract: unused since 99.0.0\nDROP VIEW pointsman_rollout;", "and this is"),
        ("-- rolling-safe: tests/migrations/test_safety.py::test_nothing\nDROP VIEW v;", "there is no test"),
        ("CREATE INDEX CONCURRENTLY x ON pointsman_decisions (model);", "begun twice"),
    ],
)
def test_the_lint_can_fail(text: str, problem: str) -> None:
    assert problem in " ".join(lint(migration(text)))


def test_litellms_last_release_is_judged() -> None:
    """A sanity check on real files: most only add."""
    levels = [review(one).level for one in litellm_migrations()]
    assert levels.count("safe") > len(levels) / 2
    assert levels.count("breaking") > 10
