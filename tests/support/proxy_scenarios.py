"""What has to hold whichever proxy stands in front of two `serve`: each scenario asserts it, and says what it saw."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final
from uuid import uuid4

import httpx

from tests.support.facts import eventually
from tests.support.log import query
from tests.support.proxied import HOST, Proxy, Recorder, Upstream, client_at, kept_ports, problem, spoken, upstreams

CLIENTS: Final = {"127.0.0.2": "127.0.0.2", "127.9.8.7": "127.9.8.7", "::1": "::/64"}
"""Addresses of clients, and the networks that they are of."""

SAID: Final[Mapping[str, list[str]]] = {
    "nothing": [],
    "another address": ["192.0.2.1"],
    "two headers": ["192.0.2.1", "198.51.100.2"],
    "a list with the proxy's own address": ["192.0.2.1, 127.0.0.1"],
    "a port": ["192.0.2.1:4711"],
    "IPv6": ["[2001:db8::1]:4711"],
    "IPv4 in IPv6": ["::ffff:192.0.2.1"],
    "garbage": ['unknown, "<x>", 192.0.2.700'],
    "nothing in it": [""],
    "many": [", ".join(["192.0.2.1"] * 200)],
}
"""What clients say of themselves in `X-Forwarded-For`."""

FORMS: Final[Mapping[str, Mapping[str, tuple[str, str]]]] = {
    "nginx": {
        "appended": ("X-Forwarded-For $remote_addr;", "X-Forwarded-For $proxy_add_x_forwarded_for;"),
        "with a port": ("X-Forwarded-For $remote_addr;", "X-Forwarded-For [$remote_addr]:$remote_port;"),
    },
    "haproxy-http": {
        "replaced": ("option forwardfor", "http-request set-header X-Forwarded-For %[src]"),
        "with a port": ("option forwardfor", "http-request set-header X-Forwarded-For [%[src]]:%[src_port]"),
    },
    "apache": {"replaced": ("ProxyPreserveHost On", "ProxyPreserveHost On\nRequestHeader unset X-Forwarded-For early")},
    "varnish": {"replaced": ("return (pass);", "set req.http.X-Forwarded-For = client.ip; return (pass);")},
    "caddy": {"appended": ("lb_policy round_robin", "lb_policy round_robin\ntrusted_proxies private_ranges")},
}
"""Other ways of a proxy's to say whose request it is than the one that we recommend."""

IPV6: Final = ("listen 8080", "listen [::]:8080 ipv6only=off")
"""As docs/proxies.md has it for nginx, whose file is for Compose, which has no IPv6."""

REPEATS: Final = frozenset({"nginx", "haproxy-http", "varnish"})
"""Proxies that send a POST again whose connection broke."""

HESITATES: Final = frozenset({"caddy"})
"""Proxies that for a moment know of nobody who serves, while one is stopped and the other has just come back."""

UNLIMITED: Final = "registrations=off, network=off, network-day=off, larger-network=off"

NOBODY: Final = "/v1/registrations/019cab10-0000-7000-8000-00000000dead"


@dataclass(frozen=True)
class Around:
    """What a scenario has: a proxy, an empty database, and a Redis."""

    proxy: Proxy
    dsn: str
    redis_url: str

    @asynccontextmanager
    async def recorder(self, *change: tuple[str, str], trusting: bool = True) -> AsyncIterator[Recorder]:
        """Behind the proxy, as both of its backends."""
        ports, recorder = kept_ports(2), Recorder()
        async with recorder.serving(*ports, trusting=trusting):
            await self._used(ports, *change)
            yield recorder

    @asynccontextmanager
    async def service(self, *change: tuple[str, str], **settings: str) -> AsyncIterator[list[Upstream]]:
        """Two of `serve` behind the proxy, with one Redis."""
        ports = kept_ports(2)
        async with upstreams(self.dsn, ports, RATE_LIMIT_URL=self.redis_url, **settings) as both:
            await self._used(ports, *change)
            yield both

    async def _used(self, ports: list[int], *change: tuple[str, str]) -> None:
        await self.proxy.use(ports, *change)

        async def serves() -> bool:
            async with client_at("127.0.0.2", self.proxy) as http:
                with suppress(httpx.TransportError):
                    return (await http.get("/health/ready")).status_code == 200
            return False

        await eventually(serves, within=30, every=0.1)

    async def registered(self) -> int:
        """How many registrations are in the log."""
        topic = "registration.user_registered"
        ((number,),) = await query(self.dsn, f"SELECT count(*) FROM events WHERE topic = '{topic}'")
        return int(number)


