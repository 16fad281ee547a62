-- Our tables move from LiteLLM's schema into one of our own: stock LiteLLM, run on the same database, repairs "drift" by dropping
-- every table in its schema that its own does not have.
--
-- Expand: views with the old names stay where the tables were, with the same rights, so that instances of the version before,
-- which knows only those names, read and write on. The search path is LiteLLM's schema, then ours; the runner has made both.
--
-- rolling-safe: tests/migrations/test_own_schema.py::test_the_version_before_works_on_while_the_tables_move

DO $$
DECLARE
    theirs  CONSTANT name := (current_schemas(false))[1];
    ours    CONSTANT name := (current_schemas(false))[2];
    tables  CONSTANT text[] := '{pointsman_rollout,pointsman_rollout_history,pointsman_decisions,pointsman_attempts,pointsman_outcomes,pointsman_migrations}';
    one     text;
    part    regclass;
    granted record;
BEGIN
    IF ours IS NULL THEN
        RAISE EXCEPTION 'the search path has no second schema to move to';
    END IF;
    -- All at once, and in the order in which the writers take theirs; with the partitions.
    FOREACH one IN ARRAY tables LOOP
        EXECUTE format('LOCK TABLE %I.%I IN ACCESS EXCLUSIVE MODE', theirs, one);
    END LOOP;
    FOREACH one IN ARRAY tables LOOP
        FOR part IN SELECT inhrelid FROM pg_inherits WHERE inhparent = format('%I.%I', theirs, one)::regclass LOOP
            EXECUTE format('ALTER TABLE %s SET SCHEMA %I', part, ours);
        END LOOP;
        EXECUTE format('ALTER TABLE %I.%I SET SCHEMA %I', theirs, one, ours);
        EXECUTE format('CREATE VIEW %I.%I AS SELECT * FROM %I.%I', theirs, one, ours, one);
        -- A role that serves but does not migrate has its rights by GRANT.
        FOR granted IN
            SELECT a.privilege_type, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee
            FROM pg_class c, aclexplode(c.relacl) a
            WHERE c.oid = format('%I.%I', ours, one)::regclass AND a.grantee <> c.relowner
        LOOP
            EXECUTE format('GRANT %s ON %I.%I TO %s', granted.privilege_type, theirs, one, granted.grantee);
            EXECUTE format('GRANT USAGE ON SCHEMA %I TO %s', ours, granted.grantee);
        END LOOP;
    END LOOP;
END
$$;
