"""The library `eventsourcing` as it comes, behind FastAPI: its own application and recorder for PostgreSQL."""

# mypy: ignore-errors
from __future__ import annotations

from uuid import NAMESPACE_URL, UUID, uuid5

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from fastapi import FastAPI
from pydantic import BaseModel

from bench.peers.listening import listen


class Claim(Aggregate):
    """Of an address: two registrations of one cannot both be recorded."""

    @event("Claimed")
    def __init__(self, email: str, registration_id: str) -> None:
        self.email, self.registration_id = email, registration_id

    @staticmethod
    def create_id(email: str) -> UUID:
        return uuid5(NAMESPACE_URL, email)


class Registration(Aggregate):
    @event("Registered")
    def __init__(self, email: str, name: str) -> None:
        self.email, self.name, self.serial = email, name, 0

    @event("CodeIssued")
    def issue(self, serial: int) -> None:
        self.serial = serial


class SignUp(BaseModel):
    email: str
    name: str


registrations = Application()
app = FastAPI()


@app.post("/v1/registrations", status_code=202)
def register(wanted: SignUp) -> dict[str, str]:
    registration = Registration(wanted.email, wanted.name)
    registration.issue(1)
    registrations.save(Claim(wanted.email, str(registration.id)), registration)
    return {"registration_id": str(registration.id), "status": "PENDING"}


if __name__ == "__main__":
    listen(app)
