"""Names that somebody outside of the code relies on: no restructuring may change one by accident.

`tests/golden/names/` has the approved ones; `tests/support/approved.py` says how to approve a change. Names are found
by walking through the product, not in fixed modules. Pinned elsewhere: topics and fields of events
(`test_event_codec.py`), the integration events (`docs/asyncapi.json`, `test_integration_events.py`). What needs a
database is in `tests/integration/test_names_that_stay.py`.
"""

from __future__ import annotations

import ast
import re
from base64 import b64decode
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import click

from tests.support.approved import modules, nodes, same_as_approved, sources, syntax, the

LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


# --- For operators ------------------------------------------------------------------------------


def test_metrics_keep_their_names_types_and_labels() -> None:
    collectors = set(the("Metrics")()._registry._names_to_collectors.values())

    same_as_approved(
        "metrics",
        {each._name: {"type": each._type, "labels": list(each._labelnames)} for each in collectors},
    )


def test_log_events_keep_their_names_levels_and_fields() -> None:
    found: dict[str, set[str]] = {}
    for file in sources():
        for call, level in _logged(syntax(file)):
            fields = ", ".join(sorted(keyword.arg or "**" for keyword in call.keywords))
            for event in _events(call.args[0]):
                found.setdefault(event, set()).add(f"{level}: {fields}")

    same_as_approved("log_events", {event: sorted(ways) for event, ways in found.items()})
    same_as_approved("log_events_of_mail_servers", {failure: event for failure, (event, _) in the("ALARMS").items()})


def _logged(module: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    """Every call of a logger: of `log`, of something that ends in it, or of what `get_logger` returns."""
    for node in ast.walk(module):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=name) | ast.Attribute(attr=name), attr=level), args=[_, *_]
            ):
                if level in LEVELS and name.lstrip("_").lower() in {"log", "logger"}:
                    yield node, level
            case ast.Call(
                func=ast.Attribute(
                    value=ast.Call(func=ast.Attribute(attr="get_logger") | ast.Name(id="get_logger")), attr=level
                ),
                args=[_, *_],
            ) if level in LEVELS:
                yield node, level


def _events(argument: ast.expr) -> Iterator[str]:
    match argument:
        case ast.Constant(value=str(event)):
            yield event
        case ast.IfExp(body=one, orelse=other):
            yield from _events(one)
            yield from _events(other)
        case _:
            yield "(computed)"


def test_settings_keep_their_names_and_defaults() -> None:
    settings = the("Settings")
    defaults = settings()

    assert settings.from_environment({"REGISTRAR_PORT": "8001"}).port == 8001
    same_as_approved(
        "settings", {f"REGISTRAR_{field.upper()}": _plain(getattr(defaults, field)) for field in settings.model_fields}
    )


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case timedelta():
            return f"{value.total_seconds():g} s"
        case tuple():
            return [_plain(one) for one in value]
        case _:
            return str(value)


def test_commands_keep_their_names_arguments_and_options() -> None:
    same_as_approved("commands", dict(_commands(the("registrar"), "registrar")))


def _commands(command: click.Command, path: str) -> Iterator[tuple[str, list[str]]]:
    yield path, [_parameter(each) for each in command.params]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _commands(inner, f"{path} {name}")


def _parameter(parameter: click.Parameter) -> str:
    names = " ".join((*parameter.opts, *parameter.secondary_opts))
    kind = parameter.type.name
    match parameter.type:
        case click.Choice(choices=choices):
            kind = "|".join(choices)
        case click.IntRange(min=least, max=most):
            kind = f"integer from {least} to {most}"
    if isinstance(parameter, click.Option) and parameter.is_flag:
        kind = "flag"
    default = "" if callable(parameter.default) or "UNSET" in repr(parameter.default) else parameter.default
    return " ".join(
        (
            *(f"{parameter.param_type_name} {names}: {kind}",),
            *(["required"] if parameter.required else []),
            *(["repeatable"] if parameter.multiple or parameter.nargs == -1 else []),
            *([f"= {default}"] if default not in {"", None, False} else []),
        )
    )


def test_codes_of_errors_keep_their_names_and_statuses() -> None:
    same_as_approved("error_codes", {"problems": dict(the("STATUS_OF")), "fields": sorted(the("CODES"))})


def test_crash_points_keep_their_names_and_each_is_passed_somewhere() -> None:
    passed = set()
    for node in nodes():
        match node:
            case ast.Call(func=ast.Name(id="crash_point"), args=[argument]):
                passed |= set(_events(argument))

    assert passed == set(the("CRASH_POINTS"))
    same_as_approved("crash_points", sorted(passed))


# --- In the database and in RabbitMQ ------------------------------------------------------------


def test_a_script_that_was_shipped_is_never_edited() -> None:
    same_as_approved(
        "script_digests",
        {script.name: script.digest for script in the("SCHEMA")},
        how=(
            "Databases know a script by its digest, and an edited one stops every start on them: put its text back, and "
            "write the change as a new script at the end of its owner's line (docs/upgrading.md). Only a new script, or "
            "an edit of one that no release has shipped, is approved as tests/support/approved.py says."
        ),
    )


