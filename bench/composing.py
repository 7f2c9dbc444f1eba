"""The bytes of a mail: with a name, a logo and a button of one's own, beside a plain one and the standard library."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.policy import SMTP
from functools import partial
from uuid import uuid4

from application.ports import CODE_GAP
from bench.report import Row, median_by_side, medians
from infrastructure.mail.composing import Composer
from infrastructure.mail.look import Look
from infrastructure.mail.rendering import TemplateLetters

_SENDER = "Registrar <no-reply@registrar.localhost>"
_PLAIN = Look("http://localhost")
_FULL = Look(
    "http://localhost",
    product="Acme",
    logo_url="https://localhost/logo.png",
    support="support@localhost",
    verify_url="https://localhost/verify#id={id}&code={code}",
)


def run(*, mails: int, repetitions: int) -> list[Row]:
    """Rows of seconds of CPU for a mail, from its request to its bytes."""
    sides: dict[str, Callable[[], float]] = {
        "full": partial(_ours, _FULL, mails),
        "plain": partial(_ours, _PLAIN, mails),
        "library": partial(_librarys, max(1, mails // 100)),
    }
    found = median_by_side(sides, repetitions)
    middle = medians(found)
    return [
        Row(
            "a mail's bytes, with name, logo and button",
            against,
            f"{middle['full'] * 1e6:.1f} µs",
            f"{middle[other] * 1e6:.1f} µs",
            middle[other] / middle["full"],
            "x",
            target,
            at_least=True,
            details=dict(found),
        )
        for other, against, target in (("plain", "without", 0.8), ("library", "EmailMessage", 20.0))
    ]


def _ours(look: Look, mails: int) -> float:
    letters = TemplateLetters(ttl=timedelta(minutes=10), look=look, sender=_SENDER)
    composer, now, someone = Composer(_SENDER), datetime.now(UTC), uuid4()

    def one() -> None:
        letter = letters.code(
            to="ada@bench.example", locale="de-AT", code="123456", message_id="1", registration_id=someone
        )
        composer.compose(letter, "ada@bench.example", now)

    return _seconds(one, mails)


def _librarys(mails: int) -> float:
    letters = TemplateLetters(ttl=timedelta(minutes=10), look=_FULL, sender=_SENDER)
    letter = letters.code(to="ada@bench.example", locale="de", code="123456", message_id="1", registration_id=uuid4())

    def one() -> None:
        message = EmailMessage(policy=SMTP)
        message["From"], message["To"], message["Message-ID"] = _SENDER, letter.to, letter.message_id
        message["Subject"] = letter.rendered.subject
        message.set_content(letter.rendered.text.replace(CODE_GAP, "123456"))
        message.add_alternative(letter.rendered.html.replace(CODE_GAP, "123456"), subtype="html")
        message.as_bytes()

    return _seconds(one, mails)


def _seconds(work: Callable[[], None], times: int) -> float:
    work()
    begun = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - begun) / times
