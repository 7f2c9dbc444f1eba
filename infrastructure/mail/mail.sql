-- The right to send an issue's mail, held for the time of a lease.
CREATE TABLE IF NOT EXISTS public.send_claims (
    registration_id uuid        NOT NULL,
    serial          integer     NOT NULL,
    holder          uuid        NOT NULL,
    lease_until     timestamptz NOT NULL,
    PRIMARY KEY (registration_id, serial)
) WITH (fillfactor = 50);

-- The mail servers' circuits, as the workers tell each other of them (infrastructure/mail/shared_circuits.py).
CREATE TABLE IF NOT EXISTS public.circuits (
    name         text        PRIMARY KEY,
    state        text        NOT NULL DEFAULT 'closed',
    open_until   timestamptz NOT NULL DEFAULT clock_timestamp(),
    probed_until timestamptz,
    changed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    named_at     timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);
