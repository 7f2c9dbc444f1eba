"""fastapi-users with SQLAlchemy and asyncpg, as its documentation sets it up."""

# mypy: ignore-errors
from __future__ import annotations

import os
import uuid
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from fastapi_users import BaseUserManager, UUIDIDMixin, schemas
from fastapi_users.db import SQLAlchemyBaseUserTableUUID, SQLAlchemyUserDatabase
from fastapi_users.password import PasswordHelper
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from bench.peers.listening import listen


class Base(DeclarativeBase):
    pass


class User(SQLAlchemyBaseUserTableUUID, Base):
    pass


class Unhashed(PasswordHelper):
    """Where no password is measured: the library has no account without one."""

    def __init__(self) -> None:
        pass

    def hash(self, password: str) -> str:  # noqa: ARG002 - the library's
        return "unhashed"


HASHING = os.environ["PEER_HASHING"] == "argon2id"
HELPER = (
    PasswordHelper(PasswordHash([Argon2Hasher(time_cost=2, memory_cost=19456, parallelism=1)]))
    if HASHING
    else Unhashed()
)

engine = create_async_engine(os.environ["PEER_DATABASE"], pool_size=8)
sessions = async_sessionmaker(engine, expire_on_commit=False)


class UserManager(UUIDIDMixin, BaseUserManager[User, uuid.UUID]):
    pass


async def manager():
    async with sessions() as session:
        yield UserManager(SQLAlchemyUserDatabase(session, User), HELPER)


class SignUp(BaseModel):
    email: str
    name: str
    password: str = "correct horse battery"  # noqa: S105 - nobody's


@asynccontextmanager
async def lifespan(_app):
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/v1/registrations", status_code=202)
async def register(wanted: SignUp, users: UserManager = Depends(manager)):  # noqa: B008 - as FastAPI has it
    user = await users.create(schemas.BaseUserCreate(email=wanted.email, password=wanted.password))
    return {"registration_id": str(user.id), "status": "PENDING"}


if __name__ == "__main__":
    listen(app)
