"""The rate limits of the public API, each with its name, its figures, and whether it refuses or only counts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator

from domain.policy import Policy
from infrastructure.settings.entries import each
from infrastructure.settings.nearest import nearest_of
from infrastructure.settings.values import duration

Mode = Literal["on", "shadow", "off"]

MOST: Final = 1_000_000
"""Requests that a limit may name."""

SHORTEST: Final = timedelta(seconds=1)
LONGEST: Final = timedelta(days=31)
"""What a limit may count over. `RateLimit-Policy` has whole seconds."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One policy: `burst` requests at once, and then `count` in each `per`, evenly.

    So in any stretch of the length `per` at most `burst + count` pass.

    Attributes:
        name: a name of `DEFAULTS`; it stands in `LIMITS`, metrics and the `RateLimit` fields.
        mode: "on" refuses what is too much, "shadow" only counts it, "off" does not look.
    """

    name: str
    count: int
    per: timedelta
    burst: int
    mode: Mode = "on"

    @property
    def interval(self) -> int:
        """Microseconds in which one more may come."""
        return self.per / self.count // timedelta(microseconds=1)

    def __str__(self) -> str:
        return f"{self.name}={self.count}/{self.written_per} burst {self.burst} {self.mode}"

    @property
    def written_per(self) -> str:
        """`per` as `LIMITS` has it, in its largest unit that fits."""
        seconds = int(self.per.total_seconds())
        unit, size = next(one for one in _UNITS if not seconds % one[1])
        return f"{seconds // size}{unit}"

    @property
    def of(self) -> str:
        """Whose requests it counts, and which, as a person reads it."""
        return _OF[self.name]


DEFAULTS: Final = (
    Limit("registrations", 5, timedelta(hours=1), 5),
    Limit("network", 10, timedelta(minutes=1), 20),
    Limit("network-day", 100, timedelta(days=1), 100),
    Limit("larger-network", 60, timedelta(minutes=1), 60),
    Limit("domain", 100, timedelta(minutes=1), 100, "shadow"),
    Limit("verifications", 60, timedelta(minutes=1), 120),
    Limit("new-codes", 10, timedelta(minutes=1), 20),
    Limit("repeats", 60, timedelta(minutes=1), 120),
    Limit("admin-login", 10, timedelta(minutes=1), 20),
    Limit("password-checks", 30, timedelta(hours=1), 30),
    Limit("all-password-checks", 6000, timedelta(minutes=1), 6000),
    Limit("mails", 20, timedelta(seconds=1), 1200),
)
"""Every policy (docs/limits.md). The first five count registrations: five an hour is the customer's plan's, the figures
of the networks and the domain are those of docs/security.md, S13."""

_POLICY: Final = Policy()

_OF: Final = {
    "registrations": "registrations of one address by one network",
    "network": "registrations by an IPv4 address or IPv6 /64",
    "network-day": "the same, over a day",
    "larger-network": "registrations by an IPv4 /24 or IPv6 /48",
    "domain": "registrations of addresses of one domain",
    "verifications": "codes offered by an IPv4 address or IPv6 /64",
    "new-codes": "new codes asked for by an IPv4 address or IPv6 /64",
    "repeats": "requests repeated with their Idempotency-Key by an IPv4 address or IPv6 /64",
    "admin-login": "wrong operator's tokens by an IPv4 address or IPv6 /64",
    "password-checks": "passwords checked for one account",
    "all-password-checks": "passwords checked for all accounts",
    "mails": "mails to whomever: past it they wait",
    "mailbox": "mails to one mailbox",
    "mailbox-day": "the same, over a day",
    "mailbox-network": "mails to one mailbox that one network asks for",
    "mailbox-network-day": "the same, over a day",
}

MAILBOX_DEFAULTS: Final = (
    Limit("mailbox", _POLICY.mailbox_mails_per_hour, timedelta(hours=1), _POLICY.mailbox_mails_per_hour),
    Limit("mailbox-day", _POLICY.mailbox_mails_per_day, timedelta(days=1), _POLICY.mailbox_mails_per_day),
    Limit("mailbox-network", _POLICY.network_mails_per_hour, timedelta(hours=1), _POLICY.network_mails_per_hour),
    Limit("mailbox-network-day", _POLICY.network_mails_per_day, timedelta(days=1), _POLICY.network_mails_per_day),
)
"""The silent budget of a mailbox, which the domain keeps (`domain.mailbox`): no settings, but `limits simulate` tries
others."""

_UNITS: Final = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))

_ENTRY: Final = re.compile(
    r"(?P<name>[^=\s]+)\s*=\s*"
    r"(?:(?P<count>[0-9]{1,9})\s*/\s*(?P<per>[0-9][0-9a-z.]{0,30})(?:\s+burst\s+(?P<burst>[0-9]{1,9}))?(?:\s+|$))?"
    r"(?P<mode>on|shadow|off)?",
    re.ASCII,
)


def parse_limits(value: object) -> object:
    """All policies, from text with those that differ from `DEFAULTS`.

    Entries are separated by commas, semicolons or line ends: `network=20/1m burst 40`, `network-day=200/1d shadow`,
    `domain=on`, `new-codes=off`. Figures without a mode are "on", and a burst that is not named is the count.

    Raises:
        ValueError: it is something else; the message names each policy of which that is so.
    """
    if not isinstance(value, str):
        return value
    changed: dict[str, Limit] = {}

    def change(entry: str) -> None:
        limit = parse_limit(entry)
        if limit.name in changed:
            raise ValueError(f"names {limit.name} twice")
        changed[limit.name] = limit

    each(_entries(value), change, numbered=False)
    return tuple(changed.get(limit.name, limit) for limit in DEFAULTS)


def _entries(text: str) -> Iterator[str]:
    return (entry.strip() for entry in re.split(r"[,;\n]", text) if entry.strip())


def parse_limit(entry: str, among: Sequence[Limit] = DEFAULTS) -> Limit:
    """One entry of `LIMITS`.

    Args:
        among: the limits that there are, with their defaults.

    Raises:
        ValueError: see `parse_limits`.
    """
    names = [limit.name for limit in among]
    name = re.split(r"[=\s]", entry, maxsplit=1)[0]
    if name not in names:
        nearest = nearest_of(name, names)
        raise ValueError(f"names a limit {name[:40]!a}, which there is not ({nearest} is the nearest)")
    found = _ENTRY.fullmatch(entry)
    if found is None or (found["count"] is None and found["mode"] is None):
        raise ValueError(
            f"says of {name} something other than COUNT/DURATION [burst COUNT] [on|shadow], on, shadow or off"
        )
    usual = next(limit for limit in among if limit.name == name)
    if found["count"] is None:
        return replace(usual, mode=_mode(found["mode"]))
    count = _number(name, "the count", found["count"])
    burst = _number(name, "the burst", found["burst"] or found["count"])
    return Limit(name, count, _per(name, found["per"]), burst, _mode(found["mode"] or "on"))


def _mode(text: str) -> Mode:
    return "off" if text == "off" else "shadow" if text == "shadow" else "on"


def _number(name: str, what: str, text: str) -> int:
    number = int(text)
    if not 1 <= number <= MOST:
        raise ValueError(f"gives {name} a number that is not between 1 and {MOST}: {what}")
    return number


def _per(name: str, text: str) -> timedelta:
    try:
        per = duration(text)
    except ValueError as error:
        raise ValueError(f"gives {name} something that {error}") from None
    if not isinstance(per, timedelta) or not SHORTEST <= per <= LONGEST or per.microseconds:
        raise ValueError(f"gives {name} a duration that is not whole seconds, from 1s to {LONGEST.days}d")
    return per


Limits = Annotated[tuple[Limit, ...], BeforeValidator(parse_limits)]
