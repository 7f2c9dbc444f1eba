"""HTTP proxies as Debian ships them, with the configurations of docs/proxies.md, in front of two `serve`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from infrastructure.embedded.postgres import EmbeddedPostgres
from tests.ground.running import CACHE, RunningServer
from tests.ground.scene import fresh_database
from tests.ground.table import Cell, guarded
from tests.support import redis as redis_server
from tests.support.proxied import configuration
from tests.support.proxy_scenarios import SCENARIOS, Around

PROXIES: Final = ("nginx", "haproxy-http", "apache", "varnish", "caddy")


class GroundProxy:
    """See `tests.support.proxied.Proxy`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._file = CACHE / f"{name}.configuration"
        self.running = RunningServer(name, CONFIGURATION=str(self._file))

    @property
    def port(self) -> int:
        return self.running.port

    async def use(self, backends: Sequence[int], *change: tuple[str, str]) -> None:
        self._file.write_text(configuration(self.name, self.port, backends, change, run="/run"))
        await self.running.reset()
        await self.running.restart()


async def behind(name: str, postgres: EmbeddedPostgres, beginnings: tuple[str, ...]) -> tuple[str, dict[str, Cell]]:
    """The version of this proxy, and what came of each scenario that begins so."""
    proxy = GroundProxy(name)
    async with proxy.running:

        async def one(scenario: Callable[[Around], Awaitable[str]]) -> Cell:
            with redis_server.server() as redis:
                return Cell.of([], await scenario(Around(proxy, await fresh_database(postgres), redis.url)))

        cells = {name: await guarded(one(SCENARIOS[name])) for name in SCENARIOS if name.startswith(beginnings)}
        return proxy.running.version, cells
