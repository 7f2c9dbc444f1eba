-- The rebuild that the former tables (read_NAME__old) come from, which is not the latest one if that was aborted: what
-- is rolled back is recorded in its stream.

ALTER TABLE public.rebuilds ADD COLUMN IF NOT EXISTS replaced_by uuid;
