"""Requests that are made from our OpenAPI document, valid and not: the document and the service say the same."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.fuzz.running import fuzz, running


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_the_document_says_is_what_the_service_does() -> None:
    with running() as service:
        done = fuzz(service, "--seed", "1", "--max-examples", "3", "--no-shrink")
        ready = httpx.get(f"{service.url}/health/ready")

        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"Tested: (\d+)", done.stdout)
        for phase in ("Examples", "Coverage", "Fuzzing", "Stateful"):
            assert re.search(rf"✅ +{phase} ", done.stdout), done.stdout
        assert (ready.status_code, service.faults()) == (200, [])
