-- The log and what is committed together with it. Everything here may be run again (infrastructure/schema.py).

-- The first five columns are, by name and type, those of the library `eventsourcing`, whose own recorder can read
-- this table; the rest is ours.
CREATE TABLE IF NOT EXISTS events (
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
CREATE UNIQUE INDEX IF NOT EXISTS events_notification_id_index ON events (notification_id);

-- One row: the end of the log. Every append locks it, so appends commit one after the other and a reader that has
-- seen position N has seen everything up to N.
CREATE TABLE IF NOT EXISTS head (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    position bigint  NOT NULL,
    hash     bytea   NOT NULL
);
INSERT INTO head (position, hash) VALUES (0, sha256(''::bytea)) ON CONFLICT DO NOTHING;

-- One row per committed batch: the hash chain, and by `batch_id` the answer to "was this batch committed?".
CREATE TABLE IF NOT EXISTS blocks (
    last_position  bigint PRIMARY KEY,
    first_position bigint NOT NULL,
    batch_id       uuid   NOT NULL UNIQUE,
    lost           integer[] NOT NULL, -- numbers of the batch's appends that were not recorded
    hash           bytea  NOT NULL
);

-- Batches whose fate was asked for before they arrived: they must not be recorded any more.
CREATE TABLE IF NOT EXISTS fenced_batches (
    batch_id  uuid        PRIMARY KEY,
    fenced_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE IF NOT EXISTS followers (
    name       text        PRIMARY KEY,
    position   bigint      NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

-- Events that a follower could not apply, and all later ones of the same stream, in order, until it can.
CREATE TABLE IF NOT EXISTS parked_events (
    follower        text        NOT NULL,
    stream_id       uuid        NOT NULL,
    position        bigint      NOT NULL,
    error           text        NOT NULL,
    parked_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (follower, stream_id, position)
);

-- One key per person, wrapped by the master key. Deleting the row is the erasure of what the key sealed.
CREATE TABLE IF NOT EXISTS personal_keys (
    registration_id uuid  PRIMARY KEY,
    wrapped         bytea NOT NULL
);

-- The root secret, wrapped by the master key; everything keyed is derived from it.
CREATE TABLE IF NOT EXISTS service_secrets (
    name    text  PRIMARY KEY,
    wrapped bytea NOT NULL
);

-- The right to send an issue's mail, held for the time of a lease.
CREATE TABLE IF NOT EXISTS send_claims (
    registration_id uuid        NOT NULL,
    serial          integer     NOT NULL,
    holder          uuid        NOT NULL,
    lease_until     timestamptz NOT NULL,
    PRIMARY KEY (registration_id, serial)
) WITH (fillfactor = 50);

-- What was recorded stays: not even a slip in our own code may change or remove it.
CREATE OR REPLACE FUNCTION refuse_change_of_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on % is refused: what was recorded stays', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE OR REPLACE TRIGGER events_are_for_ever BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_history();
CREATE OR REPLACE TRIGGER blocks_are_for_ever BEFORE UPDATE OR DELETE OR TRUNCATE ON blocks
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_history();

-- A field as the hash chain reads it: its length, then its bytes; NULL is the length -1.
CREATE OR REPLACE FUNCTION chain_field(field bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN field IS NULL THEN int4send(-1) ELSE int4send(octet_length(field)) || field END
$$;

-- Everything of an event, as the hash chain reads it.
CREATE OR REPLACE FUNCTION chain_bytes(event events) RETURNS bytea LANGUAGE sql STABLE AS $$
    SELECT int8send(event.notification_id) || uuid_send(event.originator_id) || int8send(event.originator_version)
        || chain_field(convert_to(event.topic, 'UTF8')) || chain_field(event.state)
        || int8send((extract(epoch FROM event.recorded_at) * 1000000)::bigint) || uuid_send(event.correlation_id)
        || chain_field(int8send(event.causation_position)) || chain_field(convert_to(event.actor, 'UTF8'))
        || chain_field(convert_to(event.trace_context, 'UTF8'))
$$;

-- Records a batch of appends, each of them whole or not at all. Answers a row for each append that was recorded, with
-- the position of its last event; an append that is not answered lost to an earlier one.
--
-- Arrays `event_*` have an element per event; `event_append` numbers the append it belongs to, from 1, ascending.
-- Arrays `append_*` have an element per append. Keys: `wrapped` NULL destroys.
CREATE OR REPLACE FUNCTION append_batch(
    batch              uuid,
    event_append       integer[],
    event_stream       uuid[],
    event_version      bigint[],
    event_topic        text[],
    event_state        bytea[],
    event_correlation  uuid[],
    event_causation    bigint[],
    event_actor        text[],
    event_trace        text[],
    append_follower    text[],
    append_since       bigint[],
    append_to          bigint[],
    key_append         integer[],
    key_registration   uuid[],
    key_wrapped        bytea[]
) RETURNS TABLE (append integer, last_position bigint, now timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    appends   CONSTANT integer := cardinality(append_follower);
    lost      integer[];
    contested boolean;
    candidate integer;
    end_of    head%ROWTYPE;
    count     bigint;
    chain     bytea;
BEGIN
    SELECT * INTO STRICT end_of FROM head FOR UPDATE;
    now := clock_timestamp();
    IF EXISTS (SELECT FROM fenced_batches AS f WHERE f.batch_id = batch) THEN
        RAISE EXCEPTION 'batch % was given up before it arrived', batch USING ERRCODE = 'serialization_failure';
    END IF;

    -- Lost: an event that does not follow the one before it. (A scalar subquery, not EXISTS: that one the planner may
    -- turn into a scan of the whole log.)
    SELECT coalesce(array_agg(DISTINCT i.append), '{}') INTO lost
    FROM (
        SELECT u.append, u.stream, u.version,
               lag(u.version) OVER (PARTITION BY u.append, u.stream ORDER BY u.ordinal) AS before
        FROM unnest(event_append, event_stream, event_version) WITH ORDINALITY AS u (append, stream, version, ordinal)
    ) AS i
    WHERE CASE WHEN i.before IS NOT NULL THEN i.version <> i.before + 1
               ELSE coalesce(
                   i.version <> 1 + (SELECT max(e.originator_version) FROM events AS e WHERE e.originator_id = i.stream),
                   i.version > 1)
          END;

    -- Lost, too: what an earlier append of this batch has taken, and what moves a follower that is not where it was.
    -- Rare, so settled one by one, in order.
    contested := EXISTS (
        SELECT FROM unnest(event_append, event_stream, event_version) AS u (append, stream, version)
        GROUP BY u.stream, u.version HAVING count(*) > 1);
    FOR candidate IN
        SELECT n FROM generate_series(1, appends) AS n
        WHERE n <> ALL (lost) AND (contested OR append_follower[n] IS NOT NULL) ORDER BY n
    LOOP
        IF contested AND EXISTS (
            SELECT FROM unnest(event_append, event_stream, event_version) AS later (append, stream, version)
            JOIN unnest(event_append, event_stream, event_version) AS earlier (append, stream, version)
                USING (stream, version)
            WHERE later.append = candidate AND earlier.append < candidate AND earlier.append <> ALL (lost)
        ) THEN
            lost := lost || candidate;
        ELSIF append_follower[candidate] IS NOT NULL THEN
            INSERT INTO followers (name) VALUES (append_follower[candidate]) ON CONFLICT DO NOTHING;
            UPDATE followers AS f SET position = append_to[candidate], updated_at = now
            WHERE f.name = append_follower[candidate] AND f.position = append_since[candidate];
            IF NOT FOUND THEN
                lost := lost || candidate;
            END IF;
        END IF;
    END LOOP;

    WITH inserted AS (
        INSERT INTO events (
            originator_id, originator_version, topic, state, notification_id, recorded_at,
            correlation_id, causation_position, actor, trace_context
        )
        SELECT u.stream, u.version, u.topic, u.state, end_of.position + row_number() OVER (ORDER BY u.ordinal), now,
               event_correlation[u.ordinal], event_causation[u.ordinal], event_actor[u.ordinal], event_trace[u.ordinal]
        FROM unnest(event_append, event_stream, event_version, event_topic, event_state) WITH ORDINALITY
            AS u (append, stream, version, topic, state, ordinal)
        WHERE u.append <> ALL (lost)
        RETURNING events AS event
    )
    SELECT count(*), string_agg(chain_bytes(event), ''::bytea ORDER BY (event).notification_id)
    INTO count, chain FROM inserted;

    IF count > 0 THEN
        chain := sha256(end_of.hash || chain);
        INSERT INTO blocks (last_position, first_position, batch_id, lost, hash)
        VALUES (end_of.position + count, end_of.position + 1, batch, lost, chain);
        UPDATE head SET position = end_of.position + count, hash = chain;
        PERFORM pg_notify('registrar_log', (end_of.position + count)::text);
    END IF;

    IF cardinality(key_append) > 0 THEN
        INSERT INTO personal_keys (registration_id, wrapped)
        SELECT k.registration, k.wrapped
        FROM unnest(key_append, key_registration, key_wrapped) AS k (append, registration, wrapped)
        WHERE k.wrapped IS NOT NULL AND k.append <> ALL (lost);
        DELETE FROM personal_keys AS p
        USING unnest(key_append, key_registration, key_wrapped) AS k (append, registration, wrapped)
        WHERE p.registration_id = k.registration AND k.wrapped IS NULL AND k.append <> ALL (lost);
    END IF;

    RETURN QUERY
    SELECT n, end_of.position + last.ordinal, now
    FROM generate_series(1, appends) AS n
    LEFT JOIN (
        SELECT u.append, max(u.ordinal) AS ordinal
        FROM (
            SELECT w.append, row_number() OVER (ORDER BY w.at) AS ordinal
            FROM unnest(event_append) WITH ORDINALITY AS w (append, at)
            WHERE w.append <> ALL (lost)
        ) AS u
        GROUP BY u.append
    ) AS last ON last.append = n
    WHERE n <> ALL (lost);
END $$;

-- What became of a batch whose answer was lost. True: it was recorded. False: it was not, and never will be, even if
-- it is still on its way: the head's lock orders this after any run of it, and the fence refuses a later one.
CREATE OR REPLACE FUNCTION fate_of_batch(batch uuid) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM head FOR UPDATE;
    IF EXISTS (SELECT FROM blocks AS b WHERE b.batch_id = batch) THEN
        RETURN true;
    END IF;
    INSERT INTO fenced_batches (batch_id) VALUES (batch) ON CONFLICT DO NOTHING;
    RETURN false;
END $$;
