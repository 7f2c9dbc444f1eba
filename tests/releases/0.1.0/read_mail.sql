
    CREATE TABLE IF NOT EXISTS mails (
        registration_id  uuid        NOT NULL,
        serial           integer     NOT NULL,
        created_position bigint      NOT NULL UNIQUE,
        position         bigint      NOT NULL,
        kind             text        NOT NULL,
        state            text        NOT NULL,
        requested_at     timestamptz NOT NULL,
        waiting_since    timestamptz NOT NULL,
        requests         integer     NOT NULL,
        failures         integer     NOT NULL,
        failure          text,
        provider         text,
        attempts         integer,
        reply_code       integer,
        reply_status     text,
        last_attempt_at  timestamptz,
        dispatched_at    timestamptz,
        look_again_at    timestamptz,
        PRIMARY KEY (registration_id, serial)
    ) WITH (fillfactor = 70); -- room for a row's next states beside it
    CREATE INDEX IF NOT EXISTS mails_in_state ON mails (state, created_position);
    CREATE INDEX IF NOT EXISTS mails_unsent ON mails (waiting_since) WHERE state IN ('QUEUED', 'RETRYING');
    -- The cause is in it, to be looked for without the rows: an outage leaves thousands, of which few have this one.
    CREATE INDEX IF NOT EXISTS mails_failed ON mails (created_position, failure) WHERE state IN ('RETRYING', 'FAILED');
    CREATE TABLE IF NOT EXISTS strays (
        id           uuid        PRIMARY KEY,
        digest       text        NOT NULL,
        reason       text        NOT NULL,
        died_of      text        NOT NULL,
        size         integer     NOT NULL,
        content_type text,
        fields       text        NOT NULL,
        other_fields integer     NOT NULL,
        kept_at      timestamptz NOT NULL,
        position     bigint      NOT NULL UNIQUE,
        discarded    boolean     NOT NULL
    );
    CREATE INDEX IF NOT EXISTS strays_kept ON strays (position) WHERE NOT discarded;
