
    CREATE TABLE IF NOT EXISTS entries (
        position           bigint      PRIMARY KEY,
        recorded_at        timestamptz NOT NULL,
        topic              text        NOT NULL,
        stream_id          uuid        NOT NULL,
        version            bigint      NOT NULL,
        registration_id    uuid        NOT NULL,
        actor              text        NOT NULL,
        correlation_id     uuid        NOT NULL,
        causation_position bigint,
        trace              text,
        details            jsonb       NOT NULL
    );
    CREATE INDEX IF NOT EXISTS entries_of_registration ON entries (registration_id, position);
    CREATE INDEX IF NOT EXISTS entries_of_correlation ON entries (correlation_id, position);
    CREATE INDEX IF NOT EXISTS entries_of_actor ON entries (actor, position);
    CREATE INDEX IF NOT EXISTS entries_of_topic ON entries (topic, position);
    -- Times rise with positions, so a summary of each stretch of the table is enough, and costs next to nothing.
    CREATE INDEX IF NOT EXISTS entries_in_time ON entries USING brin (recorded_at) WITH (pages_per_range = 16);
    CREATE TABLE IF NOT EXISTS subjects (
        registration_id uuid PRIMARY KEY,
        claim_id        uuid NOT NULL
    );
    CREATE INDEX IF NOT EXISTS subjects_of_claim ON subjects (claim_id, registration_id);
