-- Of an event that a follower could not apply: the place in the code that refused it, and when it was last tried.
ALTER TABLE public.parked_events ADD COLUMN IF NOT EXISTS code text;
ALTER TABLE public.parked_events ADD COLUMN IF NOT EXISTS tried_at timestamptz;

-- Which release decides for the mail saga, and from which event on: a row whenever another one begins to lead.
CREATE TABLE IF NOT EXISTS public.saga_releases (
    id      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    release text        NOT NULL,
    since   bigint      NOT NULL, -- the saga's position: the first event decided by this release comes after it
    led_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
