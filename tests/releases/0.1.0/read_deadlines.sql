
    CREATE TABLE IF NOT EXISTS deadlines (
        registration_id uuid        PRIMARY KEY,
        look_again_at   timestamptz NOT NULL,
        position        bigint      NOT NULL,
        correlation_id  uuid        NOT NULL
    );
    CREATE INDEX IF NOT EXISTS deadlines_in_order ON deadlines (look_again_at, registration_id);
