#!/usr/bin/env bash
# flufl.bounce 6.0.0. Needs Python 3.11 or later.
#
# A delivery status notification (RFC 3464) names who could not be reached as `Final-Recipient: rfc822; ADDRESS`.
# flufl.bounce reads that field as if it were a MIME header with parameters, so an "=" in the address, which RFC 5321
# allows like any letter, begins a parameter's value: what stands before it is reported as the recipient, in lower case,
# and the rest is dropped. Alias services, gateways to other networks and people with an extension have such addresses.
# The bounce is found, and its recipient is nobody. An original
# recipient of another type (`utf-8`, RFC 6533) brings its type as a recipient.
#
# Expected: the address as the notification has it.
# Seen:
#   anna@example.com: anna@example.com
#   anna+list=news@example.com: anna+list
#   /S=muster/G=anna/@example.com: /s
#   Original-Recipient utf-8, Final-Recipient anna@example.com: anna@example.com, utf-8
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
install flufl.bounce==6.0.0
python <<'PYTHON'
import email

from flufl.bounce import scan_message

NOTIFICATION = """\
From: MAILER-DAEMON@mx.example.com
To: bounces@example.org
Subject: Delivery failed
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="=_b"

--=_b
Content-Type: text/plain; charset=us-ascii

The mail could not be delivered.

--=_b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.com

{recipient}
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 no such mailbox

--=_b--
"""


def reported(what, recipient):
    message = email.message_from_string(NOTIFICATION.format(recipient=recipient))
    found = sorted(one.decode() for one in scan_message(message))
    print(f"{what}: {', '.join(found)}")
    return found


def final(address):
    return reported(address, f"Final-Recipient: rfc822; {address}")


assert final("anna@example.com") == ["anna@example.com"]
assert final("anna+list=news@example.com") == ["anna+list"]
assert final("/S=muster/G=anna/@example.com") == ["/s"]
both = "Original-Recipient: utf-8;anna@example.com\nFinal-Recipient: rfc822; anna@example.com"
assert reported("Original-Recipient utf-8, Final-Recipient anna@example.com", both) == ["anna@example.com", "utf-8"]
PYTHON
echo "still so"
