"""Every read model on real PostgreSQL: what its rows say, and that they depend on the events alone."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from application.ports import Context, WrappedKey, entries_of
from domain.mail_saga import MailSaga
from domain.mail_state import UNSENT
from domain.recorded import AnyEvent, Position, Recorded
from domain.registration import Registration, Status
from domain.stray_message import StrayMessage
from infrastructure.event_store.codec import EventCodec, event_classes
from infrastructure.event_store.store import EventStore
from infrastructure.followers.projector import Projection, read_scripts
from infrastructure.postgres.connection import Connection, pipeline
from infrastructure.postgres.schema import bring_up_to_date
from projections import PROJECTIONS, strays
from projections.accounts import Account, Accounts
from projections.audit import Audit
from projections.deadlines import Deadlines
from projections.funnel import AT_MOST, Bucket, Funnel
from projections.mail import Mail, Mails
from projections.registrations import Registrations, RegistrationView, folded
from projections.strays import Stray, Strays
from tests.support.facts import (
    CLAIM,
    CLIENT,
    DIGEST,
    REGISTRATION,
    STRAY,
    T0,
    account_activated,
    code_found_dead,
    code_locked,
    code_rejected,
    email_claimed,
    email_complained,
    email_discarded,
    email_dispatch_failed,
    email_dispatched,
    email_retry_requested,
    email_verified,
    email_withheld,
    end_awaited,
    fresh_code_asked,
    mail_requested,
    mailbox_unknown,
    otp_issued,
    otp_revoked,
    owner_notified,
    personal_data_erased,
    registered,
    registration_cancelled,
    registration_superseded,
    retry_scheduled,
    saga_ended,
    saga_started,
    stray_discarded,
    stray_kept,
    stream,
    undo_decided,
)
from tests.support.histories import History
from tests.support.releases import FORMER_SCRIPTS
from tests.unit.test_event_codec import GOLDEN_FILES, Golden

SAGA = MailSaga.stream_id(REGISTRATION)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = UUID("019cab10-0000-7000-8000-000000000002")
OTHER_CLAIM = UUID("c1a10000-0000-5000-8000-000000000002")
HOUR = T0.replace(minute=0)


def after(**duration: float) -> datetime:
    return T0 + timedelta(**duration)


# --- Folding ----------------------------------------------------------------------------------


async def log_of(store: EventStore) -> list[Recorded]:
    """The whole log, read back."""
    recorded: list[Recorded] = []
    while True:
        rows, _ = await store.read(len(recorded), 1000)
        if not rows:
            return recorded
        recorded += [store.decode(row) for row in rows]


async def fold(connection: Connection, projection: Projection, *batches: Sequence[Recorded]) -> None:
    """Apply batches of events, the way a follower does."""
    into = sql.Identifier(projection.schema)
    await connection.execute(sql.SQL("SET search_path = {}, public").format(into))
    for batch in batches:
        wanted = [event for event in batch if projection.topics is None or event.topic in projection.topics]
        if wanted:
            async with pipeline(connection), connection.transaction():
                await projection.apply(connection, wanted)
    await connection.execute("RESET search_path")


async def happened(store: EventStore, connection: Connection, projection: Projection, *events: AnyEvent) -> None:
    """These events are in the log, and the read model has followed."""
    before = await store.head()
    last = await store.append(entries_of(events, CLIENT))
    rows, _ = await store.read(before, 1000)
    await fold(connection, projection, [store.decode(row) for row in rows])
    await connection.execute(
        "INSERT INTO followers (name, position) VALUES (%s, %s)"
        " ON CONFLICT (name) DO UPDATE SET position = excluded.position",
        (projection.name, last),
    )


async def rows_of(connection: Connection, schema: str) -> dict[str, list[str]]:
    """Everything a read model holds, in an order of its own."""
    tables = await connection.execute("SELECT tablename::text FROM pg_tables WHERE schemaname = %s", (schema,))
    rows = {}
    for (table,) in await tables.fetchall():
        found = await connection.execute(
            sql.SQL("SELECT to_jsonb(t)::text FROM {} AS t").format(sql.Identifier(schema, table))
        )
        rows[table] = sorted(row[0] for row in await found.fetchall())
    assert rows
    return rows


# --- registrations ----------------------------------------------------------------------------


async def view_after(store: EventStore, connection: Connection, *events: AnyEvent) -> RegistrationView:
    await happened(store, connection, Registrations(), *events)
    views, _ = await Registrations().find(connection, [REGISTRATION])
    return views[REGISTRATION]


async def test_a_registration_shows_everything_up_to_its_activation(store: EventStore, connection: Connection) -> None:
    await store.append(
        entries_of(stream(REGISTRATION, registered(personal_data="sealed", locale="de-AT"), otp_issued()), CLIENT),
        keys=[WrappedKey(REGISTRATION, b"wrapped")],
    )
    rows, _ = await store.read(0, 10)
    await fold(connection, Registrations(), [store.decode(row) for row in rows])

    view = await view_after(
        store,
        connection,
        *stream(
            REGISTRATION,
            email_dispatched(at=after(seconds=1)),
            code_rejected(1, at=after(seconds=20)),
            email_verified(at=after(seconds=30)),
            account_activated(at=after(seconds=31)),
            after=2,
        ),
    )

    assert view == RegistrationView(
        registration_id=REGISTRATION,
        status=Status.ACTIVE,
        claim_id=CLAIM,
        duplicate_of=None,
        sealed="sealed",
        wrapped=b"wrapped",
        locale="de-AT",
        serial=1,
        mail="SENT",
        handed_over_at=after(seconds=1),
        rejections=1,
        locked=False,
        created_at=T0,
        verified_at=after(seconds=30),
        activated_at=after(seconds=31),
        cancelled_at=None,
        cancel_reason=None,
        position=6,
        created_position=1,
    )


async def test_finding_tells_the_models_position_even_of_unknown_registrations(
    store: EventStore, connection: Connection
) -> None:
    assert await Registrations().find(connection, [OTHER]) == ({}, 0)
    await happened(store, connection, Registrations(), *stream(REGISTRATION, registered(), otp_issued()))
    assert await Registrations().find(connection, [OTHER]) == ({}, 2)
    assert await Registrations().find(connection, []) == ({}, 2)
    views, position = await Registrations().find(connection, [OTHER, REGISTRATION])
    assert (list(views), position) == ([REGISTRATION], 2)


async def test_a_new_code_is_queued_again_with_all_its_tries(store: EventStore, connection: Connection) -> None:
    facts = [registered(), otp_issued(), email_dispatched(), code_rejected(5), code_locked()]
    locked = await view_after(store, connection, *stream(REGISTRATION, *facts))
    renewed = await view_after(store, connection, *stream(REGISTRATION, otp_issued(2, "requested"), after=5))
    late = await view_after(store, connection, *stream(REGISTRATION, email_dispatched(1), after=6))

    assert (locked.mail, locked.rejections, locked.locked) == ("SENT", 5, True)
    for view in (renewed, late):
        assert (view.serial, view.mail, view.handed_over_at) == (2, "QUEUED", None)
        assert (view.rejections, view.locked) == (0, False)


@pytest.mark.parametrize(
    ("facts", "mail"),
    [
        ([email_dispatch_failed()], "QUEUED"),
        ([mailbox_unknown()], "FAILED"),
        ([mailbox_unknown(), email_retry_requested()], "QUEUED"),
        ([email_discarded()], "FAILED"),
        ([otp_revoked(), registration_cancelled("expired")], "FAILED"),
        ([email_dispatched(), otp_revoked(), registration_cancelled("expired")], "SENT"),
        ([registration_cancelled("superseded"), email_dispatched()], "SENT"),
        ([email_withheld()], "SENT"),
        ([email_verified()], "SENT"),
        ([email_verified(), account_activated(), owner_notified(OTHER)], "SENT"),
        ([email_dispatched(), registration_superseded(OTHER)], "SENT"),
        ([email_dispatched(), email_complained()], "SENT"),
    ],
    ids=lambda value: ", ".join(fact.event.__name__ for fact in value) if isinstance(value, list) else value,
)
async def test_the_mail_of_a_registration_is_what_its_owner_can_expect(
    store: EventStore, connection: Connection, facts: list[Any], mail: str
) -> None:
    view = await view_after(store, connection, *stream(REGISTRATION, registered(), otp_issued(), *facts))
    assert view.mail == mail
    rows, _ = await store.read(0, 100)
    assert folded([store.decode(row) for row in rows], None) == view, "what is shown from the log is the same"


@pytest.mark.parametrize("topic", sorted(topic for topic in event_classes() if topic.startswith("registration.")))
def test_a_registration_is_shown_from_the_log_whatever_has_happened_to_it(topic: str) -> None:
    codec, (begun,) = EventCodec(), stream(REGISTRATION, registered())
    stored = [Golden.read(path) for path in GOLDEN_FILES if path.stem.startswith(f"{topic}.v")]
    happened: list[Any] = [begun, *(codec.decode(one.stream_id, one.version, one.topic, one.state) for one in stored)]
    recorded = [
        Recorded(event, Position(number), event.TOPIC, T0, REGISTRATION, None, "client", None)
        for number, event in enumerate(happened, start=1)
    ]

    assert stored
    assert folded(recorded, None).created_position == 1


async def test_a_withheld_notice_looks_like_a_mail_that_was_sent(store: EventStore, connection: Connection) -> None:
    sent, withheld = email_dispatched(at=after(seconds=3)), email_withheld(at=after(seconds=3))
    duplicate = registered(duplicate_of=OTHER)
    shown = []
    for number, facts in enumerate([(registered(), otp_issued(), sent), (duplicate, otp_issued(), withheld)], start=10):
        registration_id = UUID(int=number)
        await happened(store, connection, Registrations(), *stream(registration_id, *facts))
        view = (await Registrations().find(connection, [registration_id]))[0][registration_id]
        shown.append((view.status, view.mail, view.handed_over_at, view.serial, view.rejections, view.locked))
    assert shown[0] == shown[1]


async def test_an_erased_registration_keeps_no_personal_data(store: EventStore, connection: Connection) -> None:
    await happened(store, connection, Registrations(), *stream(REGISTRATION, registered(), otp_issued()))
    view = await view_after(
        store,
        connection,
        *stream(REGISTRATION, otp_revoked(), registration_cancelled("erased"), personal_data_erased(), after=2),
    )
    assert (view.status, view.cancel_reason, view.sealed) == ("CANCELLED", "erased", None)
    rows, _ = await store.read(0, 100)
    assert folded([store.decode(row) for row in rows], None) == view

    at_once = [registered(), otp_issued(), otp_revoked(), registration_cancelled("erased"), personal_data_erased()]
    await happened(store, connection, Registrations(), *stream(OTHER, *at_once))
    assert (await Registrations().find(connection, [OTHER]))[0][OTHER].sealed is None


async def test_an_event_of_a_registration_that_never_began_is_an_error(
    store: EventStore, connection: Connection
) -> None:
    for projection in (Registrations(), Mails(), Funnel()):
        orphan = Recorded(
            stream(REGISTRATION, otp_issued(2, "requested"), after=6)[0],
            position=7,
            topic=Registration.OtpIssued.TOPIC,
            recorded_at=T0,
            correlation_id=CLIENT.correlation_id,
            causation_position=None,
            actor="client",
            trace=None,
        )
        with pytest.raises(LookupError):
            await fold(connection, projection, [orphan])


async def test_registrations_are_listed_newest_first_page_by_page(store: EventStore, connection: Connection) -> None:
    ids = [UUID(int=number) for number in range(1, 6)]
    for number, registration_id in enumerate(ids):
        claim_id = CLAIM if number % 2 else OTHER_CLAIM
        await happened(store, connection, Registrations(), *stream(registration_id, registered(claim_id=claim_id)))
    await happened(store, connection, Registrations(), *stream(ids[0], email_verified(), after=1))

    first = await Registrations().search(connection, limit=2)
    second = await Registrations().search(connection, limit=2, cursor=first.next_cursor)
    last = await Registrations().search(connection, limit=2, cursor=second.next_cursor)
    pages = [[view.registration_id for view in page.items] for page in (first, second, last)]
    assert (pages, last.next_cursor) == ([ids[:2:-1], ids[2:0:-1], ids[:1]], None)

    async def found(**wanted: Any) -> list[UUID]:
        return [view.registration_id for view in (await Registrations().search(connection, **wanted)).items]

    assert await found(status="VERIFIED") == [ids[0]]
    assert await found(claim_ids=[CLAIM]) == [ids[3], ids[1]]
    assert await found(claim_ids=[CLAIM, OTHER_CLAIM], status="PENDING") == ids[:0:-1]
    assert await found(claim_ids=[]) == []


@pytest.mark.parametrize("cursor", ["", "1", "MA==", "LTE=", "MDE=", "MQ", "é", "OTk5OTk5OTk5OTk5OTk5OTk5OTk=", "!!!!"])
async def test_a_malformed_cursor_is_refused(connection: Connection, cursor: str) -> None:
    searches: tuple[Callable[..., Any], ...] = (
        *(Registrations().search, Mails().search, Mails().failed, Strays(Mails().schema).search, Audit().search),
    )
    for search in searches:
        with pytest.raises(ValueError, match="not a cursor"):
            await search(connection, cursor=cursor)


# --- accounts ---------------------------------------------------------------------------------


async def test_an_account_appears_with_its_activation_and_not_before(store: EventStore, connection: Connection) -> None:
    accounts = Accounts()
    facts = [registered(personal_data="sealed"), otp_issued(), email_verified()]
    await happened(store, connection, accounts, *stream(REGISTRATION, *facts))
    assert await Accounts().by_id(connection, REGISTRATION) is None

    await happened(store, connection, accounts, *stream(REGISTRATION, account_activated(at=after(minutes=1)), after=3))
    expected = Account(REGISTRATION, CLAIM, "sealed", None, "en", after(minutes=1))
    assert await Accounts().by_id(connection, REGISTRATION) == expected
    assert await Accounts().by_address(connection, CLAIM) == expected
    assert await Accounts().by_address(connection, OTHER_CLAIM) is None


async def test_an_accounts_key_comes_with_it(store: EventStore, connection: Connection) -> None:
    facts = [registered(), otp_issued(), email_verified(), account_activated()]
    await happened(store, connection, Accounts(), *stream(REGISTRATION, *facts))
    await store.append(entries_of(stream(OTHER, registered()), CLIENT), keys=[WrappedKey(REGISTRATION, b"wrapped")])
    account = await Accounts().by_id(connection, REGISTRATION)
    assert account is not None
    assert account.wrapped == b"wrapped"


async def test_an_erased_account_is_gone_with_all_its_data(store: EventStore, connection: Connection) -> None:
    facts = [registered(), otp_issued(), email_verified(), account_activated()]
    await happened(store, connection, Accounts(), *stream(REGISTRATION, *facts))
    await happened(
        store,
        connection,
        Accounts(),
        *stream(REGISTRATION, registration_cancelled("erased"), personal_data_erased(), after=4),
    )
    assert await rows_of(connection, "read_accounts") == {"accounts": [], "candidates": []}


async def test_nothing_is_kept_of_registrations_that_cannot_become_accounts(
    store: EventStore, connection: Connection
) -> None:
    await happened(store, connection, Accounts(), *stream(REGISTRATION, registered(), registration_cancelled()))
    await happened(store, connection, Accounts(), *stream(OTHER, registered(duplicate_of=REGISTRATION)))
    assert await rows_of(connection, "read_accounts") == {"accounts": [], "candidates": []}


# --- mail -------------------------------------------------------------------------------------


async def mails_after(store: EventStore, connection: Connection, *events: AnyEvent) -> list[Mail]:
    await happened(store, connection, Mails(), *events)
    return await Mails().of_registration(connection, REGISTRATION)


async def test_a_mail_that_fails_for_now_tells_why_and_when_it_is_tried_again(
    store: EventStore, connection: Connection
) -> None:
    await happened(store, connection, Mails(), *stream(REGISTRATION, registered(), otp_issued()))
    await happened(store, connection, Mails(), *stream(SAGA, saga_started(), mail_requested()))
    await happened(
        store,
        connection,
        Mails(),
        *stream(REGISTRATION, email_dispatch_failed(failure="greylisted", at=after(seconds=9)), after=2),
    )
    [mail] = await mails_after(
        store, connection, *stream(SAGA, retry_scheduled(look_again_at=after(seconds=40)), after=2)
    )
    assert mail == Mail(
        REGISTRATION,
        serial=1,
        created_position=1,
        position=6,
        kind="code",
        state="RETRYING",
        requested_at=T0,
        waiting_since=T0,
        requests=1,
        failures=1,
        failure="greylisted",
        provider="mail.example:25",
        attempts=3,
        reply_code=451,
        reply_status="4.7.1",
        last_attempt_at=after(seconds=9),
        dispatched_at=None,
        next_try_at=after(seconds=40),
    )

    [mail] = await mails_after(
        store, connection, *stream(REGISTRATION, email_dispatched(provider="b:25", at=after(seconds=41)), after=3)
    )
    assert (mail.state, mail.provider, mail.reply_code, mail.reply_status) == ("SENT", "b:25", 250, None)
    assert mail.dispatched_at == mail.last_attempt_at == after(seconds=41)
    assert (mail.failures, mail.failure, mail.next_try_at) == (1, "greylisted", None)


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ([], "QUEUED"),
        ([email_withheld()], "WITHHELD"),
        ([mailbox_unknown()], "FAILED"),
        ([mailbox_unknown(), otp_revoked(), registration_cancelled("undeliverable")], "FAILED"),
        ([mailbox_unknown(), email_retry_requested()], "RETRYING"),
        ([email_retry_requested()], "QUEUED"),
        ([email_dispatch_failed(), otp_revoked(), registration_cancelled("expired")], "FAILED"),
        ([email_discarded(), otp_revoked(), registration_cancelled("discarded")], "DISCARDED"),
        ([email_dispatched(), email_discarded()], "SENT"),
        ([registration_cancelled("operator")], "DROPPED"),
        ([registration_cancelled("superseded"), email_dispatched()], "SENT"),
        ([email_verified()], "DROPPED"),
        ([email_dispatched(), email_verified()], "SENT"),
    ],
    ids=lambda value: ", ".join(fact.event.__name__ for fact in value) if isinstance(value, list) else value,
)
async def test_a_mails_state_says_what_became_of_it(
    store: EventStore, connection: Connection, facts: list[Any], state: str
) -> None:
    [mail] = await mails_after(store, connection, *stream(REGISTRATION, registered(), otp_issued(), *facts))
    assert mail.state == state


async def test_a_mail_replaced_unsent_is_dropped_and_its_wait_goes_on(
    store: EventStore, connection: Connection
) -> None:
    notice = registered(duplicate_of=OTHER)
    facts = [notice, otp_issued(), otp_issued(2, "stale", at=after(minutes=11))]
    first, second = await mails_after(store, connection, *stream(REGISTRATION, *facts))
    assert (first.state, second.state, second.kind) == ("DROPPED", "QUEUED", "notice")
    assert (second.requested_at, second.waiting_since) == (after(minutes=11), T0)
    assert await Mails().oldest_unsent(connection) == T0

    facts = [email_dispatched(2), otp_issued(3, "requested", at=after(minutes=20))]
    *_, third = await mails_after(store, connection, *stream(REGISTRATION, *facts, after=3))
    assert third.waiting_since == await Mails().oldest_unsent(connection) == after(minutes=20)


async def test_the_dead_letter_desk_lists_counts_and_pages(store: EventStore, connection: Connection) -> None:
    assert await Mails().oldest_unsent(connection) is None
    assert await Mails().dead_letters(connection) == 0
    ids = [UUID(int=number) for number in range(1, 6)]
    for registration_id in ids:
        fact = mailbox_unknown() if registration_id.int % 2 else email_dispatched()
        await happened(store, connection, Mails(), *stream(registration_id, registered(), otp_issued(), fact))

    first = await Mails().search(connection, state="FAILED", limit=2)
    rest = await Mails().search(connection, state="FAILED", limit=2, cursor=first.next_cursor)
    assert [mail.registration_id for mail in (*first.items, *rest.items)] == [ids[4], ids[2], ids[0]]
    assert rest.next_cursor is None
    assert len((await Mails().search(connection)).items) == 5
    counts = await Mails().counts(connection)
    assert (counts["FAILED"], counts["SENT"], counts["QUEUED"]) == (3, 2, 0)
    assert await Mails().dead_letters(connection) == 3


@pytest.mark.parametrize(
    ("facts", "waits", "settled"),
    [
        ([mailbox_unknown()], [1], []),
        ([email_dispatch_failed()], [], []),
        ([mailbox_unknown(), email_retry_requested()], [], []),
        ([mailbox_unknown(), email_discarded()], [], []),
        ([mailbox_unknown(), otp_revoked(), registration_cancelled("undeliverable")], [], [1]),
        ([mailbox_unknown(), email_discarded(), registration_cancelled("discarded")], [], []),
        ([mailbox_unknown(), registration_cancelled("erased"), personal_data_erased()], [], [1]),
        ([email_dispatch_failed(), otp_revoked(), registration_cancelled("expired")], [], [1]),
        ([registration_cancelled("expired")], [], [1]),
        ([mailbox_unknown(), email_verified()], [], [1]),
        ([mailbox_unknown(), otp_issued(2, "requested")], [], [1]),
        ([mailbox_unknown(), otp_issued(2, "requested"), mailbox_unknown(2)], [2], [1]),
    ],
    ids=lambda value: ", ".join(fact.event.__name__ for fact in value) if value and isinstance(value, list)
    and not isinstance(value[0], int) else str(value),
)  # fmt: skip
async def test_a_mail_that_failed_for_good_waits_until_its_registration_has_ended_or_a_later_code(
    store: EventStore, connection: Connection, facts: list[Any], waits: list[int], settled: list[int]
) -> None:
    mails = await mails_after(store, connection, *stream(REGISTRATION, registered(), otp_issued(), *facts))

    assert [mail.serial for mail in (await Mails().search(connection, state="WAITING")).items] == waits
    assert await Mails().dead_letters(connection) == len(waits)
    assert [mail.serial for mail in mails if mail.settled] == settled
    failed = await Mails().search(connection, state="FAILED")
    assert sorted(mail.serial for mail in failed.items) == sorted(waits + settled)


FATES = (
    (mailbox_unknown(),),
    (mailbox_unknown(), otp_revoked(), registration_cancelled("undeliverable")),
    (email_dispatch_failed(), otp_revoked(), registration_cancelled("expired")),
    (mailbox_unknown(), email_verified()),
    (mailbox_unknown(), otp_issued(2, "requested"), mailbox_unknown(2)),
    (mailbox_unknown(), email_discarded(), registration_cancelled("discarded")),
    (email_dispatched(), email_verified()),
)


async def test_a_read_model_of_the_release_before_is_brought_up_to_date_where_it_stands(
    store: EventStore, connection: Connection
) -> None:
    ended_later = stream(UUID(int=9), registered(), otp_issued(), mailbox_unknown())
    for number, facts in enumerate(FATES, start=1):
        await happened(store, connection, Mails(), *stream(UUID(int=number), registered(), otp_issued(), *facts))
    await happened(store, connection, Mails(), *ended_later)
    fresh = await rows_of(connection, "read_mail")
    await with_the_table_of_the_release_before(connection)
    await store.append(entries_of(stream(UUID(int=9), registration_cancelled("undeliverable"), after=3), CLIENT))

    await bring_up_to_date(connection, read_scripts(Mails()))

    # The cancellation is beyond the model's position: it is still to be folded.
    assert await rows_of(connection, "read_mail") == fresh
    assert [mail.registration_id.int for mail in (await Mails().search(connection, state="WAITING")).items] == [9, 5, 1]


async def test_what_the_release_before_writes_during_a_rollout_is_settled_too(
    store: EventStore, connection: Connection
) -> None:
    cancelled = stream(REGISTRATION, registered(), otp_issued(), mailbox_unknown(), registration_cancelled("operator"))
    await happened(store, connection, Mails(), *cancelled)
    await fold(connection, Registrations(), await log_of(store))
    await connection.execute("UPDATE read_mail.mails SET settled = false")

    assert await Mails().dead_letters(connection) == 0
    assert (await Mails().search(connection, state="WAITING")).items == []
    [mail] = await Mails().of_registration(connection, REGISTRATION)
    assert (mail.state, mail.settled) == ("FAILED", True)


async def with_the_table_of_the_release_before(connection: Connection) -> None:
    """The same mails, without what that release did not know."""
    await connection.execute("ALTER TABLE read_mail.mails SET SCHEMA public; DROP SCHEMA read_mail CASCADE")
    await connection.execute("CREATE SCHEMA read_mail")
    await connection.execute(
        f"SET search_path = read_mail; {FORMER_SCRIPTS['read_mail']}; SET search_path = public".encode()
    )
    columns = "registration_id, serial, created_position, position, kind, state, requested_at, waiting_since, requests"
    columns += ", failures, failure, provider, attempts, reply_code, reply_status, last_attempt_at, dispatched_at"
    columns += ", look_again_at"
    await connection.execute(
        f"INSERT INTO read_mail.mails ({columns}) SELECT {columns} FROM public.mails; DROP TABLE public.mails;"
        " DELETE FROM schema_scripts WHERE name LIKE 'read_mail/%'"
    )


async def test_counting_what_waits_reads_no_more_however_much_has_ever_failed(connection: Connection) -> None:
    await connection.execute(
        "INSERT INTO read_mail.mails (registration_id, serial, created_position, position, kind, state, requested_at,"
        " waiting_since, requests, failures, settled)"
        " SELECT gen_random_uuid(), 1, n, n, 'code', 'FAILED', now(), now(), 1, 1, n > 3 FROM generate_series(1, 9999) n"
    )
    await connection.execute("VACUUM ANALYZE read_mail.mails")

    async def read() -> int:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        found = await connection.execute(
            "SELECT sum(idx_tup_read)::bigint + (SELECT seq_tup_read FROM pg_stat_user_tables AS t"
            " WHERE (t.schemaname, t.relname) = ('read_mail', 'mails'))"
            " FROM pg_stat_user_indexes WHERE (schemaname, relname) = ('read_mail', 'mails')"
        )
        [(tuples,)] = await found.fetchall()
        return int(tuples)

    before = await read()
    assert await Mails().dead_letters(connection) == 3
    assert await read() - before <= 3


async def test_a_search_by_actor_and_time_reads_little_of_the_time_between(connection: Connection) -> None:
    begun = datetime(2026, 3, 1, 12, tzinfo=UTC)
    await connection.execute(
        "INSERT INTO read_audit.entries"
        " SELECT n, %s + n * interval '0.1 ms', 'some.topic', id, n, id,"
        " CASE n %% 10 WHEN 0 THEN 'mail-worker' ELSE 'client' END, id, NULL, NULL, '{}'"
        " FROM (SELECT n, gen_random_uuid() AS id FROM generate_series(1, 200000) AS n) AS numbered",
        (begun,),
    )
    await connection.execute("VACUUM ANALYZE read_audit.entries")

    async def read() -> int:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        found = await connection.execute(
            "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_user_tables"
            " WHERE (schemaname, relname) = ('read_audit', 'entries')"
        )
        [(tuples,)] = await found.fetchall()
        return int(tuples)

    before = await read()
    since, until = begun + timedelta(seconds=10), begun + timedelta(seconds=10.5)
    found = await Audit().search(connection, actor="mail-worker", since=since, until=until)
    assert [entry.position for entry in found.items] == [*range(104_990, 104_490, -10)]
    # Ten times the fifty that are shown and one more, the thousand of the next tenth of a second, and the halving; the
    # five thousand of the half second that was asked for are not among them.
    assert await read() - before < 2_000


async def test_a_search_by_time_loses_nothing_where_the_clock_was_set_back_a_little(connection: Connection) -> None:
    begun = datetime(2026, 3, 1, 12, tzinfo=UTC)
    # A millisecond from entry to entry; before the hundredth the clock was set back by 90.
    times = [begun + timedelta(milliseconds=n if n < 100 else n - 90) for n in range(1, 401)]
    await connection.execute(
        "INSERT INTO read_audit.entries"
        " SELECT n, at, 'some.topic', gen_random_uuid(), n, gen_random_uuid(), 'client', gen_random_uuid(), NULL, NULL,"
        " '{}' FROM unnest(%s::timestamptz[]) WITH ORDINALITY AS t (at, n)",
        (times,),
    )

    for start in range(0, 300, 7):
        since = begun + timedelta(milliseconds=start)
        until = since + timedelta(milliseconds=20)
        found = await Audit().search(connection, actor="client", since=since, until=until, limit=400)
        due = [n for n, at in enumerate(times, 1) if since <= at < until]
        assert [entry.position for entry in found.items] == due[::-1]


async def test_failed_mails_are_found_by_their_last_failure_page_by_page(
    store: EventStore, connection: Connection
) -> None:
    ids = [UUID(int=number) for number in range(1, 9)]
    expired, greylisted = email_dispatch_failed(failure="expired"), email_dispatch_failed(failure="greylisted")
    for registration_id, facts in zip(
        ids,
        [
            [expired],
            [expired, greylisted],
            [greylisted, expired],
            [expired, email_dispatched()],
            [mailbox_unknown()],
            [expired, email_discarded()],
            [expired, email_verified()],
            [expired, registration_cancelled("expired")],
        ],
        strict=True,
    ):
        await happened(store, connection, Mails(), *stream(registration_id, registered(), otp_issued(), *facts))

    async def found(failures: list[str] | None = None) -> list[UUID]:
        pages, cursor = list[UUID](), None
        while True:
            page = await Mails().failed(connection, failures=failures, cursor=cursor, limit=2)
            pages += [mail.registration_id for mail in page.items]
            cursor = page.next_cursor
            if cursor is None:
                return pages

    assert await found() == [ids[7], ids[4], ids[2], ids[1], ids[0]]
    assert await found(["expired"]) == [ids[7], ids[2], ids[0]]
    assert await found(["greylisted", "mailbox-unknown"]) == [ids[4], ids[1]]
    assert await found(["timeout"]) == []


async def test_a_stray_message_is_listed_until_it_is_discarded(store: EventStore, connection: Connection) -> None:
    await happened(store, connection, Mails(), *stream(STRAY, stray_kept(at=after(seconds=5))))
    assert (await Strays(Mails().schema).search(connection)).items == [
        Stray(
            STRAY,
            digest=DIGEST,
            reason="not-a-mail-request",
            died_of="rejected",
            size=42,
            content_type="application/json",
            fields="kind,serial",
            other_fields=3,
            kept_at=after(seconds=5),
            position=1,
            discarded=False,
        )
    ]
    assert (await Strays(Mails().schema).count(connection), await Mails().dead_letters(connection)) == (1, 0)
    assert (await Mails().search(connection)).items == []

    await happened(store, connection, Mails(), *stream(STRAY, stray_discarded(), after=1))
    assert (await Strays(Mails().schema).search(connection)).items == []
    assert await Strays(Mails().schema).count(connection) == 0
    [row] = (await rows_of(connection, "read_mail"))["strays"]
    assert DIGEST in row


async def test_stray_messages_are_listed_latest_first_page_by_page(store: EventStore, connection: Connection) -> None:
    ids = [StrayMessage.stream_id(f"{number}") for number in range(5)]
    events = [stream(stray_id, stray_kept(f"{number}", content_type=None)) for number, stray_id in enumerate(ids)]
    discarded = stream(ids[3], stray_discarded(), after=1)
    await happened(store, connection, Mails(), *(event for one in events for event in one), *discarded)

    first = await Strays(Mails().schema).search(connection, limit=2)
    rest = await Strays(Mails().schema).search(connection, limit=2, cursor=first.next_cursor)
    assert [stray.id for stray in (*first.items, *rest.items)] == [ids[4], ids[2], ids[1], ids[0]]
    assert rest.next_cursor is None


async def test_a_stray_message_that_was_never_kept_cannot_be_discarded(
    store: EventStore, connection: Connection
) -> None:
    await store.append(entries_of(stream(STRAY, stray_kept(), stray_discarded()), CLIENT))
    _, discarded = await log_of(store)
    with pytest.raises(LookupError):
        await fold(connection, Mails(), [discarded])


# --- funnel -----------------------------------------------------------------------------------


async def funnel_after(store: EventStore, connection: Connection, *events: AnyEvent) -> list[Bucket]:
    await happened(store, connection, Funnel(), *events)
    return await Funnel().funnel(connection, T0, "hour")


async def test_the_funnel_counts_stages_failures_and_durations(store: EventStore, connection: Connection) -> None:
    facts = [
        registered(),
        otp_issued(),
        email_dispatch_failed(failure="greylisted", at=after(seconds=1)),
        email_dispatched(at=after(seconds=31)),
        code_rejected(at=after(seconds=50)),
        email_verified(at=after(seconds=61)),
        account_activated(at=after(seconds=61.5)),
    ]
    [bucket] = await funnel_after(store, connection, *stream(REGISTRATION, *facts))
    assert bucket.start == HOUR
    assert bucket.registrations.stages == {
        "registered": 1,
        "mail_failed:greylisted": 1,
        "mail_dispatched": 1,
        "code_rejected": 1,
        "verified": 1,
        "activated": 1,
    }
    assert {
        step: (took.count, took.total, took.longest, took.histogram)
        for step, took in bucket.registrations.durations.items()
    } == {
        "registered_to_dispatched": (1, 31.0, 31.0, {60: 1}),
        "dispatched_to_verified": (1, 30.0, 30.0, {30: 1}),
        "registered_to_activated": (1, 61.5, 61.5, {120: 1}),
    }
    assert bucket.duplicates.stages == {}


async def test_durations_below_and_above_a_second_are_counted_in_one_batch(
    store: EventStore, connection: Connection
) -> None:
    facts = [registered(), otp_issued(), email_dispatched(at=after(seconds=0.2)), email_verified(at=after(seconds=90))]
    [bucket] = await funnel_after(store, connection, *stream(REGISTRATION, *facts))
    assert {step: took.histogram for step, took in bucket.registrations.durations.items()} == {
        "registered_to_dispatched": {0.5: 1},
        "dispatched_to_verified": {120: 1},
    }


async def test_duplicates_have_a_funnel_of_their_own(store: EventStore, connection: Connection) -> None:
    facts = [
        registered(duplicate_of=OTHER),
        otp_issued(),
        email_dispatched(kind="notice", at=after(seconds=2)),
        otp_issued(2, "requested"),
        email_withheld(2),
        code_rejected(5),
        code_locked(),
        registration_cancelled("expired"),
        email_dispatched(2, kind="notice"),
    ]
    [bucket] = await funnel_after(store, connection, *stream(REGISTRATION, *facts))
    assert bucket.registrations.stages == {}
    assert bucket.duplicates.stages == {
        "registered": 1,
        "mail_dispatched": 2,
        "code_renewed:requested": 1,
        "mail_withheld": 1,
        "code_rejected": 1,
        "code_locked": 1,
        "cancelled:expired": 1,
    }
    assert bucket.duplicates.durations["registered_to_dispatched"].histogram == {2: 1}


async def test_the_funnel_is_told_by_hour_or_day_of_the_events(store: EventStore, connection: Connection) -> None:
    await happened(store, connection, Funnel(), *stream(REGISTRATION, registered(at=after(hours=-24))))
    await happened(store, connection, Funnel(), *stream(OTHER, registered(at=after(minutes=10))))
    late = stream(OTHER, registration_cancelled("erased", at=after(hours=2)), after=1)
    assert [bucket.start for bucket in await funnel_after(store, connection, *late)] == [
        HOUR,
        HOUR + timedelta(hours=2),
    ]
    days = await Funnel().funnel(connection, after(hours=-20), "day")
    midnight = T0.replace(hour=0)
    assert [(day.start, day.registrations.stages) for day in days] == [
        (midnight - timedelta(days=1), {"registered": 1}),
        (midnight, {"registered": 1, "cancelled:erased": 1}),
    ]


async def test_a_duration_beyond_every_class_is_counted_too(store: EventStore, connection: Connection) -> None:
    facts = [registered(at=after(days=-3)), otp_issued(), email_dispatched(at=T0)]
    [bucket] = await funnel_after(store, connection, *stream(REGISTRATION, *facts))
    assert bucket.registrations.durations["registered_to_dispatched"].histogram == {None: 1}
    assert list(AT_MOST) == sorted(AT_MOST)


async def test_the_funnel_keeps_nothing_of_a_registration_that_has_ended(
    store: EventStore, connection: Connection
) -> None:
    await happened(store, connection, Funnel(), *stream(REGISTRATION, registered(), registration_cancelled()))
    await happened(store, connection, Funnel(), *stream(OTHER, registered(), otp_issued(), email_verified()))
    await happened(store, connection, Funnel(), *stream(OTHER, account_activated(), after=3))
    assert (await rows_of(connection, "read_funnel"))["under_way"] == []
    await happened(store, connection, Funnel(), *stream(OTHER, registration_cancelled("erased"), after=4))
    [bucket] = await Funnel().funnel(connection, T0, "hour")
    assert bucket.registrations.stages["cancelled:erased"] == 1


# --- audit ------------------------------------------------------------------------------------


async def test_the_audit_log_tells_who_did_what_because_of_what(store: EventStore, connection: Connection) -> None:
    correlation_id = UUID(int=77)
    await store.append(
        entries_of(stream(REGISTRATION, registered(personal_data="SEALED", fingerprint="PRINT")), CLIENT)
    )
    await store.append(
        entries_of(
            stream(SAGA, saga_started(), mail_requested()),
            Context("mail-saga", correlation_id, causation_position=1, trace="00-abc-def-01"),
        ),
    )
    await fold(connection, Audit(), await log_of(store))

    requested, started, begun = (await Audit().search(connection)).items
    assert (requested.position, requested.topic, requested.version) == (3, MailSaga.MailRequested.TOPIC, 2)
    assert (requested.stream_id, requested.registration_id) == (SAGA, REGISTRATION)
    assert (requested.actor, requested.correlation_id) == ("mail-saga", correlation_id)
    assert (requested.causation_position, requested.trace) == (1, "00-abc-def-01")
    assert requested.details == {
        "kind": "code",
        "serial": 1,
        "request": 1,
        "issued_at": T0.isoformat(),
        "look_again_at": after(minutes=2).isoformat(),
    }
    assert started.details["kind"] == "code"
    assert begun.details == {"claim_id": str(CLAIM), "locale": "en", "duplicate_of": None}
    assert "SEALED" not in str(await rows_of(connection, "read_audit"))
    assert "PRINT" not in str(await rows_of(connection, "read_audit"))


async def test_the_audit_log_is_searched_by_everything_an_operator_knows(
    store: EventStore, connection: Connection
) -> None:
    operator = Context("operator", UUID(int=88))
    await store.append(entries_of(stream(REGISTRATION, registered(), otp_issued()), CLIENT))
    await store.append(entries_of(stream(CLAIM, email_claimed()), CLIENT))
    await store.append(entries_of(stream(SAGA, saga_started()), CLIENT))
    await store.append(
        entries_of(stream(OTHER, registered(claim_id=OTHER_CLAIM), owner_notified(REGISTRATION)), CLIENT)
    )
    await store.append(entries_of(stream(OTHER, registration_cancelled("operator"), after=2), operator))
    events = await log_of(store)
    await fold(connection, Audit(), events)

    async def found(**wanted: Any) -> list[int]:
        return [entry.position for entry in (await Audit().search(connection, **wanted)).items]

    assert await found() == [7, 6, 5, 4, 3, 2, 1]
    assert await found(registration_id=REGISTRATION) == [4, 3, 2, 1]
    assert await found(claim_ids=[CLAIM]) == [4, 3, 2, 1]
    assert await found(claim_ids=[OTHER_CLAIM, UUID(int=1)], actor="operator") == [7]
    assert await found(claim_ids=[]) == []
    assert await found(topic=Registration.UserRegistered.TOPIC) == [5, 1]
    assert await found(correlation_id=operator.correlation_id) == [7]
    assert await found(since=events[4].recorded_at) == [7, 6, 5]
    assert await found(until=events[4].recorded_at) == [4, 3, 2, 1]
    first = await Audit().search(connection, limit=5)
    assert await found(cursor=first.next_cursor) == [2, 1]


async def test_the_audit_log_tells_of_a_stray_message_by_its_own_id(store: EventStore, connection: Connection) -> None:
    await store.append(entries_of(stream(STRAY, stray_kept()), Context("dead-letter-consumer", UUID(int=66))))
    await store.append(entries_of(stream(STRAY, stray_discarded(), after=1), Context("operator", UUID(int=88))))
    await fold(connection, Audit(), await log_of(store))

    discarded, kept = (await Audit().search(connection, registration_id=STRAY)).items
    assert (kept.topic, kept.actor, kept.stream_id) == ("stray_message.kept", "dead-letter-consumer", STRAY)
    assert kept.details == dict(stray_kept().fields)
    assert (discarded.topic, discarded.actor, discarded.details) == ("stray_message.discarded", "operator", {})


# --- deadlines --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "at"),
    [
        ([], after(hours=24)),
        ([mail_requested()], after(minutes=2)),
        ([mail_requested(), end_awaited()], after(hours=24)),
        ([mail_requested(), retry_scheduled(look_again_at=after(seconds=33))], after(seconds=33)),
        ([mail_requested(), code_found_dead(look_again_at=after(minutes=2))], after(minutes=2)),
        ([mail_requested(), fresh_code_asked(look_again_at=after(minutes=4))], after(minutes=4)),
        ([mail_requested(), undo_decided(look_again_at=after(minutes=5))], after(minutes=5)),
        ([mail_requested(), saga_ended()], None),
    ],
)
async def test_there_is_a_deadline_until_the_saga_ends(
    store: EventStore, connection: Connection, facts: list[Any], at: datetime | None
) -> None:
    await happened(store, connection, Deadlines(), *stream(SAGA, saga_started()))
    if facts:
        await happened(store, connection, Deadlines(), *stream(SAGA, *facts, after=1))
    assert [look.registration_id for look in await Deadlines().due(connection, after(days=9), 9)] == (
        [] if at is None else [REGISTRATION]
    )
    if at is not None:
        assert await Deadlines().overdue(connection, at) == 0
        assert await Deadlines().overdue(connection, at + timedelta(microseconds=1)) == 1


async def test_what_is_due_comes_in_order_and_no_more_than_asked_for(store: EventStore, connection: Connection) -> None:
    ids = [UUID(int=number) for number in range(1, 5)]
    for minutes, registration_id in zip((3, 1, 2, 60), ids, strict=True):
        started = saga_started(registration_id, ends_at=after(minutes=minutes))
        await happened(store, connection, Deadlines(), *stream(MailSaga.stream_id(registration_id), started))

    assert await Deadlines().due(connection, T0, 10) == []
    looks = await Deadlines().due(connection, after(minutes=3), 10)
    assert [look.registration_id for look in looks] == [ids[1], ids[2], ids[0]]
    assert [look.position for look in looks] == [2, 3, 1]
    assert {look.correlation_id for look in looks} == {CLIENT.correlation_id}
    assert await Deadlines().due(connection, after(minutes=3), 1) == looks[:1]
    assert await Deadlines().overdue(connection, after(minutes=2)) == 1
    assert await Deadlines().overdue(connection, after(minutes=2, seconds=1)) == 2


async def test_a_deadline_set_before_its_trace_was_kept_stays_and_the_next_one_has_its_trace(
    store: EventStore, connection: Connection
) -> None:
    # given: the table of a database of before
    await happened(store, connection, Deadlines(), *stream(SAGA, saga_started()))
    await connection.execute("ALTER TABLE read_deadlines.deadlines DROP COLUMN trace")
    await connection.execute("DELETE FROM schema_scripts WHERE name LIKE 'read_deadlines/%'")

    await bring_up_to_date(connection, read_scripts(Deadlines()))

    assert [look.trace for look in await Deadlines().due(connection, after(days=9), 9)] == [None]
    last = await store.append(entries_of(stream(SAGA, mail_requested(), after=1), replace(CLIENT, trace=TRACE)))
    rows, _ = await store.read(last - 1, 1)
    await fold(connection, Deadlines(), [store.decode(row) for row in rows])
    assert [look.trace for look in await Deadlines().due(connection, after(days=9), 9)] == [TRACE]


# --- The rows depend on the events alone ------------------------------------------------------


@pytest.fixture
async def history(store: EventStore) -> list[Recorded]:
    """Two hundred registrations, in the log and read back."""
    events = History(seed=20260301, registrations=200).events
    assert {event.TOPIC for event, _ in events} == set(event_classes())  # type: ignore[attr-defined]
    for start in range(0, len(events), 500):
        await store.append(events[start : start + 500])
    recorded = await log_of(store)
    assert [(r.event.originator_id, r.event.originator_version) for r in recorded] == [
        (event.originator_id, event.originator_version) for event, _ in events
    ]
    return recorded


async def test_rows_agree_with_the_aggregates(
    store: EventStore, connection: Connection, history: list[Recorded]
) -> None:
    for projection in (Registrations(), Accounts(), Mails(), Deadlines()):
        await fold(connection, projection, history)
    ids = [r.event.originator_id for r in history if r.topic == Registration.UserRegistered.TOPIC]
    streams = await store.load(*ids, *map(MailSaga.stream_id, ids))
    views, _ = await Registrations().find(connection, ids)
    due = {look.registration_id for look in await Deadlines().due(connection, after(days=365), len(ids))}

    for registration_id in ids:
        registration = streams.get(Registration, registration_id)
        saga = streams.get(MailSaga, MailSaga.stream_id(registration_id))
        assert registration is not None
        assert saga is not None
        view = views[registration_id]
        assert (view.status, view.serial) == (registration.status, registration.serial)
        assert view.handed_over_at == registration.handed_over_at.get(registration.serial)
        assert (view.rejections, view.locked) == (registration.rejections, registration.locked)
        assert (view.sealed is None) == registration.erased
        assert (await Accounts().by_id(connection, registration_id) is not None) == (view.status == "ACTIVE")
        for mail in await Mails().of_registration(connection, registration_id):
            assert (mail.serial in registration.handed_over_at) == (mail.state in {"SENT", "WITHHELD"})
            assert mail.state not in UNSENT or registration.is_pending
        assert (registration_id in due) == (not saga.ended)


def _batches_of(size: Callable[[], int], events: Sequence[Recorded]) -> list[Sequence[Recorded]]:
    batches: list[Sequence[Recorded]] = []
    start = 0
    while start < len(events):
        end = start + size()
        batches.append(events[start:end])
        start = end
    return batches


def in_two_halves(events: Sequence[Recorded]) -> list[Sequence[Recorded]]:
    return _batches_of(lambda: len(events) // 2 + 1, events)


def one_by_one(events: Sequence[Recorded]) -> list[Sequence[Recorded]]:
    return _batches_of(lambda: 1, events)


def in_batches_of_any_size(events: Sequence[Recorded]) -> list[Sequence[Recorded]]:
    sizes = random.Random(5)  # noqa: S311 - repeatable
    return _batches_of(lambda: sizes.randint(1, 60), events)


def with_everything_delivered_twice(events: Sequence[Recorded]) -> list[Sequence[Recorded]]:
    """Each batch comes again with the next one; what the follower's position covers already is left out by it."""
    batches: list[Sequence[Recorded]] = []
    position = 0
    again: Sequence[Recorded] = ()
    for batch in in_batches_of_any_size(events):
        fresh = [event for event in (*again, *batch) if event.position > position]
        position, again = fresh[-1].position, batch
        batches.append(fresh)
    return batches


