"""Checkpoints: who signs them, and where they are published."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from entrypoints.bootstrap import CannotStart
from entrypoints.bootstrap.checkpoint_places import checkpoint_directory, checkpoint_seeds
from infrastructure.alerts.webhook import NotTaken, Webhook
from infrastructure.audit.checkpointer import Checkpointer
from infrastructure.audit.outbox import Post
from infrastructure.audit.witness import Witnesses
from infrastructure.settings.settings import Settings


def checkpointer(settings: Settings) -> Checkpointer | None:
    """None where nothing says to which place, outside of the database, checkpoints go.

    Raises:
        CannotStart, BadDataDirectory: one line each, fit to show.
    """
    directory, url = checkpoint_directory(settings), settings.checkpoint_url
    if directory is None and url is None:
        return None
    if not checkpoint_seeds(settings):
        raise CannotStart(
            "REGISTRAR_CHECKPOINT_KEY (or REGISTRAR_CHECKPOINT_KEY_FILE) is missing, and checkpoints are signed with "
            "it; set it to what `openssl rand -hex 32` prints, and keep it apart from the database."
        )
    post = posting_to(url.get_secret_value()) if url is not None else None
    witnesses = Witnesses(settings.checkpoint_witnesses)
    return Checkpointer(
        seeds=partial(checkpoint_seeds, settings),
        directory=directory,
        post=post,
        witnesses=witnesses,
        read_again=settings.verify_interval or None,
    )


def taken_by(url: str) -> Callable[[str], Awaitable[None]]:
    """Sends notes there; what it may take, and raises, see `Webhook.post`."""
    webhook = Webhook(url)

    async def take(note: str) -> None:
        await webhook.post(note.encode(), {"Content-Type": "text/plain; charset=utf-8"})

    return take


def posting_to(url: str) -> Post:
    """`taken_by`, for the checkpointer."""
    take = taken_by(url)

    async def post(note: bytes) -> str | None:
        try:
            await take(note.decode())
        except NotTaken as error:
            return error.failure
        return None

    return post
