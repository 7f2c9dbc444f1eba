"""Each alert of deploy/prometheus/rules fires for its cause, with exactly those that go with it; is silent before, and
after."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import yaml  # type: ignore[import-untyped]

from tests.support.prometheus import demand, promtool

RULES: Final = Path(__file__).parents[2] / "deploy" / "prometheus" / "rules"
BEGINS, ENDS, SOON, LAST = 120, 150, 240, 540
"""Minutes: when a fault begins, when it is over, and when nothing in a window of an hour, or of six, is left of it."""

PAGE, TICKET = "critical", "warning"
SERVE = 'instance="serve:8001",job="registrar"'
REGISTERED = f'{{route="/v1/registrations",status="202",{SERVE}}}'
FAILED = f'registrar_requests_seconds_count{{route="/v1/registrations",status="503",{SERVE}}}'
BUG = f'registrar_requests_seconds_count{{route="/v1/admin/mail",status="500",{SERVE}}}'
ACCEPTED = f'registrar_registrations_total{{outcome="accepted",{SERVE}}}'
CODES = f'registrar_verifications_total{{outcome="accepted",{SERVE}}}'
WRONG = f'registrar_verifications_total{{outcome="wrong-code",{SERVE}}}'
IN_TIME = f'registrar_requests_seconds_bucket{{le="0.5",{REGISTERED[1:]}'
BOUNCED, COMPLAINED = (f'registrar_bounces_total{{outcome="{outcome}",{SERVE}}}' for outcome in ("hard", "complaint"))
INBOX_IN_TIME = f'registrar_time_to_inbox_seconds_bucket{{le="60.0",{SERVE}}}'

Values = Sequence[float | str]


def gauge(usual: float, fault: float, after: float | None = None) -> Values:
    return [
        *[usual] * BEGINS,
        *[fault] * (ENDS - BEGINS),
        *[usual if after is None else after] * (LAST - ENDS + 1),
    ]


def counter(usual: float, fault: float) -> Values:
    """So many more a minute."""
    values, now = [], 0.0
    for minute in range(LAST + 1):
        values.append(now)
        now += fault if BEGINS <= minute < ENDS else usual
    return values


def steady(value: float) -> Values:
    return gauge(value, value)


USUAL: Final[Mapping[str, Values]] = {
    f"up{{{SERVE}}}": steady(1),
    f"registrar_ready{{{SERVE}}}": steady(1),
    f'registrar_info{{role="serve",version="1",{SERVE}}}': steady(1),
    f"registrar_requests_seconds_count{REGISTERED}": counter(60, 60),
    IN_TIME: counter(60, 60),
    FAILED: steady(0),
    f'registrar_requests_seconds_count{{route="/v1/registrations",status="422",{SERVE}}}': counter(3, 3),
    ACCEPTED: counter(60, 60),
    f'registrar_registrations_total{{outcome="invalid-request",{SERVE}}}': counter(3, 3),
    CODES: counter(50, 50),
    WRONG: counter(5, 5),
    f"registrar_time_to_inbox_seconds_count{{{SERVE}}}": counter(60, 60),
    INBOX_IN_TIME: counter(60, 60),
    f'registrar_mail_total{{outcome="accepted",provider="mail:25",{SERVE}}}': counter(60, 60),
    BOUNCED: counter(0.6, 0.6),
    COMPLAINED: counter(0.01, 0.01),
    f'registrar_follower_lag_seconds{{follower="registrations",{SERVE}}}': steady(0.2),
    f'registrar_follower_lag_seconds{{follower="relay",{SERVE}}}': steady(0.2),
    f'registrar_parked_streams{{follower="audit",{SERVE}}}': steady(0),
    f'registrar_projection_mismatches{{projection="mail",{SERVE}}}': steady(0),
    f'registrar_circuit_state{{name="mail:25",{SERVE}}}': steady(0),
    f"registrar_limiter_degraded{{{SERVE}}}": steady(0),
    f"registrar_mails_paced{{{SERVE}}}": steady(0),
    f"registrar_oldest_unsent_seconds{{{SERVE}}}": steady(0.1),
    f"registrar_dead_letters{{{SERVE}}}": steady(2),
    f"registrar_stray_messages{{{SERVE}}}": steady(1),
    f"registrar_stuck_registrations{{{SERVE}}}": steady(0),
    f'registrar_broker_up{{broker="rabbitmq",{SERVE}}}': steady(1),
    f'registrar_broker_consumers{{queue="registrar.mail",{SERVE}}}': steady(2),
    f"registrar_chain_mismatches{{{SERVE}}}": steady(0),
    f"registrar_checkpoint_age_seconds{{{SERVE}}}": steady(3),
    f"registrar_checkpoint_unpublished_seconds{{{SERVE}}}": steady(0),
    f"registrar_backup_age_seconds{{{SERVE}}}": steady(80_000),
    f"registrar_drill_age_seconds{{{SERVE}}}": steady(500_000),
    f"registrar_log_lines_lost_total{{{SERVE}}}": steady(3),
    f"registrar_synthetic_interval_seconds{{{SERVE}}}": steady(60),
    f"registrar_synthetic_age_seconds{{{SERVE}}}": steady(50),
    f'registrar_synthetic_total{{outcome="passed",{SERVE}}}': counter(1, 1),
    f'registrar_synthetic_total{{outcome="mail",{SERVE}}}': steady(3),
    f'registrar_alerts_total{{alert="circuit-open",outcome="failed",{SERVE}}}': steady(1),
    f"registrar_webhook_failing_seconds{{{SERVE}}}": steady(600),
}


@dataclass(frozen=True)
class Fault:
    """
    Attributes:
        series: what is other than usual.
        fires: alert and severity of each that must, and nothing else may.
        resolves: minute at which nothing fires any more; every minute before it costs time.
    """

    series: Mapping[str, Values]
    fires: set[tuple[str, str]]
    resolves: int = SOON


def one(alert: str, severity: str, series: str, usual: float, fault: float) -> Fault:
    """A fault that a gauge shows."""
    return Fault({f"{series}{SERVE}}}": gauge(usual, fault)}, {(alert, severity)})


def synthetic(every: float, age: Values, failed: Values) -> Mapping[str, Values]:
    """`age` and `every` in seconds; `failed`: of a series that there was not before."""
    return {
        f"registrar_synthetic_interval_seconds{{{SERVE}}}": steady(every),
        f"registrar_synthetic_age_seconds{{{SERVE}}}": age,
        f'registrar_synthetic_total{{outcome="passed",{SERVE}}}': ["_"] * (LAST + 1),
        f'registrar_synthetic_total{{outcome="mail",{SERVE}}}': ["_"] * (LAST + 1),
        f'registrar_synthetic_total{{outcome="register",{SERVE}}}': failed,
    }


NAN: Final = float("nan")
COMMANDS_FAIL: Final = {("RegistrarCommandsFail", PAGE), ("RegistrarCommandsFail", TICKET)}
FAULTS: Final[Mapping[str, Fault]] = {
    "half of the registrations are refused": Fault(
        {FAILED: counter(0, 60), ACCEPTED: counter(60, 0), f"registrar_requests_seconds_count{REGISTERED}": counter(60, 0), IN_TIME: counter(60, 0)},
        COMMANDS_FAIL,
        LAST,
    ),
    "one in a hundred registrations fails": Fault({FAILED: counter(0, 0.6)}, {("RegistrarCommandsFail", TICKET)}, LAST),
    "registrations take a second": Fault(
        {IN_TIME: counter(60, 0)}, {("RegistrarRegistrationsSlow", PAGE), ("RegistrarRegistrationsSlow", TICKET)}, LAST
    ),
    "mails take two minutes": Fault(
        {INBOX_IN_TIME: counter(60, 0)}, {("RegistrarMailsLate", PAGE), ("RegistrarMailsLate", TICKET)}, LAST
    ),
    "a read model is ten seconds behind": Fault(
        {f'registrar_follower_lag_seconds{{follower="registrations",{SERVE}}}': gauge(0.2, 10)},
        {("RegistrarReadModelsBehind", PAGE), ("RegistrarReadModelsBehind", TICKET)},
        LAST,
    ),
    "nobody relays": Fault(
        {f'registrar_follower_lag_seconds{{follower="relay",{SERVE}}}': gauge(0.2, 300)},
        {("RegistrarFollowerLags", PAGE)},
    ),
    "mails wait for their turn": Fault(
        {
            f'registrar_follower_lag_seconds{{follower="relay",{SERVE}}}': gauge(0.2, 1800),
            f"registrar_oldest_unsent_seconds{{{SERVE}}}": gauge(0.1, 1800),
            f"registrar_mails_paced{{{SERVE}}}": gauge(0, 1),
        },
        set(),
    ),
    "mails wait for their turn for hours": Fault(
        {
            f"registrar_oldest_unsent_seconds{{{SERVE}}}": gauge(0.1, 7200),
            f"registrar_mails_paced{{{SERVE}}}": gauge(0, 1),
        },
        {("RegistrarMailWaits", PAGE)},
    ),
    "the database is away": Fault(
        {
            f"registrar_ready{{{SERVE}}}": gauge(1, 0),
            **{
                name: gauge(values[0], NAN)  # type: ignore[arg-type]
                for name, values in USUAL.items()
                if re.match("registrar_(dead|stray|oldest|stuck|backup|drill|check|chain|synthetic_age)", name)
            },
        },
        {("RegistrarNotReady", PAGE)},
    ),
    "a process is killed": Fault(
        {'up{instance="work:8001",job="registrar"}': gauge(1, 0)}, {("RegistrarProcessDown", TICKET)}
    ),
    "every `serve` is gone": Fault(
        {
            f"up{{{SERVE}}}": gauge(1, 0),
            f'registrar_info{{role="serve",version="1",{SERVE}}}': ["1"] * BEGINS + ["stale"] + ["_"] * 29 + ["1"] * 391,
        },
        {("RegistrarNotReady", PAGE), ("RegistrarProcessDown", TICKET)},
    ),
    "a first bug": Fault({BUG: ["_"] * BEGINS + ["1"] * (LAST - BEGINS + 1)}, {("RegistrarErrors", TICKET)}),
    "a bug": Fault({BUG: counter(0, 0.2)}, {("RegistrarErrors", TICKET)}),
    "overload": Fault(
        {f'registrar_shed_total{{reason="busy-look",{SERVE}}}': counter(0, 600)}, {("RegistrarOverloaded", TICKET)}
    ),
    "nobody is let in": Fault(
        {f'registrar_registrations_total{{outcome="too-many-requests",{SERVE}}}': counter(0, 600)},
        {("RegistrarFewSucceed", TICKET)},
        LAST,
    ),
    "somebody guesses": Fault({WRONG: counter(5, 300)}, {("RegistrarWrongCodes", TICKET)}),
    "Redis is gone": one("RegistrarLimiterDegraded", TICKET, "registrar_limiter_degraded{", 0, 1),
    "nobody sends mails": one("RegistrarMailWaits", PAGE, "registrar_oldest_unsent_seconds{", 0.1, 900),
    "a mail server is away": one("RegistrarCircuitOpen", TICKET, 'registrar_circuit_state{name="mail:25",', 0, 2),
    "a mail server is probed": one("RegistrarCircuitOpen", TICKET, 'registrar_circuit_state{name="mail:25",', 0, 1),
    "a mail server refuses": Fault(
        {
            f'registrar_mail_server_trouble{{name="mail:25",trouble="refusing",{SERVE}}}': [
                *["_"] * BEGINS, *["1"] * 30, "stale", *["_"] * 390,
            ]
        },
        {("RegistrarMailServerTakesNothing", TICKET)},
    ),
    "mails come back": Fault({BOUNCED: counter(0.6, 60)}, {("RegistrarMailsComeBack", TICKET)}, LAST),
    "mails are not wanted": Fault({COMPLAINED: counter(0.01, 1)}, {("RegistrarMailsComeBack", TICKET)}, LAST),
    "of two mails one comes back": Fault(
        {
            f'registrar_mail_total{{outcome="accepted",provider="mail:25",{SERVE}}}': counter(0.01, 0.2),
            BOUNCED: counter(0, 0.1),
            COMPLAINED: counter(0, 0.05),
        },
        set(),
        LAST,
    ),
    "ten dead letters": one("RegistrarDeadLetters", TICKET, "registrar_dead_letters{", 2, 9),
    "RabbitMQ is away": one("RegistrarBrokerDown", TICKET, 'registrar_broker_up{broker="rabbitmq",', 1, 0),
    "no worker": one("RegistrarNobodyConsumes", PAGE, 'registrar_broker_consumers{queue="registrar.mail",', 2, 0),
    "an unreadable event": one("RegistrarParkedStreams", TICKET, 'registrar_parked_streams{follower="audit",', 0, 1),
    "nobody decides": one("RegistrarStuckRegistrations", TICKET, "registrar_stuck_registrations{", 0, 3),
    "a row is changed": one("RegistrarReadModelDiffers", TICKET, 'registrar_projection_mismatches{projection="mail",', 0, 2),
    "an event is changed": one("RegistrarChainBroken", PAGE, "registrar_chain_mismatches{", 0, 1),
    "nothing is signed": one("RegistrarCheckpointGap", TICKET, "registrar_checkpoint_age_seconds{", 3, 90),
    "nothing is published": one("RegistrarCheckpointGap", TICKET, "registrar_checkpoint_unpublished_seconds{", 0, 90),
    "no backup": one("RegistrarBackupOverdue", TICKET, "registrar_backup_age_seconds{", 80_000, 200_000),
    "no drill": Fault(
        {f"registrar_drill_age_seconds{{{SERVE}}}": [*[500_000] * 60, *[900_000] * 90, *[500_000] * 391]},
        {("RegistrarDrillOverdue", TICKET)},
    ),
    "never a drill": Fault(
        {f"registrar_drill_age_seconds{{{SERVE}}}": [*[500_000] * 60, *[NAN] * 90, *[500_000] * 391]},
        {("RegistrarDrillOverdue", TICKET)},
    ),
    "backups that are not ours": Fault(
        {f"registrar_{kind}_age_seconds{{{SERVE}}}": steady(NAN) for kind in ("backup", "drill")}, set()
    ),
    "nobody reads the log": Fault(
        {f"registrar_log_lines_lost_total{{{SERVE}}}": counter(0, 0.2)}, {("RegistrarLogLinesLost", TICKET)}
    ),
    "the webhook is away": Fault(
        {f'registrar_alerts_total{{alert="circuit-open",outcome="failed",{SERVE}}}': counter(0, 1)},
        {("RegistrarWebhookFails", TICKET)},
    ),
    "an endpoint of webhooks fails": one("RegistrarEndpointFails", TICKET, "registrar_webhook_failing_seconds{", 0, 1000),
    "synthetic registrations fail": one("RegistrarSyntheticFails", PAGE, "registrar_synthetic_age_seconds{", 50, 900),
    "of synthetic registrations two an hour have failed": Fault(
        synthetic(1800, gauge(1700, 3700), ["_"] * BEGINS + ["2"] * (LAST - BEGINS + 1)), {("RegistrarSyntheticFails", PAGE)}
    ),
    "of synthetic registrations two an hour one has failed": Fault(
        synthetic(1800, gauge(1700, 3500), ["_"] * BEGINS + ["1"] * (LAST - BEGINS + 1)), set()
    ),
    "the first synthetic registrations ever fail": Fault(
        synthetic(60, [*[NAN] * ENDS, *[50] * (LAST - ENDS + 1)], ["_"] * BEGINS + ["9"] * (LAST - BEGINS + 1)),
        {("RegistrarSyntheticFails", PAGE)},
    ),
    "the very first synthetic registration fails": Fault(
        synthetic(60, [*[NAN] * ENDS, *[50] * (LAST - ENDS + 1)], ["_"] * BEGINS + ["1"] * (LAST - BEGINS + 1)), set()
    ),
    "synthetic registrations are switched off": Fault(synthetic(0, gauge(50, 90_000, 190_000), ["_"] * (LAST + 1)), set()),
    "nobody comes": Fault(
        {name: steady(0) for name in USUAL if "_total" in name or "_count" in name or "_bucket" in name}, set()
    ),
}  # fmt: skip


FIRING: Final = 'group by (alertname, severity) (ALERTS{alertstate="firing"})'


def judged(
    directory: Path,
    series: Mapping[str, Values],
    expected: Mapping[int, set[tuple[str, str]]],
    *,
    step: int = 1,
    query: str = FIRING,
) -> None:
    """Prometheus' own judgement of the rules over these series, which have a value each `step` minutes: that the query
    names these alerts at these minutes, and no other.

    Raises:
        AssertionError: with what promtool says.
    """
    checks = [
        {"expr": query, "eval_time": f"{minute}m", "exp_samples": [_sample(*alert) for alert in sorted(fires)]}
        for minute, fires in expected.items()
    ]
    given = [
        {"series": name, "values": " ".join(_written(value) for value in values)} for name, values in series.items()
    ]
    file = directory / "test.yaml"
    file.write_text(
        json.dumps(
            {
                "rule_files": [str(path) for path in sorted(RULES.glob("*.yaml"))],
                "evaluation_interval": "5m",  # rarer than in earnest: it is what takes the time
                "tests": [{"interval": f"{step}m", "input_series": given, "promql_expr_test": checks}],
            }
        )
    )
    promtool("test", "rules", file)


def _sample(alert: str, severity: str) -> dict[str, object]:
    return {"labels": f'{{alertname="{alert}", severity="{severity}"}}', "value": 1}


def _written(value: float | str) -> str:
    return "NaN" if isinstance(value, float) and math.isnan(value) else str(value)


def alerts() -> set[tuple[str, str]]:
    """Every alert there is, with its severity."""
    found = set()
    for path in RULES.glob("*.yaml"):
        for group in yaml.safe_load(path.read_text())["groups"]:
            found |= {(rule["alert"], rule["labels"]["severity"]) for rule in group["rules"] if "alert" in rule}
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fires_its_alerts_and_no_other_and_they_resolve(
    fault: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    demand(pytestconfig)
    found = FAULTS[fault]

    judged(
        tmp_path,
        {name: values[: found.resolves + 1] for name, values in {**USUAL, **found.series}.items()},
        {BEGINS - 1: set(), ENDS - 1: found.fires, found.resolves: set()},
    )


def test_every_alert_is_fired_by_a_fault() -> None:
    assert alerts() == set().union(*(fault.fires for fault in FAULTS.values()))
