"""Tries somebody's own templates out, in a process that has nothing else: no settings, no keys, nothing to lose.

A template is a program. One that never ends, or that fills the memory, ends this process and no other; what it makes is
text, which goes back over a pipe. So nothing has to be foreseen of what a template may do.
"""

from __future__ import annotations

import difflib
import json
import re
import resource
import signal
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final, cast

from jinja2 import BaseLoader, Environment, TemplateError, TemplateNotFound, TemplateSyntaxError, meta, nodes

from infrastructure.mail.templating import OURS, PARTS, environment
from infrastructure.settings.nearest import nearest_of

SECONDS: Final = 1
"""Of computing, for one part of a mail. Ours take 5 ms."""
MEMORY: Final = 512 * 2**20
LARGEST_FILE: Final = 256 * 1024
LARGEST: Final[Mapping[str, int]] = {"subject.txt": 150, "txt": 64 * 1024, "html": 100_000}
"""Bytes of what a template makes. Gmail cuts off mails from 102 KB on."""

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|[\ud800-\udfff]")
_BREAKS_A_HEADER: Final = re.compile(r"[\t\n\r\u2028\u2029]")
_ALWAYS_THERE: Final = frozenset({"subject", "parts", "self", "super", "caller", "loop", "varargs", "kwargs"})


class Fault(Exception):
    """What is wrong with a template, in a line that names its file, without a full stop at its end."""

    def __init__(self, says: str) -> None:
        super().__init__(says.rstrip("."))  # Jinja's sentences have one


class _TooLong(Exception):
    pass


class OwnTemplates(BaseLoader):
    """The files of a directory that are templates: those that ours are named like, and parts (`_…`).

    Raises:
        Fault: there is a file that is neither. What is hidden, or a copy that an editor keeps (`…~`), is passed over.
    """

    def __init__(self, directory: Path) -> None:
        ours = {path.name for path in OURS.iterdir()} - {"mailbox_page.html"}
        self.sources: dict[str, str] = {}
        self.directory = directory
        try:
            names = sorted(path.name for path in directory.iterdir())
        except OSError as error:
            raise Fault(f"{directory} cannot be read: {error.strerror}") from None
        for name in names:
            if name.startswith(".") or name.endswith("~"):
                continue
            if name not in ours and not (name.startswith("_") and name.endswith((".txt", ".html"))):
                nearest = nearest_of(name, sorted(ours))
                raise Fault(
                    f"{directory / name}: no template has that name (did you mean {nearest}?); names of parts of your "
                    "own begin with _ and end with .txt or .html"
                )
            self.sources[name] = _read(directory / name)

    def get_source(self, _: Environment, template: str) -> tuple[str, str, None]:
        if template not in self.sources:
            raise TemplateNotFound(template)
        return self.sources[template], str(self.directory / template), None


