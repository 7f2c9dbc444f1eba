"""How many steps a regular expression takes: a matcher that backtracks as Python's does, and counts.

Counted and not timed, so that a slow machine changes nothing. It reads what the library's own parser makes of a
pattern; an operator that it does not know is an error, never a pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_parser: Any = re._parser  # type: ignore[attr-defined]
_compiler: Any = re._compiler  # type: ignore[attr-defined]
_ops: Any = re._constants  # type: ignore[attr-defined]

_ONE_CHARACTER = {_ops.LITERAL, _ops.NOT_LITERAL, _ops.ANY, _ops.IN}
_REPEATS = {_ops.MAX_REPEAT, _ops.MIN_REPEAT, _ops.POSSESSIVE_REPEAT}
_INTERESTING = "aZfx0_-+ .,;:@/=?%'\"\\\n\r\t\0é—"

FEW = 2000
"""Steps that tell nothing of how they grow."""

Node = tuple[Any, Any]


class TooManySteps(Exception):
    """More than the limit: it might go on for ever."""


class Steps:
    """A pattern whose steps are counted.

    Attributes:
        taken: by the last `search` or `fullmatch`.
    """

    def __init__(self, pattern: str | bytes, flags: int = 0, *, limit: int = 300_000) -> None:
        text = pattern.decode("latin-1") if isinstance(pattern, bytes) else pattern
        self.parsed = _parser.parse(text, flags)
        self.taken = 0
        self._limit = limit
        self._text = ""
        self._groups: dict[int, tuple[int, int]] = {}
        self._accepted: dict[tuple[int, str], bool] = {}

    def fullmatch(self, text: str) -> bool:
        self._begin(text)
        return any(end == len(text) for end in self._sequence(self.parsed.data, 0))

    def search(self, text: str) -> bool:
        """From every place, as `search`, `sub` and `findall` do where nothing is found."""
        self._begin(text)
        return any(True for start in range(len(text) + 1) for _ in self._sequence(self.parsed.data, start))

    def _begin(self, text: str) -> None:
        self._text, self.taken = text, 0
        self._groups.clear()

    def accepts(self, node: Node, character: str) -> bool:
        """Does this node, which is about one character, match it?"""
        answer = self._accepted.get((id(node), character))
        if answer is None:
            one = _parser.SubPattern(self.parsed.state, [node])
            matcher = _compiler.compile(one, self.parsed.state.flags)
            answer = self._accepted[id(node), character] = matcher.match(character) is not None
        return answer

    # --- Backtracking: every iterator yields the ends of a match, in the order in which they are tried ---------

    def _step(self) -> None:
        self.taken += 1
        if self.taken > self._limit:
            raise TooManySteps

    def _sequence(self, nodes: list[Node], at: int, first: int = 0) -> Iterator[int]:
        while first < len(nodes) and nodes[first][0] in _ONE_CHARACTER:  # it has one end at most: no iterator for it
            self._step()
            if at == len(self._text) or not self.accepts(nodes[first], self._text[at]):
                return
            at, first = at + 1, first + 1
        if first == len(nodes):
            yield at
            return
        for end in self._node(nodes[first], at):
            yield from self._sequence(nodes, end, first + 1)

    def _node(self, node: Node, at: int) -> Iterator[int]:
        self._step()
        op, about = node
        if op in _REPEATS:
            yield from self._repeat(op, about, at)
        elif op is _ops.BRANCH:
            for one in about[1]:
                yield from self._sequence(one.data, at)
        elif op is _ops.SUBPATTERN:
            for end in self._sequence(about[3].data, at):
                self._groups[about[0]] = (at, end)
                yield end
        elif op is _ops.GROUPREF:
            start, end = self._groups.get(about, (0, 0))
            if self._text.startswith(self._text[start:end], at):
                yield at + end - start
        elif op is _ops.AT:
            if self._is_at(about, at):
                yield at
        elif op in {_ops.ASSERT, _ops.ASSERT_NOT}:
            direction, inner = about
            start = at if direction > 0 else at - inner.getwidth()[0]
            found = start >= 0 and any(True for _ in self._sequence(inner.data, start))
            if found is (op is _ops.ASSERT):
                yield at
        else:
            raise NotImplementedError(f"count the steps of {op}")

    def _repeat(self, op: Any, about: Any, at: int) -> Iterator[int]:
        least, most, body = about
        most = len(self._text) + 1 if most is _ops.MAXREPEAT else most
        if len(body) == 1 and body[0][0] in _ONE_CHARACTER:
            ends = self._run(body[0], at, least, most)
            yield from ends if op is _ops.MIN_REPEAT else reversed(ends) if op is _ops.MAX_REPEAT else ends[-1:]
            return
        if op is _ops.POSSESSIVE_REPEAT:
            raise NotImplementedError("count the steps of a possessive group")
        yield from self._rounds(body.data, least, most, at, is_lazy=op is _ops.MIN_REPEAT)

    def _run(self, node: Node, at: int, least: int, most: int) -> list[int]:
        end = at
        while end - at < most and end < len(self._text) and self.accepts(node, self._text[end]):
            self._step()
            end += 1
        return list(range(at + least, end + 1))

    def _rounds(self, body: list[Node], least: int, most: int, at: int, *, is_lazy: bool) -> Iterator[int]:
        if is_lazy and least <= 0:
            yield at
        if most > 0:
            for end in self._sequence(body, at):
                if end > at or least > 0:  # an empty round is the last one
                    yield from self._rounds(body, least - 1, most - 1, end, is_lazy=is_lazy)
        if not is_lazy and least <= 0:
            yield at

    def _is_at(self, where: Any, at: int) -> bool:
        text = self._text
        if where is _ops.AT_BEGINNING:
            multiline = self.parsed.state.flags & re.MULTILINE
            return at == 0 or bool(multiline and text[at - 1] == "\n")
        if where is _ops.AT_END:
            multiline = self.parsed.state.flags & re.MULTILINE
            return text[at:] in {"", "\n"} or bool(multiline and text[at] == "\n")
        if where is _ops.AT_END_STRING:
            return at == len(text)
        raise NotImplementedError(f"count the steps of {where}")

    # --- What makes it backtrack ------------------------------------------------------------------------------

    def attacks(self, times: int) -> Iterator[str]:
        """Texts that repeat a part of what a repeat of the pattern accepts, so often, and then do not go on."""
        ends = "\0", "!", "\n", "a", ""
        for before, body in _repeats_in(self.parsed.data, []):
            prefix = "".join(map(self._sample, before))
            whole = "".join(map(self._sample, body))
            letters = self._alphabet(body)
            words = [*letters, *self._words(self.parsed.data)]
            pumps = {whole, *words, *(one + other for one in words for other in letters)}
            for pump in sorted(pumps - {""}):
                for end in ends:
                    yield prefix + pump * times + end

    def _words(self, nodes: list[Node]) -> Iterator[str]:
        """What the pattern has to choose from: one text for each alternative."""
        for node in nodes:
            for sequence in _inner(node):
                if node[0] is _ops.BRANCH:
                    yield "".join(map(self._sample, sequence))
                yield from self._words(sequence)

    def _sample(self, node: Node) -> str:
        """The shortest of what a node matches, more or less."""
        op, about = node
        if op in _ONE_CHARACTER:
            return next((one for one in self._characters() if self.accepts(node, one)), "")
        if op in _REPEATS:
            return "".join(map(self._sample, about[2])) * int(about[0])
        if op is _ops.BRANCH:
            return "".join(map(self._sample, about[1][0]))
        if op is _ops.SUBPATTERN:
            return "".join(map(self._sample, about[3]))
        return ""

    def _alphabet(self, nodes: list[Node]) -> list[str]:
        """A character for each set of the pattern's classes that share it, of those that stand in these nodes."""
        classes = list(_characters_in(self.parsed.data))
        within = list(_characters_in(nodes))
        found: dict[tuple[bool, ...], str] = {}
        for one in self._characters():
            if any(self.accepts(node, one) for node in within):
                found.setdefault(tuple(self.accepts(node, one) for node in classes), one)
        return list(found.values())[:6]

    def _characters(self) -> Iterator[str]:
        yield from _INTERESTING
        for op, about in _characters_in(self.parsed.data):
            if op is _ops.LITERAL:
                yield chr(about)
            elif op is _ops.IN:
                for kind, what in about:
                    if kind in {_ops.LITERAL, _ops.RANGE}:
                        yield chr(what if kind is _ops.LITERAL else what[0])


