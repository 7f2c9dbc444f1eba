"""Which network a request comes from."""

import pytest

from application.commands import UNKNOWN_NETWORK
from entrypoints.api.client_address import network_of


@pytest.mark.parametrize(
    ("client", "network"),
    [
        (("192.0.2.7", 1234), "192.0.2.7"),
        (("::ffff:192.0.2.7", 1234), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 1234), "2001:db8:1:2::/64"),
        (("2001:db8:1:2:ffff::1", 1234), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1234), "fe80::/64"),
        (("", 0), UNKNOWN_NETWORK),
        (("testclient", 50000), UNKNOWN_NETWORK),
        (None, UNKNOWN_NETWORK),
    ],
)
def test_a_network_is_an_ipv4_address_or_the_half_of_an_ipv6_address(
    client: tuple[str, int] | None, network: str
) -> None:
    assert network_of({"type": "http", "client": client}) == network


def test_a_request_without_an_address_is_of_the_unknown_network() -> None:
    assert network_of({"type": "http"}) == UNKNOWN_NETWORK