def _read(path: Path) -> str:
    try:
        if not path.is_file():  # to open a pipe could take for ever
            raise Fault(f"{path}: it is no file")
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise Fault(f"{path}: it cannot be read: {error.strerror}") from None
    if len(content) > LARGEST_FILE:
        raise Fault(f"{path}: it has more than {LARGEST_FILE // 1024} KiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise Fault(f"{path}, line {line}: it is not UTF-8") from None


class Trial:
    """Renders mails, each part twice: with gaps, and with a sample in place of each gap.

    What is not the same both times, but for the gaps, would not hold for every code.
    """

    def __init__(self, directory: Path, samples: Mapping[str, str]) -> None:
        """
        Args:
            samples: by gap, that of the code first.
        """
        self._own = OwnTemplates(directory)
        self._samples = samples
        self._environment = environment(self._own)

    def check_names(self, known: Mapping[str, Iterable[str]]) -> None:
        """Look for variables that there are not, also where they are not reached now.

        Args:
            known: the variables by kind of mail; what several kinds share may have those of all.

        Raises:
            Fault: there is one, or a template that cannot be parsed.
        """
        trees, undeclared = {}, {}
        for template, source in self._own.sources.items():
            path = self._own.directory / template
            _say(template)
            with _explained(str(path)), _within(SECONDS):
                trees[path] = self._environment.parse(source, template, str(path))
                undeclared[path] = meta.find_undeclared_variables(trees[path])  # computes what is constant
        made = {name for tree in trees.values() for name in _made_in(tree)}
        every = {name for names in known.values() for name in names}
        for path, tree in trees.items():
            names = {*known.get(path.name.partition(".")[0], every), *self._environment.globals, *_ALWAYS_THERE}
            for unknown in sorted(undeclared[path] - names - made):
                line = min(one.lineno for one in tree.find_all(nodes.Name) if one.name == unknown)
                nearest = difflib.get_close_matches(unknown, sorted(names), n=1)
                hint = f" (did you mean {nearest[0]}?)" if nearest else ""
                raise Fault(f"{path}, line {line}: there is no variable {unknown}{hint}")

    def render(self, kind: str, language: str, values: Mapping[str, str | None]) -> list[str]:
        """The parts of a mail, with gaps.

        Raises:
            Fault: a template fails, does not end, or makes something that is not fit for a mail.
        """
        filled = {name: self._filled(value) for name, value in values.items()}
        rendered: list[str] = []
        for part in PARTS:
            name = f"{kind}.{language}.{part}"
            _say(name)
            subject = {"subject": rendered[0]} if rendered else {}
            made, tried = self._made(name, part, {**values, **subject}), self._made(name, part, {**filled, **subject})
            for fault in self._faults(part, made, tried, wants_code="code" in values):
                raise Fault(f"{self._place(name)}: {fault}")
            rendered.append(made if rendered else made.strip())
        return rendered

    def _place(self, name: str) -> str:
        own = str(self._own.directory / name)
        return own if name in self._own.sources else f"{name}, which is ours, with what stands in {self._own.directory}"

    def _filled(self, text: str | None) -> str | None:
        for gap, sample in self._samples.items():
            text = text and text.replace(gap, sample)
        return text

    def _made(self, name: str, part: str, values: Mapping[str, object]) -> str:
        made: list[str] = []
        with _explained(self._place(name)), _within(SECONDS):
            # A generator, though its annotation says less: stopped in its middle, it tells the line.
            stream = cast("Generator[str, None, None]", self._environment.get_template(name).generate(values))
            left = LARGEST[part]
            for piece in stream:
                made.append(piece)
                left -= len(piece)
                if left < 0:
                    stream.throw(Fault(f"it makes more than {LARGEST[part]} bytes"))
        return "".join(made)

    def _faults(self, part: str, made: str, tried: str, *, wants_code: bool) -> Iterator[str]:
        code = next(iter(self._samples))
        if not made.strip():
            yield "it makes nothing"
        if _CONTROL.search("".join(one for one in made if one not in self._samples)):
            yield "it makes a control character"
        if len(made.encode("utf-8", "replace")) > LARGEST[part]:
            yield f"it makes more than {LARGEST[part]} bytes"
        if self._filled(made) != tried:
            yield "it does more with the code or the link than show it, and so would show the same to everybody"
        if part == PARTS[0]:
            if _BREAKS_A_HEADER.search(made.strip()):
                yield "the subject has more than one line, or a tab in it"
            if any(gap in made for gap in self._samples):
                yield "the subject shows the code, and with it every locked screen"
        elif wants_code and part == "txt" and code not in map(str.strip, made.split("\n")):
            yield "no line of the text is the code alone, as people and programs look for it"
        elif wants_code and code not in made:
            yield "it does not show the code"


def _made_in(tree: nodes.Template) -> Iterator[str]:
    """What a template names itself; another that it extends or includes may see it."""
    yield from (one.name for one in tree.find_all(nodes.Name) if one.ctx != "load")
    yield from (one.name for one in tree.find_all(nodes.Macro))
    yield from (one.target for one in tree.find_all(nodes.Import))
    for imported in tree.find_all(nodes.FromImport):
        yield from (name if isinstance(name, str) else name[1] for name in imported.names)


def _say(name: str) -> None:
    """The last one is to blame where this process is ended."""
    sys.stderr.write(f"{name}\n")
    sys.stderr.flush()


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Makes a Fault of whatever goes wrong in a template, with its file and line."""
    try:
        yield
    except TemplateSyntaxError as error:
        raise Fault(f"{error.filename or path}, line {error.lineno}: {error.message}") from None
    except Exception as error:  # noqa: BLE001 - whatever a template may raise
        where, traceback = path, error.__traceback__
        while traceback is not None:
            file = traceback.tb_frame.f_code.co_filename
            if file.endswith((".txt", ".html")):
                where = f"{file}, line {traceback.tb_lineno}"
            traceback = traceback.tb_next
        raise Fault(f"{where}: {_what(error)}") from None


def _what(error: Exception) -> str:
    match error:
        case _TooLong():
            return f"it has not ended after {SECONDS} s of computing"
        case MemoryError():
            return f"it needs more than {MEMORY // 2**20} MiB"
        case RecursionError():
            return "it calls itself without end"
        case TemplateNotFound():
            return f"there is no template {error.name}"
        case Fault() | TemplateError():
            return str(error)
    return f"{type(error).__name__}: {error}"


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raises in the middle of what takes longer, by the clock of computing: a busy machine is nobody's fault."""

    def give_up(_: int, __: FrameType | None) -> None:
        raise _TooLong

    signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 0.1)  # again, as Jinja passes over what fails while it compiles
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def main() -> None:
    """Read a job (`infrastructure.mail.own_templates`) from standard input, and write what came of it."""
    job = json.load(sys.stdin.buffer)
    resource.setrlimit(resource.RLIMIT_CPU, (job["seconds"], job["seconds"]))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        trial = Trial(Path(job["directory"]), job["samples"])
        trial.check_names(job["known"])
        answer: dict[str, object] = {"made": [trial.render(*mail) for mail in job["mails"]]}
    except Fault as fault:
        answer = {"fault": str(fault)}
    sys.stdout.buffer.write(json.dumps(answer).encode())