def with_some_streams_parked(events: Sequence[Recorded]) -> Sequence[Sequence[Recorded]]:
    """A third of the streams could not be applied at first and come after all others."""

    def is_parked(event: Recorded) -> bool:
        return event.event.originator_id.int % 3 == 0

    return [
        [event for event in events if not is_parked(event)],
        [event for event in events if is_parked(event)],
    ]


@pytest.mark.parametrize("projection", PROJECTIONS, ids=lambda projection: projection.name)
async def test_rows_do_not_depend_on_how_the_events_were_delivered(
    connection: psycopg.AsyncConnection[Any], history: list[Recorded], projection: type[Any]
) -> None:
    model = projection()
    await fold(connection, model, history)
    expected = await rows_of(connection, model.schema)
    assert all(expected.values())

    for deliver in (
        in_two_halves,
        one_by_one,
        in_batches_of_any_size,
        with_everything_delivered_twice,
        with_some_streams_parked,
    ):
        again = projection(f"{model.schema}_{deliver.__name__}")
        await bring_up_to_date(connection, read_scripts(again))
        await fold(connection, again, *deliver(history))
        assert await rows_of(connection, again.schema) == expected, deliver.__name__


async def test_every_event_that_a_read_model_is_given_is_one_that_it_handles(
    connection: Connection, history: list[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    for projection in PROJECTIONS:
        if projection.topics is None:
            continue  # all of them, and all in one way
        handled = set[str]()

        def noting(event: Any, change: Callable[..., Any], handled: set[str] = handled) -> Callable[..., Any]:
            def noted(*args: Any) -> None:
                handled.add(event.TOPIC)
                change(*args)

            return noted

        tables = [vars(sys.modules[projection.__module__])["_CHANGES"]]
        if projection is Mails:
            tables.append(strays.CHANGES)
        for changes in tables:
            for event, change in list(changes.items()):
                monkeypatch.setitem(changes, event, noting(event, change))
        await fold(connection, projection(), history)
        assert handled == set(projection.topics)


async def test_a_copy_is_written_and_read_beside_the_live_read_model(
    store: EventStore, connection: Connection, history: list[Recorded]
) -> None:
    live = [projection() for projection in PROJECTIONS]
    for model in live:
        await fold(connection, model, history)
    expected = await shown(connection, *live)

    copies = [
        Mails("copy_mail", registrations="copy_registrations") if projection is Mails else projection(f"copy_{name}")
        for projection in PROJECTIONS
        for name in [projection.name]
    ]
    for copy in copies:
        await bring_up_to_date(connection, read_scripts(copy))
        await fold(connection, copy, history)
    for model in live:
        await connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(model.schema)))

    assert await shown(connection, *copies) == expected


