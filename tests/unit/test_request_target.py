"""The target of a request, in every form in which it may come (RFC 9112, 3.2)."""

from __future__ import annotations

import pytest

from entrypoints.api.request_target import is_plain, origin_form

OURS = [(b"accept", b"*/*"), (b"host", b"registrar.test")]


@pytest.mark.parametrize(
    ("target", "becomes", "host"),
    [
        (b"http://other.test/v1/registrations?a=b", b"/v1/registrations?a=b", b"other.test"),
        (b"HTTPS://Other.test:8443/health/live", b"/health/live", b"Other.test:8443"),
        (b"http://user:word@[::1]:80/x", b"/x", b"[::1]:80"),
        (b"http://other.test", b"/", b"other.test"),
        (b"http://other.test?a", b"/?a", b"other.test"),
        (b"/a%2Fb%2fc%20d?to=%2F&to=?%2f", b"/a%252Fb%252Fc%20d?to=%2F&to=?%2f", b"registrar.test"),
        (b"//other.test/x%41", b"//other.test/x%41", b"registrar.test"),
        (b"http:///x", b"http:///x", b"registrar.test"),
        (b"other.test:443", b"other.test:443", b"registrar.test"),
        (b"*", b"*", b"registrar.test"),
    ],
)
def test_a_target_becomes_path_and_query_and_the_host_that_it_names_counts(
    target: bytes, becomes: bytes, host: bytes
) -> None:
    headers = OURS.copy()

    assert not is_plain(target) or target == becomes
    assert origin_form(target, b"GET", headers) == becomes
    assert headers == [(b"accept", b"*/*"), (b"host", host)]


def test_options_of_a_host_without_a_path_are_those_of_the_server() -> None:
    assert origin_form(b"http://other.test", b"OPTIONS", OURS.copy()) == b"*"


def test_a_target_of_any_length_is_read_to_its_end() -> None:
    assert origin_form(b"http://" + b"@" * 60_000, b"GET", []) == b"http://" + b"@" * 60_000
    assert origin_form(b"/%2f" * 15_000, b"GET", []) == b"/%252F" * 15_000


@pytest.mark.parametrize("target", [b"/", b"/v1/registrations?to=a"])
def test_the_usual_target_is_left_alone(target: bytes) -> None:
    assert is_plain(target)
