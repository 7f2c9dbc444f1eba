-- The log. What belongs to its commits, and to others: crypto/keys.sql and followers/followers.sql.
--
-- A first script makes what is missing, and is run on databases of the release before, too; a change is a script of its
-- own (infrastructure/scripts.py, docs/upgrading.md). Names are qualified: a role's search_path may begin elsewhere.
-- What running processes call has a version in its name, so that a changed function stands beside its predecessor; the
-- functions that release 0.1.0 calls, too, are left as they are.

-- The first five columns are, by name and type, those of the library `eventsourcing`, whose own recorder can read
-- this table; the rest is ours.
CREATE TABLE IF NOT EXISTS public.events (
    originator_id      uuid        NOT NULL,
    originator_version bigint      NOT NULL,
    topic              text        NOT NULL,
    state              bytea       NOT NULL,
    notification_id    bigint      NOT NULL, -- the position: 1, 2, 3, … in commit order, without gaps
    recorded_at        timestamptz NOT NULL,
    correlation_id     uuid        NOT NULL,
    causation_position bigint,
    actor              text        NOT NULL,
    trace_context      text,
    PRIMARY KEY (originator_id, originator_version)
);
DO $$ BEGIN
    -- (IF NOT EXISTS would lock the table all the same, and appends queue behind that; so would OR REPLACE below.)
    IF to_regclass('public.events_notification_id_index') IS NULL THEN
        CREATE UNIQUE INDEX events_notification_id_index ON public.events (notification_id);
    END IF;
END $$;

-- One row: the end of the log. Every append locks it, so appends commit one after the other and a reader that has
-- seen position N has seen everything up to N.
CREATE TABLE IF NOT EXISTS public.head (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    position bigint  NOT NULL,
    hash     bytea   NOT NULL
);
-- (ON CONFLICT would wait for an append under way.)
INSERT INTO public.head (position, hash) SELECT 0, sha256(''::bytea) WHERE NOT EXISTS (SELECT FROM public.head);

-- One row per committed batch: the hash chain, and by `batch_id` the answer to "was this batch committed?".
CREATE TABLE IF NOT EXISTS public.blocks (
    last_position  bigint PRIMARY KEY,
    first_position bigint NOT NULL,
    batch_id       uuid   NOT NULL UNIQUE,
    lost           integer[] NOT NULL, -- numbers of the batch's appends that were not recorded
    hash           bytea  NOT NULL
);

-- Batches whose fate was asked for before they arrived: they must not be recorded any more.
CREATE TABLE IF NOT EXISTS public.fenced_batches (
    batch_id  uuid        PRIMARY KEY,
    fenced_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What was recorded stays: not even a slip in our own code may change or remove it.
DO $$ BEGIN
    IF to_regprocedure('public.refuse_change_of_history()') IS NULL THEN
        CREATE FUNCTION public.refuse_change_of_history() RETURNS trigger LANGUAGE plpgsql AS $body$
        BEGIN
            RAISE EXCEPTION '% on % is refused: what was recorded stays', TG_OP, TG_TABLE_NAME
                USING ERRCODE = 'insufficient_privilege';
        END $body$;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'public.events'::regclass AND tgname = 'events_are_for_ever')
    THEN
        CREATE TRIGGER events_are_for_ever BEFORE UPDATE OR DELETE OR TRUNCATE ON public.events
            FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change_of_history();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'public.blocks'::regclass AND tgname = 'blocks_are_for_ever')
    THEN
        CREATE TRIGGER blocks_are_for_ever BEFORE UPDATE OR DELETE OR TRUNCATE ON public.blocks
            FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change_of_history();
    END IF;
END $$;

