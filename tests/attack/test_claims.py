"""Each claim can fail: what a sound attack leaves behind passes, and each forgery is reported by its claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.attack.claims import CLAIMS, LIMITS, MOST_GUESSES, judge, mailbox_of
from tests.attack.deeds import UNSENT, Deeds, Guesses, Hijack, Run
from tests.attack.wire import NETWORKS, Answer, Ledger, Who, _request_id, masked, request_id_of
from tests.faults.evidence import Copy, Evidence, Issue
from tests.faults.history import History, at
from tests.faults.journal import Operation
from tests.support.facts import T0, account_activated, code_rejected, email_verified, otp_issued, registered

HONEST = UUID("aaaaaaaa-0000-4000-8000-00000000000a")
VICTIM, STRANGER, GUESSED = (UUID(int=number) for number in range(1, 4))


def request_id(who: Who, network: int = 0, number: int = 1) -> UUID:
    return UUID(_request_id(who, NETWORKS[network], number))


def answer(status: int = 202, body: bytes = b'{"status":"PENDING"}', *headers: str) -> Answer:
    lines = (f"HTTP/1.1 {status} Told", *headers, f"content-length: {len(body)}")
    return Answer(status, "\r\n".join(lines).encode(), body)


@dataclass
class World:
    """What an attack that got nothing has left behind, to be forged."""

    history: History = field(default_factory=History)
    deeds: Deeds = field(default_factory=Deeds)
    run: Run = field(
        default_factory=lambda: Run(Ledger(), seconds=60.0, uncounted=0, processes=2, cooldown=timedelta(seconds=60))
    )
    issues: dict[tuple[UUID, int], Issue] = field(default_factory=dict)
    mails: list[Copy] = field(default_factory=list)
    journal: list[Operation] = field(default_factory=list)

    @classmethod
    def sound(cls) -> World:
        world = cls()
        world.mailed(0, network=1, withheld=True, to=STRANGER, number=7)
        world.history.add(VICTIM, registered(), otp_issued(), because_of=HONEST)
        world.history.add(VICTIM, email_verified(), account_activated(), because_of=HONEST)
        guesses = (code_rejected(attempt=n) for n in range(1, 6))
        world.history.add(GUESSED, registered(), otp_issued(), *guesses, because_of=request_id(Who.GUESSING))
        deeds = world.deeds
        deeds.guesses[GUESSED] = Guesses(Counter({422: 5, 423: 195}), Counter({423: 1}))
        deeds.hijacks.append(Hijack("before", VICTIM, [STRANGER]))
        deeds.same["key 1"].add(STRANGER)
        deeds.same["key 1 with another address"].add(GUESSED)
        deeds.ended["says nothing: ended"] += 20
        deeds.never_mailed.add("smuggled@example.com")
        deeds.finished["honest0"] = True
        deeds.probes["limited"].add(request_id(Who.BOMBING, 1, 7))
        deeds.compare("a registration", "new", answer())
        deeds.compare("a registration", "active", answer())
        deeds.tell("a sprayed code", answer(422), {422})
        deeds.tell(UNSENT, answer(422), {422})
        for name, (number, per, burst) in LIMITS.items():
            world.run.ledger.passed[name, "198.18.0.7"] = burst + 60 * number // per
            world.run.ledger.asked[name, "198.18.0.7"] = burst + 60 * number // per
            world.run.ledger.refused[name, "198.18.0.7"] = 100
        return world

    def mailed(
        self,
        second: float,
        *,
        network: int,
        address: str = "victim@example.com",
        withheld: bool = False,
        to: UUID | None = None,
        number: int = 0,
    ) -> World:
        """A code for an attacker's registration was asked for at that second; its mail is in the sink, unless it was
        withheld."""
        registration_id = to or UUID(int=1000 + len(self.issues))
        decided = at(len(self.history.log) + 1) - T0 - timedelta(seconds=second)
        self.history.add(
            registration_id,
            registered(),
            otp_issued(withheld=withheld),
            because_of=request_id(Who.BOMBING, network, number),
            decided=decided + timedelta(seconds=1),
        )
        if not withheld:
            self.issues[registration_id, 1] = Issue("123456", f"message-{registration_id}")
            self.mails.append(Copy(address, f"message-{registration_id}", "123456", at(second)))
        return self

    def violations(self, claim: str) -> list[str]:
        evidence = Evidence(
            log=self.history.log, issues=self.issues, mails=self.mails, journal=self.journal, head=len(self.history.log)
        )
        return [one.sentence for one in judge(evidence, self.deeds, self.run, only=(claim,))]


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_a_sound_attack_leaves_behind_passes(claim: str) -> None:
    assert World.sound().violations(claim) == []


# --- Forgeries --------------------------------------------------------------------------------------


def _mails(*asked: tuple[float, int], address: str = "victim@example.com") -> Callable[[World], object]:
    def forge(world: World) -> None:
        for number, (second, network) in enumerate(asked):
            local, _, domain = address.partition("@")
            form = f"{local[:2]}.{local[2:]}+{number}@{domain}" if number % 2 else address
            world.mailed(second, network=network, address=form)

    return forge


def _rejected(world: World, attempt: int, serial: int = 1) -> None:
    world.history.add(GUESSED, code_rejected(serial=serial, attempt=attempt))
    world.deeds.guesses[GUESSED].wrong[422] += 1


def _rejected_often(world: World) -> None:
    for serial in range(2, MOST_GUESSES):
        _rejected(world, 1, serial)


HOUR = 3600.0
FORGERIES: list[tuple[str, str, Callable[[World], object]]] = [
    ("budget", "two within the cooldown", _mails((0, 1), (59.9, 2))),
    ("budget", "four an hour", _mails((0, 1), (61, 2), (130, 3), (HOUR - 1, 4))),
    ("budget", "six a day", _mails(*((number * HOUR * 4.7, number) for number in range(6)))),
    ("budget", "three an hour for one network", _mails((0, 1), (61, 1), (130, 1))),
    ("budget", "four a day for one network", _mails(*((number * HOUR * 2, 1) for number in range(4)))),
    ("budget", "a mail of no code", lambda w: w.mails.append(Copy("a@example.com", "foreign", None, T0))),
    ("smuggled", "a mail", lambda w: w.mails.append(Copy("smuggled@example.com", "m", None, T0))),
    (
        "alike",
        "another header",
        lambda w: w.deeds.compare("a registration", "active", answer(202, b'{"status":"PENDING"}', "x-taken: 1")),
    ),
    ("alike", "another byte", lambda w: w.deeds.compare("a registration", "active", answer(202, b"{}"))),
    ("side effects", "fewer events", lambda w: w.deeds.probes["new"].add(request_id(Who.COMPARING))),
    ("statuses", "a crash", lambda w: w.deeds.tell("a sprayed code", answer(500), {422})),
    ("statuses", "no answer", lambda w: w.deeds.tell("a sprayed code", Answer(0, b"", b""), {422})),
    ("statuses", "refusals only", lambda w: w.deeds.tell("a look", answer(429), {404})),
    ("guesses", "a sixth one compared", lambda w: _rejected(w, 6)),
    ("guesses", "one told and not counted", lambda w: w.deeds.guesses[GUESSED].wrong.update({422: 1, 423: -1})),
    ("guesses", "fewer compared than there are tries", lambda w: w.deeds.guesses.update({STRANGER: _guessed(4)})),
    ("guesses", "twenty-six compared", _rejected_often),
    ("guesses", "the right code after five", lambda w: w.deeds.guesses[GUESSED].right.update({200: 1})),
    ("guesses", "a wrong code that opens", lambda w: w.deeds.guesses[GUESSED].wrong.update({200: 1})),
    (
        "guessed",
        "a registration",
        lambda w: w.history.add(STRANGER, email_verified(), because_of=request_id(Who.SPRAYING, 7)),
    ),
    ("hijacked", "an account", lambda w: w.history.add(STRANGER, account_activated(), actor="mail-saga")),
    ("hijacked", "a person without one", lambda w: w.deeds.hijacks.append(Hijack("after", UUID(int=9), []))),
    ("hijacked", "the person's id", lambda w: w.deeds.hijacks.append(Hijack("after", VICTIM, [VICTIM]))),
    ("keys", "two registrations", lambda w: w.deeds.same["key 1"].add(UUID(int=9))),
    ("keys", "somebody else's registration", lambda w: w.deeds.same["key 2"].add(STRANGER)),
    ("honest", "nobody finished", lambda w: w.deeds.finished.update({"honest1": False})),
    ("honest", "a limit of somebody else's", lambda w: w.journal.append(_refused("register", "too-many-requests"))),
    ("honest", "an address that is taken", lambda w: w.journal.append(_refused("register", "address-taken"))),
    ("slow", "one that is never ended", lambda w: w.deeds.ended.update({"says nothing: held on": 1})),
    *(("tried", what, forge) for what, forge in {
        "nobody honest": lambda w: w.deeds.finished.clear(),
        "nobody slow": lambda w: w.deeds.ended.clear(),
        "no limit met": lambda w: w.run.ledger.refused.clear(),
        "nothing limited compared": lambda w: w.deeds.probes.clear(),
        "nothing guessed": lambda w: w.deeds.guesses.clear(),
        "no code of a withheld mail": lambda w: w.deeds.told.clear(),
    }.items()),
    *(("limits", name, lambda w, name=name: w.run.ledger.passed.update({(name, "198.18.0.7"): 1})) for name in LIMITS),
    *(("limits of others", name, lambda w, name=name: w.run.ledger.refused.update({(name, "198.18.1.7"): 1}))
      for name in LIMITS),
]  # fmt: skip


def _guessed(compared: int) -> Guesses:
    return Guesses(Counter({422: compared, 423: 10}))


def _refused(kind: Any, problem: str) -> Operation:
    return Operation(kind, HONEST, T0, 30.0, outcome="fail", status=429, problem=problem)


@pytest.mark.parametrize(
    ("claim", "what", "forge"), FORGERIES, ids=[f"{claim}: {what}" for claim, what, _ in FORGERIES]
)
def test_a_forgery_is_reported(claim: str, what: str, forge: Callable[[World], object]) -> None:
    world = World.sound()
    forge(world)

    assert world.violations(claim)


def test_every_claim_is_shown_to_fail() -> None:
    assert {claim for claim, _, _ in FORGERIES} == CLAIMS.keys()


# --- What is no violation ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        [(0, 1), (60, 1), (120, 2)],
        [(0, 1), (60, 1), (120, 2), (HOUR, 2)],
        [*((number * HOUR * 5, number) for number in range(5)), (25 * HOUR, 1)],
    ],
)
def test_a_budget_may_be_used_up(asked: Iterable[tuple[float, int]]) -> None:
    world = World.sound()
    _mails(*asked)(world)

    assert world.violations("budget") == []


def test_a_code_that_the_saga_replaces_is_the_same_mail() -> None:
    world = World.sound().mailed(0, network=1).mailed(HOUR * 0.9, network=2)
    [first, _] = [registration_id for registration_id, _ in world.issues]
    world.history.add(first, otp_issued(2, "stale"), actor="mail-saga")
    del world.issues[first, 1]
    world.issues[first, 2] = Issue("654321", f"message-{first}")

    assert world.violations("budget") == []


def test_while_redis_failed_each_process_may_let_half_through_besides() -> None:
    world = World.sound()
    world.run.ledger.passed["network", "198.18.0.7"] *= 2
    assert world.violations("limits")

    world.run = replace(world.run, uncounted=1)
    assert world.violations("limits") == []


def test_guesses_without_an_answer_may_have_been_compared() -> None:
    world = World.sound()
    world.deeds.guesses[GUESSED] = Guesses(Counter({422: 4, 423: 100}), unanswered=1)

    assert world.violations("guesses") == []


# --- What claims stand on ---------------------------------------------------------------------------


def test_only_what_differs_for_everybody_is_masked() -> None:
    def told(name: str, number: int, *headers: str) -> bytes:
        body = b'{"registration_id":"%b","email":"%b"}' % (str(UUID(int=number)).encode(), name.encode())
        varying = f"date: day {number}", f"registrar-position: {number}", *headers
        return masked(answer(202, body, *varying), name)

    assert told("ada@example.com", 1) == told("somebody.else@example.com", 10**20)
    assert told("ada@example.com", 1) != told("ada@example.com", 1, "idempotent-replayed: true")


def test_the_ledger_counts_by_limit_what_passed_what_may_have_and_what_was_refused() -> None:
    ledger, whom = Ledger(), {"network": "198.18.0.7", "larger-network": "198.18.0.0/24"}
    refused = answer(429, b"{}", 'ratelimit-policy: "network";q=10;w=60', 'ratelimit: "network";r=0;t=3')
    for told in (answer(202), answer(503), answer(422), refused):
        ledger.note(told, whom)
    ledger.note(answer(429), {"new-codes": "198.18.0.7"})  # the cooldown of the registration, past the limit

    assert ledger.passed == {**dict.fromkeys(whom.items(), 1), ("new-codes", "198.18.0.7"): 1}
    assert ledger.asked == {**dict.fromkeys(whom.items(), 3), ("new-codes", "198.18.0.7"): 1}
    assert ledger.refused == {("network", "198.18.0.7"): 1}


def test_the_id_of_a_request_says_whose_it_is_and_nobody_elses_does() -> None:
    assert request_id_of(request_id(Who.SPRAYING, 199, 12345)) == (Who.SPRAYING, 199)
    assert request_id_of(HONEST) is None


def test_forms_of_one_mailbox_are_one_and_two_mailboxes_are_two() -> None:
    assert {mailbox_of(form) for form in ("Ada.L@example.com", "adal+x.y@EXAMPLE.com", "a.d.a.l@example.com")} == {
        "adal@example.com"
    }
    assert mailbox_of("ada@example.com") != mailbox_of("ada@example.net")


def test_there_are_200_networks_some_of_which_are_neighbours() -> None:
    assert len({network.name for network in NETWORKS}) == 200
    assert len({network.larger for network in NETWORKS}) == 182
