-- What a policy adds to a decision: how likely the pick was, who chose the strategy, what the scores mean, and the particulars.
--
-- Columns without a default take a moment, and the version before, which names its columns, writes on; with it they are NULL.

ALTER TABLE pointsman_decisions
    ADD COLUMN propensity double precision,
    ADD COLUMN chosen_by  text,
    ADD COLUMN scale      text,
    ADD COLUMN detail     jsonb;

COMMENT ON COLUMN pointsman_decisions.propensity IS 'probability with which the first of the ranking was to be first';
COMMENT ON COLUMN pointsman_decisions.chosen_by IS 'header, key, team, group, default or rule';
COMMENT ON COLUMN pointsman_decisions.scale IS 'what the scores mean: quality or rank';
COMMENT ON COLUMN pointsman_decisions.detail IS 'what the policy reckoned with, steps of a cascade';
