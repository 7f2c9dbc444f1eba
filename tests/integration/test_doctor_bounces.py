"""What `registrar doctor` finds of bounces: records of the domain, by a name server, and the certificate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from entrypoints.cli.checks.bounces import look_at_bounces
from infrastructure.settings.settings import Settings
from tests.support.dns_stub import name_server

DOMAIN = "mail.example.org"
MX, TXT = (DOMAIN, "MX"), (DOMAIN, "TXT")
GOOD = {MX: ["10 mx-bounces.example.org."], TXT: ['"google-site=1"', '"v=spf1 include:spf.example " "-all"']}


async def found(
    records: Mapping[tuple[str, str], Sequence[str]] | None = GOOD, **settings: str
) -> list[tuple[str, str]]:
    given = {"BOUNCE_ADDRESS": f"bounces@{DOMAIN}"} | settings
    read = Settings.from_environment({f"REGISTRAR_{name}": value for name, value in given.items()})
    async with name_server(records) as resolver:
        return [(one.state, one.says) async for one in look_at_bounces(read, resolver)]


async def test_where_it_goes_and_who_may_send_is_shown() -> None:
    assert await found() == [
        ("ok", "what comes back goes to mx-bounces.example.org."),
        ("ok", f"SPF of {DOMAIN}: v=spf1 include:spf.example -all"),
    ]


async def test_without_an_address_nobody_is_asked() -> None:
    assert await found(BOUNCE_ADDRESS="") == [("ok", "not noticed: REGISTRAR_BOUNCE_ADDRESS is not set")]


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ({}, [("warn", f"{DOMAIN} has no MX record"), ("warn", f"{DOMAIN} has no SPF record")]),
        ({MX: GOOD[MX], TXT: ['"v=spf10"', '"x"']}, [("warn", f"{DOMAIN} has no SPF record")]),
        ({**GOOD, TXT: ['"v=spf1 -all"', '"v=spf1 ~all"']}, [("warn", f"{DOMAIN} has 2 SPF records")]),
        (
            None,
            [
                ("warn", f"the MX records of {DOMAIN}: no answer (NoNameservers)"),
                ("warn", f"the TXT records of {DOMAIN}: no answer (NoNameservers)"),
            ],
        ),
    ],
    ids=["nothing", "no SPF", "two", "no answer"],
)
async def test_what_is_missing_is_a_warning(
    records: Mapping[tuple[str, str], Sequence[str]] | None, says: list[tuple[str, str]]
) -> None:
    assert [one for one in await found(records) if one[0] != "ok"] == says


async def test_where_a_provider_tells_no_mx_is_needed() -> None:
    (mx, _) = await found({TXT: GOOD[TXT]}, BOUNCE_WEBHOOKS="postmark=correct-horse-battery")

    assert mx == ("ok", f"{DOMAIN} has no MX record; a provider tells by webhook")


@pytest.mark.parametrize(("days", "state"), [(60, "ok"), (13, "warn"), (-1, "warn")])
async def test_a_certificate_is_renewed_in_time(tmp_path: Path, days: int, state: str) -> None:
    ends = datetime.now(UTC) + timedelta(days=days)
    issued = trustme.CA().issue_cert(DOMAIN, not_after=ends)
    chain, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    chain.write_bytes(issued.cert_chain_pems[0].bytes())
    key.write_bytes(issued.private_key_pem.bytes())
    (*_, good) = await found(BOUNCE_CERTIFICATE=str(chain), BOUNCE_CERTIFICATE_KEY=str(key))
    key.unlink()
    (*_, spoilt) = await found(BOUNCE_CERTIFICATE=str(chain), BOUNCE_CERTIFICATE_KEY=str(key))
    (*_, alone) = await found(BOUNCE_CERTIFICATE=str(chain))

    assert good == (state, f"the certificate holds until {ends:%Y-%m-%d}")
    assert (spoilt[0], "cannot be read" in spoilt[1]) == ("fail", True)
    assert alone == ("fail", "the certificate has no key")
