"""How operators' routes begin jobs."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from application.handlers import Handlers
from domain.errors import IdempotencyKeyReused
from entrypoints.api.idempotency import idempotency_key_of
from entrypoints.api.problems import REPLAYED, HttpProblem
from entrypoints.api.responses import answer
from infrastructure.replay.jobs import Jobs, Kind, OtherJob, UnderWay

PREFIX: Final = "/v1/admin"
UNDER_WAY: Final = "replay-under-way"


class BeginJob:
    """Begins jobs. With an Idempotency-Key the job's id follows from it, so a repeat finds the job."""

    def __init__(self, jobs: Jobs, handlers: Handlers) -> None:
        self.jobs = jobs
        self._handlers = handlers

    async def __call__(
        self, request: Request, kind: Kind, read_model: str | None, asked: BaseModel, *words: str | int | None
    ) -> Response:
        """Words that are None are left out."""
        arguments = [str(word) for word in words if word is not None]
        key = idempotency_key_of(request)
        job_id = None if key is None else self._handlers.keys.operators_id(f"job {key}")
        described = asked.model_dump(mode="json", exclude_defaults=True)
        try:
            job, before = await self.jobs.begin(kind, read_model, described, arguments, job_id=job_id)
        except UnderWay:
            raise HttpProblem(UNDER_WAY) from None
        except OtherJob:
            raise IdempotencyKeyReused from None
        location = {"Location": f"{PREFIX}/jobs/{job.job_id}"}
        return answer(job, 202, location | dict(REPLAYED) if before else location)
