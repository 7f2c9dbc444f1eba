#!/usr/bin/env bash
# cloudevents 2.2.0. Needs Python 3.11 or later.
#
# The data of an event with the content type application/json may be any JSON. cloudevents reads it from the structured
# mode as what it is, and writes it back so. In the binary mode (HTTP, and the same for RabbitMQ, AMQP and Kafka) only
# objects are written as JSON: an array or a boolean becomes Python's repr, and a string loses its quotes, under the same
# content type. A relay that takes events in one mode and passes them on in the other sends what no JSON parser reads;
# cloudevents itself reads it back as text, without an error. Extensions fare likewise: a boolean is "True", where the
# specification has "true".
#
# Expected: data that is the same after each mode, as JSON.
# Seen (data before; body in the binary mode; data when read again):
#   object: {"id": 1}; {"id": 1}; the same
#   array: [{"id": 1}]; [{'id': 1}]; a str
#   boolean: true; True; a str
#   string that looks like a number: "0123"; 0123; the same
#   extension sampled: true; True; a str
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
install cloudevents==2.2.0
python <<'PYTHON'
import json

from cloudevents.core.bindings.http import HTTPMessage, from_http_event, to_binary_event

RECEIVED = {
    "specversion": "1.0",
    "id": "1",
    "type": "com.example.registered",
    "source": "https://example.com/registrar",
    "datacontenttype": "application/json",
    "sampled": True,
}
STRUCTURED = {"content-type": "application/cloudevents+json"}


def again(before, after):
    return "the same" if type(after) is type(before) and after == before else f"a {type(after).__name__}"


def relay(what, data):
    event = from_http_event(HTTPMessage(STRUCTURED, json.dumps(RECEIVED | {"data": data}).encode()))
    assert event.get_data() == data
    passed_on = to_binary_event(event)
    read = from_http_event(passed_on)
    body = passed_on.body.decode()
    assert passed_on.headers["content-type"] == "application/json"
    print(f"{what}: {json.dumps(data)}; {body}; {again(data, read.get_data())}")
    return body, passed_on.headers["ce-sampled"], read


assert relay("object", {"id": 1})[0] == '{"id": 1}'
assert relay("array", [{"id": 1}])[0] == "[{'id': 1}]"
assert relay("boolean", True)[0] == "True"
body, sampled, read = relay("string that looks like a number", "0123")
assert body == "0123"
print(f"extension sampled: true; {sampled}; {again(True, read.get_extension('sampled'))}")
assert sampled == "True"
PYTHON
echo "still so"
