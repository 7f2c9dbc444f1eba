"""When it is each mail's turn: the limit of mails that the whole service sends, kept by the one process that leads.

A mail past the limit waits and is never dropped. Its code's time runs from its hand-over, so waiting harms no code.
Meanwhile it stands in the database where the waiting begins, for the saga: a request that waits for its turn is not
lost, and to repeat it would only make the queue longer.

A mail that is withheld stands in the line like any other, or whoever watches its state could tell; it does not count,
or whoever asks for mails past the budget of a mailbox would have everybody else's wait.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Final
from uuid import UUID

import structlog

from domain.recorded import Position
from domain.registration import Registration
from infrastructure.event_store.reader import RecordedRow
from infrastructure.limits.pace import Pace
from infrastructure.postgres.connection import Connection
from infrastructure.settings.limits import Limit

log = structlog.get_logger(__name__)

WAITING_BEHIND: Final = "relay__waiting"
"""In the table of followers, while mails wait: the position up to which requests had their turn `QUIET` ago."""

QUIET: Final = timedelta(minutes=2)
"""For so long no mail has waited when the waiting is over: at the limit itself it would come and go. And for so long a
mail that had its turn is left alone, as after a request (`application.mail_saga.SECOND_LOOK`): its second look is long
overdue by then, and would take a mail for lost that is just being sent."""

LEAST: Final = timedelta(milliseconds=50)
"""Between two looks whose turn it is; the turns of several may have come by then."""

MOST_WITHHELD: Final = 20_000
"""Withheld mails that are remembered, some 4 MiB. A request follows within milliseconds, and a repeated one within
minutes; one whose issue is forgotten, or was read by another leader, counts."""

Mail = tuple[UUID, int]
"""A mail's registration and serial."""

_MOST_EVENTS: Final = 100_000
_EVENTS_OF_A_MAIL: Final = 20
"""How far back a new leader looks for what was sent lately: 10 events are usual for a registration."""

_SENT_AGO: Final = """
    SELECT extract(epoch FROM clock_timestamp() - e.recorded_at)::double precision
    FROM public.head AS h, public.events AS e
    WHERE e.notification_id > h.position - %s AND e.topic = %s AND e.recorded_at > clock_timestamp() - %s
    ORDER BY e.notification_id
"""

_NOTE: Final = """
    INSERT INTO public.followers (name, position, updated_at) VALUES (%s, %s, clock_timestamp())
    ON CONFLICT (name) DO UPDATE SET position = EXCLUDED.position, updated_at = EXCLUDED.updated_at
"""


class Turns:
    """The requests that wait for their turn, in order.

    Attributes:
        paced: whether some wait, or did a moment ago.
    """

    def __init__(
        self,
        limit: Limit,
        *,
        on_turn: Callable[[str, str], None] = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            on_turn: called for each request that counts, with the limit's name, and "passed", "waited", or of a limit
                that only counts "would-wait".
            clock: monotonic seconds.
        """
        self.paced = False
        self._limit = limit
        self._on_turn = on_turn
        self._clock = clock
        self._pace = Pace(limit)
        self._waiting: deque[tuple[float, RecordedRow]] = deque()
        self._withheld: dict[Mail, None] = {}  # in order
        self._last_waited = 0.0
        self._noted: Position | None = None
        self._begun: deque[tuple[float, Position]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def first(self) -> Position | None:
        """Position of the first request that waits."""
        return self._waiting[0][1].position if self._waiting else None

    async def begin(self, connection: Connection) -> None:
        """This process leads from now on. What was sent lately counts, whoever led then: otherwise each crash would let
        another burst out."""
        self._waiting.clear()
        self._begun.clear()
        self._pace, now = Pace(self._limit), self._clock()
        self._last_waited = now
        self._noted = await waiting_after(connection)
        self.paced = self._noted is not None
        if self._limit.mode == "off":
            return
        remembered = timedelta(microseconds=self._limit.interval * self._limit.burst)
        within = min(_EVENTS_OF_A_MAIL * self._limit.burst, _MOST_EVENTS)
        sent = await connection.execute(_SENT_AGO.encode(), (within, Registration.EmailDispatched.TOPIC, remembered))
        for (ago,) in await sent.fetchall():
            self._pace.turn(max(0.0, now - ago))

    def withhold(self, mail: Mail) -> None:
        """This mail will be withheld: requests of it do not count."""
        self._withheld[mail] = None
        if len(self._withheld) > MOST_WITHHELD:
            del self._withheld[next(iter(self._withheld))]

    def add(self, row: RecordedRow, mail: Mail | None) -> None:
        """Have a request wait for its turn, which may have come.

        Args:
            mail: None if that cannot be read.
        """
        now = self._clock()
        turn = now
        if self._limit.mode != "off":
            counts = mail not in self._withheld
            wait = self._pace.turn(now) if counts else self._pace.wait(now)
            if self._limit.mode == "on":
                turn += wait
            if counts:
                self._on_turn(self._limit.name, "passed" if not wait else "waited" if turn > now else "would-wait")
        self._waiting.append((turn, row))

    def take(self) -> Iterator[RecordedRow]:
        """The requests whose turn has come; they wait no more."""
        now = self._clock()
        while self._waiting and self._waiting[0][0] <= now:
            yield self._waiting.popleft()[1]

    @property
    def next_in(self) -> timedelta:
        """How long until the next turn, if one waits."""
        return max(LEAST, timedelta(seconds=self._waiting[0][0] - self._clock()))

    async def note(self, connection: Connection, begun: Position) -> None:
        """Tell the saga, health and the log whether mails wait for their turn.

        Args:
            begun: the position up to which requests have had it.
        """
        now = self._clock()
        if self._waiting:
            self._last_waited = now
            if not self.paced:
                self.paced = True
                hint = "none is lost; look who asks for so many, or raise mails in REGISTRAR_LIMITS"
                log.warning("mails.paced", limit=str(self._limit), hint=hint)
        elif self.paced and now - self._last_waited >= QUIET.total_seconds():
            self.paced, self._noted = False, None
            log.info("mails.paced_no_more", limit=str(self._limit))
            await connection.execute(b"DELETE FROM public.followers WHERE name = %s", (WAITING_BEHIND,))
        if not self.paced:
            self._begun.clear()
            return
        if not self._begun or self._begun[-1][1] != begun:
            self._begun.append((now, begun))
        noted = begun if self._noted is None else self._noted
        while self._begun and self._begun[0][0] <= now - QUIET.total_seconds():
            noted = self._begun.popleft()[1]
        if noted != self._noted:
            await connection.execute(_NOTE.encode(), (WAITING_BEHIND, noted))
            self._noted = noted


async def waiting_after(connection: Connection) -> Position | None:
    """The position after which requests of mails wait for their turn; None if none wait."""
    found = await connection.execute(b"SELECT position FROM public.followers WHERE name = %s", (WAITING_BEHIND,))
    row = await found.fetchone()
    return None if row is None else row[0]
