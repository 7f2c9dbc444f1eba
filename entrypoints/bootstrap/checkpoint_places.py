"""Where checkpoints are published, and where the keys are that sign them; for processes that sign none, too."""

from __future__ import annotations

from infrastructure.audit.publishing import CheckpointDirectory
from infrastructure.embedded.data_directory import DataDirectory
from infrastructure.settings.settings import Settings


def checkpoint_directory(settings: Settings) -> CheckpointDirectory | None:
    """Where checkpoints are published to, and the journal of erasures is; None: nowhere."""
    if settings.checkpoint_dir is not None:
        return CheckpointDirectory(settings.checkpoint_dir)
    return CheckpointDirectory(settings.data_dir / "checkpoints") if settings.database_url is None else None


def checkpoint_seeds(settings: Settings) -> list[bytes]:
    """Of the keys that sign, are to sign, or have signed; in a data directory a rotation makes one.

    Raises:
        BadDataDirectory: one line, fit to show.
    """
    if settings.checkpoint_key is None and settings.database_url is None:
        return list(DataDirectory(settings.data_dir).checkpoint_keys())
    keys = (settings.checkpoint_key, settings.next_checkpoint_key)
    return [key.get_secret_value() for key in keys if key is not None]
