-- An import: how a log comes into an empty store, with the positions, times and hashes that it has elsewhere.
--
-- While it is under way, the log has no head. An append begins with the head's row, and so none is recorded between what
-- is imported; a service does not start on it. Only the role that owns these tables may begin or end an import.
DO $$ BEGIN
    IF to_regprocedure('public.begin_import()') IS NULL THEN
        -- True: the import begins. False: one that was interrupted goes on. Any other store is refused.
        CREATE FUNCTION public.begin_import() RETURNS boolean LANGUAGE plpgsql AS $body$
        BEGIN
            IF NOT EXISTS (SELECT FROM public.head) THEN
                RETURN false;
            END IF;
            -- Waits for an append under way, and takes from all later ones what they begin with.
            DELETE FROM public.head WHERE position = 0;
            IF NOT FOUND OR EXISTS (SELECT FROM public.events) OR EXISTS (SELECT FROM public.blocks)
                OR EXISTS (SELECT FROM public.personal_keys)
                OR EXISTS (SELECT FROM public.followers WHERE position > 0)
            THEN
                RAISE EXCEPTION 'an import needs an empty store' USING ERRCODE = 'RGFUL';
            END IF;
            RETURN true;
        END $body$;
        REVOKE EXECUTE ON FUNCTION public.begin_import() FROM PUBLIC;
    END IF;

    IF to_regprocedure('public.end_import(bigint, bytea)') IS NULL THEN
        -- The log gets its head, if it is whole and ends as is said.
        CREATE FUNCTION public.end_import(upto bigint, upto_hash bytea) RETURNS void LANGUAGE plpgsql AS $body$
        BEGIN
            IF EXISTS (SELECT FROM public.head)
                OR (SELECT count(*) FROM public.events) <> upto
                OR (SELECT coalesce(max(e.notification_id), 0) FROM public.events AS e) <> upto
                OR (SELECT coalesce(max(b.last_position), 0) FROM public.blocks AS b) <> upto
                OR upto_hash IS DISTINCT FROM coalesce(
                    (SELECT b.hash FROM public.blocks AS b WHERE b.last_position = upto), sha256(''::bytea))
            THEN
                RAISE EXCEPTION 'the imported log is not whole' USING ERRCODE = 'data_corrupted';
            END IF;
            INSERT INTO public.head (position, hash) VALUES (upto, upto_hash);
        END $body$;
        REVOKE EXECUTE ON FUNCTION public.end_import(bigint, bytea) FROM PUBLIC;
    END IF;
END $$;
