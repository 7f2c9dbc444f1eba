"""What goes on, again and again: tables for people, a line of JSON a look for programs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from application.ports import Unavailable
from entrypoints.cli.output import console, print_json
from entrypoints.cli.scraped import Scraped, scrape
from entrypoints.cli.streams import is_read
from entrypoints.queries.activity import Activity, ActivityQueries
from infrastructure.postgres.connection import AWAY
from infrastructure.settings.settings import Settings
from infrastructure.synthetic.records import PASSED, Last

_TITLES: Final = {
    "registered": "registered",
    "mail_sent": "mails sent",
    "mail_failed": "mails failed",
    "wrong_codes": "wrong codes",
    "verified": "verified",
    "activated": "activated",
}


@dataclass(frozen=True, slots=True)
class Look:
    """One look at everything.

    Attributes:
        activity: None while the database does not answer.
        taken: monotonic seconds.
    """

    activity: Activity | None
    processes: Sequence[Scraped]
    taken: float


def default_urls(settings: Settings) -> tuple[str, ...]:
    """Where a `serve` with these settings shows its metrics, on this machine."""
    host, port = settings.admin_listen or (settings.host, settings.port)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return (f"http://{f'[{host}]' if ':' in host else host}:{port}",)


async def watch(
    queries: ActivityQueries, urls: Sequence[str], *, interval: float, count: int | None, as_json: bool
) -> int:
    """Look and show, `count` times; None: until it is ended on a terminal, else once."""
    screen = Console(highlight=False)
    lives = screen.is_terminal and not as_json
    if count is None and not lives:
        count = 1
    with _shown(screen, lives=lives, as_json=as_json) as show:
        before: Look | None = None
        async for look in _looks(queries, urls, interval=interval, count=count, patient=count != 1):
            show(look, before)
            before = look
            if not is_read():
                break
    return 0


async def _looks(
    queries: ActivityQueries, urls: Sequence[str], *, interval: float, count: int | None, patient: bool
) -> AsyncIterator[Look]:
    """
    Args:
        patient: go on while the database is away.
    """
    now = asyncio.get_running_loop().time
    number = 0
    while True:
        activity: Activity | None = None
        processes = await asyncio.gather(*map(scrape, urls))
        try:
            activity = await queries.now()
        except (*AWAY, Unavailable):
            if not patient:
                raise
        yield Look(activity, processes, now())
        number += 1
        if number == count:
            return
        await asyncio.sleep(interval)


Show = Callable[[Look, Look | None], None]


@contextmanager
def _shown(screen: Console, *, lives: bool, as_json: bool) -> Iterator[Show]:
    """How looks are shown: each in the place of the one before, or below it."""
    if as_json:
        yield lambda look, _: print_json(_told(look), one_line=True)
    elif lives:
        with Live(console=screen, screen=True, auto_refresh=False) as live:
            yield lambda look, before: live.update(_drawn(look, before), refresh=True)
    else:
        yield lambda look, before: console().print(_drawn(look, before))


# --- For programs -----------------------------------------------------------------------------


def _told(look: Look) -> dict[str, Any]:
    activity = look.activity
    if activity is None:
        return {"at": None, "processes": look.processes}
    backlog = activity.backlog
    return {
        "at": activity.at,
        "head": backlog.followers.head,
        "window_seconds": activity.rates.seconds,
        "events": activity.rates.events,
        **activity.rates.counts,
        "oldest_unsent_seconds": backlog.oldest_unsent.total_seconds(),
        "dead_letters": backlog.dead_letters,
        "stray_messages": backlog.stray_messages,
        "stuck_registrations": backlog.stuck,
        "followers": [
            {
                "name": one.name,
                "status": one.status,
                "lag_events": one.lag_events,
                "lag_seconds": one.lag_seconds,
                "parked_streams": one.parked_streams,
            }
            for one in backlog.followers.items
        ],
        "circuits": activity.circuits,
        "synthetic": _last(backlog.synthetic),
        "processes": look.processes,
    }


def _last(synthetic: Last | None) -> dict[str, Any] | None:
    if synthetic is None:
        return None
    return {
        "outcome": synthetic.outcome,
        "age_seconds": synthetic.age,
        "passed_age_seconds": synthetic.passed_age,
    }


# --- For people -------------------------------------------------------------------------------


def _drawn(look: Look, before: Look | None) -> RenderableType:
    parts: list[RenderableType] = []
    if look.activity is None:
        parts.append(Text("The database does not answer; `registrar doctor` says more.", style="bold red"))
    else:
        parts += [_head(look.activity), _rates(look.activity), _backlog(look.activity), _followers(look.activity)]
        parts += [_circuits(look.activity)] if look.activity.circuits else []
    since = None if before is None or _some_silent(before) else look.taken - before.taken
    then = None if before is None else before.processes
    parts += [_processes(look.processes, then, since)]
    limits = _limits(look.processes, then, since)
    parts += [limits] if limits.row_count else []
    return Group(*(piece for part in parts for piece in (part, Text())))


def _some_silent(look: Look) -> bool:
    """Then nothing can be said of what happened since."""
    return any(one.trouble is not None for one in look.processes)


def _head(activity: Activity) -> Text:
    return Text(f"registrar top · {activity.at:%Y-%m-%d %H:%M:%SZ} · log at {activity.backlog.followers.head:,}")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _rates(activity: Activity) -> Table:
    rates = activity.rates
    table = _table(f"last {rates.seconds:.0f} s", *_TITLES.values(), "events")
    counted = [rates.counts[name] for name in _TITLES] + [rates.events]
    table.add_row("count", *(f"{count:,}" for count in counted))
    table.add_row("a second", *(_rate(count, rates.seconds) for count in counted))
    return table


def _backlog(activity: Activity) -> Table:
    backlog = activity.backlog
    table = _table("waiting", "oldest unsent", "dead letters", "stray", "stuck", "synthetic", "passed ago")
    last = backlog.synthetic
    table.add_row(
        "",
        _marked(_seconds(backlog.oldest_unsent.total_seconds()), backlog.oldest_unsent.total_seconds() > 60),
        *(_marked(f"{count:,}", count > 0) for count in (backlog.dead_letters, backlog.stray_messages, backlog.stuck)),
        "-" if last is None else _marked(last.outcome, last.outcome != PASSED),
        "-" if last is None or last.passed_age is None else _marked(_seconds(last.passed_age), last.passed_age > 180),
    )
    return table


def _followers(activity: Activity) -> Table:
    table = _table("follower", "status", "lag", "lag (s)", "parked")
    for one in activity.backlog.followers.items:
        troubled = one.status != "up"
        table.add_row(
            one.name,
            _marked(one.status, troubled),
            f"{one.lag_events:,}",
            f"{one.lag_seconds:.1f}",
            _marked(f"{one.parked_streams:,}", one.parked_streams > 0),
        )
    return table


def _circuits(activity: Activity) -> Table:
    table = _table("mail server", "circuit")
    for name, state in activity.circuits.items():
        table.add_row(name, _marked(state, state != "closed"))
    return table


def _processes(found: Sequence[Scraped], before: Sequence[Scraped] | None, since: float | None) -> Table:
    rated = before is not None and since is not None
    table = _table(
        "process", *(f"{one}{'/s' if rated else ''}" for one in ("requests", "5xx", "shed")), "under way", "hashes"
    )
    for number, one in enumerate(found):
        if one.trouble is not None:
            table.add_row(one.url, Text(one.trouble, style="red"))
            continue
        then = Scraped(one.url) if before is None else before[number]
        counts = ((one.requests, then.requests), (one.errors, then.errors), (one.shed, then.shed))
        table.add_row(
            one.url,
            *(_since(now, earlier, since if rated else None) for now, earlier in counts),
            f"{one.under_way:,}",
            f"{one.hash_queue:,}",
        )
    return table


def _limits(found: Sequence[Scraped], before: Sequence[Scraped] | None, since: float | None) -> Table:
    """What the limits of all these processes said, together."""
    whole, earlier = _added(found), _added(before or ())
    outcomes = ("passed", "waited", "refused", "would-refuse", "would-wait")
    rated = before is not None and since is not None
    degraded = any(one.degraded for one in found)
    table = _table(
        f"limit{' (Redis is away)' if degraded else ''}", *(f"{one}{'/s' if rated else ''}" for one in outcomes)
    )
    for policy in sorted(whole):
        then = earlier.get(policy, Counter())
        table.add_row(policy, *(_since(whole[policy][one], then[one], since if rated else None) for one in outcomes))
    return table


def _added(found: Sequence[Scraped]) -> dict[str, Counter[str]]:
    whole: dict[str, Counter[str]] = {}
    for one in found:
        for policy, counts in one.limits.items():
            whole.setdefault(policy, Counter()).update(counts)
    return whole


def _since(count: int, before: int, seconds: float | None) -> str:
    """How many a second since the look before, or, without one, how many there have been at all."""
    return f"{count:,}" if seconds is None else _rate(max(0, count - before), seconds)


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:,.1f}" if seconds else "-"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _marked(text: str, troubled: bool) -> Text:
    return Text(text, style="bold red" if troubled else "")
