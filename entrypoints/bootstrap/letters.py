"""The words of mails, as the settings have them."""

# ruff: noqa: PLC0415 - as in `cli.main`: what tries templates out is loaded only where there are any
from __future__ import annotations

from collections.abc import Sequence

from domain.languages import Language
from domain.mail_outcome import MailKind
from entrypoints.bootstrap import CannotStart
from infrastructure.mail.look import Look
from infrastructure.mail.rendering import Prepared, TemplateLetters
from infrastructure.settings.settings import Settings


async def letters_for(settings: Settings, *which: tuple[MailKind, Language]) -> TemplateLetters:
    """
    Args:
        which: the mails whose templates are tried out; none: all.

    Raises:
        CannotStart: one of the operator's own templates is faulty.
    """
    look = Look(
        site_url=settings.site_url or settings.public_url,
        product=settings.product_name,
        logo_url=settings.logo_url,
        accent=settings.accent_color,
        support=settings.support_address,
        verify_url=settings.verify_url,
    )
    prepared = await _prepared(settings, look, which)
    return TemplateLetters(ttl=settings.otp_ttl, look=look, sender=settings.mail_from, prepared=prepared)


async def _prepared(settings: Settings, look: Look, which: Sequence[tuple[MailKind, Language]]) -> Prepared | None:
    if settings.templates is None:
        return None
    from infrastructure.mail.own_templates import EVERY, BadTemplates, rendered_from

    try:
        return await rendered_from(settings.templates, settings.otp_ttl, look, which or EVERY)
    except BadTemplates as error:
        raise CannotStart(
            f"A template that REGISTRAR_TEMPLATES names cannot be used: {error}. `registrar mail preview` tries again."
        ) from None
