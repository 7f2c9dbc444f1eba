"""Every span that a process begins or ends, noted in a file that no SIGKILL loses: what a collector should have got."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from infrastructure.telemetry import tracing

NOTED_IN: Final = "SPANS_NOTED_IN"
"""Variable of the environment that names the directory; see `tests.support.preforked`."""


@dataclass(frozen=True, slots=True)
class Noted:
    """A span as it was made.

    Attributes:
        process: its id.
        name: as it was at first; that of a request's is its method.
        parent_id: "" of the first one of a trace.
        links: trace id and span id of each.
        event: topic of what is decided on, "" if it is nothing of the kind.
        ended: nanoseconds since 1970; 0: it never has.
    """

    process: int
    trace_id: str
    span_id: str
    parent_id: str
    name: str
    links: tuple[tuple[str, str], ...] = ()
    event: str = ""
    ended: int = 0


def note_in(directory: Path) -> None:
    """Note all spans of this very process from now on."""
    file = os.open(directory / f"{os.getpid()}.spans", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)

    def note(*words: str) -> None:
        os.write(file, ("\t".join(words) + "\n").encode())

    class NotedSpan(tracing.Span):
        __slots__ = ()

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            links = ",".join(f"{link[3:35]}-{link[36:52]}" for link in self.links)
            event = str(self.attributes.get("registrar.event", ""))
            note("begins", self.span_id, self.trace_id, self.parent_id, self.name, links, event)

        def end(self) -> None:
            super().end()
            note("ends", self.span_id, str(self.ended))

    tracing.Span = NotedSpan  # type: ignore[assignment,misc]


def noted_in(directory: Path) -> Iterator[Noted]:
    """All spans of all processes that have noted theirs."""
    for file in directory.glob("*.spans"):
        begun: dict[str, list[str]] = {}
        ended: dict[str, int] = {}
        for line in file.read_text().splitlines():
            what, span_id, *words = line.split("\t")
            if what == "begins":
                begun[span_id] = words
            else:
                ended[span_id] = int(words[0])
        for span_id, (trace_id, parent_id, name, links, event) in begun.items():
            linked = tuple((link[:32], link[33:]) for link in links.split(",") if link)
            yield Noted(int(file.stem), trace_id, span_id, parent_id, name, linked, event, ended.get(span_id, 0))
