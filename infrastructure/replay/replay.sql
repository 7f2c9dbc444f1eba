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

-- The last full verification of each read model, by whomever: what was found is in found_differences.
CREATE TABLE IF NOT EXISTS public.verifications (
    read_model  text        PRIMARY KEY,
    position    bigint      NOT NULL, -- of both sides, as they were compared last
    row_count   bigint      NOT NULL,
    differences bigint      NOT NULL,
    verified_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- A verification in the background that is under way, as far as it has come, so that any process can go on with it.
CREATE TABLE IF NOT EXISTS public.verification_passes (
    read_model  text        PRIMARY KEY,
    fold        text        NOT NULL, -- as in rebuilds
    left_out    bigint[]    NOT NULL DEFAULT '{}', -- positions that the live one has parked, and the copy is not told
    at_table    text        NOT NULL DEFAULT '', -- those before are compared
    after_key   text[]      NOT NULL DEFAULT '{}', -- and its rows up to this one; empty: none
    row_count   bigint      NOT NULL DEFAULT 0,
    differences bigint      NOT NULL DEFAULT 0,
    begun_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What the last full verification of a read model has found, and one that is under way so far; personal values are not
-- in it.
CREATE TABLE IF NOT EXISTS public.found_differences (
    read_model  text    NOT NULL,
    under_way   boolean NOT NULL,
    number      bigint  NOT NULL, -- in the order in which they were found, from 1
    table_name  text    NOT NULL,
    row_key     text    NOT NULL,
    column_name text    NOT NULL,
    live        jsonb,
    rebuilt     jsonb,
    position    bigint  NOT NULL,
    PRIMARY KEY (read_model, under_way, number)
);

-- What operators have had done over HTTP, each in a process of its own (jobs.py).
CREATE TABLE IF NOT EXISTS public.replay_jobs (
    job_id     uuid        PRIMARY KEY,
    kind       text        NOT NULL,
    read_model text, -- none where it is about the whole log
    asked      jsonb       NOT NULL,
    state      text        NOT NULL DEFAULT 'running', -- done, failed, interrupted
    says       text, -- why it failed, in one line
    result     jsonb, -- as the command prints it
    begun_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at    timestamptz NOT NULL DEFAULT clock_timestamp(), -- by the process that has begun it
    ended_at   timestamptz
);
CREATE UNIQUE INDEX IF NOT EXISTS replay_jobs_one_at_a_time ON public.replay_jobs ((true))
    WHERE state = 'running' AND kind <> 'abort';
