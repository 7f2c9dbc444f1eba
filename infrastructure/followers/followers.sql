-- How far each follower of the log is, and what it had to put aside.

-- A position is moved by its leader alone, in the transaction of what was applied up to it.
CREATE TABLE IF NOT EXISTS public.followers (
    name       text        PRIMARY KEY,
    position   bigint      NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

-- Events that a follower could not apply, and all later ones of the same stream, in order, until it can.
CREATE TABLE IF NOT EXISTS public.parked_events (
    follower        text        NOT NULL,
    stream_id       uuid        NOT NULL,
    position        bigint      NOT NULL,
    error           text        NOT NULL,
    parked_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (follower, stream_id, position)
);

-- Moves a follower that is where it is said to be; false if it is not.
CREATE OR REPLACE FUNCTION public.move_follower_v2(
    follower text, since bigint, upto bigint, at timestamptz
) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE public.followers AS f SET position = upto, updated_at = at WHERE f.name = follower AND f.position = since;
    IF NOT FOUND THEN
        INSERT INTO public.followers (name, position, updated_at) SELECT follower, upto, at WHERE since = 0
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN FOUND;
END $$;

-- The same for a follower in a transaction of its own, which fails if it is not there; announced to who waits for it.
CREATE OR REPLACE FUNCTION public.move_on_v2(follower text, since bigint, upto bigint, announced boolean) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT public.move_follower_v2(follower, since, upto, clock_timestamp()) THEN
        RAISE EXCEPTION 'the follower % is not at % any more', follower, since USING ERRCODE = 'RGLST';
    END IF;
    IF announced THEN
        PERFORM pg_notify('registrar_follower', follower || ':' || upto);
    END IF;
END $$;

-- What release 0.1.0 calls, for a database that it has not made itself; its own are left as they are. One release long.
DO $$ BEGIN
    IF to_regprocedure('public.move_follower(text, bigint, bigint, timestamptz)') IS NULL THEN
        CREATE FUNCTION public.move_follower(follower text, since bigint, upto bigint, at timestamptz) RETURNS boolean
        LANGUAGE sql AS 'SELECT public.move_follower_v2(follower, since, upto, at)';
    END IF;
    IF to_regprocedure('public.move_on(text, bigint, bigint, boolean)') IS NULL THEN
        CREATE FUNCTION public.move_on(follower text, since bigint, upto bigint, announced boolean) RETURNS void
        LANGUAGE sql AS 'SELECT public.move_on_v2(follower, since, upto, announced)';
    END IF;
END $$;
