"""What the service is at, as far as it says why a mail has not gone out yet: what no event tells."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from psycopg.rows import class_row

from application.story.at_present import AtPresent
from domain.recorded import Position
from infrastructure.followers.process_manager import ProcessManager
from infrastructure.followers.relay import Relay
from infrastructure.mail.shared_circuits import FORGOTTEN_AFTER, TROUBLE
from infrastructure.mail.smtp.evidence import ONLY_DEFERRED
from infrastructure.postgres.connection import Connection
from projections.audit import Audit

# A claim outlives a failed try by a moment: it says something only where no outcome is recorded.
_LOOK: Final = f"""
    SELECT clock_timestamp() AS at, h.position AS head,
           coalesce((SELECT f.position FROM followers AS f WHERE f.name = %(saga)s), 0) AS saga_at,
           coalesce((SELECT f.position FROM followers AS f WHERE f.name = %(relay)s), 0) AS relay_at,
           coalesce((SELECT f.position FROM followers AS f WHERE f.name = %(audit)s), 0) AS audit_at,
           (SELECT count(DISTINCT a.stream_id) FROM parked_events AS a WHERE a.follower = %(audit)s) AS audit_parked,
           p.parked_at, p.error AS parked_for,
           (SELECT max(c.lease_until) FROM send_claims AS c
            WHERE c.registration_id = %(registration)s AND c.lease_until > clock_timestamp()) AS sending_until,
           s.servers, s.shut, s.troubled
    FROM head AS h
    LEFT JOIN LATERAL (
        SELECT e.parked_at, e.error FROM parked_events AS e
        WHERE e.follower = %(saga)s AND e.stream_id = %(registration)s ORDER BY e.position LIMIT 1
    ) AS p ON true
    CROSS JOIN (
        SELECT count(*) AS servers,
               coalesce(array_agg(name ORDER BY name) FILTER (WHERE state <> 'closed'), '{{}}') AS shut,
               coalesce(array_agg(name ORDER BY name) FILTER (WHERE state = 'closed' AND {TROUBLE} IS NOT NULL), '{{}}')
                   AS troubled
        FROM circuits LEFT JOIN mail_standings USING (name)
        WHERE named_at > clock_timestamp() - %(forgotten_after)s
    ) AS s
"""  # noqa: S608 - a constant


@dataclass(frozen=True, slots=True)
class _Row:
    at: datetime
    head: Position
    saga_at: Position
    relay_at: Position
    audit_at: Position
    audit_parked: int
    parked_at: datetime | None
    parked_for: str | None
    sending_until: datetime | None
    servers: int
    shut: list[str]
    troubled: list[str]


@dataclass(frozen=True, slots=True)
class Now:
    """
    Attributes:
        at: the time, by the database's clock.
        present: what a story is told with.
        audit_behind: events that the read model `audit` does not have yet.
        audit_parked: streams that it has put aside.
    """

    at: datetime
    present: AtPresent
    audit_behind: int
    audit_parked: int


async def now_about(connection: Connection, registration_id: UUID) -> Now:
    """How things are, for this registration."""
    cursor = connection.cursor(row_factory=class_row(_Row))
    asked = {
        "registration": registration_id,
        "saga": ProcessManager.name,
        "relay": Relay.name,
        "audit": Audit.name,
        "forgotten_after": FORGOTTEN_AFTER,
        "only_deferred": ONLY_DEFERRED,
    }
    row = await (await cursor.execute(_LOOK.encode(), asked)).fetchone()
    assert row is not None  # noqa: S101 - the schema inserts the head
    present = AtPresent(
        saga_behind=max(0, row.head - row.saga_at),
        relayed_upto=row.relay_at,
        parked_at=row.parked_at,
        parked_for=row.parked_for,
        sending_until=row.sending_until,
        shut=tuple(row.shut),
        troubled=tuple(row.troubled),
        servers=row.servers,
    )
    return Now(row.at, present, max(0, row.head - row.audit_at), row.audit_parked)
