"""What is tried at each mail server. A scenario says what it saw, and complains of what should not be."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final

from infrastructure.embedded.postgres import EmbeddedPostgres
from tests.ground import plain_client
from tests.ground.running import Letter, RunningServer
from tests.ground.scene import (
    HOME,
    SENDER,
    Scene,
    circuits_opened,
    comes_true,
    mail_health,
    register,
    replies,
)
from tests.ground.table import NOT_APPLICABLE, Cell, guarded
from tests.support.http import Api
from tests.support.log import query

BY_THEMSELVES: Final = 300.0
"""Seconds within which mails have gone out by themselves after their server was mended: the saga looks again after
30 s, 2 min and 6 min."""
BURST: Final = 300
PATIENCE: Final = 300.0
"""Seconds that a burst may take."""
FIXED: Final = (1, 2, 5, 10)
"""Numbers of connections that are tried against the one that is felt for."""
AS_GOOD: Final = 0.8
"""Share of the best one's throughput that is asked for."""
ALARM_BY: Final = 11 * 60.0
"""Seconds after which a server that has only deferred has to be an alarm: ten minutes, and one to notice."""


def people(scene: Scene, number: int, domain: str = HOME) -> list[str]:
    """Nobody of an earlier scenario."""
    return [f"{next(scene.server.mailboxes)}@{domain}" for _ in range(number)]


async def arrives(scene: Scene) -> Cell:
    """Twenty registrations: each mail in its mailbox once, and each code works."""
    async with scene.product() as api:
        registered = await register(api, people(scene, 20))
        await scene.until_arrived([*registered], within=120)
        letters = scene.letters_to(registered)
        codes = {letter.to: letter.code for letter in letters}
        verified = [await api.verify(registered[to], code) for to, code in codes.items()]
    copies = Counter(letter.to for letter in letters)
    complaints = _unless(len(copies) == 20, f"{20 - len(copies)} mails missing")
    complaints += _unless(len(letters) == len(copies), f"{len(letters) - len(copies)} duplicates")
    works = sum(answer.status_code == 200 for answer in verified)
    complaints += _unless(works == len(copies), f"{len(copies) - works} codes refused")
    return Cell.of(complaints, f"{len(copies)} of 20")


async def unknown_user(scene: Scene) -> Cell:
    """A mailbox that does not exist, among others that do: it is undone, or kept if nothing says why; nobody else
    is."""
    before, after, unknown = people(scene, 5), people(scene, 5), f"nosuch@{HOME}"
    async with scene.product() as api:
        registered = await register(api, before)
        await scene.until_sent(5, within=60)
        registered |= await register(api, [unknown])

        async def refused() -> bool:
            return not re.fullmatch(r"accepted \d+", await replies(api))

        await comes_true(refused, within=60)
        registered |= await register(api, after)
        await scene.until_sent(10, within=120)
        others = {await _status(api, registered[person]) for person in before + after}
        fate = await _status(api, registered[unknown])
        seen = await replies(api)
    sent = (await scene.statuses())["sent"]
    complaints = _unless(others == {"PENDING"}, "others undone")
    complaints += _unless(sent == 10, f"{sent} of 10 others sent")
    complaints += _unless(not scene.quotes(registered), "the log quotes an address")
    return Cell.of(complaints, f"{'undone' if fate == 'CANCELLED' else 'kept'} ({seen})")


async def relaying_refused(scene: Scene) -> Cell:
    """A server that does not do what we need: nobody is undone, operators learn of it, and once it does, all go out."""
    elsewhere = people(scene, 5, "elsewhere.example")
    await scene.server.call("refuse_elsewhere")
    await scene.server.restart()
    async with scene.product() as api:
        await register(api, elsewhere)
        complaints, seen = await _nobody_undone_and_told(scene, api, elsewhere)
        await scene.server.call("accept_elsewhere")
        await scene.server.restart()
        started = asyncio.get_running_loop().time()
        all_sent = await scene.until_sent(5, within=BY_THEMSELVES)
        took = asyncio.get_running_loop().time() - started
    arrived = await scene.until_arrived(elsewhere, within=60 if all_sent else 0)
    sent = (await scene.statuses())["sent"]
    complaints += _unless(all_sent, f"mended, and {sent} of 5 sent {took:.0f} s later")
    complaints += _unless(arrived or not all_sent, "not in the mailbox")
    return Cell.of(complaints, f"{seen}; mended, all sent after {took:.0f} s" if all_sent else seen)


async def sender_refused(scene: Scene) -> Cell:
    """A sender whose domain does not exist: nobody is undone."""
    await scene.server.call("check_senders")
    await scene.server.restart()
    home = people(scene, 5)
    async with scene.product(sender="registrar@nowhere.example") as api:
        await register(api, home)
        complaints, seen = await _nobody_undone_and_told(scene, api, home)
    return Cell.of(complaints, seen)


