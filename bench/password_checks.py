"""Passwords checked for a login service, beside the bare hash: the same library, parameters and pages, a thread a core.

Matching passwords of accounts that there are: the check that takes most, because it also opens what is sealed.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from functools import partial
from typing import Final
from uuid import UUID

import httpx
from pydantic import SecretStr

from application.commands import ActivateAccount, RegisterUser, VerifyEmail
from application.ports import Context
from bench.bare_hashes import AS_THE_SERVICE, PASSWORD
from bench.cluster import Cluster
from bench.over_http import HASHING_CONNECTIONS
from bench.processes import MASTER_KEY, Process, cpu_seconds, load, registrar_serve, run_job, with_warm_up
from bench.report import Row, median_by_side, medians
from domain.recorded import Actor
from infrastructure.settings.settings import Settings
from tests.support.service import open_service

ACCOUNTS: Final = 64

TOKEN: Final = "t0ken-of-the-benchmark"  # noqa: S105 - nobody's
_HEADERS: Final = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
_BODY: Final = f'{{"password": "{PASSWORD}"}}'
NO_LIMITS: Final = {"REGISTRAR_LIMITS": "password-checks=off,all-password-checks=off", "REGISTRAR_ADMIN_TOKEN": TOKEN}


def run(cluster: Cluster, *, seconds: float, repetitions: int) -> list[Row]:
    """The rate of checks, and what one takes of `serve` beyond the hash."""
    cpu: dict[str, list[float]] = defaultdict(list)
    with cluster.fresh() as dsn:
        ids = asyncio.run(_accounts(dsn))
        cluster.settle()
        with registrar_serve(dsn, NO_LIMITS) as serve:
            assert _matches(serve, ids[0])

            def ours() -> float:
                return _checked(serve, ids, seconds, cpu["ours"])

            def bare(*, kept: bool = False) -> float:
                outcome = run_job("bench.bare_hashes", {"seconds": seconds, "kept": kept}, AS_THE_SERVICE)
                cpu["kept" if kept else "bare"].append(1000 * outcome["cpu"])
                return float(outcome["rate"])

            rates = median_by_side({"ours": ours, "bare": bare, "kept": partial(bare, kept=True)}, repetitions)
    rate, other, kept = medians(rates).values()
    used, least, least_kept = medians(dict(cpu)).values()
    against = "bare argon2id (the same library and pages), a thread a core"
    keeping = "the same, which keeps its memory, too"
    details = {"checks a second": rates, "milliseconds of CPU": dict(cpu)}
    return [
        Row(
            "POST …/password-check",
            against,
            f"{rate:,.0f}/s",
            f"{other:,.0f}/s",
            rate / other,
            "x",
            0.95,
            True,
            details,
        ),
        Row("the same", keeping, f"{rate:,.0f}/s", f"{kept:,.0f}/s", rate / kept, "x", None, True),
        Row("the same, CPU of `serve`", against, f"{used:.2f} ms", f"{least:.2f} ms", used / least, "x", None, False),
        Row(
            "the same, CPU of `serve`",
            keeping,
            f"{used:.2f} ms",
            f"{least_kept:.2f} ms",
            used / least_kept,
            "x",
            None,
            False,
        ),
    ]


def _matches(serve: Process, account: UUID) -> bool:
    url = f"http://127.0.0.1:{serve.port}{_path(account)}"
    checked = httpx.post(url, content=_BODY, headers=_HEADERS)
    return bool(checked.json()["matches"])


def _path(account: UUID) -> str:
    return f"/v1/admin/accounts/{account}/password-check"


def _checked(serve: Process, ids: list[UUID], seconds: float, cpu: list[float]) -> float:
    """Checks a second; one that was not answered stops the measurement."""
    job = {"what": "post", "paths": list(map(_path, ids)), "body": _BODY, "token": TOKEN}
    used = cpu_seconds(serve.pid)
    outcome = load(serve, connections=HASHING_CONNECTIONS, seconds=seconds, **job)
    assert set(outcome["statuses"]) == {"200"}, outcome["statuses"]
    checks = len(outcome["latencies"])
    cpu.append(1000 * (cpu_seconds(serve.pid) - used) / (checks * with_warm_up(outcome["seconds"])))
    return float(checks / outcome["seconds"])


async def _accounts(dsn: str) -> list[UUID]:
    """Accounts with that password, by the service's own commands."""
    context = Context(Actor.CLIENT, UUID("c0000000-0000-4000-8000-000000000001"))
    with tempfile.TemporaryDirectory(prefix="registrar-bench-") as directory:
        given = {"DATABASE_URL": dsn, "MASTER_KEY": MASTER_KEY, "DATA_DIR": directory}
        settings = Settings.from_environment({f"REGISTRAR_{name}": value for name, value in given.items()})
        async with open_service(settings, follows=False) as service:
            found = []
            for number in range(ACCOUNTS):
                command = RegisterUser(
                    email=f"account-{number}@bench.example", name="Ada Lovelace", password=SecretStr(PASSWORD)
                )
                registered = (await service.handlers.handle(command, context)).subject_id
                code = SecretStr(service.keyring.code(registered, 1))
                await service.handlers.handle(VerifyEmail(registration_id=registered, code=code), context)
                await service.handlers.handle(ActivateAccount(registration_id=registered), context)
                found.append(registered)
            return found
