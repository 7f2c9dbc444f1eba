"""The pages of the front door, as HTML. Whatever somebody has typed is escaped where it is put in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, Final

from starlette.responses import Response

from entrypoints.api.body_reading import FORMS
from entrypoints.api.pages.rendering import door_response


@dataclass(frozen=True, slots=True)
class Places:
    """What the first page leads to.

    Attributes:
        prefix: of the paths that browsers see.
        mailbox: whether mails are to be read here.
        operators: whether documents and metrics are on this listener.
    """

    prefix: str
    mailbox: bool
    operators: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a page says of an error.

    Attributes:
        code: that of the problem, or "forbidden".
        fields: what is wrong with each, by name.
    """

    code: str
    status: int
    says: str
    fields: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_about_it(self) -> bool:
        """Is it about what was sent, so that the page can be shown again with it?"""
        return self.code not in {
            "forbidden",
            "unavailable",
            "overloaded",
            "timeout",
            "internal-error",
            "unknown-registration",
        }


_LABELS: Final = {"email": "E-mail address", "name": "Name", "password": "Password"}
_INPUTS: Final = {
    "email": 'type="email" autocomplete="email" required',
    "name": 'type="text" autocomplete="name" required',
    "password": 'type="password" autocomplete="new-password"',
}
_NOTES: Final = {"password": "If you like; eight characters or more."}


def first_page(places: Places, typed: Mapping[str, str] | None = None, refusal: Refusal | None = None) -> Response:
    """
    Args:
        typed: what the form is filled in with; a password is typed anew.
    """
    links = [
        (places.mailbox, "/mailbox", "Mailbox", "the mails that were sent, with their codes"),
        (places.operators, "/docs", "API documentation", "every route, with examples to try"),
        (True, "/health/ready", "Health", "is the service ready?"),
        (places.operators, "/metrics", "Metrics", "for Prometheus"),
    ]
    prefix = escape(places.prefix)
    listed = "".join(
        f'<li><a href="{prefix}{path}">{name}</a><span>{what}</span></li>' for there, path, name, what in links if there
    )
    wrong = refusal.fields if refusal else {}
    fields = "".join(_field(name, (typed or {}).get(name, ""), wrong.get(name)) for name in _INPUTS)
    main = f"""<section class="card" aria-labelledby="try"><h2 id="try">Try a sign-up</h2>
<p class="soft">A code is sent by mail; enter it, and there is an account.</p>
{_alert(refusal)}<form method="post" action="{prefix}{FORMS}">{fields}
<button class="primary" type="submit">Sign up</button></form></section>
<section class="card" aria-labelledby="places"><h2 id="places">What is here</h2>
<ul class="places">{listed}</ul>
<p class="note">Your application registers people by <code>POST {prefix}/v1/registrations</code>.</p></section>"""
    return _page(places, main, "Registrar", refusal, back=False)


def registration_page(
    places: Places, state: Mapping[str, Any], refusal: Refusal | None = None, *, sent: bool = False
) -> Response:
    """
    Args:
        state: what `GET /v1/registrations/{id}` shows.
        sent: whether a new code was just asked for, and not refused.
    """
    email = escape(state["email"] or "(erased)")
    match state["status"]:
        case "PENDING":
            main = _code_form(places, state, refusal, sent=sent)
        case "CANCELLED":
            main = _card("This sign-up is over", f"<p>The one for {email} was undone.</p>")
        case status:
            what = "verified, and the account is active" if status == "ACTIVE" else "verified"
            main = _card("Done", f'<p class="alert done" role="status">The address {email} is {what}.</p>')
    return _page(places, main, "Sign-up", refusal)


def trouble_page(places: Places, refusal: Refusal) -> Response:
    return _page(places, _card("That did not work", _alert(refusal)), "Registrar", refusal)


def _card(title: str, content: str) -> str:
    return f'<section class="card wide"><h2>{title}</h2>{content}</section>'


def _field(name: str, value: str, wrong: str | None) -> str:
    note = _NOTES.get(name)
    described = [*([f"{name}-note"] if note else []), *([f"{name}-wrong"] if wrong else [])]
    return (
        f'<div class="field"><label for="{name}">{_LABELS[name]}</label><input id="{name}" name="{name}" {_INPUTS[name]}'
        + (f' value="{escape(value)}"' if value and name != "password" else "")
        + (' aria-invalid="true"' if wrong else "")
        + (f' aria-describedby="{" ".join(described)}"' if described else "")
        + ">"
        + (f'<p class="note" id="{name}-note">{note}</p>' if note else "")
        + (f'<p class="wrong" id="{name}-wrong">{escape(wrong)}</p>' if wrong else "")
        + "</div>"
    )


def _code_form(places: Places, state: Mapping[str, Any], refusal: Refusal | None, *, sent: bool) -> str:
    prefix = escape(places.prefix)
    path = f"{prefix}{FORMS}/{escape(state['registration_id'])}"
    wrong = refusal.fields.get("code") if refusal else None
    said = f'<p class="wrong" id="code-wrong">{escape(wrong)}</p>' if wrong else ""
    about = ' aria-invalid="true" aria-describedby="code-wrong"' if wrong else ""
    mailbox = f'It is in the <a href="{prefix}/mailbox" target="_blank" rel="noopener">mailbox</a>.'
    done = '<p class="alert done" role="status">Done. Only the new code is valid from now on.</p>' if sent else ""
    return f"""<section class="card wide" aria-labelledby="enter"><h2 id="enter">Enter the code</h2>
{done}<p>If {escape(state["email"])} can be registered, a {"new " if sent else ""}code is on its way to it.
{mailbox if places.mailbox else "It may take a minute."}</p>
{"" if wrong else _alert(refusal)}<form method="post" action="{path}/verification">
<div class="field"><label for="code">Code</label>
<input class="code" id="code" name="code" type="text" inputmode="numeric" autocomplete="one-time-code" required{about}>
{said}</div>
<button class="primary" type="submit">Verify</button></form>
<form method="post" action="{path}/otp"><button type="submit">Send a new code</button></form></section>"""


def _alert(refusal: Refusal | None) -> str:
    """What is wrong, or the fields beside which that stands."""
    if refusal is None:
        return ""
    named = [label for name, label in _LABELS.items() if name in refusal.fields]
    says = f"Please look at: {', '.join(named)}." if named else refusal.says
    return f'<p class="alert" role="alert">{escape(says)}</p>'


def _page(places: Places, main: str, title: str, refusal: Refusal | None, *, back: bool = True) -> Response:
    status, headers = (refusal.status, refusal.headers) if refusal else (200, {})
    title = f"Error: {title}" if refusal else title
    return door_response(main, title=title, prefix=places.prefix, back=back, status=status, headers=headers)
