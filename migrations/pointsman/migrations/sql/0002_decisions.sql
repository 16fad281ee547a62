-- Decisions, attempts and outcomes (pointsman.decisions.types), one partition a day.
--
-- The daily partitions are made ahead by `pointsman.decisions.maintenance`; until then, and for clocks that are wrong, rows
-- go to the default partition and are moved later, so nothing is refused. The primary keys make a row that is written twice
-- (the writer lost its connection before the answer came) one row.

CREATE TABLE pointsman_decisions (
    decision_id  text        NOT NULL,
    created_at   timestamptz NOT NULL,
    request_id   text,
    trace_id     text,
    key_hash     text,
    team_id      text,
    user_id      text,
    model_group  text        NOT NULL,
    strategy     text,
    version      text,
    variant      text        NOT NULL,
    scores       jsonb       NOT NULL,
    dropped      jsonb       NOT NULL,
    ranking      jsonb       NOT NULL,
    model        text,
    policy       text        NOT NULL,
    microseconds bigint      NOT NULL,
    fallback     text,
    prompt       text,
    PRIMARY KEY (decision_id, created_at)
) PARTITION BY RANGE (created_at);

COMMENT ON COLUMN pointsman_decisions.ranking IS 'deployment ids, best first';
COMMENT ON COLUMN pointsman_decisions.scores IS 'deployment id -> score, higher is better';
COMMENT ON COLUMN pointsman_decisions.dropped IS '[{deployment_id, reason}]';

CREATE INDEX pointsman_decisions_created_at ON pointsman_decisions (created_at);
CREATE INDEX pointsman_decisions_request_id ON pointsman_decisions (request_id);
CREATE INDEX pointsman_decisions_key_hash ON pointsman_decisions (key_hash, created_at);
CREATE INDEX pointsman_decisions_user_id ON pointsman_decisions (user_id, created_at);
CREATE TABLE pointsman_decisions_default PARTITION OF pointsman_decisions DEFAULT;

CREATE TABLE pointsman_attempts (
    decision_id   text        NOT NULL,
    number        integer     NOT NULL,
    created_at    timestamptz NOT NULL,
    deployment_id text        NOT NULL,
    model         text,
    outcome       text        NOT NULL,
    error         text,
    status        integer,
    latency_ms    double precision,
    PRIMARY KEY (decision_id, number, created_at)
) PARTITION BY RANGE (created_at);

CREATE INDEX pointsman_attempts_created_at ON pointsman_attempts (created_at);
CREATE INDEX pointsman_attempts_deployment_id ON pointsman_attempts (deployment_id, created_at);
CREATE TABLE pointsman_attempts_default PARTITION OF pointsman_attempts DEFAULT;

CREATE TABLE pointsman_outcomes (
    decision_id       text        NOT NULL,
    created_at        timestamptz NOT NULL,
    status            text        NOT NULL,
    deployment_id     text,
    prompt_tokens     bigint      NOT NULL,
    completion_tokens bigint      NOT NULL,
    cost              double precision NOT NULL,
    latency_ms        double precision,
    feedback          double precision,
    PRIMARY KEY (decision_id, created_at)
) PARTITION BY RANGE (created_at);

CREATE INDEX pointsman_outcomes_created_at ON pointsman_outcomes (created_at);
CREATE TABLE pointsman_outcomes_default PARTITION OF pointsman_outcomes DEFAULT;
