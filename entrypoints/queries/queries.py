"""All queries together, as a listener takes them."""

from __future__ import annotations

from dataclasses import dataclass

from entrypoints.queries.accounts import AccountQueries
from entrypoints.queries.audit import AuditQueries
from entrypoints.queries.followers import FollowerQueries
from entrypoints.queries.funnel import FunnelQueries
from entrypoints.queries.mails import MailQueries
from entrypoints.queries.parked import ParkedQueries
from entrypoints.queries.registrations import RegistrationQueries
from entrypoints.queries.replay import ReplayQueries


@dataclass(frozen=True, slots=True)
class Queries:
    """One object for each subject."""

    registrations: RegistrationQueries
    accounts: AccountQueries
    mails: MailQueries
    audit: AuditQueries
    funnel: FunnelQueries
    followers: FollowerQueries
    parked: ParkedQueries
    replay: ReplayQueries