# --- What arrives ---------------------------------------------------------------------------------


async def client_address(around: Around) -> str:
    """The client's own, whatever it says, in each way of the proxy's to tell it."""
    forms = {"as recommended": (), **{form: (change,) for form, change in FORMS[around.proxy.name].items()}}
    if around.proxy.name == "nginx":
        forms = {form: (IPV6, *change) for form, change in forms.items()}
    wrong = []
    for form, changes in forms.items():
        async with around.recorder(*changes):
            for source, network in CLIENTS.items():
                async with client_at(source, around.proxy) as http:
                    for said, lines in SAID.items():
                        headers = [("X-Forwarded-For", line) for line in lines]
                        headers += [("X-Real-IP", "192.0.2.1"), ("Forwarded", "for=192.0.2.1")]
                        answer = await http.get("/v1/registrations/x", headers=headers)
                        if answer.json()["network"] != network:
                            sent = answer.json()["headers"].get("x-forwarded-for")
                            wrong.append(f"{form}, {source}, {said}: {answer.json()['network']} of {sent!r}")
    assert not wrong, "; ".join(wrong)
    return ", ".join(forms)


async def request_as_sent(around: Around) -> str:
    """Method, name, key and body arrive as they were sent, however a client frames them."""
    path, body = "/v1/registrations/x/verification", '{"code": "123456"}'
    told = {"Idempotency-Key": str(uuid4()), "X-Request-Id": str(uuid4()), "Content-Type": "application/json"}
    lines = "".join(f"{name}: {value}\n" for name, value in told.items())
    sized, chunked = f"Content-Length: {len(body)}\n", "Transfer-Encoding: chunked\n"
    in_chunks = b"9\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (body[:9].encode(), len(body) - 9, body[9:].encode())
    closes = f"Host: {HOST}\nConnection: close\n"
    async with around.recorder() as recorder:
        for how, head, sent in [
            ("plain", f"POST {path} HTTP/1.1\n{closes}{lines}{sized}", body.encode()),
            ("chunked", f"POST {path} HTTP/1.1\n{closes}{lines}{chunked}", in_chunks),
            ("HTTP/1.0", f"POST {path} HTTP/1.0\nHost: {HOST}\n{lines}{sized}", body.encode()),
            ("Expect", f"POST {path} HTTP/1.1\n{closes}Expect: 100-continue\n{lines}{sized}", body.encode()),
        ]:
            answer = await spoken(around.proxy, head, sent)
            assert b" 200 OK\r\n" in answer, f"{how}: {answer[:200]!r}"
            for word in (f'"body":"{body}"'.replace('"code": "123456"', r"\"code\": \"123456\""), HOST, *told.values()):
                assert word.encode() in answer, f"{how}: no {word} in {answer!r}"
            assert b'"http":"1.1"' in answer or how == "HTTP/1.0", how
        async with client_at("127.0.0.2", around.proxy) as http:
            before = recorder.arrived
            head_only = await http.head("/v1/registrations/x")
        assert (head_only.status_code, head_only.content, recorder.arrived) == (200, b"", before + 1)
        assert int(head_only.headers.get("content-length", "1")) > 0
    return "plain, chunked, HTTP/1.0, Expect, HEAD"


async def connections_kept(around: Around) -> str:
    """Requests of different clients share connections to us."""
    async with around.recorder(trusting=False) as recorder:
        for _ in range(60):
            async with client_at("127.0.0.2", around.proxy) as http:
                assert (await http.get("/v1/registrations/x")).status_code == 200
    assert recorder.arrived == 60
    assert len(recorder.connections) <= 20, f"{len(recorder.connections)} connections"
    return f"{len(recorder.connections)} connections for 60 clients"


async def outcome_of(request: Awaitable[httpx.Response], refusals: Counter[str] | None = None) -> str:
    """Its status, or that there was none.

    Args:
        refusals: where is counted what else than 202 was answered, in the words of who did.
    """
    try:
        answer = await request
        if refusals is not None and answer.status_code != 202:
            refusals[problem(answer)] += 1
        return str(answer.status_code)
    except (httpx.RemoteProtocolError, httpx.NetworkError):
        return "cut off"


# --- What comes back ------------------------------------------------------------------------------


