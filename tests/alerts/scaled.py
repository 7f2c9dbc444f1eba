"""Our rules in scaled time: what takes three minutes in earnest takes a second here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

DEPLOY: Final = Path(__file__).parents[2] / "deploy" / "prometheus"

SCALE: Final = 180
"""So many times faster: a window of five minutes has four scrapes, one of six hours takes two minutes."""

SCRAPES_EVERY: Final = "400ms"

_SECONDS: Final = {"m": 60, "h": 3_600, "d": 86_400}
_WINDOWS: Final = re.compile(r"(\[|offset |for: )(\d+)([mhd])\b")

AGES: Final = {
    # Less than what is usual here, or what a busy machine makes of it, would fire without a fault.
    "registrar_follower_lag_seconds) > 60": "registrar_follower_lag_seconds) > 8",
    "registrar_oldest_unsent_seconds) > 300": "registrar_oldest_unsent_seconds) > 15",
    "registrar_oldest_unsent_seconds) > 3600": "registrar_oldest_unsent_seconds) > 60",
    "registrar_checkpoint_age_seconds) > 60": "registrar_checkpoint_age_seconds) > 25",
    "registrar_checkpoint_unpublished_seconds) > 60": "registrar_checkpoint_unpublished_seconds) > 10",
    "registrar_backup_age_seconds) > 2 * 86400": "registrar_backup_age_seconds) > 15",
    "registrar_drill_age_seconds) > 10 * 86400": "registrar_drill_age_seconds) > 15",
    "registrar_webhook_failing_seconds) > 900": "registrar_webhook_failing_seconds) > 8",
    'le="60.0"': 'le="5.0"',
}
"""Limits of ages in the rules, and here."""


_CONSUMERS: Final = re.compile(r"(alert: RegistrarNobodyConsumes\n(?:(?! +- ).*\n)*? +for: )\w+")
"""How long it waits: RabbitMQ is looked at each five seconds, in haste as in earnest."""


def scaled(rules: str) -> str:
    """The text of a file of rules, with all of its times divided."""
    for limit, here in AGES.items():
        rules = rules.replace(limit, here)
    rules = _WINDOWS.sub(lambda found: f"{found[1]}{_SECONDS[found[3]] * int(found[2]) * 1000 // SCALE}ms", rules)
    return _CONSUMERS.sub(r"\g<1>12s", rules)


def configure(directory: Path, targets: Mapping[str, int]) -> None:
    """Write what a Prometheus is to know.

    Args:
        targets: ports on 127.0.0.1, by the name of the instance.

    Raises:
        AssertionError: a limit of `AGES` is in no rule any more.
    """
    (directory / "rules").mkdir()
    texts = {file.name: file.read_text(encoding="utf-8") for file in (DEPLOY / "rules").glob("*.yaml")}
    for limit in AGES:
        assert any(limit in text for text in texts.values()), limit
    for name, text in texts.items():
        (directory / "rules" / name).write_text(scaled(text), encoding="utf-8")
    scrapes = [
        {"targets": [f"127.0.0.1:{port}"], "labels": {"instance": instance}} for instance, port in targets.items()
    ]
    (directory / "prometheus.yaml").write_text(
        json.dumps(
            {
                "global": {
                    "scrape_interval": SCRAPES_EVERY,
                    "scrape_timeout": SCRAPES_EVERY,
                    "evaluation_interval": SCRAPES_EVERY,
                },
                "rule_files": ["rules/*.yaml"],
                "scrape_configs": [{"job_name": "registrar", "static_configs": scrapes}],
            }
        )
    )
