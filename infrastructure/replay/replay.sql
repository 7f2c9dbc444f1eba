-- Rebuilds of read models: one row per read model, of its latest rebuild, so that any process can take it up again.

CREATE TABLE IF NOT EXISTS public.rebuilds (
    read_model  text        PRIMARY KEY,
    rebuild_id  uuid        NOT NULL, -- the stream of its events
    step        text        NOT NULL, -- filling, indexed, swapped, rolled-back, aborted
    recorded    boolean     NOT NULL DEFAULT false, -- is the event of a step that ends it in the log?
    beside      text        NOT NULL DEFAULT '', -- the version that serves meanwhile, where this one never has
    fold        text        NOT NULL, -- digest of the code that folds: a copy is not begun by one and ended by another
    indexes     text[]      NOT NULL, -- what is made once the copy is filled
    position    bigint      NOT NULL DEFAULT 0, -- at which it was swapped
    differences bigint      NOT NULL DEFAULT 0,
    decision    text        NOT NULL DEFAULT '',
    begun_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);
