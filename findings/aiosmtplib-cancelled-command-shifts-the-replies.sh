#!/usr/bin/env bash
# aiosmtplib 5.1.3, aiosmtpd 1.4.6 (the server). Needs Python 3.11 or later.
#
# A command that exceeds aiosmtplib's own `timeout` closes the connection, so its late reply can harm nobody. A command
# that is cancelled, by `asyncio.timeout` around it or because its task ends, leaves the connection open and usable: if
# the next command is sent before the late reply is there, it gets that reply, and every later command gets the reply of
# the one before it. What the server says of one recipient is reported of the next: the address that does not exist is
# accepted, and the one that does is refused for good.
#
# Expected: a closed connection in both cases, or each command its own reply.
# Seen (nobody@example.com is refused by the server, anna@example.com is not):
#   too slow for its timeout: connection closed
#   cancelled: connection open; nobody@example.com 250 OK, anna@example.com 550 no such mailbox
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
install aiosmtplib==5.1.3 aiosmtpd==1.4.6
python <<'PYTHON'
import asyncio
from contextlib import suppress

import aiosmtplib
from aiosmtpd.smtp import SMTP


class Slow:
    """Answers NOOP late, as a busy server does."""

    async def handle_NOOP(self, *_):
        await asyncio.sleep(0.5)
        return "250 late"

    async def handle_RCPT(self, _server, _session, envelope, address, _options):
        if address.startswith("nobody@"):
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"


async def ask(client, address):
    try:
        reply = await client.rcpt(address)
    except aiosmtplib.SMTPRecipientRefused as error:
        return f"{address} {error.code} {error.message}"
    return f"{address} {reply.code} {reply.message}"


async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(Slow(), hostname="mx.example.com"), "127.0.0.1")
    port = server.sockets[0].getsockname()[1]

    async def connect():
        client = aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False)
        await client.connect()
        await client.ehlo()
        return client

    client = await connect()
    with suppress(aiosmtplib.SMTPReadTimeoutError):
        await client.noop(timeout=0.1)
    print(f"too slow for its timeout: connection {'open' if client.is_connected else 'closed'}")
    assert not client.is_connected

    client = await connect()
    with suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await client.noop()
    state = "open" if client.is_connected else "closed"
    await client.mail("registrar@example.com")
    asked = [await ask(client, address) for address in ("nobody@example.com", "anna@example.com")]
    print(f"cancelled: connection {state}; {', '.join(asked)}")
    assert asked == ["nobody@example.com 250 OK", "anna@example.com 550 no such mailbox"]
    client.close()
    server.close()


asyncio.run(main())
PYTHON
echo "still so"
