#!/usr/bin/env bash
# aiosmtplib 5.1.3, aiosmtpd 1.4.6 (the server), smtplib and email of CPython 3.11. Needs Python 3.11 or later.
#
# How an EmailMessage is written is its policy's affair. With the usual ones the email package makes encoded words of
# every structured value that does not fit a line of 78, so that no mail program finds the link in a List-Unsubscribe or
# the message that an In-Reply-To names; `policy.SMTP.clone(max_line_length=998)` (RFC 5322's limit) leaves them whole.
# smtplib's send_message writes a message by its own policy. aiosmtplib's method of the same name and arguments writes
# every EmailMessage by `policy.SMTP`: what goes out is not what the message's as_bytes() said, nor what a test or a
# DKIM signature saw.
#
# Expected: the header as the message's policy writes it, as with smtplib.
# Seen (the same message, as the server got it):
#   smtplib: List-Unsubscribe: <https://example.com/unsubscribe?token=AAAAAAAAAA...
#   aiosmtplib: List-Unsubscribe: =?utf-8?q?=3Chttps=3A//example=2Ecom/unsubscribe=3F...
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
install aiosmtplib==5.1.3 aiosmtpd==1.4.6
python <<'PYTHON'
import asyncio
import smtplib
from email import policy
from email.message import EmailMessage

import aiosmtplib
from aiosmtpd.smtp import SMTP

LINK = f"<https://example.com/unsubscribe?token={'A' * 64}>"


class Keeping:
    def __init__(self):
        self.mails = []

    async def handle_DATA(self, _server, _session, envelope):
        self.mails.append(envelope.content)
        return "250 OK"


def message():
    mail = EmailMessage(policy=policy.SMTP.clone(max_line_length=998))
    mail["From"], mail["To"], mail["Subject"] = "registrar@example.com", "anna@example.com", "News"
    mail["List-Unsubscribe"] = LINK
    mail.set_content("Hello")
    return mail


def header(mail):
    return next(line for line in mail.decode().split("\r\n") if line.startswith("List-Unsubscribe:"))


async def main():
    kept = Keeping()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(kept, hostname="mx.example.com"), "127.0.0.1")
    port = server.sockets[0].getsockname()[1]

    def send():
        with smtplib.SMTP("127.0.0.1", port) as client:
            client.send_message(message())

    await asyncio.to_thread(send)
    await aiosmtplib.send(message(), hostname="127.0.0.1", port=port, start_tls=False)
    server.close()
    blocking, asynchronous = (header(mail) for mail in kept.mails)
    print(f"smtplib: {blocking[:67]}...")
    print(f"aiosmtplib: {asynchronous[:69]}...")
    assert blocking == f"List-Unsubscribe: {LINK}"
    assert asynchronous.startswith("List-Unsubscribe: =?utf-8?q?=3Chttps")


asyncio.run(main())
PYTHON
echo "still so"
