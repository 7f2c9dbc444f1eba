"""Messages that die on their way to a mail server: poison, bugs, expiry, strangers. Each has its entry, none is lost.

All of it but a worker's death in this very process, on a virtual host of the shared node.
"""

from __future__ import annotations

import io
import json
import signal
from collections import Counter
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from application.ports import MailRequest, WantedMail
from domain.email_claim import EmailClaim
from domain.mail_outcome import MailKind
from domain.registration import Registration
from domain.stray_message import StrayMessage
from entrypoints.cli import mail as cli_mail
from infrastructure.rabbitmq.mail_message import MAX_BODY_BYTES, encode
from infrastructure.rabbitmq.topology import FAILED_QUEUE
from tests.faults.scene import Scene
from tests.support.broker import put, spy_on, spy_on_dead_letters, until_empty, until_up, waiting
from tests.support.facts import eventually
from tests.support.log import query

KEPT = StrayMessage.StrayMessageKept.TOPIC
FAILED = Registration.EmailDispatchFailed.TOPIC
STRANGER = "stranger.canary@example.org"


async def until_recorded(scene: Scene, topic: str, count: int = 1, *, within: float = 60) -> None:
    async def enough() -> bool:
        return await scene.recorded(topic) >= count

    await eventually(enough, within=within, every=0.1)


async def failures(scene: Scene) -> list[str]:
    """How each failed mail failed, in the order of the log."""
    rows = await query(scene.fleet.dsn, "SELECT state FROM events WHERE topic = %s ORDER BY notification_id", FAILED)
    return [json.loads(state)["failure"] for (state,) in rows]


async def died(scene: Scene) -> list[int]:
    """Positions of the requests that are recorded as dead."""
    rows = await query(scene.fleet.dsn, "SELECT state FROM events WHERE topic = %s", FAILED)
    return [json.loads(state)["request_position"] for (state,) in rows]


async def reasons(scene: Scene) -> Counter[str]:
    """Why messages are kept for inspection."""
    rows = await query(scene.fleet.dsn, "SELECT state FROM events WHERE topic = %s", KEPT)
    return Counter(json.loads(state)["reason"] for (state,) in rows)


async def causes_of_death(scene: Scene) -> set[str]:
    """What messages that are kept for inspection died of."""
    rows = await query(scene.fleet.dsn, "SELECT state FROM events WHERE topic = %s", KEPT)
    return {json.loads(state)["died_of"] for (state,) in rows}


@pytest.mark.fault("A14")
async def test_a_dead_letter_whose_consumer_dies_after_it_recorded_it_is_one_entry_and_its_mail_arrives(
    scene_over_broker: Scene, broker_url: str
) -> None:
    scene = scene_over_broker
    client = await scene.client_within(broker_up=True)
    async with scene.within(follows=True, message_ttl="1"):
        # given: a request that nobody took in time
        async with spy_on_dead_letters(broker_url) as dead:
            registered = await scene.accepted(client, "ada@example.com")
            await eventually(lambda: len(dead) == 1)

        worker = await scene.fleet.work(armed="dead_letters.before_ack", wait=False)
        await worker.dies()
        assert await failures(scene) == ["expired"]
        await worker.start()
        await until_empty(broker_url, FAILED_QUEUE)
        worker.signal(signal.SIGTERM)
        assert await worker.ends() == 0  # and what it had in hand is seen through

        assert await failures(scene) == ["expired"]
        rows = await query(scene.fleet.dsn, "SELECT serial FROM read_mail.mails")
        assert rows == [(1,)]
        async with scene.within(works=True) as other:
            await until_up(other)
            await retried(scene, registered.registration_id)
            await scene.prove(client, registered)
        assert scene.copies == {b"ada@example.com": 1}
        await scene.must_hold()


@pytest.mark.fault("A5")
async def test_copies_of_a_request_that_die_are_one_entry_and_the_next_request_that_dies_is_another(
    scene_over_broker: Scene, broker_url: str
) -> None:
    scene = scene_over_broker
    client = await scene.client_within(broker_up=True)
    async with scene.within(follows=True, message_ttl="1"), spy_on_dead_letters(broker_url) as dead:
        registered = await scene.accepted(client, "ada@example.com")
        await eventually(lambda: dead)
        headers = {"registrar-position": dead[0].headers["registrar-position"]}
        await put(broker_url, *[dead[0].body] * 3, headers=headers, expiration=0.1)
        await eventually(lambda: len(dead) >= 4)
        await taken_from_the_dead_letters(scene, broker_url)
        await retried(scene, registered.registration_id)
        await eventually(lambda: len({message.headers["registrar-position"] for message in dead}) >= 2)
        await taken_from_the_dead_letters(scene, broker_url)

        of_a_request = Counter(await died(scene))
        assert len(of_a_request) >= 2
        assert set(of_a_request.values()) == {1}
    async with scene.within(follows=True, works=True):
        await retried(scene, registered.registration_id)
        await scene.prove(client, registered)
        assert scene.copies == {b"ada@example.com": 1}
        await scene.must_hold()


