-- What operators are alerted of: an occasion, until its end has been told (infrastructure/alerts/alerts.py).
CREATE TABLE IF NOT EXISTS public.alerts (
    alert_id    uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    alert       text        NOT NULL,
    subject     text        NOT NULL,
    firing      jsonb       NOT NULL,
    firing_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    firing_told boolean     NOT NULL DEFAULT false,
    resolved    jsonb,
    resolved_at timestamptz
);
-- Whether a call was made of its begin. Of an occasion that was there before the column nobody knows; one may have been.
ALTER TABLE public.alerts ADD COLUMN IF NOT EXISTS firing_tried boolean NOT NULL DEFAULT true;
ALTER TABLE public.alerts ALTER COLUMN firing_tried SET DEFAULT false;
CREATE UNIQUE INDEX IF NOT EXISTS alerts_begun_once ON public.alerts (alert, subject) WHERE resolved_at IS NULL;
