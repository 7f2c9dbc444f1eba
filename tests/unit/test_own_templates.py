"""Somebody's own templates: what they may do, and that a faulty one is told with its place and holds nothing up."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from application.ports import CODE_GAP, ID_GAP
from domain.languages import LANGUAGES, Language
from domain.mail_outcome import MailKind
from infrastructure.mail.look import Look
from infrastructure.mail.own_templates import BadTemplates, rendered_from
from infrastructure.mail.rendering import TemplateLetters, render, variables
from infrastructure.mail.template_trial import Fault, Trial

TEN_MINUTES = timedelta(minutes=10)
LOOK = Look("https://site.example", product="Acme", verify_url="https://app.example/verify#id={id}&code={code}")
CODE_FR: tuple[MailKind, Language] = (MailKind.CODE, "fr")

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to(name: str, content: str) -> Path:
        (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
        return tmp_path

    return to


def tried(directory: Path, look: Look = LOOK) -> list[list[str]]:
    """What becomes of the two mails in French, in this process."""
    trial = Trial(directory, {CODE_GAP: "483920", ID_GAP: "0198c0de-0000-7000-8000-00000000002a"})
    mails = [(kind.value, variables(kind, "fr", TEN_MINUTES, look)) for kind in MailKind]
    trial.check_names(dict(mails))
    return [trial.render(kind, "fr", values) for kind, values in mails]


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("code.fr.txt", "\n{{ code }}\n{{ usr }}", "/code.fr.txt, line 3: there is no variable usr"),
        (
            "code.fr.txt",
            "{{ code }}\n{% if support %}{{ suport }}{% endif %}",
            "line 2: .* suport .did you mean support",
        ),
        ("notice.fr.html", "<p>\n{{ verify_url }}", "/notice.fr.html, line 2: there is no variable verify_url"),
        ("letter.html", "{% block content %}{% endblock %}\n{{ ttl }}", "/letter.html, line 2: 'ttl' is undefined"),
        ("code.fr.txt", "{{ code }}\n{{ product.owner }}", "line 2: .* no attribute 'owner'"),
        ("code.fr.txt", "{{ code }}\n\n{% if product %}", "/code.fr.txt, line 3: Unexpected end of template"),
        ("_part.html", "{% nonsense %}", "/_part.html, line 1: Encountered unknown tag"),
        ("code.fr.html", "\n{% include '_part.html' %}", "/code.fr.html, line 2: there is no template _part.html"),
        ("code.fr.html", "{{ code }}\n{{ code.__class__ }}", "line 2: access to attribute '__class__' .* is unsafe"),
        ("code.fr.html", "{{ code }}\n{{ lipsum.__globals__ }}", "line 2: access to attribute '__globals__'"),
        ("code.fr.html", "{{ code }}{{ range(200000) }}", "line 1: OverflowError: Range too big"),
        ("code.fr.htm", "{{ code }}", "/code.fr.htm: no template has that name .did you mean code.fr.html"),
        ("code.sv.txt", "{{ code }}", "/code.sv.txt: no template has that name"),
        ("mailbox_page.html", "x", "/mailbox_page.html: no template has that name"),
        ("code.fr.txt", "{{ code }}\n\udcff", "/code.fr.txt, line 2: it is not UTF-8"),
        ("code.fr.txt", "Votre code est {{ code }}.", "no line of the text is the code alone"),
        ("code.fr.txt", "{{ code }}\n\x07", "it makes a control character"),
        ("code.fr.txt", "{{ code }}\n{{ '\\ud800' }}", "it makes a control character"),
        ("code.fr.html", "<p>Bonjour</p>", "/code.fr.html: it does not show the code"),
        ("letter.html", "<p>Bonjour</p>", "code.fr.html, which is ours, .*: it does not show the code"),
        ("code.fr.html", "{{ code[:3] }} {{ code[3:] }}", "it does more with the code or the link than show it"),
        ("code.fr.html", "{{ code }} {{ code | length }}", "it does more with the code"),
        ("code.fr.html", "{{ code }} {{ verify_url | urlencode }}", "it does more with the code or the link"),
        ("code.fr.subject.txt", "Votre code {{ code }}", "the subject shows the code"),
        ("code.fr.subject.txt", "Votre\nBcc: x@example.org", "the subject has more than one line"),
        ("code.fr.subject.txt", " \n", "/code.fr.subject.txt: it makes nothing"),
        ("code.fr.subject.txt", "x" * 151, "/code.fr.subject.txt, line 1: it makes more than 150 bytes"),
        ("code.fr.subject.txt", "é" * 80, "/code.fr.subject.txt: it makes more than 150 bytes"),
        ("code.fr.txt", "{{ code }}\n{% for a in range(70000) %}xx{% endfor %}", "line 2: it makes more than 65536"),
        ("letter.html", "\n{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "line 2: it calls itself without end"),
        ("letter.html", "{% extends 'letter.html' %}", "/letter.html, line 1: it calls itself without end"),
    ],
)
def test_a_faulty_template_is_told_with_its_place(name: str, content: str, fault: str, write: Write) -> None:
    directory = write(name, content)

    with pytest.raises(Fault, match=fault) as told:
        tried(directory)

    assert "\n" not in str(told.value)
    assert not str(told.value).endswith(".")


def test_a_template_that_loops_is_stopped_in_its_loop(write: Write) -> None:
    forever = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
    with pytest.raises(Fault, match=r"/code.fr.txt, line 3: it has not ended after 1 s of computing"):
        tried(write("code.fr.txt", f"{{{{ code }}}}\n\n{forever}"))


def test_a_file_that_is_none_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "code.fr.txt")
    with pytest.raises(Fault, match=r"/code.fr.txt: it is no file"):
        tried(tmp_path)


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(Fault, match=r"/nowhere cannot be read: No such file"):
        tried(tmp_path / "nowhere")


def test_what_editors_and_kubernetes_leave_there_is_passed_over(write: Write) -> None:
    for name in (".code.fr.txt.swp", "code.fr.txt~"):
        directory = write(name, "{{ nonsense }}")
    (directory / "..data").mkdir()

    assert tried(directory)[0][0] == "Votre code de confirmation pour Acme"


def test_a_sentence_can_be_replaced_and_the_rest_stays_ours(write: Write) -> None:
    lead = "{% block lead %}Bienvenue chez {{ product }} !{% endblock %}"
    directory = write("code.fr.html", f'{{% extends "registrar/code.fr.html" %}}\n{lead}')

    subject, text, html = tried(directory)[0]

    ours = render(MailKind.CODE, "fr", TEN_MINUTES, LOOK)
    assert (subject, text) == (ours.subject, ours.text)
    begins, _, ends = ours.html.partition("Quelqu")
    assert html == f"{begins}Bienvenue chez Acme !{ends[ends.index('</p>') :]}"


def test_a_layout_of_ones_own_is_that_of_every_mail(write: Write) -> None:
    directory = write("letter.html", "<main>{% block content %}{% endblock %}{% include '_end.html' %}</main>")
    write("_end.html", "{{ product }}\u00a0!")

    for _, _, html in tried(directory):
        assert html.startswith("<main><p")
        assert html.endswith("Acme\u00a0!</main>")


async def test_what_is_not_ones_own_is_as_it_would_be_without(write: Write) -> None:
    directory = write("notice.fr.subject.txt", "Déjà inscrit chez {{ product }}\n")

    made = dict(await rendered_from(directory, TEN_MINUTES, LOOK))

    assert made.pop((MailKind.NOTICE, "fr")).subject == "Déjà inscrit chez Acme"
    assert len(made) == len(MailKind) * len(LANGUAGES) - 1
    for (kind, language), rendered in made.items():
        assert rendered == render(kind, language, TEN_MINUTES, LOOK)


async def test_one_mail_is_tried_out_beside_templates_of_other_kinds(write: Write) -> None:
    directory = write("code.fr.txt", "{{ code }}\n{{ ttl }}\n")

    made = await rendered_from(directory, TEN_MINUTES, LOOK, [(MailKind.NOTICE, "de")])

    assert made == {(MailKind.NOTICE, "de"): render(MailKind.NOTICE, "de", TEN_MINUTES, LOOK)}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{{ code }}\n{{ 'x' * 10 ** 10 }}", r"/code.fr.txt, line 2: it needs more than 512 MiB"),
        # In C, which no signal stops: it would end by itself after ten seconds.
        ("{{ code }}\n{{ 10 ** (10 ** 7) % 7 }}", r"/code.fr.txt: it takes too much time or memory"),
        ("{{ code }}\n{{ usr }}", r"/code.fr.txt, line 2: there is no variable usr"),
    ],
)
async def test_a_template_ends_the_process_that_tries_it_out_and_no_other(
    content: str, fault: str, write: Write
) -> None:
    with pytest.raises(BadTemplates, match=fault):
        await rendered_from(write("code.fr.txt", content), TEN_MINUTES, LOOK, [CODE_FR], seconds=2)


async def test_what_was_tried_out_is_not_read_again(write: Write) -> None:
    directory = write("code.fr.subject.txt", "Avant\n")
    letters = TemplateLetters(
        ttl=TEN_MINUTES,
        look=LOOK,
        sender="no-reply@site.example",
        prepared=await rendered_from(directory, TEN_MINUTES, LOOK, [CODE_FR]),
    )

    write("code.fr.subject.txt", "{{ nonsense")

    assert letters.rendered(*CODE_FR).subject == "Avant"
