"""A release whose read model has changed replaces the one before while people register: each reads its own version, and
the new one takes no request before it can show what the former shows."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import subprocess
import sys
from typing import Any

import httpx
import pytest

from tests.faults.fleet import ROOT, Node
from tests.faults.people import Crowd, Inbox
from tests.faults.scene import Scene
from tests.faults.test_upgrade import A_SECOND, Traffic, goes_on
from tests.support.facts import eventually
from tests.support.log import query

PACKAGES = ("application", "domain", "entrypoints", "infrastructure", "projections")

CHANGES = (
    ('    name = "registrations"\n', '    name = "registrations_2"\n'),
    (
        "duplicate_of, event.locale, event.personal_data,",
        "duplicate_of, event.locale.upper(), event.personal_data,",
    ),
)
"""What the next release changes in `projections/registrations.py`: the name and the fold."""


@pytest.fixture
def next_release(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Runs a command with the code of a release in which a read model has changed: this one's, but for that."""
    code = tmp_path_factory.mktemp("next")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, code / package)  # with times and bytecode: only what changes is compiled
    changed = code / "projections" / "registrations.py"
    text = changed.read_text(encoding="utf-8")
    for before, after in CHANGES:
        assert text.count(before) == 1
        text = text.replace(before, after)
    changed.write_text(text, encoding="utf-8")
    program = f"import sys; sys.path.insert(0, {str(code)!r}); del sys.argv[0]; from entrypoints.cli.start import main; main()"
    return (sys.executable, "-c", program)


class Shell:
    """Runs commands of a release on the fleet's database."""

    def __init__(self, node: Node, prefix: tuple[str, ...]) -> None:
        self._command = [*prefix, "registrar", "projections"]
        self._environment = node.environment

    async def __call__(self, *words: str) -> Any:
        command = [*self._command, *words, "--json"]
        ran = await asyncio.to_thread(
            subprocess.run, command, cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)


async def ready(node: Node) -> tuple[int, dict[str, Any]]:
    async with httpx.AsyncClient(base_url=node.url, timeout=10) as http:
        answer = await http.get("/health/ready")
        return answer.status_code, answer.json()


async def position(scene: Scene, name: str) -> int:
    found = await query(scene.fleet.dsn, f"SELECT position FROM followers WHERE name = '{name}'")
    return int(found[0][0]) if found else 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("built", [True, False], ids=["built before", "built by its projector"])
async def test_a_release_with_a_new_version_of_a_read_model_replaces_the_one_before(
    scene: Scene, next_release: tuple[str, ...], built: bool
) -> None:
    fleet, traffic = scene.fleet, Traffic(scene)
    old_api, old_process = await asyncio.gather(fleet.serve(), fleet.process())
    traffic.serving = [old_api]
    crowd = Crowd(traffic.client, Inbox(scene.sink), random.Random(7), a_second=A_SECOND)  # noqa: S311 - repeatable
    people = asyncio.create_task(crowd.run())
    shell = Shell(old_api, next_release)
    try:
        await goes_on(scene)
        if built:
            [report] = await shell("rebuild", "registrations")
            assert (report["read_model"], report["outcome"]) == ("registrations_2", "built")
            assert {(one["table"], one["column"]) for one in report["found"]} == {("registrations", "locale")}

        # Nobody follows the new version yet, so the old one is ahead of it, and nobody is sent to who reads it.
        new_api = await fleet.serve(prefix=next_release)
        await goes_on(scene)
        status, answer = await ready(new_api)
        assert (status, answer["reason"]) == (503, "building read models")
        assert [(one["name"], one["other"]) for one in answer["read_models"]] == [("registrations_2", "registrations")]

        new_process = await fleet.process(prefix=next_release)

        async def is_ready() -> bool:
            return (await ready(new_api))[0] == 200

        await eventually(is_ready, within=120, every=0.2)
        await traffic.replace(old_api, new_api)
        await goes_on(scene)
        # The old process goes on with the old version, which it would serve should the deploy be taken back.
        assert min(await position(scene, "registrations"), await position(scene, "registrations_2")) > 0
        assert await old_process.stop() == 0
        await goes_on(scene)
        statuses = {one["name"]: (one["version"], one["status"]) for one in await shell("list")}
        assert statuses["registrations"] == (1, "superseded")
        assert statuses["registrations_2"] == (2, "up")
        assert [one["name"] for one in await shell("drop", "registrations")] == ["registrations"]
        await goes_on(scene)
    finally:
        crowd.go_home()
        await people
        await traffic.client.close()
    assert "registrations" not in {one["name"] for one in await shell("list")}
    assert [one["outcome"] for one in await shell("verify", "registrations")] == ["equal"]
    locales = await query(fleet.dsn, "SELECT DISTINCT locale FROM read_registrations_2.registrations")
    assert {locale for (locale,) in locales} == {locale.upper() for (locale,) in locales} != set()
    errors = [operation for operation in scene.journal if (operation.status or 0) >= 500]
    assert [operation for operation in errors if (operation.waits, operation.status) != (True, 503)] == []
    assert await new_process.stop() == 0
