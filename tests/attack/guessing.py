"""Attackers who guess: many codes at one registration, one code at many, and ids that they were never told."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import Final
from uuid import UUID

from tests.attack.deeds import UNSENT, Field, Guesses, Range
from tests.attack.floods import in_lanes
from tests.attack.wire import Network, Who, at_our_domain, honest_network
from tests.faults.journal import NAME
from tests.support.facts import eventually
from tests.support.log import query

AT_ONCE: Final = 200
TRIES: Final = 5
LOCKS: Final = 5
"""Tries of a code, and locked codes that end a registration (docs/security.md, S4)."""

PATIENCE: Final = 300.0
"""Seconds."""

PATIENT_UP_TO: Final = 5.0
"""Seconds of cooldown up to which somebody waits for one code after the other."""


class Guess:
    """Guesses 200 codes at once at each of a few registrations, and then, with new codes, at one until it ends.

    Claim: five guesses are compared, then not even the right code is; after five codes nothing is.
    """

    NETWORKS: Final = Range(150, 170)

    def __init__(self, *, hasty: bool) -> None:
        """
        Args:
            hasty: guesses begin before the mail is out. A code that is locked by then is not sent at all; the next one
                follows two minutes later.
        """
        self._hasty = hasty

    async def attack(self, field: Field, requests: int) -> None:
        turns = count()
        for number in range(max(1, requests // (AT_ONCE + 2))):
            registration_id = await self._begun(field, number)
            guesses = field.deeds.guesses[registration_id]
            codes = self._wrong_codes(field, registration_id)
            await asyncio.gather(
                *(
                    self._offer(field, registration_id, next(codes), self.NETWORKS.at(next(turns)))
                    for _ in range(min(AT_ONCE, requests))
                )
            )
            await self._offer_right(field, registration_id, 1, self.NETWORKS.at(next(turns)))
            if not number and field.cooldown.total_seconds() <= PATIENT_UP_TO:
                guesses.is_first_code = False
                await self._persist(field, registration_id, codes, turns)

    async def _begun(self, field: Field, number: int) -> UUID:
        address = at_our_domain(f"guessed{number}")

        async def begun() -> UUID | None:
            answer = await field.wire.register(Who.GUESSING, self.NETWORKS.at(number), address, name=NAME)
            return answer.registration_id if answer.status == 202 else None

        registration_id: UUID = await eventually(begun, within=PATIENCE, every=0.25)
        if not self._hasty:
            network = self.NETWORKS.at(number)
            await eventually(lambda: is_mailed(field, network, registration_id), within=PATIENCE, every=0.1)
        return registration_id

    def _wrong_codes(self, field: Field, registration_id: UUID) -> Iterator[str]:
        return (
            field.a_wrong_code(registration_id, f"{field.chance.randrange(1_000_000):06d}") for _ in iter(int, None)
        )

    async def _offer(self, field: Field, registration_id: UUID, code: str, network: Network) -> int:
        answer = await field.wire.verify(Who.GUESSING, network, registration_id, code)
        field.deeds.guesses[registration_id].note(answer)
        return answer.status

    async def _offer_right(self, field: Field, registration_id: UUID, serial: int, network: Network) -> None:
        if field.deeds.guesses[registration_id].wrong[422] < TRIES * serial:
            return  # its limits have kept it from guessing: with a try left its own code is right
        right = field.codes.code(registration_id, serial)
        answer = await field.wire.verify(Who.GUESSING, network, registration_id, right)
        field.deeds.guesses[registration_id].note(answer, right=True)

    async def _persist(self, field: Field, registration_id: UUID, codes: Iterator[str], turns: Iterator[int]) -> None:
        for serial in range(2, LOCKS + 1):
            await eventually(lambda: self._is_renewed(field, registration_id, turns), within=PATIENCE, every=0.25)
            for _ in range(TRIES + 2):
                await self._offer(field, registration_id, next(codes), self.NETWORKS.at(next(turns)))
            await self._offer_right(field, registration_id, serial, self.NETWORKS.at(next(turns)))

    async def _is_renewed(self, field: Field, registration_id: UUID, turns: Iterator[int]) -> bool:
        answer = await field.wire.new_code(Who.GUESSING, self.NETWORKS.at(next(turns)), registration_id)
        field.deeds.tell("a new code for what is being guessed", answer, {202})
        return answer.status == 202


class Spray:
    """Offers one code to all registrations that attackers have begun, and then the next one; and to registrations of
    others, whose ids it does not know, and makes up as ours are made: from the time, with 74 random bits.

    Claim: nobody is verified; an id that was made up is nobody's.
    """

    NETWORKS: Final = Range(120, 150)

    def __init__(self, *, hasty: bool) -> None:
        """
        Args:
            hasty: see `Guess`; else a try of each code is left, because mails may be late.
        """
        self._hasty = hasty
        self._offered: Counter[UUID] = Counter()

    async def attack(self, field: Field, requests: int) -> None:
        async def once(turn: int) -> None:
            network = self.NETWORKS.at(turn)
            if turn % 4 == 3 or not field.begun:
                made_up = made_up_id(field, time.time())
                answer = await field.wire.verify(Who.SPRAYING, network, made_up, "123456")
                field.deeds.tell("a guess at a registration of somebody else", answer, {404})
                return
            registration_id, _ = field.begun[turn % len(field.begun)]
            self._offered[registration_id] += 1
            if not self._hasty and self._offered[registration_id] >= TRIES:
                return
            code = field.a_wrong_code(registration_id, f"{123456 + turn // 20_000 * 111111 % 876543:06d}")
            answer = await field.wire.verify(Who.SPRAYING, network, registration_id, code)
            field.deeds.tell("a sprayed code", answer, {422, 423, 409, 410})
            guesses: Guesses = field.deeds.guesses[registration_id]
            guesses.is_first_code = False  # a bomber may ask for another one
            guesses.note(answer)

        await in_lanes(8, requests, once)


class GuessUnsent:
    """Offers the right codes of registrations whose mails were withheld: guesses that have hit.

    An attacker can begin any number of those for an address, so a hit must not count.

    Claim: a code that nobody was sent opens nothing.
    """

    async def attack(self, field: Field, dsn: str, most: int) -> None:
        rows = await query(dsn, _UNSENT, most)
        for turn, (registration_id, serial) in enumerate(rows):
            right = field.codes.code(registration_id, serial)
            answer = await field.wire.verify(Who.GUESSING, honest_network(20_000 + turn // 50), registration_id, right)
            field.deeds.tell(UNSENT, answer, {422, 423, 409, 410})
            guesses = field.deeds.guesses[registration_id]
            guesses.is_first_code = False
            guesses.note(answer)


_UNSENT: Final = """
    SELECT originator_id, (last ->> 'serial')::int
    FROM (
        SELECT DISTINCT ON (originator_id) originator_id, convert_from(state, 'UTF8')::jsonb AS last
        FROM events WHERE topic = 'registration.otp_issued' ORDER BY originator_id, originator_version DESC
    ) AS issues
    WHERE (last ->> 'withheld')::bool
    ORDER BY originator_id DESC LIMIT %s
