"""The address that names a mail: nobody else can make one, and nobody else can read it."""

from __future__ import annotations

from uuid import UUID

import pytest

from infrastructure.bounces.addresses import TOKEN, BounceAddresses
from infrastructure.crypto.keyring import Keyring
from infrastructure.settings.bounces import LONGEST_BOUNCE_LOCAL_PART
from infrastructure.settings.settings import Settings

KEYRING = Keyring(master_key=b"m" * 32, root_secret=b"r" * 32)
OTHERS = Keyring(master_key=b"m" * 32, root_secret=b"s" * 32)
ADDRESSES = BounceAddresses("bounces@mail.example.org", KEYRING)
REGISTRATION = UUID("019cab10-0000-7000-8000-000000000001")


@pytest.mark.parametrize("serial", [1, 255, 256, 2**24 - 1])
def test_an_address_names_its_mail_also_in_other_letters(serial: int) -> None:
    address = ADDRESSES.of(REGISTRATION, serial)

    assert ADDRESSES.mail_of(address) == (REGISTRATION, serial)
    assert ADDRESSES.mail_of(address.upper()) == (REGISTRATION, serial)


def test_the_longest_local_part_that_may_be_set_has_64_octets_with_its_token() -> None:
    longest = "b" * LONGEST_BOUNCE_LOCAL_PART
    settings = Settings.from_environment({"REGISTRAR_BOUNCE_ADDRESS": f"{longest}@mail.example.org"})
    assert settings.bounce_address is not None

    local = BounceAddresses(settings.bounce_address, KEYRING).of(REGISTRATION, 1).rpartition("@")[0]

    assert len(local) == 64


def test_an_address_does_not_show_the_registration() -> None:
    token = ADDRESSES.of(REGISTRATION, 1).partition("+")[2].partition("@")[0]

    assert len(token) == TOKEN
    assert not {REGISTRATION.hex[at : at + 6] for at in range(26)} & {token[at : at + 6] for at in range(TOKEN)}
    assert ADDRESSES.of(REGISTRATION, 2).partition("+")[2][:8] != token[:8]


@pytest.mark.fault("E61")
def test_no_character_of_a_token_may_differ() -> None:
    address = ADDRESSES.of(REGISTRATION, 1)
    local, token, domain = address[:8], address[8 : 8 + TOKEN], address[8 + TOKEN :]

    for at in range(TOKEN):
        other = "a" if token[at] != "a" else "b"
        assert ADDRESSES.mail_of(f"{local}{token[:at]}{other}{token[at + 1 :]}{domain}") is None


@pytest.mark.parametrize(
    "address",
    [
        "",
        "bounces@mail.example.org",
        f"bounces+{'a' * TOKEN}@mail.example.org",
        BounceAddresses("bounces@mail.example.org", OTHERS).of(REGISTRATION, 1),
        ADDRESSES.of(REGISTRATION, 1).replace("mail.", "evil."),
        ADDRESSES.of(REGISTRATION, 1).replace("bounces", "other"),
        ADDRESSES.of(REGISTRATION, 1)[:-20],
        f"x{ADDRESSES.of(UUID(int=7), 1)}",
        ADDRESSES.of(REGISTRATION, 1).replace("+", "+\u212a"),
    ],
)
def test_what_is_no_address_of_a_mail_names_none(address: str) -> None:
    assert ADDRESSES.mail_of(address) is None
