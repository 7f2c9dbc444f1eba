-- How often the holder of a claim was lost with it, so that a mail that its senders die of is not sent without end.
ALTER TABLE public.send_claims ADD COLUMN IF NOT EXISTS lost integer NOT NULL DEFAULT 0;
