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

-- A session that replays (`SET registrar.replays = on`) has no effects: nothing changes without an event.
DO $$ BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_trigger WHERE tgrelid = 'public.events'::regclass AND tgname = 'replays_have_no_effect')
    THEN
        CREATE FUNCTION public.refuse_effect_of_replay() RETURNS trigger LANGUAGE plpgsql AS $body$
        BEGIN
            RAISE EXCEPTION '% on % is refused: this session replays', TG_OP, TG_TABLE_NAME
                USING ERRCODE = 'insufficient_privilege';
        END $body$;
        CREATE TRIGGER replays_have_no_effect BEFORE INSERT ON public.events FOR EACH STATEMENT
            WHEN (current_setting('registrar.replays', true) = 'on')
            EXECUTE FUNCTION public.refuse_effect_of_replay();
        ALTER TABLE public.events ENABLE ALWAYS TRIGGER replays_have_no_effect;
    END IF;
END $$;
