"""Attackers who want to know, or to have, what is somebody else's: is this address taken, what did this key do, can I
have that account."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Final
from uuid import UUID

import httpx

from tests.attack.deeds import Field, Hijack, Range
from tests.attack.honest import Person
from tests.attack.wire import Answer, Network, Who, at_our_domain, honest_network
from tests.faults.fleet import TOKEN
from tests.faults.journal import NAME
from tests.faults.people import KEY, PASSWORD
from tests.support.facts import eventually
from tests.support.http import NO_TLS

STATES: Final = ("new", "pending", "active", "cancelled", "erased", "limited")
"""What may have become of an address before somebody asks for it."""


class TellApart:
    """Registers addresses of which it is known what has become of them, and compares everything that it is told, then
    and later. In random order, so that no drift is taken for a difference.

    Claim: nothing differs, and neither does how much is recorded.
    """

    NETWORKS: Final = Range(170, 185)

    def __init__(self, of_each: int) -> None:
        self._of_each = of_each
        self._asked: list[tuple[str, str, UUID]] = []

    def address(self, state: str, number: int) -> str:
        return at_our_domain(f"{state}{number}")

    async def prepare(self, field: Field, urls: Sequence[str]) -> None:
        """Let become of the addresses what is to become of them."""

        async def one(place: int, state: str, number: int) -> None:
            address, network = self.address(state, number), honest_network(5000 + place)
            answer = await field.wire.register(Who.PREPARING, network, address, name=NAME)
            registration_id = answer.registration_id
            if state == "active":
                await arrived(field, address)
                code = field.codes.code(registration_id, 1)
                assert (await field.wire.verify(Who.PREPARING, network, registration_id, code)).status == 200
                await eventually(lambda: self._is_active(field, network, registration_id), within=120, every=0.1)
            elif state in {"cancelled", "erased"}:
                await arrived(field, address)
                await _operate(urls, registration_id, {"cancelled": "cancel", "erased": "erase"}[state])

        states = [state for state in STATES if state not in {"new", "limited"}]
        places = [(state, number) for state in states for number in range(self._of_each)]
        await asyncio.gather(*(one(place, *what) for place, what in enumerate(places)))

    async def _is_active(self, field: Field, network: Network, registration_id: UUID) -> bool:
        return b'"ACTIVE"' in (await field.wire.look(Who.PREPARING, network, registration_id)).body

    async def attack(self, field: Field, requests: int) -> None:
        turns = [(state, number) for state in STATES for number in range(self._of_each)]
        turns = turns * (1 + requests // (2 * len(turns)))
        random.Random(field.chance.random()).shuffle(turns)  # noqa: S311 - repeatable
        for turn, (state, number) in enumerate(turns[: requests // 2]):
            await self._ask(field, turn, state, number)

    async def _ask(self, field: Field, turn: int, state: str, number: int) -> None:
        network, address = self.NETWORKS.at(turn), self.address(state, number)
        if state == "limited":  # somebody else has just used up what its mailbox may get
            for other in range(3):
                await field.wire.register(Who.PREPARING, honest_network(200_000 + 3 * turn + other), address, name=NAME)
        password = None if turn % 10 else f"{PASSWORD}{turn:06}"
        name = f"{NAME} {turn:06}"
        answer = await field.wire.register(Who.COMPARING, network, address, name=name, password=password)
        field.deeds.tell("a registration that compares", answer, {202})
        if answer.status != 202:
            return
        field.deeds.compare("a registration", state, answer, address)
        field.deeds.probes[state].add(answer.request_id)
        self._asked.append((state, address, answer.registration_id))

    async def look_again(self, field: Field, when: str = "later") -> None:
        """Look at all of them, and try a wrong code and a new one. Everybody has had their mail, or would have."""
        for turn, (state, address, registration_id) in enumerate(self._asked):
            network = honest_network(100_000 + turn // 10)
            shown = f"{address[0]}•••@{address.partition('@')[2]}"
            seen = await field.wire.look(Who.COMPARING, network, registration_id)
            field.deeds.compare(f"a registration, looked at {when}", state, seen, shown)
            code = field.a_wrong_code(registration_id, "654321")
            guessed = await field.wire.verify(Who.COMPARING, network, registration_id, code)
            field.deeds.guesses[registration_id].note(guessed)
            field.deeds.compare(f"a wrong code, {when}", state, guessed)
            renewed = await field.wire.new_code(Who.COMPARING, network, registration_id)
            field.deeds.guesses[registration_id].is_first_code = False
            too_soon = renewed.status == 429  # when its address was asked for is no secret to whoever asked
            field.deeds.compare(f"a new code, {'too soon' if too_soon else when}", state, renewed)


async def _operate(urls: Sequence[str], registration_id: UUID, act: str) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Reason": "before an attack"}
    async with httpx.AsyncClient(base_url=urls[0], headers=headers, verify=NO_TLS) as http:
        answer = await http.post(f"/v1/admin/registrations/{registration_id}/{act}")
        assert answer.status_code == 200, answer.text


async def arrived(field: Field, address: str) -> str:
    """The newest code that the sink has for this address."""
    code: str = await eventually(lambda: field.inbox.code_for(address), within=120)
    return code


class Repeat:
    """Uses Idempotency-Keys again: at once and from many networks, in quotes, with another body, with another address.

    Claim: one registration for a key and an address; another body is refused; another address is as if the key were
    new.
    """

    NETWORKS: Final = Range(185, 195)
    A_SET: Final = 30

    async def attack(self, field: Field, requests: int) -> None:
        numbers = count()
        before = field.wire.statuses[Who.REPEATING].total()
        while field.wire.statuses[Who.REPEATING].total() < before + requests:
            await self._repeat(field, next(numbers))

    async def _repeat(self, field: Field, number: int) -> None:
        key, address = f"{KEY}{field.chance.getrandbits(128):032x}", at_our_domain(f"repeated{number}")

        async def ask(turn: int, *, at: str = address, name: str = NAME, written: str = key) -> Answer:
            return await field.wire.register(
                Who.REPEATING, self.NETWORKS.at(turn), at, name=name, key=written, turn=turn
            )

        first = await ask(0)
        if first.status != 202:
            return
        field.deeds.same[f"key {number}"].add(first.registration_id)
        field.deeds.compare("a registration", "with a key", first, address)
        turns = range(1, self.A_SET - 5)
        for again in await asyncio.gather(*(ask(turn, written=_quoted(key, turn)) for turn in turns)):
            field.deeds.tell("a key again", again, {202})
            if again.status == 202:
                field.deeds.same[f"key {number}"].add(again.registration_id)
                field.deeds.compare("a key again", "all say that they are repeats, or none", again, address)
                field.deeds.compare("a registration", "with a key again", _without_replayed(again), address)
        for turn in range(2):
            changed = await ask(turn, name=f"{NAME} the {turn}th")
            field.deeds.tell("a key with another body", changed, {422})
            elsewhere = at_our_domain(f"elsewhere{number}x{turn}")
            other = await ask(turn + 2, at=elsewhere)
            field.deeds.tell("a key with another address", other, {202})
            if other.status == 202:
                field.deeds.same[f"key {number} with address {turn}"].add(other.registration_id)
                field.deeds.compare("a registration", "with a key of somebody else", other, elsewhere)


def _quoted(key: str, turn: int) -> str:
    """In quotes it is the same key."""
    return key if turn % 4 else f'"{key}"'


def _without_replayed(answer: Answer) -> Answer:
    """The answer but for what says that it is a repeat, if anything does."""
    return answer._replace(
        head=re.sub(rb"\r\nidempotent-replayed: true(?=\r|$)", b"", answer.head, flags=re.IGNORECASE)
    )


class Hijacker:
    """Registers the addresses of people who are about to, with passwords of its own: before them, after them, both, and
    over and over.

    Claim: the person gets the account, and nobody else has anything of it.
    """

    NETWORKS: Final = Range(195, 200)
    ORDERS: Final[Mapping[str, tuple[int, int]]] = {
        "before": (1, 0),
        "after": (0, 1),
        "around": (1, 2),
        "again and again": (3, 6),
    }

    async def hijack(self, field: Field, number: int, person: Callable[[str, int], Person]) -> None:
        order = list(self.ORDERS)[number % len(self.ORDERS)]
        before, after = self.ORDERS[order]
        address = at_our_domain(f"hijacked{number}")
        network = self.NETWORKS.at(number)
        others = [await self._register(field, network, address, turn) for turn in range(before)]
        victim = person(address, number)
        registered = await victim.register()
        others += [await self._register(field, network, address, before + turn) for turn in range(after)]
        if registered is None:
            return
        field.deeds.hijacks.append(Hijack(order, registered, [one for one in others if one is not None]))
        await victim.get_in()

    async def _register(self, field: Field, network: Network, address: str, turn: int) -> UUID | None:
        secret, name = f"{PASSWORD}of-a-hijacker-{turn}", f"{NAME} {turn}"
        answer = await field.wire.register(Who.HIJACKING, network, address, name=name, password=secret)
        field.deeds.tell("a registration of somebody else's address", answer, {202})
        return answer.registration_id if answer.status == 202 else None
