"""Behind nginx, as `deploy/nginx.conf` sets it up; `make test-ground` tries the same behind other proxies."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import nginx
from tests.support.nginx import PrivateNginx
from tests.support.proxy_scenarios import SCENARIOS, Around
from tests.support.redis import PrivateRedis


@pytest.fixture
def proxy(pytestconfig: pytest.Config) -> Iterator[PrivateNginx]:
    nginx.demand(pytestconfig)
    with tempfile.TemporaryDirectory(prefix="registrar-nginx-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)  # its workers are another user's
        proxy = PrivateNginx(Path(directory))
        try:
            yield proxy
        finally:
            proxy.end()


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_what_has_to_hold_behind_a_proxy_holds(
    proxy: PrivateNginx, dsn: str, redis: PrivateRedis, scenario: str
) -> None:
    await SCENARIOS[scenario](Around(proxy, dsn, redis.url))
