"""`registrar limits simulate`: what the log says against what the running service counted and withheld."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_limits import ada, behind_a_proxy, client_from
from tests.support.commands import Done, clean_environment, ran
from tests.support.log import query


def simulated(dsn: str, *arguments: str, **settings: str) -> Done:
    return ran("limits", "simulate", *arguments, environment=clean_environment(DATABASE_URL=dsn, **settings))


async def people_register(dsn: str, *, limits: str) -> dict[str, Any]:
    """From four networks, some with a tag in the address; returns what the service's metrics say in the end."""
    async with behind_a_proxy(dsn, limits=limits) as (api, server):
        for network in range(4):
            async with client_from(f"192.0.2.{network}", server) as http:
                for number in range(2 + 2 * network):
                    tag = f"+{number}" if number % 3 == 2 else ""
                    answer = await http.post(
                        "/v1/registrations", json=ada(f"ada{tag}@example.com") | {"name": f"Ada {network} {number}"}
                    )
                    assert answer.status_code == 202, answer.text
        metrics = (await api.http.get("/metrics")).text
    found = re.findall(r'registrar_limit_total\{outcome="([^"]+)",policy="registrations"\} ([0-9.]+)', metrics)
    return {outcome: float(count) for outcome, count in found}


async def test_the_log_says_of_a_limit_what_its_shadow_counted(dsn: str) -> None:
    counted = await people_register(dsn, limits="registrations=2/1h shadow, network=off")

    found = simulated(dsn, "--limit", "registrations=2/1h", "--since", "1h", "--json")

    [told] = found.json["limits"]
    assert found.code == 1
    assert told["stopped"] == counted["would-refuse"] == 7
    assert told["asked"] == counted["would-refuse"] + counted["passed"] == 20
    assert (told["requesters"], told["mailboxes"]) == (3, 1)


async def test_the_log_says_of_the_silent_budget_what_was_withheld(dsn: str) -> None:
    await people_register(dsn, limits="registrations=off, network=off")
    [(withheld,)] = await query(
        dsn,
        "SELECT count(*) FROM events WHERE topic = 'mailbox.mail_decided'"
        " AND (convert_from(state, 'UTF8')::jsonb ->> 'withheld')::boolean",
    )

    asked = ("--limit", "mailbox=3/1h", "--limit", "mailbox=1/1h", "--json")
    as_it_is, tighter = simulated(dsn, *asked, RESEND_COOLDOWN="60").json["limits"]

    assert as_it_is["stopped"] == tighter["stopped"] == withheld == 19  # the pause between two mails withholds as much
    assert as_it_is["asked"] == 20
    assert as_it_is["mails_not_sent"] == 0


async def test_what_the_log_cannot_tell_is_said_with_what_to_do(dsn: str) -> None:
    await people_register(dsn, limits="registrations=off, network=off")

    found = simulated(dsn, "--since", "1h")
    nothing = simulated(dsn, "--limit", "network=5/1m", "--json")

    assert found.code == 1
    assert "registrations=5/1h" in found.out
    assert "network=10/1m" not in found.out
    for name in (
        "network",
        "network-day",
        "larger-network",
        "domain",
        "verifications",
        "new-codes",
        "repeats",
        "admin-login",
        "password-checks",
        "all-password-checks",
    ):
        assert f"{name} cannot be answered from the log: " in found.err
    assert "set it to shadow and watch registrar_limit_total" in found.err
    assert nothing.code == 2
    assert [one["limit"] for one in nothing.json["unanswered"]] == ["network=5/1m burst 5 on"]


async def test_where_nothing_would_have_been_stopped_the_exit_code_is_0(dsn: str) -> None:
    await people_register(dsn, limits="registrations=off, network=off")

    assert simulated(dsn, "--limit", "registrations=100/1h").code == 0
    assert simulated(dsn, "--limit", "registrations=1/1h", "--until", "1h").code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--limit", "networks=5/1m"), "'networks=5/1m' names a limit 'networks', which there is not (network is"),
        (("--limit", "registrations=off"), "turns registrations off, which stops nothing."),
        (("--limit", "mailbox=2/2h"), "gives mailbox other than COUNT/1h"),
        (("--limit", "mailbox=2/1h burst 3"), "gives mailbox other than COUNT/1h"),
        (("--since", "yesterday"), "'yesterday' is neither a duration like 7d nor a time like"),
        (("--since", "99999999d"), "'99999999d' is longer ago than times go back."),
        (("--since", "1h", "--until", "2h"), "--since is later than --until"),
    ],
)
def test_what_cannot_be_simulated_is_told_in_one_line(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    found = ran("limits", "simulate", *arguments, "--data-dir", tmp_path, environment=clean_environment())

    assert found.code == 2
    assert says in " ".join(found.err.split())
    assert found.out == ""