"""
"""Registrations whose current code is one that was withheld; the latest first."""


class Peep:
    """Looks at registrations whose ids it makes up, and at what attackers have begun.

    Claim: what was made up is nobody's.
    """

    NETWORKS: Final = Range(0, 200)

    async def attack(self, field: Field, requests: int) -> None:
        async def once(turn: int) -> None:
            if turn % 3 or not field.begun:
                answer = await field.wire.look(Who.SPRAYING, self.NETWORKS.at(turn), made_up_id(field, time.time()))
                field.deeds.tell("a look at a registration of somebody else", answer, {404})
            else:
                registration_id, network = field.begun[turn % len(field.begun)]
                answer = await field.wire.look(Who.SPRAYING, network, registration_id)
                field.deeds.tell("a look at a registration of one's own", answer, {200})

        await in_lanes(6, requests, once)


async def is_mailed(field: Field, network: Network, registration_id: UUID) -> bool:
    """Whether its mail is out, or withheld, as far as anybody is told."""
    return b'"mail":"SENT"' in (await field.wire.look(Who.SPRAYING, network, registration_id)).body


def made_up_id(field: Field, now: float) -> UUID:
    """As a registration's of this moment might be (UUIDv7)."""
    head = int((now - field.chance.random()) * 1000)
    return UUID(
        int=head << 80 | 0x7 << 76 | field.chance.getrandbits(12) << 64 | 0b10 << 62 | field.chance.getrandbits(62)
    )
