"""Mailboxes that are sent no more: each by the registration whose mail was marked as unwanted, and by no address."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from psycopg.rows import class_row

from domain.mailbox import NEVER_OVER, Mailbox
from domain.recorded import Position
from domain.registration import Registration
from infrastructure.postgres.connection import Connection
from projections.audit import ENTRIES, Audit
from projections.paging import Page, page

# A complaint and what its mailbox decides are one commit, the decision behind it. Complaints are few: of each thousand
# mails one, or a provider stops sending them.
_SUPPRESSED: Final = f"""
    WITH complaints AS (
        SELECT DISTINCT ON (m.originator_id) c.registration_id, c.recorded_at AS complained_at,
               c.details ->> 'reported_by' AS reported_by, c.position, m.originator_id AS mailbox_id
        FROM {ENTRIES.within(Audit().schema)} AS c
        JOIN public.events AS m ON m.notification_id = c.position + 1 AND m.topic = '{Mailbox.MailDecided.TOPIC}'
        WHERE c.topic = '{Registration.EmailComplained.TOPIC}'
        ORDER BY m.originator_id, c.position DESC
    )
    SELECT registration_id, complained_at, reported_by, position FROM complaints
    CROSS JOIN LATERAL (
        SELECT convert_from(e.state, 'UTF8')::jsonb -> 'granted' AS granted FROM public.events AS e
        WHERE e.originator_id = mailbox_id ORDER BY e.originator_version DESC LIMIT 1
    ) AS latest
    WHERE position < %s
        AND EXISTS (SELECT FROM jsonb_array_elements_text(granted) AS g WHERE starts_with(g, '{NEVER_OVER.isoformat()}'))
    ORDER BY position DESC LIMIT %s
"""  # noqa: S608 - constants


@dataclass(frozen=True, slots=True)
class Suppression:
    """A mailbox that is sent no more.

    Attributes:
        registration_id: whose mail was the last that was marked as unwanted there.
        reported_by: which provider told, or `dsn`: a report by mail.
        position: of the complaint.
    """

    registration_id: UUID
    complained_at: datetime
    reported_by: str
    position: Position


async def suppressions(connection: Connection, *, before_position: Position, limit: int) -> Page[Suppression]:
    """Those whose complaint stands before a position, the latest first; as of the read model `audit`."""
    cursor = connection.cursor(binary=True, row_factory=class_row(Suppression))
    await cursor.execute(_SUPPRESSED.encode(), (before_position, limit + 1))
    return page(await cursor.fetchall(), limit, lambda one: one.position)
