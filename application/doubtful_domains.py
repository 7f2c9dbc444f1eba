"""Domains of addresses that are well-formed, but perhaps not what the person or the operator wants.

Both questions are about the domain as it was typed, and nothing that is stored: their answers give nobody away.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby
from typing import Final

from application.listed import listed

MUCH_USED: Final = frozenset(
    """
    gmail.com googlemail.com yahoo.com hotmail.com outlook.com icloud.com protonmail.com fastmail.com rediffmail.com
    bigpond.com btinternet.com comcast.net verizon.net sbcglobal.net bellsouth.net
    hotmail.co.uk yahoo.co.uk hotmail.de outlook.de yahoo.de freenet.de t-online.de
    hotmail.fr yahoo.fr wanadoo.fr laposte.net hotmail.it
    """.split()  # noqa: SIM905 - a line for each kind, not for each name
)
"""Mail services with many users, and names of five letters or more. One slip away from a shorter name (gmx, web, aol,
live) is nearly always another one that exists."""

REAL: Final = frozenset({"gail.com"})
"""Domains that people have addresses at, though they look like slips by the rules below."""

_BY_INITIAL: Final = {
    initial: tuple(domains) for initial, domains in groupby(sorted(MUCH_USED), key=lambda domain: domain[0])
}


@lru_cache(maxsize=4096)
def is_disposable(domain: str) -> bool:
    """Is it, or a domain above it, on the list of domains that anybody gets an address at for minutes?

    Args:
        domain: in lower-case ASCII, as `parse_address` gives it.
    """
    known = listed("disposable-domains")
    while domain:
        if domain in known:
            return True
        domain = domain.partition(".")[2]
    return False


@lru_cache(maxsize=4096)
def meant_domain(domain: str) -> str | None:
    """The much used domain that is one slip away from this one; None if there is none, or this one is real.

    A slip is a letter too many, one too few, another one, or two changed around. The first letter is none: there are
    email.com, ymail.com and mail.com; neither is one country for another: there are yahoo.fr and yahoo.gr.

    Args:
        domain: as of `is_disposable`.
    """
    if domain in MUCH_USED or domain in REAL:
        return None
    near = (one for one in _BY_INITIAL.get(domain[:1], ()) if abs(len(one) - len(domain)) <= 1)
    return next((one for one in near if _one_slip(one, domain) and not _two_countries(one, domain)), None)


def forget_judged_domains() -> None:
    """Forget the domains that were judged: one of them may be a single person's."""
    is_disposable.cache_clear()
    meant_domain.cache_clear()


def _one_slip(meant: str, typed: str) -> bool:
    """Restricted Damerau-Levenshtein distance of 1, beside the first letter."""
    same = next((i for i, (one, other) in enumerate(zip(meant, typed, strict=False)) if one != other), None)
    if same is None:
        return True  # one of them goes on
    left, right = meant[same:], typed[same:]
    return (
        left[1:] == right[1:]
        or left[1:] == right
        or left == right[1:]
        or (left[:2] == right[1::-1] and left[2:] == right[2:])
    )


def _two_countries(meant: str, typed: str) -> bool:
    one, other = (domain.rpartition(".")[2] for domain in (meant, typed))
    return one != other and len(one) == len(other) == len("de")
