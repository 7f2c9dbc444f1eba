-- How far each endpoint of webhooks is, and how it fares (infrastructure/webhooks/). No address and no secret is here.
CREATE TABLE IF NOT EXISTS public.webhooks (
    name          text        PRIMARY KEY,
    position      bigint      NOT NULL, -- delivered up to here; some of what follows may be, too
    term          bigint      NOT NULL DEFAULT 1, -- counted up by each act: what was under way before saves nothing more
    disabled_at   timestamptz, -- NULL: it is called
    disabled_by   text        CHECK (disabled_by IN ('operator', 'endpoint')),
    delivered_at  timestamptz, -- when it last took something
    failing_since timestamptz, -- NULL: nothing that it has been sent is undelivered
    failure       text,        -- the latest, in words of ours
    failures      bigint      NOT NULL DEFAULT 0, -- since then
    retry_at      timestamptz, -- nothing is sent before
    updated_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((disabled_at IS NULL) = (disabled_by IS NULL))
) WITH (fillfactor = 50);
