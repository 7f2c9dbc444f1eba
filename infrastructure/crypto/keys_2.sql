-- The master keys that wrap what is in this database, or have done so: never a key, only its id, which follows from it
-- and does not lead back. Number 1 is the first one: what it wraps does not name it; what later ones wrap does.
CREATE TABLE IF NOT EXISTS public.master_keys (
    number      integer     PRIMARY KEY,
    key_id      bytea       NOT NULL UNIQUE CHECK (length(key_id) = 8),
    wraps_since timestamptz NOT NULL DEFAULT clock_timestamp(),
    retired_at  timestamptz
);
