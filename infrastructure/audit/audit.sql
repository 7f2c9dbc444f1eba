-- What the checkpointer keeps of the log. All of it is derived from the log, and proves nothing by itself: what is
-- believed are signatures, and what was published outside of the database.

-- The tree over the hashes of the blocks (RFC 6962) in tiles of up to 256 hashes: https://c2sp.org/tlog-tiles.
CREATE TABLE IF NOT EXISTS public.tree_tiles (
    level  integer NOT NULL,
    index  bigint  NOT NULL,
    hashes bytea   NOT NULL,
    PRIMARY KEY (level, index)
);

-- The digests of the events of each stretch when it was verified, 32 bytes each: they tell which event was altered.
CREATE TABLE IF NOT EXISTS public.event_digests (
    first_position bigint PRIMARY KEY,
    last_position  bigint NOT NULL,
    digests        bytea  NOT NULL
);

-- One row: up to where the log is verified and in the tree, and why not further.
CREATE TABLE IF NOT EXISTS public.tree_head (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    size     bigint  NOT NULL,
    position bigint  NOT NULL,
    hash     bytea   NOT NULL, -- that of the last block
    origin   text    NOT NULL, -- the name under which the log is signed
    unsound  text              -- what stands behind that position and is not what was recorded
);

-- What was signed, and what of it is published by now.
CREATE TABLE IF NOT EXISTS public.checkpoints (
    size         bigint      PRIMARY KEY,
    position     bigint      NOT NULL,
    note         text        NOT NULL,
    signed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    in_directory boolean     NOT NULL DEFAULT true, -- or there is none
    at_url       boolean     NOT NULL DEFAULT true  -- or there is none
);
DO $$ BEGIN
    IF to_regclass('public.checkpoints_to_publish') IS NULL THEN
        CREATE INDEX checkpoints_to_publish ON public.checkpoints (size) WHERE NOT (in_directory AND at_url);
    END IF;
END $$;
