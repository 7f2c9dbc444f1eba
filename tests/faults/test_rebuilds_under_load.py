"""Rebuilds while people register and everybody reads; read models that somebody has harmed, and that are rebuilt."""

from __future__ import annotations

import pytest

from tests.faults.rebuilding import rebuild_under_load
from tests.faults.scene import Scene
from tests.faults.shell import Shell
from tests.support.facts import eventually
from tests.support.log import query

HARMS = (
    "TRUNCATE read_registrations.registrations, read_registrations.progress",
    "DROP TABLE read_registrations.progress",
    "DROP SCHEMA read_registrations CASCADE",
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.fault("X6")
async def test_no_read_fails_or_goes_backwards_while_read_models_are_rebuilt_under_load(
    scene: Scene, full_size: bool
) -> None:
    api = await scene.fleet.serve()
    await scene.fleet.process()
    await scene.fleet.until_it_leads()

    outcome = await rebuild_under_load(
        scene, api, rebuilds=100 if full_size else 7, reads=100_000 if full_size else 1_000
    )

    print(outcome)
    assert outcome.wrong == []
    assert (outcome.seen.failed, outcome.seen.backwards, outcome.seen.told) == (0, 0, [])
    assert outcome.model_reads > outcome.rebuilds
    await scene.must_hold(only=("I9", "I14"))  # what verifies needs no other fold


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.fault("X6")
async def test_a_read_model_that_was_deleted_is_rebuilt_while_people_register(scene: Scene, dsn: str) -> None:
    api = await scene.fleet.serve()
    await scene.fleet.process()
    await scene.fleet.until_it_leads()
    client = scene.client_of(api)
    registered = [await scene.accepted(client, f"person{number}@example.com") for number in range(len(HARMS))]
    await scene.fleet.until_caught_up()
    shell = Shell.of(scene.fleet)

    for one, harm in zip(registered, HARMS, strict=True):
        with scene.faults.during(harm, "process"):
            await query(dsn, harm)
            await scene.accepted(client, f"amid-{one.address}")  # goes on
            rebuilt = shell.rebuild("registrations", "--repair")

        assert (rebuilt.code, rebuilt.report["outcome"]) == (0, "swapped"), rebuilt
        await scene.prove(client, one, within=120)  # a follower that failed begins again within half a minute
    verified = shell.projections("verify", "--json")
    assert (verified.code, {one["outcome"] for one in verified.reports}) == (0, {"equal"}), verified
    await eventually(lambda: len(scene.copies) == 2 * len(HARMS))
    await scene.must_hold(refold=True)
