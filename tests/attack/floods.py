"""Attackers who ask for too much: mails for one mailbox, and more than a network may have by denying which it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Final

from tests.attack.deeds import Field, Range
from tests.attack.wire import Network, Who, at_our_domain, ipv4, ipv6
from tests.faults.journal import NAME


async def in_lanes(lanes: int, turns: int, do: Callable[[int], Awaitable[None]]) -> None:
    """`do` with each number below `turns`, so many at a time."""
    numbers = iter(range(turns))

    async def lane() -> None:
        for number in numbers:
            await do(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(lanes, turns)):
            group.create_task(lane())


class MailBomb:
    """Has codes sent to a few mailboxes, from many networks, under every form that an address of theirs can have, and
    asks for further codes for what it has begun.

    Claim: no mailbox gets more mails than its budget, and no answer shows that the budget is used up.
    """

    def __init__(self, victims: int, networks: Range) -> None:
        self.victims = victims
        self._networks = networks

    async def attack(self, field: Field, requests: int) -> None:
        async def once(turn: int) -> None:
            if turn % 5 == 4 and field.begun:
                registration_id, network = field.chance.choice(field.begun)
                answer = await field.wire.new_code(Who.BOMBING, network, registration_id)
                field.deeds.tell("a new code for what a bomber has begun", answer, {202, 409, 429})
                if answer.status == 202:
                    field.deeds.compare("a new code", "bombed", answer)
                return
            network, address = self._networks.at(turn), self.form(field, turn)
            name = f"{NAME} {turn}"
            answer = await field.wire.register(Who.BOMBING, network, address, name=name, turn=turn)
            field.deeds.tell("a registration of a bombed mailbox", answer, {202})
            if answer.status == 202:
                field.begun.append((answer.registration_id, network))
                field.deeds.compare("a registration", "bombed", answer, address)

        await in_lanes(16, requests, once)

    def form(self, field: Field, turn: int) -> str:
        """An address that leads to a victim's mailbox: with a tag, with dots, in capitals, or as it is."""
        local = f"victim{turn % self.victims}of{DOTS}"
        dotted = "".join(
            letter + ("." if field.chance.random() < 0.3 else "") for letter in local[:-1]
        ) + local[-1]  # fmt: skip
        tagged = f"{dotted}+{turn:x}" if turn % 3 else dotted
        shouted = "".join(letter.upper() if field.chance.random() < 0.3 else letter for letter in tagged)
        return at_our_domain(shouted)


DOTS: Final = "manynames"


class SpoofedFlood:
    """Registers new addresses from a few networks and denies which it is.

    By entries on the left, further headers, ports, brackets, other notations, other addresses of the same /64, headers
    that other proxies set, and garbage.

    Claim: however it is written, a network has the limits of one network.
    """

    TRUE: Final = (
        *(ipv4(number, f"198.51.{number - 200}.7") for number in range(300, 303)),
        *(ipv6(number, number) for number in range(303, 306)),
    )
    NOBODY: Final = Network(306, "unknown", "unknown")
    """Whoever sends what is no address."""

    THIS_MACHINE: Final = Network(307, "127.0.0.1", "127.0.0.0/24")
    """Whoever sends nothing, or only names of proxies."""

    async def attack(self, field: Field, requests: int) -> None:
        numbers = count()
        places = (*self.TRUE, *self.TRUE, self.NOBODY, self.THIS_MACHINE)

        async def once(turn: int) -> None:
            network = places[turn % len(places)]
            address = at_our_domain(f"spoofed{next(numbers)}")
            forwarded = self.forwarded(network, turn)
            answer = await field.wire.register(Who.SPOOFING, network, address, name=NAME, forwarded=forwarded)
            field.deeds.tell("a registration from a network that denies which it is", answer, {202})
            if answer.status == 202:
                field.deeds.compare("a registration", "spoofed", answer, address)

        await in_lanes(8, requests, once)

    def forwarded(self, network: Network, turn: int) -> str:
        """Header lines; the true address is the right-most that is no proxy's."""
        turn, lie = turn // 8, f"203.0.113.{turn % 250}"
        if network is self.NOBODY:
            nobody = ("unknown", "somebody", "192.0.2.700", "[2001:db8::1", "%00", "<script>", "1.2.3", "0x7f.1")
            return _lines(f"{lie}, {nobody[turn % len(nobody)]}")
        if network is self.THIS_MACHINE:
            return (_lines(""), _lines("127.0.0.1"), _lines("127.0.0.1, 127.0.0.1"), f"X-Real-IP: {lie}\r\n")[turn % 4]
        true = network.address(turn)
        forms = (
            _lines(true),
            _lines(f"{lie}, {true}"),
            _lines(lie, true),
            _lines(f"127.0.0.1, {true}"),
            _lines(f"{lie}, {true}, 127.0.0.1"),
            _lines(f"{lie},unknown,{true}"),
            _lines(f"\xff<script>, {true} \t"),
            _lines(", ".join([lie] * 200 + [true])),
            _lines(f"[{true}]:{4711 + turn % 100}" if network.site else f"{true}:{4711 + turn % 100}"),
            _lines(f"[{true}]" if network.site else f"::ffff:{true}"),
            _lines(true.upper() if network.site else f"[::ffff:{true}]:80"),
            _lines(true) + _others(lie),
            _others(lie) + _lines(true),
        )
        return forms[turn % len(forms)]


def _lines(*values: str) -> str:
    return "".join(f"X-Forwarded-For: {value}\r\n" for value in values)


def _others(lie: str) -> str:
    """Headers that proxies of other people set, which nobody here reads."""
    names = ("X-Real-IP", "X-Client-IP", "True-Client-IP", "CF-Connecting-IP", "X-Cluster-Client-IP")
    return "".join(f"{name}: {lie}\r\n" for name in names) + f'Forwarded: for="{lie}";proto=https\r\n'
