#!/usr/bin/env bash
# cloudevents 2.2.0. Needs Python 3.11 or later.
#
# The id of a CloudEvent "is generated if omitted", and consumers take two events with the same source and id for one.
# CloudEvent keeps the dict of attributes that it is given and writes the generated id and time into it. So a dict with
# what all events of a service have in common (source, type) serves for the first event only: each later one finds the
# first one's id and time there, and a consumer that drops duplicates drops all but the first. As all of them share the
# dict, a change of one event's attributes changes the others, too. The class of the same name and arguments in
# cloudevents.v1, which it replaces, copies.
#
# Expected: an id for each event, and the caller's dict as it was.
# Seen:
#   cloudevents.core.v1.event: 3 events, ids: 1, keys added to the dict: id, specversion, time
#   cloudevents.v1.http.event: 3 events, ids: 3, keys added to the dict: none
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
install cloudevents==2.2.0
python <<'PYTHON'
from cloudevents.core.v1.event import CloudEvent
from cloudevents.v1.http import CloudEvent as Replaced

COMMON = {"type": "com.example.registered", "source": "https://example.com/registrar"}


def ids(make, id_of):
    common = dict(COMMON)
    different = {id_of(event) for event in [make(common, {"number": number}) for number in range(3)]}
    added = sorted(common.keys() - COMMON.keys())
    print(f"{make.__module__}: 3 events, ids: {len(different)}, keys added to the dict: {', '.join(added) or 'none'}")
    return len(different), added


assert ids(CloudEvent, CloudEvent.get_id) == (1, ["id", "specversion", "time"])
assert ids(Replaced, lambda event: event["id"]) == (3, [])
PYTHON
echo "still so"
