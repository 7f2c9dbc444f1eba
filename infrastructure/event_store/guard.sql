-- The guards of history fire in every session, also in one with session_replication_role = replica, where ordinary
-- triggers do not. (The lock that this takes is asked for where there is something to do only: appends queue behind it.)
DO $$ DECLARE
    guard record;
BEGIN
    FOR guard IN
        SELECT tgrelid::regclass AS log, tgname AS name FROM pg_trigger
        WHERE tgrelid IN ('public.events'::regclass, 'public.blocks'::regclass)
            AND tgname IN ('events_are_for_ever', 'blocks_are_for_ever') AND tgenabled <> 'A'
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', guard.log, guard.name);
    END LOOP;
END $$;

-- A session that replays (`SET registrar.replays = on`) has no effects: it neither adds to the log nor moves its end,
-- and it leaves every person's key alone.
DO $$ DECLARE
    guarded record;
BEGIN
    IF to_regprocedure('public.refuse_effect_of_replay()') IS NULL THEN
        CREATE FUNCTION public.refuse_effect_of_replay() RETURNS trigger LANGUAGE plpgsql AS $body$
        BEGIN
            RAISE EXCEPTION '% on % is refused: this session replays', TG_OP, TG_TABLE_NAME
                USING ERRCODE = 'insufficient_privilege';
        END $body$;
    END IF;
    FOR guarded IN
        SELECT name, acts FROM (VALUES
            ('events', 'INSERT'), ('head', 'INSERT OR UPDATE OR DELETE OR TRUNCATE'), ('blocks', 'INSERT'),
            ('personal_keys', 'INSERT OR UPDATE OR DELETE OR TRUNCATE')
        ) AS tables (name, acts)
        WHERE NOT EXISTS (
            SELECT FROM pg_trigger
            WHERE tgrelid = format('public.%I', name)::regclass AND tgname = 'replays_have_no_effect')
    LOOP
        EXECUTE format($trigger$
            CREATE TRIGGER replays_have_no_effect BEFORE %s ON public.%I FOR EACH STATEMENT
            WHEN (current_setting('registrar.replays', true) = 'on')
            EXECUTE FUNCTION public.refuse_effect_of_replay()
        $trigger$, guarded.acts, guarded.name);
        EXECUTE format('ALTER TABLE public.%I ENABLE ALWAYS TRIGGER replays_have_no_effect', guarded.name);
    END LOOP;
END $$;
