"""How mails look, and whose they are: what operators set of it, as templates see it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from application.ports import CODE_GAP, ID_GAP

_WHITE: Final = "#ffffff"
_BLACK: Final = "#000000"
_DARK_CARD: Final = "#1a2029"
"""What text stands on in `letter.html`, in dark mode."""
READABLE: Final = 4.5
"""Contrast of text (WCAG 2.2, 1.4.3, AA)."""


@dataclass(frozen=True, slots=True)
class Look:
    """The values are those of `infrastructure.settings.letters`, where each is checked.

    Attributes:
        site_url: what mails name and link to.
        product: the name of what people register for.
        verify_url: where the button leads, with `{id}` and `{code}`, maybe with `{language}`.
    """

    site_url: str
    product: str | None = None
    logo_url: str | None = None
    accent: str = "#1a56c4"
    support: str | None = None
    verify_url: str | None = None

    def values(self) -> dict[str, str | None]:
        """The variables that every template has; None where nothing is set."""
        return {
            "site_url": self.site_url,
            "product": self.product,
            "signature": ", ".join(filter(None, (self.product, self.site_url))),
            "logo_url": self.logo_url,
            "support": self.support,
            "accent": self.accent,
            "on_accent": max(_WHITE, _BLACK, key=lambda ink: contrast(ink, self.accent)),
            "link_color": _readable(self.accent, on=_WHITE, towards=_BLACK),
            "dark_link_color": _readable(self.accent, on=_DARK_CARD, towards=_WHITE),
        }

    def button(self, language: str) -> str | None:
        """`verify_url` in a language, with the gaps that each mail fills."""
        if self.verify_url is None:
            return None
        return self.verify_url.replace("{language}", language).replace("{id}", ID_GAP).replace("{code}", CODE_GAP)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, `#rrggbb`: 1 to 21 (WCAG 2.2)."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: str) -> float:
    weights = 0.2126, 0.7152, 0.0722
    linear = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (channel / 255 for channel in _channels(color))
    )
    return sum(weight * part for weight, part in zip(weights, linear, strict=True))


def _channels(color: str) -> Iterator[int]:
    return (int(color[at : at + 2], 16) for at in (1, 3, 5))


def _readable(color: str, *, on: str, towards: str) -> str:
    """The colour, mixed with as little of another one as makes it readable."""
    for tenths in range(10):
        mixed = "#" + "".join(
            f"{round(one + (other - one) * tenths / 10):02x}"
            for one, other in zip(_channels(color), _channels(towards), strict=True)
        )
        if contrast(mixed, on) >= READABLE:
            return mixed
    return towards
