-- What the fleet is to run, one row a strategy, and how it came to that. Read by every instance at each poll.

CREATE TABLE pointsman_rollout (
    strategy        text PRIMARY KEY,
    generation      bigint NOT NULL DEFAULT 0 CHECK (generation >= 0),
    -- An operator's choice; NULL: whatever the pointer proposes.
    pinned_sha256   text CHECK (pinned_sha256 ~ '^[0-9a-f]{64}$'),
    -- Where the last rollback went: runs while the pointer's proposal is blocked.
    target_sha256   text CHECK (target_sha256 ~ '^[0-9a-f]{64}$'),
    blocked_sha256  text[] NOT NULL DEFAULT '{}',
    shadow_sha256   text CHECK (shadow_sha256 ~ '^[0-9a-f]{64}$'),
    canary_share    double precision NOT NULL DEFAULT 0 CHECK (canary_share >= 0 AND canary_share <= 1),
    -- The newest pointer that any instance verified; an older one is a replay.
    max_sequence    bigint NOT NULL DEFAULT 0 CHECK (max_sequence >= 0),
    pointer_sha256  text CHECK (pointer_sha256 ~ '^[0-9a-f]{64}$'),
    actor           text NOT NULL DEFAULT '',
    reason          text NOT NULL DEFAULT '',
    updated_at      timestamptz NOT NULL DEFAULT now(),
    CHECK (pinned_sha256 IS NULL OR NOT pinned_sha256 = ANY (blocked_sha256)),
    CHECK (target_sha256 IS NULL OR NOT target_sha256 = ANY (blocked_sha256))
);

CREATE TABLE pointsman_rollout_history (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    strategy    text NOT NULL,
    generation  bigint NOT NULL,
    action      text NOT NULL CHECK (action IN ('accept', 'block', 'unblock', 'pin', 'unpin')),
    sha256      text,
    actor       text NOT NULL,
    reason      text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX pointsman_rollout_history_strategy ON pointsman_rollout_history (strategy, id DESC);