async def only_deferred(scene: Scene) -> Cell:
    """Ten minutes of nothing but deferrals are an alarm. For those servers that defer what they will never do."""
    await scene.server.call("refuse_elsewhere")
    await scene.server.restart()
    elsewhere = people(scene, 3, "elsewhere.example")
    async with scene.product() as api:
        await register(api, elsewhere)

        async def told() -> bool:
            return bool(scene.alarms()) and await mail_health(api) != "up"

        await comes_true(told, within=ALARM_BY)
        complaints, seen = _told(scene, elsewhere, await mail_health(api))
        seen += f" ({await replies(api)})"
    undone = (await scene.statuses())["undone"]
    return Cell.of(_unless(undone == 0, f"{undone} undone") + complaints, seen)


async def burst(scene: Scene) -> Cell:
    """300 registrations wait: all are sent, as fast as by ourselves with the best of some fixed numbers of connections.
    What a client is able to that does nothing else is told, too; it leaves the server both cores."""
    everybody = people(scene, BURST)
    rate, seen, complaints = await _rate_of(scene, everybody)
    await scene.until_arrived(everybody, within=120)
    best, connections = 0.0, 0
    for number in (*FIXED, None):  # twice by feel, before and after: a machine is not always as fast
        await scene.server.restart()
        one, _, complained = await _rate_of(await scene.anew(), people(scene, BURST), connections=number)
        if number is None:
            rate, complaints = max(rate, one), complaints + complained
        else:
            best, connections = max((best, connections), (one, number))
    bare, by = await _best_of_plain_clients(scene, everybody)
    ratio = rate / best
    complaints += _unless(ratio >= AS_GOOD, f"ratio {ratio:.2f}")
    figures = f"{rate:.0f}/s, {ratio:.2f} of {best:.0f}/s with {connections} fixed; nothing but a client: {bare:.0f}/s with {by}"
    return Cell.of(complaints, f"{figures}; {seen}")


async def _rate_of(
    scene: Scene, everybody: Sequence[str], *, connections: int | None = None
) -> tuple[float, str, list[str]]:
    """Mails a second by the product, the server's replies, and complaints."""
    async with scene.product(follows=False) as api:
        await register(api, everybody)
    async with scene.product(connections=connections) as api:
        all_sent = await scene.until_sent(BURST, within=PATIENCE)
        opened, seen = await circuits_opened(api), await replies(api)
    sent = (await scene.statuses())["sent"]
    complaints = _unless(all_sent, f"{sent} of {BURST} sent within {PATIENCE:.0f} s")
    complaints += _unless(opened == 0, f"circuit opened {opened} times")
    return (sent / await _seconds_of_sending(scene) if sent else 0.0), seen, complaints


async def restarted(scene: Scene) -> Cell:
    """The server goes down and comes back in the middle of a hundred mails: all arrive, copies only where the outcome
    of a try was unknown."""
    everybody = people(scene, 100)
    async with scene.product(follows=False) as api:
        await register(api, everybody)
    async with scene.product() as api:
        await scene.until_sent(20, within=120)
        before = (await scene.statuses())["sent"]
        await scene.server.stop()
        await scene.server.start()
        started = asyncio.get_running_loop().time()
        all_sent = await scene.until_sent(100, within=BY_THEMSELVES)
        took = asyncio.get_running_loop().time() - started
        seen = await replies(api)
    await scene.until_arrived(everybody, within=60)
    letters = _as_accepted(scene.letters_to(everybody))
    arrived, sent = {letter.to for letter in letters}, (await scene.statuses())["sent"]
    unknown = await _unknown_outcomes(scene)
    complaints = _unless(all_sent, f"{sent} of 100 sent within {BY_THEMSELVES:.0f} s")
    complaints += _unless(len(arrived) == sent or not all_sent, f"{100 - len(arrived)} missing")
    complaints += _copies(letters, unknown)
    copies = len(letters) - len(arrived)
    return Cell.of(complaints, f"stopped after {before}, all sent {took:.0f} s later, {copies} copies; {seen}")


SCENARIOS: Final[Mapping[str, tuple[Callable[[Scene], Awaitable[Cell]], str]]] = {
    "twenty arrive": (arrives, "start"),
    "unknown user": (unknown_user, "refuse_unknown"),
    "relaying refused": (relaying_refused, "refuse_elsewhere"),
    "sender refused": (sender_refused, "check_senders"),
    "burst of 300": (burst, "start"),
    "restarted amid 100": (restarted, "start"),
    "only deferred": (only_deferred, "defer_elsewhere"),
}
"""By its name in the table: a scenario, and the function that a server's script has if it concerns it."""


async def run(scenario: str, server: RunningServer, postgres: EmbeddedPostgres) -> Cell:
    play, demanded = SCENARIOS[scenario]
    if not server.has(demanded):
        return NOT_APPLICABLE

    async def played() -> Cell:
        await server.reset()
        await server.restart()
        return await play(await Scene.set(server, postgres))

    return await guarded(played())


def _unless(holds: bool, complaint: str) -> list[str]:
    return [] if holds else [complaint]


async def _status(api: Api, registration_id: str) -> str:
    status: str = (await api.look(registration_id)).json()["status"]
    return status


