-- One key per person, wrapped by the master key. Deleting the row is the erasure of what the key sealed.
CREATE TABLE IF NOT EXISTS public.personal_keys (
    registration_id uuid  PRIMARY KEY,
    wrapped         bytea NOT NULL
);

-- The root secret, wrapped by the master key; everything keyed is derived from it.
CREATE TABLE IF NOT EXISTS public.service_secrets (
    name    text  PRIMARY KEY,
    wrapped bytea NOT NULL
);
