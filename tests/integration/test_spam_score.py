"""Every mail we send, judged by SpamAssassin itself: `make test-spam` installs it; without it, this is skipped."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from uuid import UUID

import pytest

from application.ports import Letter
from domain.languages import LANGUAGES
from infrastructure.mail.composing import Composer
from infrastructure.mail.look import Look
from infrastructure.mail.rendering import TemplateLetters

SPAMASSASSIN = shutil.which("spamassassin")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SPAMASSASSIN is None, reason="needs SpamAssassin: make test-spam"),
]

WHO = {"to": "jo@example.com", "message_id": "019cab10.1"}
SOME_ID = UUID("0198c0de-0000-7000-8000-00000000002a")
LOOKS = {
    "plain": Look("https://accounts.example.org"),
    "full": Look(
        "https://www.example.org",
        product="Müller & Söhne",
        logo_url="https://www.example.org/logo.png",
        accent="#ffcc00",
        support="help@example.org",
        verify_url="https://app.example.org/verify#id={id}&code={code}",
    ),
}
SENDERS = ["Registrar <no-reply@example.org>", "no-reply@example.org", "Müller & Söhne GmbH <konto@example.org>"]


def letters(sender: str) -> dict[str, Letter]:
    """Each kind in each language and look; every kind that there is."""
    made = {}
    for name, look in LOOKS.items():
        ours = TemplateLetters(ttl=timedelta(minutes=10), look=look, sender=sender)
        for language in LANGUAGES:
            made[f"code {language} {name}"] = ours.code(locale=language, code="483920", registration_id=SOME_ID, **WHO)
            made[f"notice {language} {name}"] = ours.notice(locale=language, **WHO)
    return made


@pytest.mark.parametrize("relay", ["", "direct"])
@pytest.mark.parametrize("sender", SENDERS)
def test_every_mail_scores_below_a_half(sender: str, relay: str, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    messages = {}
    for name, letter in letters(sender).items():
        message = Composer(sender).compose(letter, letter.to, now).removesuffix(b".\r\n").replace(b"\r\n..", b"\r\n.")
        if relay:  # as the recipient's server has it, which got it from us; rules ask whether it came directly
            trace = (
                "Received: from mail.example.org (mail.example.org [8.8.4.4])\r\n"
                f" by mx.example.com with ESMTPS id 1 for <jo@example.com>; {format_datetime(now)}\r\n"
            )
            message = trace.encode() + message
        messages[name] = message
    found = scores(messages, tmp_path)
    assert found.keys() == messages.keys()
    assert {name: points for name, points in found.items() if points >= 0.5} == {}


def test_the_judge_knows_spam_when_it_sees_it(tmp_path: Path) -> None:
    spam = b"Subject: x\r\nFrom: a@example.org\r\n\r\nXJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\r\n"
    assert scores({"spam": spam}, tmp_path)["spam"] > 100


def scores(messages: Mapping[str, bytes], home: Path) -> dict[str, float]:
    """By its shipped rules alone: nothing is asked over the network, nothing is learned. All at once, as a start takes
    longer than a mail; they come back in any order, each with the name that it is given here."""
    box = b"".join(
        b"From judge Thu Jan  1 00:00:00 1970\nX-Name: %b\n%b\n" % (name.encode(), one.replace(b"\r\n", b"\n"))
        for name, one in messages.items()
    )
    judged = subprocess.run(
        [SPAMASSASSIN or "", "--local", "--nocreate-prefs", "--test-mode", "--mbox"],
        input=box,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C"},
        capture_output=True,
        check=True,
        timeout=120,
    ).stdout.decode(errors="replace")
    found = re.findall(r"^X-Spam-Status:.*?score=(-?[\d.]+).*?^X-Name: ([^\n]*)", judged, re.MULTILINE | re.DOTALL)
    return {name: float(points) for points, name in found}
