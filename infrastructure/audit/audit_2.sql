-- The keys that sign checkpoints, in the order of their use; only public halves. Nothing is believed because it stands
-- here: a change of keys is proved by the first checkpoint of the new ones, which the old ones have signed, too.
CREATE TABLE IF NOT EXISTS public.checkpoint_keys (
    number     integer     PRIMARY KEY,
    public_key bytea       NOT NULL UNIQUE,        -- Ed25519, without a name
    chosen_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    first_size bigint,                             -- of the first checkpoint that it has signed; null: it is to sign one
    alone      boolean     NOT NULL DEFAULT false  -- the key before it is lost, and does not sign that one
);