async def limits_by_client(around: Around) -> str:
    """Exactly as many requests of one client pass as may, by way of both; of another, too."""
    async with around.service(LIMITS="verifications=5/31d"):

        async def offered(source: str, number: int) -> httpx.Response:
            async with client_at(source, around.proxy, **{"X-Forwarded-For": f"192.0.2.{number}"}) as http:
                return await http.post(f"{NOBODY}/verification", json={"code": "123456"})

        for source in ("127.0.0.2", "127.9.8.7"):
            answers = await asyncio.gather(*(offered(source, number) for number in range(12)))
            found = Counter(map(problem, answers))
            assert found == {"unknown-registration": 5, "too-many-requests": 7}, f"{source}: {found}"
            refused = next(answer for answer in answers if answer.status_code == 429)
            assert int(refused.headers["retry-after"]) > 1000
            assert refused.headers["ratelimit"].startswith('"verifications";r=0;t=')
    return "5 of 12 pass, of another network 5 more"


async def answers_pass(around: Around) -> str:
    """Refusals come back as we made them, and nothing but the public routes is to be seen."""
    async with around.service() as both, client_at("127.0.0.2", around.proxy) as http:

        async def post(content: bytes = b"{}", kind: str = "application/json") -> httpx.Response:
            return await http.post("/v1/registrations", content=content, headers={"Content-Type": kind})

        answers = {
            "misdirected-request": await http.get(NOBODY, headers={"Host": "evil.example"}),
            "unknown-registration": await http.get(NOBODY),
            "unavailable": await http.get(NOBODY, params={"min_position": 10**9, "wait": 50}),
            "invalid-request": await post(),
            "unsupported-media-type": await post(kind="text/plain"),
            "method-not-allowed": await http.put(NOBODY),
        }
        found = {expected: problem(answer) for expected, answer in answers.items()}
        assert found == {expected: expected for expected in found}, found
        assert int(answers["unavailable"].headers["retry-after"]) >= 1
        assert "GET" in answers["method-not-allowed"].headers["allow"]
        for answer in answers.values():
            assert answer.headers["cache-control"] == "no-store"
        assert (await post(b"x" * 20_000)).status_code == 413
        large = await outcome_of(post(b"x" * 3_000_000))
        assert large in ("413", "cut off"), large  # while it was still sending
        for path in ("/metrics", "/docs", "/v1/admin/registrations", "/v1/registrationsx", "/v1/../metrics"):
            before = [await one.requests() for one in both]
            assert (await http.get(path)).status_code in (400, 404), path
            assert [await one.requests() for one in both] == before
    return ", ".join(found)


async def nothing_cached(around: Around) -> str:
    """Whoever looks sees what is so, and each look gets to us."""
    changes: list[tuple[tuple[str, str], ...]] = [()]
    if around.proxy.name == "varnish":
        changes.append((("return (pass);", ""),))  # as it comes: it goes by what we say of our answers
    for change in changes:
        async with (
            around.service(*change, LIMITS=UNLIMITED) as both,
            client_at("127.0.0.2", around.proxy) as http,
        ):
            key = str(uuid4())
            first, again = [await register(http, f"one{len(change)}@example.com", key) for _ in range(2)]
            assert (first.status_code, first.json()) == (202, again.json())
            before = sum([await one.requests() for one in both])
            for _ in range(5):
                got, head = await http.get(first.headers["location"]), await http.head(first.headers["location"])
                assert (got.status_code, head.status_code) == (200, 200)
                assert int(got.headers.get("age", "0")) == 0
            assert sum([await one.requests() for one in both]) == before + 10
    return f"10 of 10 looks get to us{', without pass, too' if len(changes) > 1 else ''}"


# --- What breaks ----------------------------------------------------------------------------------


async def register(http: httpx.AsyncClient, email: str, key: str = "") -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return await http.post("/v1/registrations", json={"email": email, "name": "Ada"}, headers=headers)