def test_followers_and_states_of_circuits_keep_the_names_that_are_stored() -> None:
    names = {
        vars(kind)["name"]
        for module in modules()
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__ == module.__name__ and isinstance(vars(kind).get("name"), str)
    }

    same_as_approved("followers_and_circuits", sorted(names))


def test_advisory_locks_and_channels_keep_their_names() -> None:
    text = "\n".join(file.read_text(encoding="utf-8") for suffix in (".py", ".sql") for file in sources(suffix))

    same_as_approved(
        "locks_and_channels",
        {
            "advisory locks": sorted(set(re.findall(r"hashtext\('([^']+)'\)", text))),
            "heard": sorted(set(re.findall(r"\bLISTEN (\w*registrar\w*)", text))),
            "notified": sorted(set(re.findall(r"pg_notify\(\s*'([^']+)'", text))),
        },
    )


def test_exchanges_and_queues_keep_their_names_and_properties() -> None:
    topology = the("Topology").of(queue_ttl=timedelta(seconds=300))

    same_as_approved(
        "rabbitmq",
        {
            "exchanges": {
                each.name: {"type": each.type.value, "durable": each.durable, "auto_delete": each.auto_delete}
                for each in the("EXCHANGES")
            },
            "queues": {
                queue.name: {
                    "arguments": queue.arguments,
                    "durable": queue.durable,
                    "exclusive": queue.exclusive,
                    "auto_delete": queue.auto_delete,
                    "bound": [exchange.name, queue.routing()],
                }
                for queue, exchange in topology.bindings
            },
            "app_id": the("APP_ID"),
            "proof": the("CANARY"),
            "loop queues": the("LOOP_QUEUES"),
        },
    )


STORED = {
    "actor": {"client", "operator", "mail-saga", "mail-worker", "dead-letter-consumer"},
    "alert": {"dead-letters", "circuit-open"},
    "circuit": {"closed", "half-opened", "opened"},
    "status": {"PENDING", "VERIFIED", "ACTIVE", "CANCELLED"},
    "mail": {"QUEUED", "SENT", "FAILED", "STRAY", "code", "notice"},
    "issue": {"registered", "requested", "stale", "superseded"},
    "end": {"expired", "guessed", "undeliverable", "discarded", "operator", "erased"},
    "failure": {
        *("timeout", "connection", "throttled", "greylisted", "mailbox-unknown", "content", "authentication", "tls"),
        *("temporary", "permanent", "expired", "crashed", "rejected", "overflow"),
    },
}
"""Words that are in events, read models and metrics: old rows have them for ever."""


def test_words_that_are_stored_are_still_those_of_the_code() -> None:
    literals = {node.value for node in nodes() if isinstance(node, ast.Constant) and isinstance(node.value, str)}

    assert {f"{what}: {word}" for what, words in STORED.items() for word in words - literals} == set()


def test_streams_keep_the_namespaces_that_their_ids_come_from() -> None:
    found = set()
    for node in nodes():
        match node:
            case ast.Call(func=ast.Name(id="UUID"), args=[ast.Constant(value=str(namespace))]):
                found.add(namespace)

    same_as_approved("namespaces", sorted(found))


# --- What follows from the master key -----------------------------------------------------------

SOMEBODY = UUID("0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3")


def test_what_is_derived_from_the_keys_stays_the_same() -> None:
    keyring = the("Keyring")(master_key=b"m" * 32, root_secret=b"r" * 32)

    same_as_approved(
        "derived",
        {
            "claim_id": str(keyring.claim_id("ada@example.com")),
            "claim_id of a duplicate": str(keyring.claim_id("ada@example.com", duplicate=True)),
            "registration_id_for": str(keyring.registration_id_for("ada@example.com", "0123456789abcdef")),
            "fingerprint": keyring.fingerprint("ada@example.com", "Ada", ""),
            "code": keyring.code(SOMEBODY, 1),
            "message_id": keyring.message_id(SOMEBODY, 1),
            "password_salt": keyring.password_salt("ada@example.com").hex(),
        },
    )


def test_what_was_sealed_once_can_still_be_opened() -> None:
    sealed = (
        "JlylWdXCR9au5Afwc7iZ7t/274RSbyyuuOMlfLoSQOMS4on6YMkdwmU9CUiryF2X01+ovxx3pcvGcIOC8sza6JFc37WdugZIOuo27XAx8/"
        "Q2dQa22RSgeCiDnaHc3OKik2c="
    )
    wrapped = b64decode("gkIQs1UPZ6GQYj21d0N+THSreET90zRupDbNA/O8FQ0HGPTwG/0sGVFOqC/NEjyFFRRKwwiyZeriqHpC")

    person = the("Keyring")(master_key=b"m" * 32, root_secret=b"r" * 32).open(SOMEBODY, sealed, wrapped)

    assert (person.email, person.name, person.password_hash) == ("ada@example.com", "Ada", "$argon2id$x")