def _inner(node: Node) -> list[list[Node]]:
    """The sequences within a node."""
    op, about = node
    if op in _REPEATS:
        return [about[2].data]
    if op is _ops.BRANCH:
        return [one.data for one in about[1]]
    if op is _ops.SUBPATTERN:
        return [about[3].data]
    if op in {_ops.ASSERT, _ops.ASSERT_NOT}:
        return [about[1].data]
    return []


def _characters_in(nodes: list[Node]) -> Iterator[Node]:
    for node in nodes:
        if node[0] in _ONE_CHARACTER:
            yield node
        for sequence in _inner(node):
            yield from _characters_in(sequence)


def _repeats_in(nodes: list[Node], before: list[Node]) -> Iterator[tuple[list[Node], list[Node]]]:
    """Every repeat that can go on for long: what stands before it, and its body."""
    for number, node in enumerate(nodes):
        until = [*before, *nodes[:number]]
        if node[0] in _REPEATS and (node[1][1] is _ops.MAXREPEAT or node[1][1] > 32):
            yield until, node[1][2].data
        for sequence in _inner(node):
            yield from _repeats_in(sequence, until)


def is_linear(pattern: str | bytes, flags: int = 0, *, searches: bool) -> str | None:
    """None, or a text whose double takes more than three times the steps: with every step on one place more often than
    the length asks for, the pattern backtracks."""
    steps = Steps(pattern, flags)
    look = steps.search if searches else steps.fullmatch
    for short, long in zip(steps.attacks(80), steps.attacks(160), strict=True):
        try:
            look(long)
            last = steps.taken
            if last <= FEW:
                continue
            look(short)
        except TooManySteps:
            return short
        if last > 3 * steps.taken:
            return short
    return None
