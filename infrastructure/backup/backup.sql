-- The last backup, and the last drill that was passed: their ages are metrics. A restored database knows those of its
-- past only.
CREATE TABLE IF NOT EXISTS public.backups (
    kind      text        PRIMARY KEY, -- backup, drill
    directory text        NOT NULL, -- of the backup that was taken, or restored
    position  bigint      NOT NULL, -- of the last event that is surely in it
    done_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
