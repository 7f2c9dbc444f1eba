-- Restores of this database from a backup, which may have brought erased persons back. A restore notes itself here; who
-- was erased since the backup is erased again from the journal of erasures, and the restore is settled by that.
CREATE TABLE IF NOT EXISTS public.restores (
    restored_at timestamptz PRIMARY KEY DEFAULT clock_timestamp(),
    position    bigint      NOT NULL, -- of the last event in the restored log
    settled_at  timestamptz           -- NULL: erasures from after the position may be undone
);
