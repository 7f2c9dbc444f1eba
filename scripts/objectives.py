"""Writes deploy/prometheus/rules/objectives.yaml: the objectives, each with its burn rates over several windows.

`--check` compares instead, and exits with 1 if the file is another. docs/monitoring.md says what the objectives are,
and why the rules are as they are.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).parents[1] / "deploy" / "prometheus" / "rules" / "objectives.yaml"

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
BURNS = {
    # Google's SRE workbook, chapter 5: how fast the error budget of 30 days is spent, by a long window, which says that
    # it matters, and a short one, which says that it goes on.
    "critical": (("1h", "5m", 14.4), ("6h", "30m", 6)),
    "warning": (("1d", "2h", 3), ("3d", "6h", 1)),
}
PEOPLE = "/v1/registrations(/.+/(verification|otp))?"
OTHERS = "mail-saga|relay|integration-events|erasures|posted-erasures|checkpoints"
"""Followers that keep no read model."""


@dataclass(frozen=True)
class Objective:
    """What shall hold of nearly everything.

    Attributes:
        alert: name of the alert, and of its section in docs/runbook.md.
        name: in the names of recorded series.
        bad, all: PromQL; how many there were within `WINDOW`.
        share: of all that may be bad.
        least: so many that were bad are no accident, however few there were at all.
        first: series that are recorded before.
    """

    alert: str
    name: str
    bad: str
    all: str
    share: float
    least: int
    summary: str
    description: str
    first: tuple[tuple[str, str], ...] = ()


def requests(labels: str, what: str = "count") -> str:
    return f"sum(increase(registrar_requests_seconds_{what}{{{labels}}}[WINDOW]))"


REGISTERED = 'route="/v1/registrations",status="202"'
BEHIND = "registrar:read_models_behind:bool"
OBJECTIVES = (
    Objective(
        alert="RegistrarCommandsFail",
        name="commands_failed",
        bad=requests(f'route=~"{PEOPLE}",status=~"500|503|504"'),
        all=requests(f'route=~"{PEOPLE}",status!="499"'),
        share=0.001,
        least=2,
        summary="Too many registrations, verifications or new codes fail through our fault",
        description="99.9 % of them shall be answered without 500, 503 or 504.",
    ),
    Objective(
        alert="RegistrarRegistrationsSlow",
        name="registrations_slow",
        bad=f"clamp_min({requests(REGISTERED)} - {requests(REGISTERED + ',le=' + chr(34) + '0.5' + chr(34), 'bucket')}, 0)",
        all=requests(REGISTERED),
        share=0.01,
        least=3,
        summary="Too many registrations take longer than half a second",
        description="99 % of the accepted ones shall be answered within 500 ms.",
    ),
    Objective(
        alert="RegistrarMailsLate",
        name="mails_late",
        bad=(
            "clamp_min(sum(increase(registrar_time_to_inbox_seconds_count[WINDOW]))"
            ' - sum(increase(registrar_time_to_inbox_seconds_bucket{le="60.0"}[WINDOW])), 0)'
        ),
        all="sum(increase(registrar_time_to_inbox_seconds_count[WINDOW]))",
        share=0.01,
        least=3,
        summary="Too many first mails are accepted by a mail server after more than a minute",
        description="99 % of them shall be accepted within 60 s of the registration.",
    ),
    Objective(
        alert="RegistrarReadModelsBehind",
        name="read_models_behind",
        first=((BEHIND, f'max(registrar_follower_lag_seconds{{follower!~"{OTHERS}"}} > bool 5)'),),
        bad=f"sum_over_time({BEHIND}[WINDOW])",
        all=f"count_over_time({BEHIND}[WINDOW])",
        share=0.001,
        least=2,
        summary="Read models are too often more than five seconds behind the log",
        description="99.9 % of the time each of them shall be less than 5 s behind.",
    ),
)

HEADER = """\
# Written by scripts/objectives.py (`make monitoring`); docs/monitoring.md says what the objectives are.
groups:
"""


def rules() -> str:
    """The whole file."""
    return HEADER + "".join(_group(objective) for objective in OBJECTIVES)


def _group(objective: Objective) -> str:
    lines = [f"  - name: registrar-{objective.name.replace('_', '-')}", "    rules:"]
    for record, expression in objective.first:
        lines += _record(record, expression)
    series = f"registrar:{objective.name}"
    for window in WINDOWS:
        lines += _record(f"{series}:increase{window}", objective.bad.replace("WINDOW", window))
    for window in WINDOWS:
        everything = objective.all.replace("WINDOW", window)
        lines += _record(f"{series}:ratio{window}", f"{series}:increase{window} / ({everything} > 0)")
    for severity, burns in BURNS.items():
        lines += [f"      - alert: {objective.alert}", "        expr: |-"]
        for number, burn in enumerate(burns):
            lines += ["          or"] * bool(number) + _burning(objective, *burn)
        lines += [
            "        labels:",
            f"          severity: {severity}",
            "        annotations:",
            f"          summary: {objective.summary}",
            f"          description: {objective.description} The error budget of 30 days is spent too fast.",
            f"          runbook: docs/runbook.md#{objective.alert.lower()}",
        ]
    return "\n".join(lines) + "\n"


def _record(name: str, expression: str) -> list[str]:
    return [f"      - record: {name}", "        expr: |-", f"          {expression}"]


def _burning(objective: Objective, long: str, short: str, factor: float) -> list[str]:
    """A budget is spent that fast, and is so now. Where nothing was asked for within the short window, now is the last
    two or six hours, if nothing at all went well in them: else an outage at ten registrations a day would be over as
    soon as nobody comes."""
    series, limit = f"registrar:{objective.name}", f"{factor * objective.share:g}"
    return [
        "          (",
        f"            {series}:ratio{long} > {limit}",
        f"            and {series}:increase{long} > {objective.least - 0.5}",
        f"            and ({series}:ratio{short} or {series}:ratio2h > 0.999 or {series}:ratio6h > 0.999) > {limit}",
        "          )",
    ]


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(FILE.read_text(encoding="utf-8") != rules())
    FILE.write_text(rules(), encoding="utf-8")