async def shown(connection: Connection, *models: Any) -> list[Any]:
    """What all queries of the read models find."""
    registrations, accounts, mails, funnel, audit, deadlines = models
    strays = Strays(mails.schema)
    entries = (await audit.search(connection, limit=5000)).items
    ids = list({entry.registration_id for entry in entries})
    views, _ = await registrations.find(connection, ids)
    claims = [view.claim_id for view in views.values()]
    return [
        views,
        entries,
        await audit.search(connection, claim_ids=claims[:5], limit=500),
        await registrations.search(connection, status="ACTIVE", claim_ids=claims, limit=500),
        [await accounts.by_id(connection, registration_id) for registration_id in ids],
        [await accounts.by_address(connection, claim_id) for claim_id in claims],
        [await mails.of_registration(connection, registration_id) for registration_id in ids],
        *[await mails.search(connection, state=state, limit=500) for state in (None, "SENT", "WAITING")],
        await mails.failed(connection, limit=500),
        await mails.counts(connection),
        await mails.oldest_unsent(connection),
        await mails.dead_letters(connection),
        await strays.search(connection),
        await strays.count(connection),
        await funnel.funnel(connection, T0 - timedelta(days=1), "hour"),
        await deadlines.due(connection, after(days=365), 500),
        await deadlines.overdue(connection, after(days=365)),
    ]