@dataclass
class Crowd:
    """People who register, each from an address of their own and a few at a time, until they are told to stop; whoever
    gets no answer, or is told to come again, does so with the same key."""

    proxy: Proxy
    answers: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    people: int = 0
    stops: bool = False

    @asynccontextmanager
    async def registering(self) -> AsyncIterator[None]:
        numbers = count(1)
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(self._several(numbers))
            try:
                yield
            finally:
                self.stops = True

    async def _several(self, numbers: Any) -> None:
        while not self.stops:
            number, key = next(numbers), str(uuid4())
            self.people += 1
            async with client_at(f"127.1.{number // 250}.{number % 250 + 1}", self.proxy) as http:

                async def accepted(http: httpx.AsyncClient = http, number: int = number, key: str = key) -> bool:
                    outcome = await outcome_of(
                        register(http, f"person{number}@example{number % 7}.com", key), self.refusals
                    )
                    self.answers[outcome] += 1
                    return outcome == "202"

                await eventually(accepted, within=60, every=0.2)

    async def go_on(self, number: int) -> None:
        """Until so many more have begun."""
        until = self.people + number
        await eventually(lambda: self.people >= until, within=60)


async def restarted_in_turn(around: Around) -> str:
    """Either is stopped and started again while people register: nobody notices, or hardly anybody."""
    crowd = Crowd(around.proxy)
    async with around.service(LIMITS=UNLIMITED) as both:
        async with crowd.registering():
            await crowd.go_on(40)
            for one in both:
                await one.stop()
                await crowd.go_on(10)
                await one.start()

                async def in_use(one: Upstream = one) -> bool:
                    return await one.requests() > 0

                await eventually(in_use, within=60, every=0.1)
            await crowd.go_on(10)
        assert await around.registered() == crowd.people
    told = crowd.answers.total() - crowd.answers["202"]
    assert told <= (5 if around.proxy.name in HESITATES else 0), f"{crowd.answers}, {crowd.refusals}"
    return f"{crowd.people} of {crowd.people}{f', {told} told to come again' if told else ''}"


async def killed(around: Around) -> str:
    """One is killed while people register: nothing is lost or doubled. Where POSTs are repeated nobody notices."""
    crowd = Crowd(around.proxy)
    async with around.service(LIMITS=UNLIMITED) as both:
        async with crowd.registering():
            await crowd.go_on(40)
            both[0].kill()
            await crowd.go_on(80)
        assert await around.registered() == crowd.people
    failed = {status: number for status, number in crowd.answers.items() if status != "202"}
    assert set(failed) <= (set() if around.proxy.name in REPEATS else {"502", "503", "cut off"}), crowd.answers
    return f"{crowd.people} of {crowd.people}, {sum(failed.values())} told to come again"


async def dies_before_its_answer(around: Around) -> str:
    """One dies between commit and answer: the proxy asks the other, or tells the client to come again."""
    ports = kept_ports(2)
    async with upstreams(around.dsn, ports) as both:
        await both[0].stop()
        await both[0].start(armed="api.after_commit")
        await around._used(ports)
        outcomes: Counter[str] = Counter()
        async with client_at("127.0.0.2", around.proxy) as http:
            for number in range(4):  # one of two gets to it
                outcomes[await outcome_of(register(http, f"person{number}@example.com"))] += 1
        await both[0].ended()
        repeats = around.proxy.name in REPEATS
        assert await around.registered() == outcomes["202"] + (0 if repeats else 1), outcomes
        assert (outcomes["202"] == 4) is repeats, outcomes
        lost = outcomes.keys() - {"202"}
        assert lost <= {"502", "503", "cut off"}
    return f"the client: {', '.join(sorted(lost))}" if lost else "repeated, registered once"


async def nobody_there(around: Around) -> str:
    """Neither runs: the client is told so, and when to come again, and what it is told is not kept."""
    async with around.service() as both:
        for one in both:
            one.kill()
        async with client_at("127.0.0.2", around.proxy) as http:

            async def refused() -> httpx.Response | None:
                answer = await http.get(NOBODY)
                return answer if answer.status_code in (502, 503, 504) else None

            answer: httpx.Response = await eventually(refused, within=30, every=0.1)
            assert int(answer.headers["retry-after"]) >= 1
            await both[1].start()

            async def served() -> bool:
                return problem(await http.get(NOBODY)) == "unknown-registration"

            await eventually(served, within=30, every=0.1)
    return f"{answer.status_code} {problem(answer)}, then served"


SCENARIOS: Final[Mapping[str, Callable[[Around], Awaitable[str]]]] = {
    "client address": client_address,
    "request as sent": request_as_sent,
    "connections kept": connections_kept,
    "limits by client": limits_by_client,
    "answers pass": answers_pass,
    "nothing cached": nothing_cached,
    "restarted in turn": restarted_in_turn,
    "killed": killed,
    "dies before its answer": dies_before_its_answer,
    "nobody there": nobody_there,
}
