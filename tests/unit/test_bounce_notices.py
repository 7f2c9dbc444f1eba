"""What notifications say: in the standard form, in everybody's own, and in none."""

from __future__ import annotations

import os
import tarfile
from email import message_from_bytes
from pathlib import Path

import pytest
from flufl.bounce import all_failures

from domain.mail_outcome import Bounce
from infrastructure.bounces.complaints import MOST_NAMED, Complaint
from infrastructure.bounces.notices import LONGEST_LINE, MOST_READ, bounded, read_notice
from tests.support.bounces import feedback_report, notification

UNKNOWN = Bounce("mailbox-unknown", permanent=True, reply_status="5.1.1", reported_by="dsn")


@pytest.mark.parametrize(
    ("action", "status", "bounce"),
    [
        ("failed", "5.1.1", UNKNOWN),
        ("Failed (no such user)", "5.1.1 (gone)", UNKNOWN),
        ("failed", "5.1.10", Bounce("mailbox-unknown", permanent=True, reply_status="5.1.10", reported_by="dsn")),
        ("failed", "5.7.1", Bounce("refused", permanent=True, reply_status="5.7.1", reported_by="dsn")),
        ("failed", "5.6.0", Bounce("content", permanent=True, reply_status="5.6.0", reported_by="dsn")),
        ("failed", "5.0.0", Bounce("permanent", permanent=True, reply_status="5.0.0", reported_by="dsn")),
        ("failed", "5.2.2", Bounce("temporary", permanent=False, reply_status="5.2.2", reported_by="dsn")),
        ("failed", "4.4.7", Bounce("temporary", permanent=False, reply_status="4.4.7", reported_by="dsn")),
        ("failed", "553 too large", Bounce("permanent", permanent=True, reply_status=None, reported_by="dsn")),
        ("failed", None, Bounce("permanent", permanent=True, reply_status=None, reported_by="dsn")),
        ("delayed", "4.4.1", "delayed"),
        ("delivered", "2.0.0", None),
        ("relayed", "2.0.0", None),
        ("expanded", "2.0.0", None),
    ],
)
def test_the_action_says_whether_it_came_back_and_the_status_for_how_long(
    action: str, status: str | None, bounce: object
) -> None:
    assert read_notice(notification(action=action, status=status)) == bounce


@pytest.mark.parametrize("kind", ["abuse", "Fraud", " abuse "])
@pytest.mark.parametrize("encoding", ["7bit", "quoted-printable", "base64"])
def test_a_feedback_report_is_a_complaint_about_the_mail_in_it(kind: str, encoding: str) -> None:
    about = f"bounces+{'a2' * 24}@mail.example.org"

    assert read_notice(feedback_report(about=about, kind=kind, encoding=encoding)) == Complaint((about,))


@pytest.mark.parametrize("kind", ["not-spam", "virus", "auth-failure", "other", "opt-out", ""])
def test_a_report_of_something_else_is_no_complaint(kind: str) -> None:
    assert read_notice(feedback_report(about=f"bounces+{'a2' * 24}@mail.example.org", kind=kind)) is None


def test_of_a_report_with_many_addresses_few_are_looked_at() -> None:
    about = "".join(f"<bounces+{letter * 48}@mail.example.org> " for letter in "abcdefghijklmnopqrstuvwxyz")
    notice = read_notice(feedback_report(about=about))

    assert isinstance(notice, Complaint)
    assert len(notice.named) == MOST_NAMED


def test_of_several_recipients_the_one_that_is_for_good_counts() -> None:
    once = notification(action="failed", status="4.2.2")
    both = once.replace(
        b"\r\n\r\n--=_b--",
        b"\r\n\r\nFinal-Recipient: rfc822; b@x.test\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n--=_b--",
    )

    assert read_notice(both) == UNKNOWN


def test_what_others_look_into_is_bounded_in_lines_and_in_all() -> None:
    usual = b"Subject: returned\r\n\r\n" + b"a line of a mail\r\n" * 100
    long = bounded(b"x" * 5_000 + b"\r\nnext\r\n")

    assert bounded(usual) == usual
    assert [len(line) for line in long.splitlines(keepends=True)] == [LONGEST_LINE, 6]
    assert len(bounded(usual * 1000)) == MOST_READ


def test_the_form_for_addresses_in_other_scripts_is_read_too() -> None:
    assert read_notice(notification(kind="message/global-delivery-status")) == UNKNOWN


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\xff\n" * 1000,
        b"Subject: Out of office\r\nAuto-Submitted: auto-replied\r\n\r\nBack on Monday.\r\n",
        b"Content-Type: multipart/report; boundary=x\r\n\r\n--x\r\nContent-Type: message/delivery-status\r\n\r\n",
        b"Content-Type: message/delivery-status; charset=\xff\r\nAction: failed\r\n",
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n"
        + b"--x\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n" * 500,
    ],
)
def test_what_is_no_notification_is_read_as_none(content: bytes) -> None:
    assert read_notice(content) is None


def test_what_others_take_for_a_bounce_is_one_here_in_at_least_99_of_100_files() -> None:
    """flufl.bounce's own files, which are in its source distribution and not copied here: `make bounce-corpus`."""
    corpus = os.environ.get("BOUNCE_CORPUS")
    if corpus is None:
        pytest.skip("BOUNCE_CORPUS names no source distribution; `make bounce-corpus` does")
    with tarfile.open(Path(corpus)) as archive:
        files = [
            archive.extractfile(one) for one in archive if "/tests/data/" in one.name and one.name.endswith(".txt")
        ]
        contents = [one.read() for one in files if one is not None]
    assert len(contents) >= 117

    right = [_class(content) == _class_by_others(content) for content in contents]

    assert sum(right) >= 0.99 * len(right)


def _class(content: bytes) -> str:
    notice = read_notice(content)
    if isinstance(notice, Bounce):
        return "for good" if notice.permanent else "for now"
    return "not wanted" if isinstance(notice, Complaint) else notice or "nothing"


def _class_by_others(content: bytes) -> str:
    temporary, permanent = all_failures(message_from_bytes(content))
    return "for good" if permanent else "delayed" if temporary else "nothing"
