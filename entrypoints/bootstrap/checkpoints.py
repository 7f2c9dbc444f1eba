"""Checkpoints: who signs them, and where they are published."""

from __future__ import annotations

from entrypoints.bootstrap import CannotStart
from infrastructure.alerts.webhook import NotTaken, Webhook
from infrastructure.audit.checkpointer import Checkpointer, Post
from infrastructure.audit.publishing import CheckpointDirectory
from infrastructure.audit.witness import Witnesses
from infrastructure.embedded.data_directory import DataDirectory
from infrastructure.settings.settings import Settings


def checkpointer(settings: Settings) -> Checkpointer | None:
    """None where nothing says to which place, outside of the database, checkpoints go.

    Raises:
        CannotStart, BadDataDirectory: one line each, fit to show.
    """
    directory, url = checkpoint_directory(settings), settings.checkpoint_url
    if directory is None and url is None:
        return None
    seed = checkpoint_seed(settings)
    if seed is None:
        raise CannotStart(
            "REGISTRAR_CHECKPOINT_KEY (or REGISTRAR_CHECKPOINT_KEY_FILE) is missing, and checkpoints are signed with "
            "it; set it to what `openssl rand -hex 32` prints, and keep it apart from the database."
        )
    post = _to(Webhook(url.get_secret_value())) if url is not None else None
    return Checkpointer(seed=seed, directory=directory, post=post, witnesses=Witnesses(settings.checkpoint_witnesses))


def checkpoint_directory(settings: Settings) -> CheckpointDirectory | None:
    """Where checkpoints are published to, and the journal of erasures is; None: nowhere."""
    if settings.checkpoint_dir is not None:
        return CheckpointDirectory(settings.checkpoint_dir)
    return CheckpointDirectory(settings.data_dir / "checkpoints") if settings.database_url is None else None


def checkpoint_seed(settings: Settings) -> bytes | None:
    """What signs; None if there is nothing.

    Raises:
        BadDataDirectory: one line, fit to show.
    """
    if settings.checkpoint_key is not None:
        return settings.checkpoint_key.get_secret_value()
    if settings.database_url is not None:
        return None
    return DataDirectory(settings.data_dir).checkpoint_key().get_secret_value()


def _to(webhook: Webhook) -> Post:
    async def post(note: bytes) -> str | None:
        try:
            await webhook.post(note, {"Content-Type": "text/plain; charset=utf-8"})
        except NotTaken as error:
            return error.failure
        return None

    return post
