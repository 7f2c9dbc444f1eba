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
