
    CREATE TABLE IF NOT EXISTS stages (
        hour      timestamptz NOT NULL,
        stage     text        NOT NULL,
        duplicate boolean     NOT NULL,
        count     bigint      NOT NULL,
        PRIMARY KEY (hour, stage, duplicate)
    ) WITH (fillfactor = 50);
    CREATE TABLE IF NOT EXISTS durations (
        hour       timestamptz      NOT NULL,
        step       text             NOT NULL,
        duplicate  boolean          NOT NULL,
        at_most    double precision NOT NULL,
        count      bigint           NOT NULL,
        total_us   bigint           NOT NULL,
        longest_us bigint           NOT NULL,
        PRIMARY KEY (hour, step, duplicate, at_most)
    ) WITH (fillfactor = 50);
    -- Registrations that have not ended, for what their later events do not say.
    CREATE TABLE IF NOT EXISTS under_way (
        registration_id   uuid        PRIMARY KEY,
        duplicate         boolean     NOT NULL,
        registered_at     timestamptz NOT NULL,
        handed_over_at    timestamptz,
        handed_over_serial integer
    ) WITH (fillfactor = 70);
