"""By what mails are counted: the mailbox that an address is guessed to lead to, and the mark of a network in it."""

from __future__ import annotations

import string

from hypothesis import assume, given
from hypothesis import strategies as st

from application.addresses import canonical_address, mailbox_guess, parse_address
from domain.mailbox import MailboxId
from infrastructure.crypto.keyring import Keyring
from tests.support.scenarios import KEYRING

ATOM = st.text(string.ascii_letters + string.digits + "!#$%&'*/^_`{|}~-", min_size=1, max_size=8)
TAG = st.text(string.ascii_letters + string.digits + "+-", max_size=10)
DOMAINS = st.sampled_from(["example.com", "mail.example.org", "b\u00fccher.example", "EXAMPLE.com"])
LOCALS = st.text(string.ascii_letters + string.digits + "+.-_", min_size=1, max_size=16)


def guess(typed: str) -> str:
    return mailbox_guess(canonical_address(parse_address(typed)))


@given(st.lists(ATOM, min_size=1, max_size=4), TAG, DOMAINS)
def test_dots_tags_and_case_lead_to_one_mailbox(atoms: list[str], tag: str, domain: str) -> None:
    plain = f"{''.join(atoms)}@{domain}"

    for local in (".".join(atoms), f"{'.'.join(atoms)}+{tag}", f"{''.join(atoms).upper()}+{tag}"):
        assert guess(f"{local}@{domain}") == guess(plain) == canonical_address(parse_address(plain))


@given(LOCALS, DOMAINS)
def test_a_guess_is_an_address_at_the_same_domain_and_its_own_guess(local: str, domain: str) -> None:
    try:
        address = canonical_address(parse_address(f"{local}@{domain}"))
    except ValueError:
        assume(False)
    found = mailbox_guess(address)

    assert found.rpartition("@")[0]
    assert found.rpartition("@")[2] == address.rpartition("@")[2]
    assert mailbox_guess(found) == found


@given(st.lists(ATOM.map(str.lower), min_size=2, max_size=2, unique=True))
def test_two_names_are_two_mailboxes(names: list[str]) -> None:
    one, other = (guess(f"{name}@example.com") for name in names)

    assert one != other
    assert guess(f"{names[0]}@example.org") != one


MAILBOXES = st.uuids().map(MailboxId)
NETWORKS = st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(lambda one: f"{one}/64"))


@given(MAILBOXES, NETWORKS)
def test_a_mark_is_32_bits_and_always_the_same(mailbox: MailboxId, network: str) -> None:
    mark = KEYRING.network_mark(mailbox, network)

    assert len(bytes.fromhex(mark)) == 4
    assert " " not in mark  # the event has it in a line with others
    assert mark == KEYRING.network_mark(mailbox, network)


@given(
    st.lists(MAILBOXES, min_size=40, max_size=40, unique=True), st.lists(NETWORKS, min_size=2, max_size=2, unique=True)
)
def test_marks_tell_networks_apart_in_a_mailbox_and_follow_none_to_the_next(
    mailboxes: list[MailboxId], networks: list[str]
) -> None:
    """One in four thousand million is the same by chance: never two of forty."""
    other_root = Keyring(master_key=bytes(32), root_secret=bytes(31) + b"\1")
    one, other = ([KEYRING.network_mark(mailbox, network) for mailbox in mailboxes] for network in networks)
    elsewhere = [other_root.network_mark(mailbox, networks[0]) for mailbox in mailboxes]

    for marks in (other, elsewhere):
        assert sum(a == b for a, b in zip(one, marks, strict=True)) <= 1
    assert len(set(one)) >= len(mailboxes) - 1