async def taken_from_the_dead_letters(scene: Scene, broker_url: str) -> None:
    """Until a worker has seen every dead letter through: on its way out those in its hands, too."""
    async with scene.within(works=True) as worker:
        await until_up(worker)
        await until_empty(broker_url, FAILED_QUEUE)


async def retried(scene: Scene, registration_id: UUID | None) -> None:
    """An operator wants a mail tried again now."""
    assert registration_id is not None
    async with scene.within() as service:
        assert await cli_mail.retry(service.desk, [registration_id], as_json=True) == 0


def request(kind: str = "code", serial: int = 1, registration_id: UUID | None = None) -> bytes:
    """Somebody's request, of a registration that is not in our log if it is not told which."""
    wanted = WantedMail(registration_id or uuid4(), serial, MailKind.CODE, datetime.now(UTC))
    return encode(MailRequest(wanted, None, uuid4(), None)).replace(MailKind.CODE.encode(), kind.encode())


POISON = {
    "not JSON": b"canary {",
    "nothing": b"",
    "another schema": json.dumps({"email": STRANGER, "registration_id": str(uuid4())}).encode(),
    "an unknown version": request().replace(b"{", b'{"version":9,', 1),
    "an unknown kind": request(kind=STRANGER),
    "a serial out of range": request(serial=2**63),
    "five megabytes": b'{"registration_id":"' + b"canary" * (5 * 2**20 // 6) + b'"}',
    "deep nesting": b"[" * 100_000 + b"]" * 100_000,
    "deep nesting, not too long": b"[" * (MAX_BODY_BYTES // 2) + b"]" * (MAX_BODY_BYTES // 2),
    "bad UTF-8": b'{"registration_id":"\xff\xfe canary"}',
    "NUL": b'{"registration_id":"\x00"}',
}


@pytest.mark.fault("C13")
async def test_poison_goes_straight_to_the_dead_letters_and_is_kept_without_a_word_of_it(
    scene_over_broker: Scene, broker_url: str, log: io.StringIO
) -> None:
    scene = scene_over_broker
    client = await scene.client_within(broker_up=True)
    async with scene.within(follows=True, works=True):
        await put(broker_url, *POISON.values(), content_type=f"text/{STRANGER}", headers={"traceparent": STRANGER})
        registered = await scene.accepted(client, "ada@example.com")

        await scene.prove(client, registered)
        await until_recorded(scene, KEPT, len(POISON))
        kept = await reasons(scene)
        assert kept.total() == len(POISON)
        assert set(kept) == {"not-a-mail-request", "too-long"}
        assert (await waiting(broker_url), await waiting(broker_url, FAILED_QUEUE)) == (0, 0)
        evidence = await scene.must_hold()

    written = log.getvalue()
    assert "mail_message.rejected" in written
    for word in (STRANGER, "canary"):
        assert word not in written
        assert word not in evidence.texts["the database"]


@pytest.mark.slow
@pytest.mark.fault("C14")
async def test_a_mail_that_brings_its_handler_down_is_a_dead_letter_after_a_few_deliveries_while_others_flow(
    scene_over_broker: Scene, broker_url: str
) -> None:
    scene = scene_over_broker
    client = await scene.client_within(broker_up=True)
    async with scene.within(follows=True):
        # given: a registrant whose key was damaged, which nobody thought of
        async with spy_on(broker_url) as seen:
            poor = await scene.accepted(client, "poor@example.com")
            await eventually(lambda: len(seen) == 1)
        damage = (
            "UPDATE personal_keys SET wrapped = set_byte(wrapped, 20, get_byte(wrapped, 20) # 255)"
            " WHERE registration_id = %s RETURNING 1"
        )
        assert await query(scene.fleet.dsn, damage, poor.registration_id) == [(1,)]
        async with scene.within(works=True):
            others = [await scene.accepted(client, f"person-{number}@example.com") for number in range(5)]
            await scene.prove(client, *others)
            await until_recorded(scene, FAILED)

            assert await failures(scene) == ["crashed"]
            assert await waiting(broker_url) == 0
            assert await query(scene.fleet.dsn, damage, poor.registration_id) == [(1,)]  # again: as it was
            await retried(scene, poor.registration_id)
            await scene.prove(client, poor)
        assert set(scene.copies.values()) == {1}
        await scene.must_hold()


@pytest.mark.fault("X5")
async def test_a_message_about_a_registration_that_nobody_knows_is_kept_as_unknown_and_stops_nobody(
    scene_over_broker: Scene, broker_url: str
) -> None:
    scene = scene_over_broker
    client = await scene.client_within(broker_up=True)
    async with scene.within(follows=True, works=True):
        # As after a restore: what was requested since is with the broker, and not in the log.
        await put(broker_url, *(request() for _ in range(3)))
        await until_recorded(scene, KEPT, 3)
        # A position that is none, which is an int to Python and not to pydantic.
        await put(broker_url, request(), headers={"registrar-position": True})
        await until_recorded(scene, KEPT, 4)
        await scene.prove(client, await scene.accepted(client, "ada@example.com"))
        [(claim,)] = await query(
            scene.fleet.dsn, "SELECT originator_id FROM events WHERE topic = %s", EmailClaim.EmailClaimed.TOPIC
        )
        await put(broker_url, request(registration_id=claim))  # the id of something that is in our log
        await until_recorded(scene, KEPT, 5)

        assert await reasons(scene) == {"unknown-registration": 5}
        assert await causes_of_death(scene) == {"rejected"}  # at the first delivery, not after some that crashed
        assert len(scene.sink.mails) == 1
        await scene.must_hold()


async def test_a_forged_code_for_a_duplicate_is_kept_as_a_strangers_and_the_owner_is_told_once_a_day_all_the_same(
    scene_over_broker: Scene, broker_url: str
) -> None:
    scene = scene_over_broker
    client = await scene.client_within(broker_up=True, resend_cooldown="1ms")  # two mails to one mailbox
    async with scene.within(follows=True, works=True):
        owner = await scene.accepted(client, "ada@example.com")
        await scene.prove(client, owner)
    duplicate = await scene.accepted(client, "ada@example.com", name="Mallory")
    forged = request("code", registration_id=duplicate.registration_id)
    async with scene.within(works=True):
        await put(broker_url, forged)  # while its mail is wanted
        await until_recorded(scene, KEPT)
        assert len(scene.sink.mails) == 1
    async with scene.within(follows=True, works=True):
        await until_recorded(scene, Registration.OwnerNotified.TOPIC)
        await put(broker_url, forged)  # also for a mail that is not wanted any more
        await until_empty(broker_url)
        await until_empty(broker_url, FAILED_QUEUE)
        await scene.fleet.until_caught_up()

        assert await reasons(scene) == {"other-kind": 1}  # the same bytes are one entry
        assert await failures(scene) == []
        assert len(scene.sink.mails) == 2  # the owner's code, and the notice
        funnel = await query(
            scene.fleet.dsn, "SELECT duplicate, count FROM read_funnel.stages WHERE stage = 'mail_dispatched'"
        )
        assert dict(funnel) == {False: 1, True: 1}
        mails = await query(scene.fleet.dsn, "SELECT kind, state FROM read_mail.mails ORDER BY created_position")
        assert mails == [("code", "SENT"), ("notice", "SENT")]
        await scene.must_hold()


@pytest.mark.fault("C18")
async def test_dead_letters_that_an_operator_has_tried_again_twice_are_one_mail_each_with_a_code_that_works(
    scene_over_broker: Scene, broker_url: str
) -> None:
    scene = scene_over_broker
    client = await scene.client_within(broker_up=True)
    async with scene.within(follows=True, message_ttl="1"), spy_on_dead_letters(broker_url) as dead:
        registered = [await scene.accepted(client, f"person-{number}@example.com") for number in range(4)]
        await eventually(lambda: len(dead) == 4)
    async with scene.within(follows=True, works=True) as service:
        await until_recorded(scene, FAILED, 4)
        await scene.fleet.until_caught_up()

        for _ in range(2):
            assert await cli_mail.retry_all(service.desk, (), as_json=True) == 0

        await scene.prove(client, *registered)
        assert set(scene.copies.values()) == {1}
        assert await scene.recorded(Registration.EmailRetryRequested.TOPIC) >= 4
        await scene.must_hold()
