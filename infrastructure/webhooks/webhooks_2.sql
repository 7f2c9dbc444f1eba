-- Where no rest of the whole endpoint (retry_at) is under way: when the first of what has failed is tried again.
ALTER TABLE public.webhooks ADD COLUMN IF NOT EXISTS next_try_at timestamptz;
