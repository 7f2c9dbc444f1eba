"""Every SQL script outside of the read models, in the order in which they run on a new database.

A change is a new file at the end of its owner's line (`event_store/log_2.sql`): databases record a released script by
its digest, so it never changes (docs/upgrading.md).
"""

from __future__ import annotations

from importlib.resources import files

from infrastructure.postgres.schema import Script, numbered


def _of(owner: str, *paths: str) -> tuple[Script, ...]:
    return numbered(owner, [files("infrastructure").joinpath(path).read_text(encoding="utf-8") for path in paths])


SCRIPTS = (
    *_of("keys", "crypto/keys.sql", "crypto/keys_2.sql"),
    *_of("followers", "followers/followers.sql", "followers/followers_2.sql"),
    *_of("log", "event_store/log.sql"),
    *_of("guard", "event_store/guard.sql"),
    *_of("archive", "archive/archive.sql"),
    *_of("mail", "mail/mail.sql", "mail/mail_2.sql", "mail/mail_3.sql"),
    *_of("alerts", "alerts/alerts.sql"),
    *_of("replay", "replay/replay.sql", "replay/replay_2.sql"),
    *_of("erasures", "audit/erasures.sql"),
    *_of("backup", "backup/backup.sql"),
    *_of("synthetic", "synthetic/synthetic.sql"),
    *_of("webhooks", "webhooks/webhooks.sql", "webhooks/webhooks_2.sql"),
    *_of("audit", "audit/audit.sql", "audit/audit_2.sql"),
)
