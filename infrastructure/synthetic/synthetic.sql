-- Synthetic registrations (infrastructure/synthetic/probe.py): what became of those of the last day, and the mail of the
-- one that is under way. Nobody's address is in it: those are made up.
CREATE TABLE IF NOT EXISTS public.synthetic_registrations (
    registration_id uuid        PRIMARY KEY,
    begun_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    mail            bytea,      -- as it would have gone to a mail server, until the probe has read it
    outcome         text,       -- passed, or the step that failed; NULL: under way
    ended_at        timestamptz,
    erased_at       timestamptz -- NULL: there may be an account
);
