"""Pre-hijacking and voiding (docs/security.md, S8): whoever begins first, an address is theirs who reads its mail."""

from __future__ import annotations

import random
from datetime import timedelta
from uuid import UUID

import pytest
from pydantic import SecretStr

from domain.errors import CodeLocked, WrongCode
from domain.registration import Status
from tests.support.scenarios import KEYRING, InMemoryService, QuickHasher, registers, right_code, verifies

EMAIL = "ada@example.com"
HERS, HIS = "the victim's own words", "the attacker's own words"


async def begins(house: InMemoryService, password: str, network: str, number: int) -> UUID:
    command = registers(EMAIL, name=f"Ada {number}", password=password)
    return (await house.handle(command.model_copy(update={"network": network}))).subject_id


async def offer(house: InMemoryService, registration_id: UUID, code: str) -> None:
    with pytest.raises((WrongCode, CodeLocked)):
        await house.handle(verifies(registration_id, code))


@pytest.mark.parametrize("seed", range(100))
async def test_attacker_and_victim_begin_in_either_order_and_the_victims_first_mail_has_the_address(seed: int) -> None:
    """The attacker begins up to three times, as often as one network's part of the mails allows, and then guesses."""
    house, chance = InMemoryService(), random.Random(seed)  # noqa: S311 - repeatable
    begun = ["attacker"] * chance.randint(1, 3) + ["victim"]
    chance.shuffle(begun)
    his: list[UUID] = []
    hers: UUID | None = None
    for number, who in enumerate(begun):
        if who == "victim":
            hers = await begins(house, HERS, "192.0.2.1", number)
        else:
            his.append(await begins(house, HIS, "198.51.100.7", number))
        house.move(timedelta(seconds=chance.randint(60, 1200)))
    assert hers is not None
    assert not house.registration(hers).withholds_mail(1)  # whatever he has used up

    code = right_code(hers)  # what she reads in her mail, and he does not
    before = chance.random() < 0.5
    if before:
        await offer(house, chance.choice(his), code)
    await house.handle(verifies(hers, code))
    await house.settle()

    account = house.registration(hers)
    assert account.status is Status.ACTIVE
    assert house.claim(EMAIL).holder == hers
    wrapped = house.log.keys[hers]
    person = KEYRING.open(hers, account.personal_data, wrapped)
    assert person.password_hash == await QuickHasher().hash(SecretStr(HERS).get_secret_value(), EMAIL)
    for one in his:
        for offered in (code, right_code(one), right_code(one, 2)):
            await offer(house, one, offered)
        assert house.registration(one).status is not Status.ACTIVE
        assert not house.registration(one).can_be_proven
