#!/usr/bin/env bash
# openapi-python-client 0.29.1. Needs Python 3.11 or later.
#
# Where an answer is one of several schemas (`oneOf`, `anyOf`), the generated client makes an object of the first one whose
# required properties are there, and puts all else into its `additional_properties`. `discriminator`, which says by which
# property to choose, is passed over. So what has stopped is a Started, and an answer with more to say than usual is the
# usual one: isinstance and match, to which the types invite, go the wrong way, and a type checker is content. Nothing is
# said when the client is generated. (Known: openapi-generators/openapi-python-client, pull request 1154, is open.) What
# helps is up to the server's document: a `const` for the property that tells, and a schema that requires more before one
# that requires less.
#
# Expected: the schema that the discriminator names; without one, the schema that has the properties.
# Seen:
#   {"type": "stopped", "reason": "full"}, with a discriminator: Started, additional {'reason': 'full'}
#   {"type": "stopped", "reason": "full"}, with const: Stopped, additional {}
#   {"id": 1, "hint": "misspelt"}, less first: Taken, additional {'hint': 'misspelt'}
#   {"id": 1, "hint": "misspelt"}, more first: TakenWithHint, additional {}
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
install openapi-python-client==0.29.1
python <<'PYTHON'
import json
import subprocess
import sys

TEXT, NUMBER = {"type": "string"}, {"type": "integer"}


def schema(*required, **properties):
    return {"type": "object", "required": list(required), "properties": properties}


def refs(*names):
    return [{"$ref": f"#/components/schemas/{name}"} for name in names]


SCHEMAS = {
    "Started": schema("type", type=TEXT, at=TEXT),
    "Stopped": schema("type", type=TEXT, reason=TEXT),
    "StartedConst": schema("type", type={"const": "started"}, at=TEXT),
    "StoppedConst": schema("type", type={"const": "stopped"}, reason=TEXT),
    "Taken": schema("id", id=NUMBER),
    "TakenWithHint": schema("id", "hint", id=NUMBER, hint=TEXT),
}
MAPPING = {name.lower(): f"#/components/schemas/{name}" for name in ("Started", "Stopped")}
ANSWERS = {
    "discriminated": {
        "oneOf": refs("Started", "Stopped"),
        "discriminator": {"propertyName": "type", "mapping": MAPPING},
    },
    "constant": {"oneOf": refs("StartedConst", "StoppedConst")},
    "less": {"anyOf": refs("Taken", "TakenWithHint")},
    "more": {"anyOf": refs("TakenWithHint", "Taken")},
}


def operation(name, answer):
    content = {"application/json": {"schema": answer}}
    return {"operationId": name, "responses": {"200": {"description": "done", "content": content}}}


with open("openapi.json", "w") as file:
    json.dump(
        {
            "openapi": "3.1.0",
            "info": {"title": "Finding", "version": "1"},
            "paths": {f"/{name}": {"get": operation(name, answer)} for name, answer in ANSWERS.items()},
            "components": {"schemas": SCHEMAS},
        },
        file,
    )
command = [sys.executable, "-m", "openapi_python_client", "generate", "--path", "openapi.json", "--meta", "none"]
subprocess.run([*command, "--output-path", "client"], check=True, capture_output=True)

sys.path.insert(0, ".")
import importlib

import httpx
from client import Client


def parsed(title, name, body):
    client = Client(
        base_url="http://localhost",
        httpx_args={"transport": httpx.MockTransport(lambda request: httpx.Response(200, json=body))},
    )
    found = importlib.import_module(f"client.api.default.{name}").sync(client=client)
    kind = type(found).__name__.removesuffix("Const")
    print(f"{json.dumps(body)}, {title}: {kind}, additional {found.additional_properties}")
    return kind, found.additional_properties


STOPPED, HINTED = {"type": "stopped", "reason": "full"}, {"id": 1, "hint": "misspelt"}
assert parsed("with a discriminator", "discriminated", STOPPED) == ("Started", {"reason": "full"})
assert parsed("with const", "constant", STOPPED) == ("Stopped", {})
assert parsed("less first", "less", HINTED) == ("Taken", {"hint": "misspelt"})
assert parsed("more first", "more", HINTED) == ("TakenWithHint", {})
PYTHON
echo "still so"
