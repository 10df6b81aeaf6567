"""Addresses as people type them."""

import pytest

from qplan.core.errors import InputError
from qplan.measure.endpoint import Endpoint


@pytest.mark.parametrize(
    "typed", ["host:8000", " http://host:8000/ ", "http://host:8000/v1", "http://host:8000/v1/chat/completions"]
)
def test_an_address_is_read_with_or_without_its_route(typed: str) -> None:
    assert Endpoint.parse(typed, "m").route == "http://host:8000/v1/completions"


def test_an_address_of_ipv6_and_a_path_before_the_route_stay() -> None:
    assert Endpoint.parse("https://[::1]:8000/proxy/v1", "m", "chat").url == "https://[::1]:8000/proxy"


@pytest.mark.parametrize(
    "typed", ["", "::1", "http://[::1", "http://a b", "http://a\nb", "ftp://x", "http://h:99999", "http://h/?q=1"]
)
def test_what_is_no_address_is_refused(typed: str) -> None:
    with pytest.raises(InputError, match="expected an address such as http://host:8000"):
        Endpoint.parse(typed, "m")


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match="a key belongs in the environment") as caught:
        Endpoint.parse("http://me:sesame@host", "m")
    assert "sesame" not in str(caught.value)
