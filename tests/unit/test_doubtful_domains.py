"""Which domains are taken for disposable, and which for a slip of a much used one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given as for_any
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.provisional import domains

from application.addresses import parse_address
from application.doubtful_domains import MUCH_USED, REAL, is_disposable, meant_domain
from application.listed import listed

ROOT = Path(__file__).parents[2]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-"

PROVIDERS = """
    gmail.com googlemail.com mail.com email.com ymail.com gmx.net gmx.de gmx.at gmx.ch gmx.com web.de
    me.com mac.com icloud.com aol.com
    aol.de live.com live.de live.fr msn.com hotmail.com hotmail.co.uk hotmail.de hotmail.fr hotmail.it hotmail.es
    hotmail.be hotmail.se hotmail.fi hotmail.gr hotmail.dk hotmail.ch hotmail.nl hotmail.com.br outlook.com outlook.de
    outlook.fr outlook.it outlook.es outlook.be outlook.dk outlook.ie outlook.kr outlook.jp outlook.com.br outlook.co.id
    yahoo.com yahoo.co.uk yahoo.de yahoo.fr yahoo.fi yahoo.gr yahoo.dk yahoo.se yahoo.ie yahoo.it yahoo.es yahoo.ca
    yahoo.co.in yahoo.co.jp yahoo.co.id yahoo.com.br yahoo.com.au yahoo.com.tr rocketmail.com proton.me protonmail.com
    protonmail.ch pm.me fastmail.com fastmail.fm tutanota.com tuta.io mailbox.org posteo.de posteo.net t-online.de
    freenet.de arcor.de online.de 1und1.de vodafone.de orange.fr wanadoo.fr wanadoo.es free.fr sfr.fr neuf.fr laposte.net
    libero.it alice.it tin.it virgilio.it tiscali.it comcast.net verizon.net att.net cox.net charter.net earthlink.net
    earthling.net sbcglobal.net bellsouth.net btinternet.com btopenworld.com sky.com virginmedia.com talktalk.net
    bigpond.com bigpond.net.au optusnet.com.au rogers.com shaw.ca bell.net sympatico.ca qq.com 163.com 126.com sina.com
    naver.com aver.com daum.net hanmail.net docomo.ne.jp mail.ru bk.ru list.ru inbox.ru yandex.ru yandex.com ya.ru
    rambler.ru ukr.net i.ua wp.pl o2.pl onet.pl interia.pl seznam.cz centrum.cz abv.bg rediffmail.com rediff.com
    zoho.com hey.com hushmail.com gol.com cloud.com google.com mailbox.com inbox.com qmail.com gail.com
""".split()  # noqa: SIM905 - as in the module that is tested
"""Where people really have addresses: those of the much used lists that are close to one of `MUCH_USED`, and others."""


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        *(
            ("gmial.com", "gmail.com"),
            ("gmal.com", "gmail.com"),
            ("gmaill.com", "gmail.com"),
            ("gnail.com", "gmail.com"),
        ),
        *(("gmail.con", "gmail.com"), ("gmail.co", "gmail.com"), ("gmail.cmo", "gmail.com"), ("gmailcom", "gmail.com")),
        *(("hotmial.com", "hotmail.com"), ("yaho.com", "yahoo.com"), ("outlok.com", "outlook.com")),
        *(("iclould.com", "icloud.com"), ("tonline.de", "t-online.de"), ("hotmail.co.ukk", "hotmail.co.uk")),
        *(("freenet.d", "freenet.de"), ("gmai.com", "gmail.com"), ("gmail.comm", "gmail.com")),
    ],
)
def test_a_slip_of_a_much_used_domain_is_found(typed: str, meant: str) -> None:
    assert meant_domain(typed) == meant


def test_no_domain_that_people_really_have_is_taken_for_a_slip() -> None:
    assert {domain: meant for domain in PROVIDERS if (meant := meant_domain(domain)) is not None} == {}
    assert set(PROVIDERS) >= MUCH_USED | REAL


@pytest.mark.parametrize("typed", ["", "com", "g", "gmail", "example.com", "hotmail.example.com", "xn--gmal-5qa.com"])
def test_what_is_far_from_every_much_used_domain_is_left_alone(typed: str) -> None:
    assert meant_domain(typed) is None


@st.composite
def slips(draw: st.DrawFn) -> tuple[str, str]:
    """A much used domain, and it with one slip behind its first letter."""
    domain = draw(st.sampled_from(sorted(MUCH_USED)))
    at = draw(st.integers(1, len(domain) - 1))
    letter = draw(st.sampled_from(LETTERS))
    typed = draw(
        st.sampled_from(
            [
                domain[:at] + domain[at + 1 :],
                domain[:at] + letter + domain[at:],
                domain[:at] + letter + domain[at + 1 :],
                domain[:at] + domain[at : at + 2][::-1] + domain[at + 2 :],
                domain + letter,
            ]
        )
    )
    return domain, typed


@for_any(slips())
@settings(max_examples=500, deadline=None)
def test_every_slip_is_found_unless_it_is_a_real_domain_or_another_country(pair: tuple[str, str]) -> None:
    domain, typed = pair
    end, other_end = domain.rpartition(".")[2], typed.rpartition(".")[2]
    if typed in MUCH_USED or typed in REAL or (end != other_end and len(end) == len(other_end) == 2):
        return
    assert distance(meant_domain(typed) or "", typed) == 1


@for_any(st.one_of(slips().map(lambda pair: pair[1]), domains(), st.text(LETTERS + ".", max_size=20)))
@settings(max_examples=500, deadline=None)
def test_what_is_suggested_is_much_used_and_one_slip_away_and_never_corrected_itself(typed: str) -> None:
    meant = meant_domain(typed)
    if meant is None:
        return
    assert meant in MUCH_USED
    assert distance(meant, typed) == 1
    assert meant[0] == typed[0]
    assert meant_domain(meant) is None


def distance(one: str, other: str) -> int:
    """The restricted Damerau-Levenshtein distance, as in textbooks."""
    rows = [list(range(len(other) + 1))]
    for i, left in enumerate(one, start=1):
        rows.append([i])
        for j, right in enumerate(other, start=1):
            costs = [rows[-2][j] + 1, rows[-1][j - 1] + 1, rows[-2][j - 1] + (left != right)]
            if i > 1 and j > 1 and (left, one[i - 2]) == (other[j - 2], right):
                costs.append(rows[-3][j - 2] + 1)
            rows[-1].append(min(costs))
    return rows[-1][-1]


def test_a_disposable_domain_and_what_is_below_it_are_known() -> None:
    assert is_disposable("mailinator.com")
    assert is_disposable("a.b.mailinator.com")
    assert not is_disposable("my-mailinator.com")
    assert not is_disposable("com")


def test_no_much_used_domain_is_taken_for_disposable() -> None:
    assert {domain for domain in PROVIDERS if is_disposable(domain)} == set()


@for_any(st.sampled_from(sorted(listed("disposable-domains"))))
@settings(max_examples=200, deadline=None)
def test_every_listed_domain_can_be_found_as_it_is_parsed(domain: str) -> None:
    assert is_disposable(parse_address(f"ada@{domain.upper()}").rpartition("@")[2])


def test_the_list_is_what_it_says() -> None:
    domains = listed("disposable-domains")
    assert len(domains) > 5_000
    assert {domain for domain in domains if domain != domain.strip().lower() or "." not in domain} == set()
    assert f"{len(domains):,} domains" in (ROOT / "application" / "lists" / "SOURCES.txt").read_text()
