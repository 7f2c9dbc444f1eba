-- What each mail server did with our mails, as the workers tell each other (infrastructure/mail/shared_circuits.py). A
-- table of its own: workers of the release before write to that of the circuits.
CREATE TABLE IF NOT EXISTS public.mail_standings (
    name           text    PRIMARY KEY,
    taken_at       timestamptz,
    refused_since  timestamptz,
    deferred_since timestamptz,
    believed_at    timestamptz,
    refusals       integer NOT NULL DEFAULT 0,
    failure        text,
    reply_code     integer,
    reply_status   text
) WITH (fillfactor = 50);
