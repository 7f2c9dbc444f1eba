"""Rows A: a process dies between two steps, another takes its place, and nothing is lost, doubled or stuck.

That it died there, and of SIGKILL, is what `Node.dies` asserts.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial
from uuid import UUID

import pytest

from tests.faults.evidence import copy_of
from tests.faults.fleet import Node
from tests.faults.journal import Client, Operation, fresh_key
from tests.faults.scene import Scene
from tests.support.facts import eventually
from tests.support.log import query

ADA = "ada@example.com"


async def recorded(scene: Scene, *topics: str) -> list[int]:
    """How many events of each topic are in the log."""
    return [await scene.recorded(topic) for topic in topics]


def copies(scene: Scene, address: str = ADA) -> list[str | None]:
    """The codes of the mails that reached an address."""
    return [copy.code for copy in map(copy_of, scene.sink.mails) if copy.to == address]


# --- The API --------------------------------------------------------------------------------------


async def lost_and_repeated(scene: Scene, point: str, **body: str) -> tuple[Client, int, Operation]:
    """A request whose API dies at a point, and its repeat with the same key; what was recorded in between."""
    api, _ = await asyncio.gather(scene.fleet.serve(armed=point), scene.fleet.process())
    client, key = scene.client_of(api), fresh_key()
    lost = await client.register(ADA, key=key, **body)
    await api.dies()
    assert (lost.outcome, lost.status) == ("unknown", None)
    begun = await scene.recorded("registration.user_registered")
    await api.start()
    return client, begun, await scene.accepted(client, ADA, key=key, **body)


@pytest.mark.fault("A1")
async def test_an_api_that_dies_before_it_appends_has_recorded_nothing_and_the_repeat_is_the_only_one(
    scene: Scene,
) -> None:
    client, begun, again = await lost_and_repeated(scene, "api.before_append")

    assert begun == 0
    await scene.prove(client, again)
    assert await recorded(scene, "registration.user_registered") == [1]
    await scene.must_hold()


@pytest.mark.fault("A2")
async def test_an_api_that_dies_between_commit_and_answer_answers_the_repeat_with_what_it_committed(
    scene: Scene,
) -> None:
    client, begun, again = await lost_and_repeated(scene, "api.after_commit")

    assert begun == 1
    await scene.prove(client, again)
    assert await recorded(scene, "registration.user_registered") == [1]
    await scene.must_hold()


@pytest.mark.fault("A3")
async def test_an_api_that_dies_while_it_hashes_a_password_has_recorded_nothing_and_the_repeat_works(
    scene: Scene,
) -> None:
    client, begun, again = await lost_and_repeated(scene, "api.hashing", password="canary-Passw0rd-2846")

    assert begun == 0
    await scene.prove(client, again)
    assert await recorded(scene, "registration.user_registered") == [1]
    await scene.must_hold()


# --- The process manager --------------------------------------------------------------------------


@pytest.mark.fault("A8")
async def test_a_process_manager_that_dies_between_its_commands_and_its_notes_repeats_them_without_effect(
    scene: Scene,
) -> None:
    # given: a mail that is refused for good, so the saga undoes the registration
    client = await scene.client_within()
    scene.sink.at("rcpt", "550 5.1.1 unknown")
    # The first passing is the request of the mail, the second its failure.
    worker = await scene.fleet.process(armed="pm.before_commit:2")
    refused = await scene.accepted(client, ADA)
    undone = ["registration.otp_revoked", "registration.registration_cancelled"]

    # when: its commands have run, and what it decided is not saved
    await worker.dies()
    assert await recorded(scene, *undone) == [1, 1]
    assert await recorded(scene, "mail_saga.undo_decided", "mail_saga.ended") == [0, 0]
    await scene.fleet.end_leases()
    await worker.start()

    # then
    await scene.becomes(client, refused.registration_id, status="CANCELLED")
    evidence = await scene.must_hold(refold=True)
    assert await recorded(scene, *undone, "mail_saga.ended") == [1, 1, 1]
    assert [dead.registration_id for dead in evidence.dead_letters] == [refused.registration_id]


# --- The mail worker ------------------------------------------------------------------------------


async def dies_with_a_mail_in_hand(scene: Scene, point: str) -> tuple[Client, Node, Operation]:
    """A worker that has died at a point with the mail of a registration."""
    client = await scene.client_within()
    worker = await scene.fleet.process(armed=point)
    registered = await scene.accepted(client, ADA)
    await worker.dies()
    return client, worker, registered


async def relay_has_passed(scene: Scene, registration_id: UUID | None) -> bool:
    """Is the relay's position beyond the request of the registration's mail?"""
    rows = await query(
        scene.fleet.dsn,
        "SELECT f.position >= e.notification_id FROM followers AS f, events AS e WHERE f.name = 'relay'"
        " AND e.topic = 'mail_saga.mail_requested'"
        " AND convert_from(e.state, 'UTF8')::jsonb ->> 'registration_id' = %s",
        str(registration_id),
    )
    return bool(rows[0][0])


@pytest.mark.fault("A9")
async def test_a_mail_whose_worker_dies_before_it_claims_it_is_sent_by_the_next_one(scene: Scene) -> None:
    client, worker, registered = await dies_with_a_mail_in_hand(scene, "worker.before_claim")
    assert not await relay_has_passed(scene, registered.registration_id)

    # when: there is no lease to wait for
    assert await scene.fleet.end_leases() == 0
    await worker.start()

    # then
    await scene.prove(client, registered)
    await scene.must_hold()
    assert len(copies(scene)) == 1


@pytest.mark.fault("A10")
async def test_a_mail_whose_worker_dies_after_it_claimed_it_is_sent_once_when_the_lease_is_over(scene: Scene) -> None:
    client, worker, registered = await dies_with_a_mail_in_hand(scene, "worker.after_claim")
    assert scene.sink.sessions == []

    # when: the dead worker's claim stood until now
    assert await scene.fleet.end_leases() == 1
    await worker.start()

    # then
    await scene.prove(client, registered)
    await scene.must_hold()
    assert len(copies(scene)) == 1


async def is_sent_a_second_time_with_the_same_code(
    scene: Scene, client: Client, worker: Node, registered: Operation
) -> None:
    assert await scene.fleet.end_leases() == 1
    await worker.start()
    await eventually(lambda: len(copies(scene)) == 2, within=60)
    await scene.prove(client, registered)
    await scene.must_hold()
    [code, again] = copies(scene)
    assert code == again


@pytest.mark.fault("A11")
async def test_a_mail_whose_worker_dies_before_the_servers_reply_is_sent_again_with_the_same_code(
    scene: Scene,
) -> None:
    # given: the server has the mail, and does not answer
    scene.sink.at("eod", "hang", times=1)
    client, worker, registered = await dies_with_a_mail_in_hand(scene, "worker.before_eod_reply")
    await scene.sink.until(lambda: len(scene.sink.mails) == 1)
    assert await recorded(scene, "registration.email_dispatched") == [0]

    # then
    await is_sent_a_second_time_with_the_same_code(scene, client, worker, registered)


@pytest.mark.fault("A12")
async def test_a_mail_whose_worker_dies_before_it_records_the_hand_over_is_sent_again_with_the_same_code(
    scene: Scene,
) -> None:
    # given: the server took the mail, and nobody but it knows
    client, worker, registered = await dies_with_a_mail_in_hand(scene, "worker.before_sent_event")
    assert len(copies(scene)) == 1
    assert await recorded(scene, "registration.email_dispatched") == [0]

    # then
    await is_sent_a_second_time_with_the_same_code(scene, client, worker, registered)


@pytest.mark.fault("A13")
async def test_a_mail_that_is_recorded_as_handed_over_is_not_sent_again_though_the_relay_repeats_its_request(
    scene: Scene,
) -> None:
    # given
    client, worker, registered = await dies_with_a_mail_in_hand(scene, "worker.before_ack")
    assert await recorded(scene, "registration.email_dispatched") == [1]
    assert not await relay_has_passed(scene, registered.registration_id)

    # when
    assert await scene.fleet.end_leases() == 1
    await worker.start()
    await scene.prove(client, registered)

    # then
    await scene.must_hold()
    assert await relay_has_passed(scene, registered.registration_id)
    assert len(copies(scene)) == 1


@pytest.mark.fault("A14")
async def test_a_mail_refused_for_good_is_one_dead_letter_though_its_worker_died_before_the_relay_knew(
    scene: Scene,
) -> None:
    # given
    scene.sink.at("rcpt", "550 5.1.1 unknown")
    client, worker, registered = await dies_with_a_mail_in_hand(scene, "worker.before_dead_ack")
    assert await recorded(scene, "registration.email_dispatch_failed") == [1]
    assert not await relay_has_passed(scene, registered.registration_id)

    # when
    assert await scene.fleet.end_leases() == 1
    await worker.start()
    await scene.becomes(client, registered.registration_id, status="CANCELLED")

    # then
    evidence = await scene.must_hold()
    assert [(dead.registration_id, dead.serial, dead.failure) for dead in evidence.dead_letters] == [
        (registered.registration_id, 1, "mailbox-unknown")
    ]
    assert await recorded(scene, "registration.registration_cancelled") == [1]
    assert copies(scene) == []


# --- Projectors and deadlines ---------------------------------------------------------------------


def arrived_or_over(scene: Scene, worker: Node, address: str) -> bool:
    return bool(copies(scene, address)) or not worker.is_running


@pytest.mark.fault("A15")
async def test_a_projector_that_dies_in_the_middle_of_a_transaction_has_moved_neither_its_rows_nor_its_position(
    scene: Scene,
) -> None:
    # given: some of the six read models have gone on, one is in the middle
    client = await scene.client_within()
    worker = await scene.fleet.process(armed="projector.mid:10")
    registered: list[Operation] = []
    while worker.is_running:
        address = f"ada{len(registered)}@example.com"
        registered.append(await scene.accepted(client, address))
        await eventually(partial(arrived_or_over, scene, worker, address), within=60)
    await worker.dies()

    # then: each is what the log up to its position makes of it
    evidence = await scene.must_hold(only=("I8", "I9"), healed=False, refold=True)
    assert min(evidence.followers.values()) < evidence.head

    # and: it goes on from there
    await scene.fleet.end_leases()
    await worker.start()
    await scene.prove(client, *registered)
    await scene.must_hold(refold=True)


@pytest.mark.slow
@pytest.mark.fault("A16")
async def test_a_pass_over_the_deadlines_that_dies_half_way_is_finished_by_the_other_process_once(
    scene: Scene,
) -> None:
    # given: two processes; the one that leads dies with the commands of a pass done and its notes not saved
    client = await scene.client_within()
    leader = await scene.fleet.process(armed="reconcile.mid", registration_ttl="3")
    await scene.fleet.until_it_leads()
    standby = await scene.fleet.process(registration_ttl="3")
    standby.pause()  # so that nobody takes over before we have looked
    expiring = [await scene.accepted(client, f"ada{number}@example.com") for number in range(3)]

    # when
    await leader.dies()
    assert await scene.recorded("registration.registration_cancelled") >= 1
    assert await scene.recorded("mail_saga.undo_decided") == 0

    standby.go_on()

    # then: all are undone, each once
    for registered in expiring:
        await scene.becomes(client, registered.registration_id, status="CANCELLED")
    await leader.start()
    await scene.must_hold(refold=True)
    undone = ["registration.otp_revoked", "registration.registration_cancelled", "mail_saga.ended"]
    assert await recorded(scene, *undone) == [3, 3, 3]
    assert re.search(r'"follower.leads".*"mail-saga"|"mail-saga".*"follower.leads"', standby.written)
