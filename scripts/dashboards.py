"""Writes the dashboards of Grafana in deploy/grafana/dashboards/ from the description below.

`--check` compares instead, and exits with 1 if a file is another, is missing, or is one too many. The form is the
classic one (schema v1), as file provisioning refuses what Grafana 13 exports by itself.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "deploy" / "grafana" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "registrar-prometheus"}
"""As deploy/grafana/provisioning/datasources names it."""

WIDTH, HEIGHT, COLUMNS = 12, 8, 24


@dataclass(frozen=True)
class Panel:
    """A graph over time.

    Attributes:
        lines: PromQL, by the legend of what it gives; `{{label}}` in a legend is that label's value.
        unit: Grafana's name of one.
        limit: where something is missed from; drawn as a line.
    """

    title: str
    lines: dict[str, str]
    unit: str = "short"
    limit: float | None = None


def rate(counter: str, by: str = "", labels: str = "") -> str:
    return f"sum{f' by ({by}) ' if by else ''}(rate({counter}{{{labels}}}[$__rate_interval]))".replace("{}", "")


def quantiles(histogram: str, labels: str = "") -> dict[str, str]:
    return {
        f"p{percent}": f"histogram_quantile({percent / 100:g}, {rate(histogram + '_bucket', 'le', labels)})"
        for percent in (50, 90, 99)
    }


def worst(gauge: str, by: str = "", labels: str = "") -> str:
    """What each process tells of the whole is the same."""
    return f"max{f' by ({by}) ' if by else ''}({gauge}{{{labels}}})".replace("{}", "")


SUCCESSES = 'route=~"/v1/registrations.*",status=~"2.."'
REGISTERED = 'route="/v1/registrations",status="202"'

DASHBOARDS: dict[str, list[Panel]] = {
    "Funnel": [
        Panel("Registered, mailed, verified", {
            "registered": rate("registrar_registrations_total", labels='outcome="accepted"'),
            "first mail accepted": rate("registrar_time_to_inbox_seconds_count"),
            "verified": rate("registrar_verifications_total", labels='outcome="accepted"'),
        }, "reqps"),
        Panel("Requests to register", {"{{outcome}}": rate("registrar_registrations_total", "outcome")}, "reqps"),
        Panel("Codes offered", {"{{outcome}}": rate("registrar_verifications_total", "outcome")}, "reqps"),
        Panel("Doubtful addresses", {"{{doubt}}": rate("registrar_doubtful_addresses_total", "doubt")}, "reqps"),
        Panel("Stuck registrations", {"overdue": worst("registrar_stuck_registrations")}),
        Panel("Synthetic registrations", {"{{outcome}}": rate("registrar_synthetic_total", "outcome")}, "reqps"),
        Panel("A synthetic registration takes", quantiles("registrar_synthetic_seconds"), "s"),
        Panel("Since one last became an account", {
            "passed": worst("registrar_synthetic_age_seconds"), "interval": worst("registrar_synthetic_interval_seconds"),
        }, "s"),
    ],
    "Objectives": [
        Panel("Commands that fail through our fault", {
            "1 h": "registrar:commands_failed:ratio1h", "6 h": "registrar:commands_failed:ratio6h", "3 d": "registrar:commands_failed:ratio3d",
        }, "percentunit", 0.001),
        Panel("Registrations over 500 ms", {
            "1 h": "registrar:registrations_slow:ratio1h", "6 h": "registrar:registrations_slow:ratio6h", "3 d": "registrar:registrations_slow:ratio3d",
        }, "percentunit", 0.01),
        Panel("First mails over 60 s", {
            "1 h": "registrar:mails_late:ratio1h", "6 h": "registrar:mails_late:ratio6h", "3 d": "registrar:mails_late:ratio3d",
        }, "percentunit", 0.01),
        Panel("Time with a read model over 5 s behind", {
            "1 h": "registrar:read_models_behind:ratio1h", "6 h": "registrar:read_models_behind:ratio6h", "3 d": "registrar:read_models_behind:ratio3d",
        }, "percentunit", 0.001),
        Panel("Time to answer a registration", quantiles("registrar_requests_seconds", REGISTERED), "s", 0.5),
        Panel("Alerts that fire", {"{{alertname}} {{severity}}": 'group by (alertname, severity) (ALERTS{alertstate="firing",alertname=~"Registrar.*"})'}),
    ],
    "Delivery": [
        Panel("Registration to the mail server's acceptance", quantiles("registrar_time_to_inbox_seconds"), "s", 60),
        Panel("Longest wait for a mail", {"wait": worst("registrar_oldest_unsent_seconds"), "1: mails wait for their turn": worst("registrar_mails_paced")}, "s", 300),
        Panel("Hand-overs", {"{{provider}} {{outcome}}": rate("registrar_mail_total", "provider, outcome")}, "reqps"),
        Panel("Mails at the same time, at most", {"{{provider}}": worst("registrar_mail_concurrency", "provider")}),
        Panel("Circuits (0 closed, 1 half-open, 2 open)", {"{{name}}": worst("registrar_circuit_state", "name")}),
        Panel("Changes of circuits", {"{{name}} {{state}}": rate("registrar_circuit_transitions_total", "name, state")}),
        Panel("Servers that take nothing", {"{{name}} {{trouble}}": worst("registrar_mail_server_trouble", "name, trouble")}),
        Panel("RabbitMQ: messages that wait", {"{{queue}}": worst("registrar_broker_messages", "queue"), "connected: {{instance}}": worst("registrar_broker_up", "instance")}),
        Panel("RabbitMQ: consumers", {"{{queue}}": worst("registrar_broker_consumers", "queue")}),
        Panel("Mails that came back, or were not wanted", {"{{outcome}}": rate("registrar_bounces_total", "outcome")}, "reqps"),
        Panel("Share of the mails of six hours", {
            "{{outcome}}": 'sum by (outcome) (increase(registrar_bounces_total{outcome!="unknown"}[6h]))'
            ' / on () group_left () sum(increase(registrar_mail_total{outcome="accepted"}[6h]))',
        }, "percentunit", 0.05),
        Panel("Dead letters", {"mails": worst("registrar_dead_letters"), "foreign messages": worst("registrar_stray_messages")}, limit=10),
    ],
    "Errors": [
        Panel("Answers by status", {"{{status}}": rate("registrar_requests_seconds_count", "status")}, "reqps"),
        Panel("Server errors by route", {"{{route}} {{status}}": rate("registrar_requests_seconds_count", "route, status", 'status=~"5.."')}, "reqps"),
        Panel("Client errors by route", {"{{route}} {{status}}": rate("registrar_requests_seconds_count", "route, status", 'status=~"4.."')}, "reqps"),
        Panel("Mails that failed", {"{{outcome}}": rate("registrar_mail_total", "outcome", 'outcome!="accepted"')}, "reqps"),
        Panel("Parked streams", {"{{follower}}": worst("registrar_parked_streams", "follower")}),
        Panel("Calls of the alert webhook", {"{{alert}} {{outcome}}": rate("registrar_alerts_total", "alert, outcome")}, "reqps"),
        Panel("Calls of webhooks", {"{{outcome}}": rate("registrar_webhooks_total", "outcome")}, "reqps"),
        Panel("An endpoint of webhooks has failed for", {"the longest": worst("registrar_webhook_failing_seconds")}, "s", 900),
    ],
    "Requests": [
        Panel("Requests by route", {"{{route}}": rate("registrar_requests_seconds_count", "route")}, "reqps"),
        Panel("Mean time by route", {"{{route}}": f"{rate('registrar_requests_seconds_sum', 'route')} / ({rate('registrar_requests_seconds_count', 'route')} > 0)"}, "s"),
        Panel("99 of 100 successes of registrants are faster", {"{{route}}": f"histogram_quantile(0.99, {rate('registrar_requests_seconds_bucket', 'route, le', SUCCESSES)})"}, "s", 0.5),
        Panel("Under way", {"{{class}}": "sum by (class) (registrar_requests_under_way)"}),
    ],
    "Store": [
        Panel("Appends", quantiles("registrar_append_seconds"), "s"),
        Panel("Appends a transaction", quantiles("registrar_append_batch_size")),
        Panel("Events recorded", {"a second": "max(deriv(registrar_log_position[5m]))"}, "reqps"),
        Panel("What waits in a process", {
            "appends {{instance}}": "registrar_append_queue_depth",
            "passwords {{instance}}": "registrar_hash_queue_depth",
            "queries {{instance}}": "registrar_pool_waiting",
        }),
        Panel("Connections for queries", {"{{instance}} {{state}}": "registrar_pool_connections"}),
        Panel("Checkpoints", {
            "oldest event without one": worst("registrar_checkpoint_age_seconds"),
            "oldest that is not published": worst("registrar_checkpoint_unpublished_seconds"),
        }, "s", 60),
        Panel("Events without a checkpoint, checkpoints not published", {
            "events": f"{worst('registrar_log_position')} - {worst('registrar_checkpoint_position')}",
            "checkpoints": worst("registrar_checkpoints_unpublished"),
        }),
        Panel("1: the log is not what was recorded", {"chain": worst("registrar_chain_mismatches")}),
        Panel("Age of the last backup and drill", {"backup": worst("registrar_backup_age_seconds"), "drill": worst("registrar_drill_age_seconds")}, "s"),
    ],
    "Followers": [
        Panel("Behind the end of the log", {"{{follower}}": worst("registrar_follower_lag_seconds", "follower")}, "s", 5),
        Panel("Events not applied yet", {"{{follower}}": worst("registrar_follower_lag_events", "follower")}),
        Panel("Differences found by the last verification", {"{{projection}}": worst("registrar_projection_mismatches", "projection")}),
        Panel("Since the last full verification", {"{{projection}}": f"time() - {worst('registrar_projection_verified_timestamp_seconds', 'projection')}"}, "s"),
    ],
    "Limits": [
        Panel("Refused by a limit", {"{{policy}} {{outcome}}": rate("registrar_limit_total", "policy, outcome", 'outcome!="passed"')}, "reqps"),
        Panel("Passed", {"{{policy}}": rate("registrar_limit_total", "policy", 'outcome="passed"')}, "reqps"),
        Panel("Refused because of overload", {"{{reason}}": rate("registrar_shed_total", "reason")}, "reqps"),
        Panel("1: Redis does not count", {"{{instance}}": "registrar_limiter_degraded"}),
    ],
    "Resources": [
        Panel("Ready", {"{{instance}}": "registrar_ready"}),
        Panel("What runs", {"{{role}} {{version}}": "count by (role, version) (registrar_info)"}),
        Panel("Cores in use", {"{{instance}}": 'rate(process_cpu_seconds_total{job="registrar"}[$__rate_interval])'}),
        Panel("Memory", {"{{instance}}": 'process_resident_memory_bytes{job="registrar"}'}, "bytes"),
        Panel("Open files, of those there may be", {"{{instance}}": 'process_open_fds{job="registrar"} / process_max_fds{job="registrar"}'}, "percentunit"),
        Panel("Spans", {"exported": rate("registrar_spans_exported_total"), "lost: {{reason}}": rate("registrar_spans_lost_total", "reason")}),
        Panel("Log lines lost", {"{{instance}}": rate("registrar_log_lines_lost_total", "instance")}),
        Panel("Up for", {"{{instance}}": 'time() - process_start_time_seconds{job="registrar"}'}, "s"),
    ],
}  # fmt: skip
"""Every dashboard with its panels, in the order of reading."""


def dashboard(name: str) -> dict[str, Any]:
    """What Grafana reads."""
    return {
        "uid": f"registrar-{name.lower()}",
        "title": f"Registrar: {name.lower()}",
        "tags": ["registrar"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "timezone": "utc",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": []},
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards",
                "title": "Registrar",
                "icon": "external link",
                "tooltip": "",
                "tags": ["registrar"],
                "asDropdown": True,
                "includeVars": False,
                "keepTime": True,
                "targetBlank": False,
            }
        ],
        "panels": [_panel(panel, number) for number, panel in enumerate(DASHBOARDS[name])],
    }


def _panel(panel: Panel, number: int) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.limit is not None:
        steps.append({"color": "red", "value": panel.limit})
    across = COLUMNS // WIDTH
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": number % across * WIDTH, "y": number // across * HEIGHT},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for place, (legend, expression) in enumerate(panel.lines.items())
        ],
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "custom": {"thresholdsStyle": {"mode": "off" if panel.limit is None else "line"}},
                "thresholds": {"mode": "absolute", "steps": steps},
            },
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    }


def files() -> dict[Path, str]:
    """Every file, and what is in it."""
    return {
        FOLDER / f"{name.lower()}.json": json.dumps(dashboard(name), indent=1, ensure_ascii=False) + "\n"
        for name in DASHBOARDS
    }


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit({path: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()} != files())
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
