"""Our pages in Debian's Chromium, by clicks and keys: `make test-pages` installs it; without it, this is skipped."""

from __future__ import annotations

import asyncio
import shutil
import smtplib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from fastapi import FastAPI

from entrypoints.api.http_server import Server
from entrypoints.api.mailbox import add_mailbox_routes
from infrastructure.mail.mailbox import MAX_MAILS, Mailbox
from tests.fuzz.running import ROOT, Running, running

CHROMIUM: Final = shutil.which("chromium")
PATIENCE: Final = 20_000
"""Milliseconds for what a page waits for, on a machine that does much else."""

LOOK: Final = "document.dispatchEvent(new Event('visibilitychange'))"
"""The mailbox looks at once, and not in two seconds."""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: make test-pages")]


@dataclass(slots=True)
class Person:
    """Somebody at a screen of 320 pixels.

    Attributes:
        page: Playwright's.
        said: what the browser's console has: refused by a policy, not found, failed.
        asked: the URLs that were asked for.
    """

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def can_use_it(self) -> None:
        """The page has no fault that axe knows, and needs no scrolling sideways."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page)
        assert found.violations_count == 0, found.generate_report()
        assert self.page.evaluate("document.documentElement.scrollWidth") <= 320

    def focus(self) -> str:
        """The text of what the keyboard acts on, or its id."""
        return str(self.page.evaluate("document.activeElement.id || document.activeElement.textContent"))


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(VERIFY_URL="https://app.example.org/verify#id={id}&code={code}") as service:
        yield service


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # root has none
        yield chromium
        chromium.close()


def at_a_screen(browser: Any, service: Running, scheme: str = "light", **more: Any) -> Person:
    context = browser.new_context(
        base_url=service.url, viewport={"width": 320, "height": 640}, color_scheme=scheme, **more
    )
    context.set_default_timeout(PATIENCE)
    return opened(context)


def opened(context: Any) -> Person:
    person = Person(context.new_page())
    person.page.on("console", lambda message: person.said.append(message.text))
    person.page.on("request", lambda request: person.asked.append(request.url))
    return person


def mail_to(person: Person, address: str) -> None:
    """A registration by somebody else, and its mail; the mailbox looks at once, as for who comes back to its tab."""
    page = person.page
    sent = page.request.post("/v1/registrations", data={"email": address, "name": "Ada Lovelace"})
    assert sent.status == 202
    deadline = time.monotonic() + PATIENCE / 1000
    while not page.request.get("/mailbox/messages", params={"to": address}).json():
        assert time.monotonic() < deadline
    page.evaluate(LOOK)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_person_signs_up_by_clicks_on_a_phone(browser: Any, service: Running, scheme: str) -> None:
    person, address = at_a_screen(browser, service, scheme), f"ada-{scheme}@example.com"
    page = person.page
    page.goto("/")
    person.can_use_it()
    page.get_by_label("E-mail address").fill("ada@nowhere")
    page.get_by_label("Name").fill("Ada Lovelace")
    page.get_by_role("button", name="Sign up").click()
    assert page.locator("#email-wrong").is_visible()
    assert page.get_by_label("Name").input_value() == "Ada Lovelace"
    person.can_use_it()

    page.get_by_label("E-mail address").fill(address)
    page.get_by_role("button", name="Sign up").click()
    code = page.get_by_role("textbox", name="Code")
    assert (code.get_attribute("autocomplete"), code.get_attribute("inputmode")) == ("one-time-code", "numeric")
    person.can_use_it()
    code.fill("nonsense")
    page.get_by_role("button", name="Verify").click()
    assert page.locator("#code-wrong").is_visible()
    person.can_use_it()

    with page.context.expect_page() as found:
        page.get_by_role("link", name="mailbox").click()
    mails = found.value
    mails.get_by_role("button", name=address).click()
    code.fill(mails.locator("#code").text_content())
    page.get_by_role("button", name="Verify").click()
    page.get_by_role("heading", name="Done").wait_for()
    assert address[:1] + "•••" in page.locator("main").text_content()
    person.can_use_it()

    assert [line for line in person.said if "a status of 422" not in line] == []
    assert all(url.startswith(service.url) for url in person.asked)
    page.context.close()


def test_a_form_of_another_site_is_refused(browser: Any, service: Running) -> None:
    person = at_a_screen(browser, service)
    page = person.page
    stranger = service.url.replace("127.0.0.1", "localhost")
    page.route(f"{stranger}/strange", lambda route: route.fulfill(content_type="text/html", body=_strange(service.url)))
    page.goto(f"{stranger}/strange")
    page.get_by_role("button").click()
    assert "page of another site" in page.get_by_role("alert").text_content()
    page.context.close()


def _strange(url: str) -> str:
    return f'<form method=post action="{url}/sign-up"><input name=email value=a@b.example><button>Win</button></form>'


@pytest.mark.parametrize("width", [320, 1000])
def test_who_reads_mails_by_keyboard_keeps_the_focus_when_one_arrives_or_is_opened(
    browser: Any, service: Running, width: int
) -> None:
    person = at_a_screen(browser, service)
    page = person.page
    page.set_viewport_size({"width": width, "height": 640})
    mail_to(person, f"first-{width}@example.com")
    page.goto("/mailbox")
    first = page.get_by_role("button", name=f"first-{width}@example.com")
    first.focus()
    before = person.focus()

    mail_to(person, f"second-{width}@example.com")
    page.get_by_role("button", name=f"second-{width}@example.com").wait_for()
    assert person.focus() == before

    page.keyboard.press("Enter")
    page.locator("#code").wait_for()
    if width == 320:  # the list has given way to the mail
        person.can_use_it()
        assert person.focus() == "back"
        page.keyboard.press("Enter")
        first.wait_for()
    assert person.focus() == before
    mail_to(person, f"third-{width}@example.com")
    page.get_by_role("button", name=f"third-{width}@example.com").wait_for()
    assert person.focus() == before
    assert person.said == []
    page.context.close()


def test_the_mailbox_loads_only_what_is_new_and_notices_what_has_gone(browser: Any, service: Running) -> None:
    person = at_a_screen(browser, service, "dark")
    page = person.page
    mail_to(person, "known@example.com")
    page.goto("/mailbox")
    page.get_by_role("button", name="known@example.com").wait_for()
    person.can_use_it()
    asked = len(person.asked)

    with page.expect_response(lambda answer: answer.text() == "[]"):  # by itself, after two seconds
        pass
    with page.expect_response(lambda answer: "new@example.com" in answer.text()) as found:
        mail_to(person, "new@example.com")
        page.get_by_role("button", name="new@example.com").wait_for()
    assert found.value.text().count('"received_at"') == 1
    assert all("after=" in url for url in person.asked[asked:])

    page.request.delete("/mailbox/messages")
    page.evaluate(LOOK)
    page.get_by_text("No mail yet").wait_for()
    person.can_use_it()
    page.context.close()


@contextmanager
def full_mailbox(directory: Path) -> Iterator[tuple[str, Mailbox]]:
    """The URL of a service that is nothing but a mailbox, with as many mails as it keeps."""
    directory.mkdir()
    for number in range(1, MAX_MAILS + 1):
        mail = f"Delivered-To: person-{number}@example.com\r\nSubject: Mail\r\n\r\n{number:06d}\r\n"
        (directory / f"{number * 1_000_000:020d}.eml").write_text(mail)
    began: Future[tuple[str, Mailbox]] = Future()

    async def serve() -> None:
        mailbox, app, end = Mailbox(directory), FastAPI(), asyncio.Event()
        add_mailbox_routes(app, mailbox)
        server = Server(app, host="127.0.0.1", port=0)
        await mailbox.start()
        await server.start()
        ends.append(partial(asyncio.get_running_loop().call_soon_threadsafe, end.set))
        began.set_result((f"http://127.0.0.1:{server.port}", mailbox))
        await end.wait()
        await server.stop()
        await mailbox.stop()

    ends: list[Callable[[], object]] = []
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(asyncio.run, serve())
        try:
            yield began.result(timeout=PATIENCE / 1000)
        finally:
            ends[0]()
            served.result()


def test_a_full_mailbox_loads_only_what_is_new_and_lets_the_oldest_go(browser: Any, tmp_path: Path) -> None:
    with full_mailbox(tmp_path / "mailbox") as (url, mailbox):
        context = browser.new_context(base_url=url)
        context.set_default_timeout(PATIENCE)
        person = opened(context)
        page, items = person.page, person.page.locator("#list li")
        page.goto("/mailbox")
        page.get_by_text(f"{MAX_MAILS} mails").wait_for()
        page.get_by_role("button", name="person-1@example.com").wait_for()
        asked = len(person.asked)

        with smtplib.SMTP("127.0.0.1", mailbox.port) as smtp:
            smtp.sendmail("a@b.example", "new@example.com", "Subject: Mail\r\n\r\n654321\r\n")
        page.evaluate(LOOK)
        page.get_by_role("button", name="new@example.com").wait_for()

        assert items.count() == MAX_MAILS
        assert items.first.text_content().startswith("new@example.com")
        assert items.last.text_content().startswith("person-2@example.com")
        page.request.delete("/mailbox/messages")
        page.evaluate(LOOK)
        page.get_by_text("No mail yet").wait_for()
        assert all("after=" in url for url in person.asked[asked:])
        context.close()


def test_where_there_are_more_mails_than_known_and_new_it_is_another_mailbox(browser: Any, service: Running) -> None:
    person = at_a_screen(browser, service)
    page = person.page
    mail_to(person, "mine@example.com")
    page.goto("/mailbox")
    page.get_by_role("button", name="mine@example.com").wait_for()
    page.route("**/*?after=*", lambda route: route.fulfill(json=[], headers={"Registrar-Mails": "1000"}), times=1)
    with page.expect_request(lambda request: request.url.endswith("/mailbox/messages")):
        page.evaluate(LOOK)
    page.get_by_role("button", name="mine@example.com").wait_for()
    page.context.close()


def test_a_mails_links_open_in_a_tab_of_their_own_and_its_scripts_do_not_run(browser: Any, service: Running) -> None:
    person = at_a_screen(browser, service)
    page = person.page
    page.set_viewport_size({"width": 1000, "height": 900})
    page.context.route("https://app.example.org/**", lambda route: route.fulfill(body="The page of an application"))
    mail_to(person, "link@example.com")
    page.goto("/mailbox")
    page.get_by_role("button", name="link@example.com").click()
    code = page.locator("#code").text_content()
    frame = page.frame_locator("#html")
    assert page.locator("#html").bounding_box()["height"] > 500, "there is room"

    for tab, link in (
        ("Message", frame.locator("a[href*='app.example.org/verify']").first),
        ("Text", page.locator("#text a").first),
    ):
        page.get_by_role("tab", name=tab).click()
        with page.context.expect_page() as found:
            link.click()
        found.value.get_by_text("The page of an application").wait_for()
        assert found.value.url.startswith("https://app.example.org/verify#id=")
        assert found.value.url.endswith(f"&code={code}")
        assert found.value.evaluate("window.opener") is None
        found.value.close()
    person.page.get_by_role("tab", name="Message").click()
    page.evaluate(
        "mails[0].html = `<base href='https://a.example/'><a href='javascript:top.ran=1'>Bad</a>`"
        " + `<p id=seen>Seen</p><script>top.ran = 1</` + `script><img src=x onerror='top.ran=1'>`"
        " + `<svg><a id=drawn href='https://app.example.org/drawn'><text y=20>Drawn</text></a></svg>`; renderMail()"
    )
    frame.locator("#seen").wait_for()
    assert frame.locator("#drawn").get_attribute("target") == "_blank"
    assert frame.get_by_text("Bad").get_attribute("href") is None
    assert page.evaluate("window.ran") is None
    page.context.close()


def test_the_page_behind_the_button_in_our_example_says_what_has_happened(browser: Any) -> None:
    document = (ROOT / "docs" / "mails.md").read_text(encoding="utf-8")
    example = document.partition("```html\n")[2].partition("```")[0]
    answers: list[tuple[int, str]] = [(423, "code-locked"), (0, ""), (200, "")]
    context = browser.new_context()
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.route("https://app.example.org/verify", lambda route: route.fulfill(content_type="text/html", body=example))

    def answer(route: Any) -> None:
        status, code = answers.pop(0)
        if not status:
            route.abort()
        else:
            route.fulfill(status=status, json={"type": f"urn:registrar:problem:{code}"})

    page.route("**/api/*", answer)
    page.goto("https://app.example.org/verify#id=1&code=123456")
    confirm = page.get_by_role("button", name="Confirm")
    confirm.click()
    page.get_by_text("Too many wrong codes").wait_for()
    page.get_by_role("button", name="new code").click()
    page.get_by_text("could not be reached").wait_for()
    confirm.click()
    page.get_by_text("is confirmed").wait_for()
    assert not confirm.is_visible()
    page.reload()
    page.get_by_text("press it again").wait_for()
    assert not confirm.is_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_documentation_can_be_read_and_tried_by_everybody(browser: Any, service: Running, scheme: str) -> None:
    person = at_a_screen(browser, service, scheme)
    page = person.page
    page.goto("/docs")
    register = page.locator(".opblock-post").first
    register.wait_for()
    person.can_use_it()
    assert ("dark-mode" in (page.locator("html").get_attribute("class") or "")) == (scheme == "dark")
    assert page.get_by_text("OAS 3.1").is_visible(), "the document is read as what it is"

    register.locator(".opblock-summary-control").click()
    register.get_by_role("button", name="Try it out").click()
    register.get_by_role("button", name="Execute").click()
    register.locator(".live-responses-table").wait_for()
    person.can_use_it()
    assert register.locator(".live-responses-table tbody td.response-col_status").inner_text().startswith("202")
    assert person.said == []
    assert all(url.startswith(service.url) for url in person.asked)
    page.context.close()
