"""The routes of health and metrics."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.responses import Response

from entrypoints.api.responses import Health, answer
from entrypoints.queries.health import HealthChecks, Report
from infrastructure.telemetry.metrics import CONTENT_TYPE, Metrics


def add_health_routes(app: FastAPI, checks: HealthChecks) -> None:
    """`/health/*`: 200 while the part does its work, if only just (`degraded`); else 503 (`down`)."""

    async def live() -> Response:
        """The process runs; depends on nothing else."""
        return _response(Report("up"))

    async def ready() -> Response:
        """Registrations can be recorded; `degraded` while no mail can be sent."""
        return _response(await checks.ready())

    async def database() -> Response:
        """The database takes writes; `degraded` while the log is not what was recorded, or not signed and published."""
        return _response(await checks.database())

    async def rabbitmq() -> Response:
        """RabbitMQ takes messages and gives them back; `degraded` while no worker consumes; `disabled` without it."""
        return _response(await checks.rabbitmq())

    async def mail() -> Response:
        """The mail servers' circuits, and how long the oldest unsent mail has waited."""
        return _response(await checks.mail())

    async def projections() -> Response:
        """How far each follower of the log is behind it."""
        return _response(await checks.projections())

    for check in (live, ready, database, rabbitmq, mail, projections):
        app.add_api_route(
            f"/health/{check.__name__}",
            check,
            methods=["GET"],
            tags=["health"],
            summary=f"Health: {check.__name__}",
            response_model=None,
            responses={200: {"model": Health}, 503: {"model": Health, "description": "Down"}},
        )


def add_metrics_route(app: FastAPI, metrics: Metrics, checks: HealthChecks) -> None:
    """`/metrics`, in Prometheus' text format."""

    async def show() -> Response:
        """Every metric; those that the database knows are missing while it is away."""
        await checks.measure()
        return Response(metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    app.add_api_route(
        "/metrics",
        show,
        name="metrics",
        methods=["GET"],
        tags=["health"],
        summary="Metrics",
        response_model=None,
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )


def _response(report: Report) -> Response:
    return answer({"status": report.status, **report.details}, 503 if report.status == "down" else 200)
