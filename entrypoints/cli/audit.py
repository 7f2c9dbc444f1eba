"""The commands of the auditor, with their options and examples."""

from __future__ import annotations

import click

from entrypoints.cli import audit_log, options
from entrypoints.cli.audit_checkpoints import checkpoints
from entrypoints.cli.audit_prove import prove
from entrypoints.cli.audit_verify import verify


@click.group("audit", epilog=options.example("registrar audit verify"))
def audit() -> None:
    """Explain what happened, search the log, verify it, and prove it to others."""


audit.add_command(audit_log.explain)
audit.add_command(audit_log.search)
audit.add_command(audit_log.export)
audit.add_command(prove)
audit.add_command(verify)
audit.add_command(checkpoints)
