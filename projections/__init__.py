"""The read models: one file each, with its tables, its fold and its queries."""

from projections.accounts import Accounts
from projections.audit import Audit
from projections.deadlines import Deadlines
from projections.funnel import Funnel
from projections.mail import Mails
from projections.registrations import Registrations

PROJECTIONS = (Registrations, Accounts, Mails, Funnel, Audit, Deadlines)