DO $$ BEGIN
    -- A field as the hash chain reads it: its length, then its bytes; NULL is the length -1.
    IF to_regprocedure('public.chain_field(bytea)') IS NULL THEN
        CREATE FUNCTION public.chain_field(field bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $body$
            SELECT CASE WHEN field IS NULL THEN int4send(-1) ELSE int4send(octet_length(field)) || field END
        $body$;
    END IF;

    -- What the hash chain keeps of an event: all of it but its position and time, which the block's hash covers.
    -- `event_digest` in infrastructure/event_store/chain.py computes the same before the event is sent.
    IF to_regprocedure('public.event_digest(public.events)') IS NULL THEN
        CREATE FUNCTION public.event_digest(event public.events) RETURNS bytea LANGUAGE sql STABLE AS $body$
            SELECT sha256(uuid_send(event.originator_id) || int8send(event.originator_version)
                || public.chain_field(convert_to(event.topic, 'UTF8')) || public.chain_field(event.state)
                || uuid_send(event.correlation_id) || public.chain_field(int8send(event.causation_position))
                || public.chain_field(convert_to(event.actor, 'UTF8'))
                || public.chain_field(convert_to(event.trace_context, 'UTF8')))
        $body$;
    END IF;

    -- A block's hash: over the previous one, its first position, the time of its events in microseconds since 1970, and
    -- the digests of its events in order.
    IF to_regprocedure('public.block_hash(bytea, bigint, timestamptz, bytea)') IS NULL THEN
        CREATE FUNCTION public.block_hash(
            previous bytea, first_position bigint, recorded_at timestamptz, digests bytea
        ) RETURNS bytea LANGUAGE sql STABLE AS $body$
            SELECT sha256(previous || int8send(first_position)
                || int8send((extract(epoch FROM recorded_at) * 1000000)::bigint) || digests)
        $body$;
    END IF;
END $$;

-- Records a batch of appends, each of them whole or not at all. Answers the batch's first position, the numbers
-- (from 1) of the appends that lost to an earlier one, and the time; the others follow each other from that position.
--
-- Arrays `event_*` have an element per event, in the order of the appends, of which `sizes` tells how many events each
-- has; `event_digests` has 32 bytes each. `base_*`: what must stand in the log for the events to follow it. `move_*`
-- and `key_*` begin with the number of their append. Keys: `wrapped` NULL destroys.
CREATE OR REPLACE FUNCTION public.append_batch_v2(
    batch              uuid,
    sizes              bigint[],
    event_stream       uuid[],
    event_version      bigint[],
    event_topic        text[],
    event_state        bytea[],
    event_correlation  uuid[],
    event_causation    bigint[],
    event_actor        text[],
    event_trace        text[],
    event_digests      bytea,
    base_stream        uuid[],
    base_version       bigint[],
    move_append        bigint[],
    move_follower      text[],
    move_since         bigint[],
    move_to            bigint[],
    key_append         bigint[],
    key_registration   uuid[],
    key_wrapped        bytea[]
) RETURNS TABLE (first_position bigint, lost integer[], now timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    end_of  public.head%ROWTYPE;
    count   bigint;
    digests bytea;
    told    text; -- nothing: what pg_notify answers
    fenced  boolean;
    astray  boolean; -- an event does not follow the one before it
BEGIN
    SELECT * INTO STRICT end_of FROM public.head FOR UPDATE;
    now := clock_timestamp();
    first_position := end_of.position + 1;
    lost := '{}';
    -- One statement for both, which looks for a base even where there is none: a lone registration has one if its
    -- mailbox was asked for before, and must not be told by the time that takes. (A scalar subquery, not EXISTS or a
    -- join: those the planner may turn into a scan of the whole log.)
    SELECT EXISTS (SELECT FROM public.fenced_batches AS f WHERE f.batch_id = batch),
           (SELECT e.originator_version FROM public.events AS e
            WHERE e.originator_id = coalesce(base_stream[1], batch)
            AND e.originator_version = coalesce(base_version[1], 1)) IS NULL AND cardinality(base_stream) = 1
    INTO fenced, astray;
    IF cardinality(base_stream) > 1 THEN
        SELECT bool_or((
            SELECT e.originator_version FROM public.events AS e
            WHERE e.originator_id = b.stream AND e.originator_version = b.version) IS NULL)
        FROM unnest(base_stream, base_version) AS b (stream, version)
        INTO astray;
    END IF;
    IF fenced THEN
        RAISE EXCEPTION 'batch % was given up before it arrived', batch USING ERRCODE = 'serialization_failure';
    END IF;

    BEGIN
        -- As if nothing were lost, which is nearly always so.
        INSERT INTO public.events (
            originator_id, originator_version, topic, state, notification_id, recorded_at,
            correlation_id, causation_position, actor, trace_context
        )
        SELECT u.stream, u.version, u.topic, u.state, end_of.position + u.ordinal, now,
               u.correlation, u.causation, u.actor, u.trace
        FROM unnest(event_stream, event_version, event_topic, event_state, event_correlation, event_causation,
                    event_actor, event_trace) WITH ORDINALITY
            AS u (stream, version, topic, state, correlation, causation, actor, trace, ordinal);
        count := cardinality(event_stream);
        digests := event_digests;
        IF astray THEN
            RAISE EXCEPTION 'an event does not follow the one before it' USING ERRCODE = 'RGLST';
        END IF;
        IF cardinality(move_append) > 0 THEN
            FOR n IN 1 .. cardinality(move_append) LOOP
                IF NOT public.move_follower_v2(move_follower[n], move_since[n], move_to[n], now) THEN
                    RAISE EXCEPTION 'a follower has moved on' USING ERRCODE = 'RGLST';
                END IF;
            END LOOP;
        END IF;
    EXCEPTION WHEN unique_violation OR SQLSTATE 'RGLST' THEN
        lost := public.lost_appends_v2(
            sizes, event_stream, event_version, move_append, move_follower, move_since, move_to, now);
        INSERT INTO public.events (
            originator_id, originator_version, topic, state, notification_id, recorded_at,
            correlation_id, causation_position, actor, trace_context
        )
        SELECT u.stream, u.version, u.topic, u.state, end_of.position + row_number() OVER (ORDER BY u.ordinal), now,
               u.correlation, u.causation, u.actor, u.trace
        FROM unnest(public.numbered(sizes), event_stream, event_version, event_topic, event_state, event_correlation,
                    event_causation, event_actor, event_trace) WITH ORDINALITY
            AS u (append, stream, version, topic, state, correlation, causation, actor, trace, ordinal)
        WHERE u.append <> ALL (lost);
        SELECT count(*), string_agg(substr(event_digests, 32 * (u.ordinal - 1)::integer + 1, 32), '' ORDER BY u.ordinal)
        INTO count, digests
        FROM unnest(public.numbered(sizes)) WITH ORDINALITY AS u (append, ordinal) WHERE u.append <> ALL (lost);
    END;

    IF count > 0 THEN
        -- One statement, not three: a lone append spends its time on beginning statements.
        digests := public.block_hash(end_of.hash, first_position, now, digests);
        WITH block AS (
            INSERT INTO public.blocks (last_position, first_position, batch_id, lost, hash)
            VALUES (end_of.position + count, first_position, batch, lost, digests)
        ), moved AS (UPDATE public.head SET position = end_of.position + count, hash = digests)
        SELECT pg_notify('registrar_log', (end_of.position + count)::text) INTO STRICT told;
    END IF;

    IF cardinality(key_append) > 0 THEN
        INSERT INTO public.personal_keys (registration_id, wrapped)
        SELECT k.registration, k.wrapped
        FROM unnest(key_append, key_registration, key_wrapped) AS k (append, registration, wrapped)
        WHERE k.wrapped IS NOT NULL AND k.append <> ALL (lost);
        IF array_position(key_wrapped, NULL) IS NOT NULL THEN
            DELETE FROM public.personal_keys AS p
            USING unnest(key_append, key_registration, key_wrapped) AS k (append, registration, wrapped)
            WHERE p.registration_id = k.registration AND k.wrapped IS NULL AND k.append <> ALL (lost);
        END IF;
    END IF;
    RETURN NEXT;
END $$;

-- For every event the number of its append, from 1.
DO $$ BEGIN
    IF to_regprocedure('public.numbered(bigint[])') IS NULL THEN
        CREATE FUNCTION public.numbered(sizes bigint[]) RETURNS integer[] LANGUAGE sql IMMUTABLE AS $body$
            SELECT coalesce(array_agg(s.append::integer ORDER BY s.append), '{}')
            FROM unnest(sizes) WITH ORDINALITY AS s (size, append) CROSS JOIN LATERAL generate_series(1, s.size)
        $body$;
    END IF;
END $$;

-- The appends of a batch that must not be recorded; settled one by one and in order, and the followers of the others
-- moved.
CREATE OR REPLACE FUNCTION public.lost_appends_v2(
    sizes bigint[], event_stream uuid[], event_version bigint[],
    move_append bigint[], move_follower text[], move_since bigint[], move_to bigint[], now timestamptz
) RETURNS integer[] LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    event_append CONSTANT integer[] := public.numbered(sizes);
    lost         integer[];
    contested    boolean;
    candidate    integer;
    moving       integer;
BEGIN
    -- Lost: an event that does not follow the one before it.
    SELECT coalesce(array_agg(DISTINCT i.append), '{}') INTO lost
    FROM (
        SELECT u.append, u.stream, u.version,
               lag(u.version) OVER (PARTITION BY u.append, u.stream ORDER BY u.ordinal) AS before
        FROM unnest(event_append, event_stream, event_version) WITH ORDINALITY AS u (append, stream, version, ordinal)
    ) AS i
    WHERE CASE WHEN i.before IS NOT NULL THEN i.version <> i.before + 1
               ELSE coalesce(
                   i.version <> 1 + (
                       SELECT max(e.originator_version) FROM public.events AS e WHERE e.originator_id = i.stream),
                   i.version > 1)
          END;

    -- Lost, too: what an earlier append of this batch has taken, and what moves a follower that is not where it was.
    contested := EXISTS (
        SELECT FROM unnest(event_append, event_stream, event_version) AS u (append, stream, version)
        GROUP BY u.stream, u.version HAVING count(*) > 1);
    FOR candidate IN
        SELECT n FROM generate_series(1, cardinality(sizes)) AS n
        WHERE n <> ALL (lost) AND (contested OR n = ANY (move_append)) ORDER BY n
    LOOP
        moving := array_position(move_append, candidate::bigint);
        IF contested AND EXISTS (
            SELECT FROM unnest(event_append, event_stream, event_version) AS later (append, stream, version)
            JOIN unnest(event_append, event_stream, event_version) AS earlier (append, stream, version)
                USING (stream, version)
            WHERE later.append = candidate AND earlier.append < candidate AND earlier.append <> ALL (lost)
        ) OR moving IS NOT NULL
            AND NOT public.move_follower_v2(move_follower[moving], move_since[moving], move_to[moving], now)
        THEN
            lost := lost || candidate;
        END IF;
    END LOOP;
    RETURN lost;
END $$;

-- What became of a batch whose answer was lost. True: it was recorded. False: it was not, and never will be, even if
-- it is still on its way: the head's lock orders this after any run of it, and the fence refuses a later one.
CREATE OR REPLACE FUNCTION public.fate_of_batch_v2(batch uuid) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM public.head FOR UPDATE;
    IF EXISTS (SELECT FROM public.blocks AS b WHERE b.batch_id = batch) THEN
        RETURN true;
    END IF;
    INSERT INTO public.fenced_batches (batch_id) VALUES (batch) ON CONFLICT DO NOTHING;
    RETURN false;
END $$;

-- What release 0.1.0 calls, for a database that it has not made itself; its own are left as they are. One release long.
DO $$ BEGIN
    IF to_regprocedure('public.fate_of_batch(uuid)') IS NULL THEN
        CREATE FUNCTION public.fate_of_batch(batch uuid) RETURNS boolean
        LANGUAGE sql AS 'SELECT public.fate_of_batch_v2(batch)';
    END IF;
    IF to_regprocedure(
        'public.lost_appends(bigint[], uuid[], bigint[], bigint[], text[], bigint[], bigint[], timestamptz)') IS NULL
    THEN
        CREATE FUNCTION public.lost_appends(
            sizes bigint[], event_stream uuid[], event_version bigint[],
            move_append bigint[], move_follower text[], move_since bigint[], move_to bigint[], now timestamptz
        ) RETURNS integer[]
        LANGUAGE sql AS 'SELECT public.lost_appends_v2($1, $2, $3, $4, $5, $6, $7, $8)';
    END IF;
    IF to_regprocedure(
        'public.append_batch(uuid, bigint[], uuid[], bigint[], text[], bytea[], uuid[], bigint[], text[], text[],'
        'bytea, uuid[], bigint[], bigint[], text[], bigint[], bigint[], bigint[], uuid[], bytea[])') IS NULL
    THEN
        CREATE FUNCTION public.append_batch(
            batch uuid, sizes bigint[], event_stream uuid[], event_version bigint[], event_topic text[],
            event_state bytea[], event_correlation uuid[], event_causation bigint[], event_actor text[],
            event_trace text[], event_digests bytea, base_stream uuid[], base_version bigint[], move_append bigint[],
            move_follower text[], move_since bigint[], move_to bigint[], key_append bigint[], key_registration uuid[],
            key_wrapped bytea[]
        ) RETURNS TABLE (first_position bigint, lost integer[], now timestamptz)
        LANGUAGE sql AS
            'SELECT * FROM public.append_batch_v2(
                $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)';
    END IF;
END $$;
