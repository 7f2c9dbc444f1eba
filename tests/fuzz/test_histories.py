"""Histories of the public API, made up by hypothesis, against a small model of what the contract promises.

`Model` is all that is believed of a sign-up: what changes there is changed there.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.fuzz.running import Running, running
from tests.support.facts import eventually

TRIES, RESENDS, LOCKS = 5, 5, 5
"""Per code, per hour, and locked codes that end a registration (docs/security.md, S4)."""

MAILS = 2
"""That one network can have a mailbox sent within an hour (docs/security.md, S13)."""

PATIENCE = 30.0


# --- What is believed -----------------------------------------------------------------------------


@dataclass(eq=False)
class Believed:
    """A registration, or what looks like one to whoever registers a taken address (`is_decoy`).

    Attributes:
        is_superseded: another one has proven the address since: no code is right any more.
        code: the right one; None if its mail was withheld, so that nobody knows it.
        codes: those that were right once.
    """

    id: str
    address: str
    name: str
    is_decoy: bool
    status: str = "PENDING"
    rejections: int = 0
    locks: int = 0
    resends: int = 0
    erased: bool = False
    is_superseded: bool = False
    code: str | None = None
    codes: list[str] = field(default_factory=list)

    @property
    def is_pending(self) -> bool:
        return self.status == "PENDING"

    @property
    def password(self) -> str:
        return f"what {self.name} says to open doors"

    @property
    def gets_codes(self) -> bool:
        return not (self.is_decoy or self.is_superseded)

    def verified_with(self, *, right: bool) -> tuple[int, str]:
        """The status and code of the answer; the registration is as it is afterwards."""
        if self.status == "ACTIVE":
            return 200, ""
        if not self.is_pending:
            return 409, "not-pending"
        if self.rejections >= TRIES:
            return 423, "code-locked"
        if right:
            self.status = "ACTIVE"
            return 200, ""
        self.rejections += 1
        if self.rejections == TRIES:
            self.locks += 1
            self.status = "CANCELLED" if self.locks == LOCKS else self.status
        return 422, "wrong-code"

    def renewed(self) -> tuple[int, str]:
        if not self.is_pending:
            return 409, "not-pending"
        if self.resends == RESENDS:
            return 429, "too-many-requests"
        self.resends += 1
        self.rejections = 0
        return 202, ""

    def cancelled(self) -> tuple[int, str]:
        if self.status == "ACTIVE":
            return 409, "not-pending"
        self.status = "CANCELLED"
        return 200, ""

    def erase(self) -> None:
        self.status, self.erased = "CANCELLED", True


class Model:
    """Who registered what: for one address they stand side by side, and whoever proves it first has it."""

    def __init__(self) -> None:
        self.all: dict[str, Believed] = {}
        self._mails: Counter[str] = Counter()

    def registered(self, address: str, name: str, answered: str) -> Believed:
        """What the answer's id stands for; the model is as it is afterwards.

        The same payload again, while it is pending, is the same registration; another one is one of its own.
        """
        for known in self._of(address):
            if known.is_pending and known.name == name:
                assert answered == known.id
                return known
        assert answered not in self.all
        is_taken = any(known.status == "ACTIVE" for known in self._of(address))
        self.all[answered] = Believed(answered, address, name, is_decoy=is_taken)
        return self.all[answered]

    def is_sent_a_mail(self, address: str) -> bool:
        """Is one more within the budget? Then it is counted."""
        self._mails[address] += 1
        return self._mails[address] <= MAILS

    def proven(self, registration: Believed) -> None:
        for other in self._of(registration.address):
            if other is not registration and other.is_pending and not other.is_decoy:
                other.is_superseded, other.code = True, None

    def _of(self, address: str) -> list[Believed]:
        return [one for one in self.all.values() if one.address == address]


# --- What is done ---------------------------------------------------------------------------------

_runs = count(1)
_requests = count(1)
ADDRESSES = st.sampled_from(["ada", "bob"])
NAMES = st.sampled_from(["Ada", "Ada Lovelace"])


class Histories(RuleBasedStateMachine):
    """People who register two addresses, an operator, and a login service."""

    def __init__(self, service: Running) -> None:
        super().__init__()
        self.model = Model()
        self.http = httpx.Client(base_url=service.url, timeout=PATIENCE)
        self.operator = {"Authorization": f"Bearer {service.token}", "X-Reason": "a history"}
        self.run = next(_runs)
        self.position = 0

    def teardown(self) -> None:
        self.http.close()

    def post(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """Every second request has a key, and comes twice; the model knows nothing of the second time."""
        number = next(_requests)
        key = {"Idempotency-Key": f"the-key-of-request-{number}"} if number % 2 else {}
        answers = [self.http.post(path, json=body, headers={**(headers or {}), **key}) for _ in range(1 + number % 2)]
        answer, again = answers[0], answers[-1]
        self.position = max(self.position, int(answer.headers.get("Registrar-Position", 0)))
        if answer.is_success or told(answer)[1] == "wrong-code":
            position = "Registrar-Position"
            assert (again.status_code, again.content) == (answer.status_code, answer.content)
            assert again.headers.get(position) == answer.headers.get(position)
        return answer

    def seen(self, registration: Believed) -> dict[str, Any]:
        """As the API shows it now, with all that was acknowledged."""
        answer = self.http.get(f"/v1/registrations/{registration.id}", params={"min_position": self.position})
        assert answer.status_code == 200, answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    def until(self, registration: Believed, **expected: Any) -> dict[str, Any]:
        def shown() -> dict[str, Any]:
            found = self.seen(registration)
            assert found.items() >= expected.items(), (expected, found)
            return found

        found: dict[str, Any] = asyncio.run(eventually(shown, within=PATIENCE))
        return found

    def read_mail(self, registration: Believed) -> None:
        """Wait for what looks like its mail, and note the code, if one was sent."""
        self.until(registration, mail="SENT")
        registration.code = None
        if self.model.is_sent_a_mail(registration.address) and registration.gets_codes:
            messages = self.http.get("/mailbox/messages", params={"to": registration.address}).json()
            code = re.search(r"^\s*(\d{6})\s*$", messages[0]["text"], re.MULTILINE)
            assert code is not None
            registration.code = code[1]
            registration.codes.append(code[1])

    def pick(self, data: st.DataObject) -> Believed:
        """Any of them, but more often one that is pending: to all others little happens."""
        everyone = list(self.model.all.values())
        pending = [one for one in everyone if one.is_pending]
        among_all = data.draw(st.sampled_from([True, False, False, False]))
        return data.draw(st.sampled_from(everyone if among_all or not pending else pending))

    has_some = precondition(lambda self: bool(self.model.all))

    @rule(person=ADDRESSES, name=NAMES)
    def register(self, person: str, name: str) -> None:
        address = f"{person}-{self.run}@example.com"
        password = Believed("", address, name, is_decoy=False).password
        answer = self.post("/v1/registrations", {"email": address, "name": name, "password": password})
        assert (answer.status_code, answer.json()["status"]) == (202, "PENDING")
        registration_id = answer.json()["registration_id"]
        assert urlsplit(answer.headers["Location"]).path == f"/v1/registrations/{registration_id}"
        known = set(self.model.all)
        registration = self.model.registered(address, name, registration_id)
        if registration_id not in known:
            self.read_mail(registration)

    @has_some
    @rule(data=st.data(), kind=st.sampled_from(["right", "old"]))
    def verify(self, data: st.DataObject, kind: str) -> None:
        self.offer(self.pick(data), kind)

    @has_some
    @rule(data=st.data(), times=st.integers(1, TRIES + 1))
    def guess(self, data: st.DataObject, times: int) -> None:
        registration = self.pick(data)
        for _ in range(times):
            self.offer(registration, "wrong")

    def offer(self, registration: Believed, kind: str) -> None:
        codes = registration.codes or ["000000"]
        code = {"right": codes[-1], "old": codes[0], "wrong": f"{(int(codes[-1]) + 1) % 10**6:06d}"}[kind]
        right = code == registration.code
        was_pending = registration.is_pending
        expected = registration.verified_with(right=right)
        answer = self.post(f"/v1/registrations/{registration.id}/verification", {"code": code})
        assert told(answer) == expected
        if expected[1] == "wrong-code":
            assert answer.json()["attempts_left"] == TRIES - registration.rejections
        if expected[0] == 200:
            if was_pending:
                self.model.proven(registration)
            self.until(registration, status="ACTIVE")

    @has_some
    @rule(data=st.data())
    def ask_for_a_new_code(self, data: st.DataObject) -> None:
        registration = self.pick(data)
        expected = registration.renewed()
        answer = self.post(f"/v1/registrations/{registration.id}/otp")
        assert told(answer) == expected
        assert ("Retry-After" in answer.headers) == (expected[0] == 429)
        if expected[0] == 202:
            self.read_mail(registration)

    @has_some
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        registration = self.pick(data)
        expected = registration.cancelled()
        assert told(self.act(registration, "cancel")) == expected

    @has_some
    @rule(data=st.data())
    def erase(self, data: st.DataObject) -> None:
        registration = self.pick(data)
        registration.erase()
        assert told(self.act(registration, "erase")) == (200, "")

    @has_some
    @rule(data=st.data(), password=st.sampled_from(["right", "wrong"]))
    def log_in(self, data: st.DataObject, password: str) -> None:
        registration = self.pick(data)
        offered = registration.password + ("" if password == "right" else "?")
        answer = self.http.post(
            f"/v1/admin/accounts/{registration.id}/password-check", json={"password": offered}, headers=self.operator
        )
        expected = password == "right" and registration.status == "ACTIVE"
        assert (answer.status_code, answer.json()) == (200, {"matches": expected})

    def act(self, registration: Believed, what: str) -> httpx.Response:
        return self.post(f"/v1/admin/registrations/{registration.id}/{what}", headers=self.operator)

    @has_some
    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        registration = self.pick(data)
        # A refusal tells no position, so what it changed may be seen a moment later.
        tries = {"attempts_left": TRIES - registration.rejections} if registration.is_pending else {}
        shown = self.until(registration, status=registration.status, **tries)
        assert (shown["email"] is None) == registration.erased
        told_to_operators = self.http.get(f"/v1/admin/registrations/{registration.id}", headers=self.operator)
        assert (told_to_operators.json()["registration"]["duplicate_of"] is not None) == registration.is_decoy


def told(answer: httpx.Response) -> tuple[int, str]:
    """The status of an answer, and its error code if it is a problem."""
    is_problem = answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["type"].rpartition(":")[2] if is_problem else ""


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(RESEND_COOLDOWN="1ms") as service:
        yield service


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_history_is_as_the_model_has_it(service: Running, full_size: bool) -> None:
    class OfThisService(Histories):
        def __init__(self) -> None:
            super().__init__(service)

    run_state_machine_as_test(
        OfThisService,
        settings=settings(
            max_examples=200 if full_size else 25,
            stateful_step_count=40 if full_size else 25,
            derandomize=not full_size,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

    assert service.faults() == []


class Forgetful(Model):
    """Believes that a registration is new each time."""

    def registered(self, address: str, name: str, answered: str) -> Believed:
        assert answered not in self.all
        return super().registered(address, name, answered)


@pytest.mark.slow
def test_a_model_that_is_wrong_is_found_out(service: Running) -> None:
    class Wrong(Histories):
        def __init__(self) -> None:
            super().__init__(service)
            self.model = Forgetful()

    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            Wrong,
            settings=settings(
                max_examples=12,
                derandomize=True,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=False,
                phases=[Phase.generate],
            ),
        )
