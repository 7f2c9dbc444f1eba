#!/usr/bin/env bash
# eventsourcing 9.5.6. Needs Python 3.11 or later.
#
# `@event(SomeEvent)` turns the call of a method into an event. An argument for which the event class has no field is
# left out of the event without a word, though a wrong name is an error everywhere else. If the method has a default
# for it, nothing fails at all: already in the call itself the method runs with the default in place of what the caller
# passed, and the log never knew it. Adding a parameter to the method and forgetting the field is enough.
#
# Seen:
#   passed 'fraud', the aggregate has 'none', fields of the event: ['reason']
#   the same name given to trigger_event: TypeError
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
install eventsourcing==9.5.6
python <<'PYTHON'
from eventsourcing.domain import Aggregate, event


class Account(Aggregate):
    class Closed(Aggregate.Event):
        reason: str

    def __init__(self, owner):
        self.owner = owner

    @event(Closed)
    def close(self, reason, note="none"):
        self.reason, self.note = reason, note


account = Account(owner="somebody")
account.close("by the bank", note="fraud")
fields = sorted(vars(account.pending_events[-1]).keys() - {"originator_id", "originator_version", "timestamp"})
print(f"passed 'fraud', the aggregate has {account.note!r}, fields of the event: {fields}")

try:
    account.trigger_event(Account.Closed, reason="by the bank", note="fraud")
    directly = "accepted"
except TypeError as error:
    directly = type(error).__name__
print(f"the same name given to trigger_event: {directly}")
assert (account.note, fields, directly) == ("none", ["reason"], "TypeError")
PYTHON
echo "still so"
