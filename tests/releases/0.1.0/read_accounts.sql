
    CREATE TABLE IF NOT EXISTS candidates (
        registration_id uuid PRIMARY KEY,
        claim_id        uuid NOT NULL,
        sealed          text NOT NULL,
        locale          text NOT NULL
    );
    CREATE TABLE IF NOT EXISTS accounts (
        registration_id uuid        PRIMARY KEY,
        claim_id        uuid        NOT NULL, -- not unique here: that is the log's business
        sealed          text        NOT NULL,
        locale          text        NOT NULL,
        activated_at    timestamptz NOT NULL
    );
    CREATE INDEX IF NOT EXISTS accounts_of_claim ON accounts (claim_id, activated_at);