async def _saga_has_decided(scene: Scene) -> bool:
    """About all failures so far: its commands run before its position is moved past their events."""
    rows = await query(
        scene.dsn,
        "SELECT coalesce(max(notification_id), 0) <= (SELECT position FROM followers WHERE name = 'mail-saga')"
        " FROM events WHERE topic = 'registration.email_dispatch_failed'",
    )
    return bool(rows[0][0])


async def _nobody_undone_and_told(scene: Scene, api: Api, concerned: Sequence[str]) -> tuple[list[str], str]:
    """Complaints and what was seen, once each mail was tried or the operators told. Of deferrals they are told after
    ten minutes: `only_deferred`."""
    tried = "SELECT count(DISTINCT originator_id) FROM events WHERE topic = 'registration.email_dispatch_failed'"

    async def all_tried() -> bool:
        return bool((await query(scene.dsn, tried))[0][0] >= len(concerned)) or bool(scene.alarms())

    await comes_true(all_tried, within=60)
    await comes_true(scene.alarms, within=5)
    await comes_true(partial(_saga_has_decided, scene), within=60)
    numbers, seen = await scene.statuses(), await replies(api)
    complaints = _unless(numbers["undone"] == 0, f"{numbers['undone']} of {len(concerned)} undone")
    complaints += _unless(not numbers["sent"], "it was not refused")
    if not await _only_defers(scene):
        await comes_true(partial(_is_not_well, api), within=15)
        more, told = _told(scene, concerned, await mail_health(api))
        return complaints + more, f"{told} ({seen})"
    return complaints, f"deferred ({seen})"


def _told(scene: Scene, concerned: Sequence[str], health: str) -> tuple[list[str], str]:
    alarms = scene.alarms()
    complaints = _unless(bool(alarms), "no error line") + _unless(health != "up", "health up")
    complaints += _unless(not scene.quotes(concerned), "the log quotes an address")
    first = alarms[0] if alarms else {}
    reply = " ".join(str(first[part]) for part in ("reply", "status") if first.get(part))
    return complaints, f"{first.get('event', 'nothing')} {reply}, health {health}".strip()


async def _seconds_of_sending(scene: Scene) -> float:
    """From the first request of a mail to the last acceptance."""
    rows = await query(
        scene.dsn,
        "SELECT extract(epoch FROM max(recorded_at) FILTER (WHERE topic = 'registration.email_dispatched')"
        " - min(recorded_at) FILTER (WHERE topic = 'mail_saga.mail_requested')) FROM events",
    )
    return float(rows[0][0])


async def _best_of_plain_clients(scene: Scene, everybody: Sequence[str]) -> tuple[float, int]:
    """Mails a second, and by how many connections. Each has the server anew, with its limits unused."""
    content = scene.letters_to(everybody)[0].data
    best, by = PATIENCE, 0
    for connections in plain_client.CONNECTIONS:
        await scene.server.restart()
        letters = [(person, _readdressed(content, person)) for person in everybody]
        try:
            async with asyncio.timeout(best):
                best = await plain_client.seconds_for(scene.server.port, SENDER, letters, connections=connections)
                by = connections
        except TimeoutError:
            continue
    return len(everybody) / best, by


def _readdressed(content: bytes, person: str) -> bytes:
    """The same mail to somebody else, of no registration."""
    head, _, body = content.partition(b"\r\n\r\n")
    head = re.sub(rb"(?mi)^To:.*$", b"To: %b\r" % person.encode(), head).replace(b"\r\r", b"\r")
    head = re.sub(
        rb"(?mi)^(Received|Return-Path|Delivered-To|Message-ID|X-\S+|Envelope-to|Delivery-date):.*\n(?:[ \t].*\n)*",
        b"",
        head,
    )
    return head + b"\r\n\r\n" + body


async def _is_not_well(api: Api) -> bool:
    return await mail_health(api) != "up"


async def _only_defers(scene: Scene) -> bool:
    """Were all its refusals 4xx?"""
    rows = await query(
        scene.dsn,
        "SELECT count(*) FILTER (WHERE convert_from(state, 'UTF8')::jsonb ->> 'reply_code' NOT LIKE '4%')"
        " FROM events WHERE topic = 'registration.email_dispatch_failed'",
    )
    return not rows[0][0]


async def _unknown_outcomes(scene: Scene) -> int:
    rows = await query(
        scene.dsn,
        "SELECT count(*) FROM events WHERE topic = 'registration.email_dispatch_failed'"
        " AND position('\"outcome_unknown\":true'::bytea IN state) > 0",
    )
    return int(rows[0][0])


def _as_accepted(letters: Sequence[Letter]) -> list[Letter]:
    """Without what the server itself delivered again."""
    once = {(letter.to, letter.acceptance or number): letter for number, letter in enumerate(letters)}
    return list(once.values())


def _copies(letters: Sequence[Letter], unknown: int) -> list[str]:
    """Complaints of copies that nothing explains, or that are not alike."""
    copies = len(letters) - len({letter.to for letter in letters})
    alike = len({(letter.to, letter.message_id, letter.code) for letter in letters}) == len({one.to for one in letters})
    return _unless(copies <= unknown, f"{copies} copies, {unknown} tries of unknown outcome") + _unless(
        alike, "copies differ"
    )
