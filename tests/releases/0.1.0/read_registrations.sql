
    CREATE TABLE IF NOT EXISTS registrations (
        registration_id  uuid        PRIMARY KEY,
        created_position bigint      NOT NULL UNIQUE,
        created_at       timestamptz NOT NULL,
        claim_id         uuid        NOT NULL,
        duplicate_of     uuid,
        locale           text        NOT NULL,
        sealed           text        -- NULL once erased
    );
    CREATE INDEX IF NOT EXISTS registrations_of_claim ON registrations (claim_id, created_position);
    CREATE TABLE IF NOT EXISTS progress (
        registration_id  uuid        PRIMARY KEY,
        created_position bigint      NOT NULL,
        position         bigint      NOT NULL,
        status           text        NOT NULL,
        serial           integer     NOT NULL,
        mail             text        NOT NULL,
        handed_over_at   timestamptz,
        rejections       integer     NOT NULL,
        locked           boolean     NOT NULL,
        verified_at      timestamptz,
        activated_at     timestamptz,
        cancelled_at     timestamptz,
        cancel_reason    text
    ) WITH (fillfactor = 60); -- room for a row's next states beside it
    CREATE INDEX IF NOT EXISTS progress_in_status ON progress (status, created_position);
