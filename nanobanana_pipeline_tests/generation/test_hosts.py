"""Which addresses results may come from."""

import asyncio
import ipaddress
import socket

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from nanobanana_pipeline.generation.hosts import (
    AddressInfo,
    HostRules,
    RefusedAddressError,
    is_private_host,
    is_public,
    public_socket,
)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "93.184.215.14", "2606:4700:4700::1111"])
def test_public_addresses_are_public(address: str) -> None:
    """Real results live there."""
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",  # noqa: S104 - an address to avoid
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "localhost",
        "",
        "127.1",
        "2130706433",
    ],
)
def test_all_others_are_not(address: str) -> None:
    """Loopback, private, link-local, carrier and reserved ranges, an IPv4 one inside an IPv6 one, and what is none."""
    assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_an_address_is_as_private_inside_an_ipv6_one(address: ipaddress.IPv4Address) -> None:
    """Each wrapping leads to the same machine."""
    wrapped = [
        f"::ffff:{address}",
        str(ipaddress.IPv6Address((0x0064_FF9B << 96) | int(address))),
        str(ipaddress.IPv6Address((0x2002 << 112) | (int(address) << 80))),
    ]
    assert {is_public(each) for each in wrapped} == {is_public(str(address))}


@pytest.mark.parametrize(
    ("rule", "url", "allowed"),
    [
        ("cdn.example.com", "https://cdn.example.com/1.png", True),
        ("cdn.example.com", "https://CDN.Example.COM.:8443/1.png", True),
        ("CDN.example.com ", "https://cdn.example.com/", True),
        ("cdn.example.com", "https://other.example.com/", False),
        ("cdn.example.com", "https://evilcdn.example.com/", False),
        ("cdn.example.com", "https://cdn.example.com.evil.org/", False),
        ("cdn.example.com", "https://cdn.example.com@evil.org/", False),
        ("cdn.example.com", "https://evil.org/cdn.example.com", False),
        ("*.example.com", "https://a.b.example.com/", True),
        (".example.com", "https://a.example.com/", True),
        ("*.example.com", "https://example.com/", False),
        ("*.example.com", "https://evilexample.com/", False),
        ("8.8.8.8", "https://8.8.8.8/", True),
        ("2606:4700:4700::1111", "https://[2606:4700:4700::1111]/", True),
        ("bücher.example", "https://xn--bcher-kva.example/", True),
        ("xn--bcher-kva.example", "https://bücher.example/", True),
    ],
)
def test_a_list_of_hosts_is_taken_by_name(rule: str, url: str, allowed: bool) -> None:  # noqa: FBT001 - a table
    """A host that only looks like an allowed one is another host."""
    objection = HostRules((rule,)).objection(httpx.URL(url))
    assert (objection is None) == allowed, objection


def test_without_a_list_any_public_host_will_do() -> None:
    """Providers hand results out from storage whose names nobody knows beforehand."""
    assert HostRules().objection(httpx.URL("https://anything.example/1.png")) is None
    assert HostRules().objection(httpx.URL("https://8.8.8.8/1.png")) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "169.254.169.254", "[::ffff:10.0.0.1]"])
def test_a_private_address_is_refused_unless_the_api_is_on_one(host: str) -> None:
    """The simulator's pictures are on loopback, as the simulator is."""
    url = httpx.URL(f"http://{host}/1.png")
    assert "private" in str(HostRules().objection(url))
    assert "private" in str(HostRules((host,)).objection(url))
    assert HostRules(private_ok=True).objection(url) is None


def test_a_socket_is_made_for_public_addresses_only() -> None:
    """The last check, on the address itself: whatever a name said before."""
    public: AddressInfo = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("8.8.8.8", 443))
    private: AddressInfo = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("10.0.0.1", 443))
    public_socket(public).close()
    with pytest.raises(RefusedAddressError):
        public_socket(private)


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("::1", True),
        ("8.8.8.8", False),
        ("nowhere.invalid", False),
        ("", False),
    ],
)
def test_where_the_api_is_decides(host: str, private: bool) -> None:  # noqa: FBT001 - a table
    """What can't be resolved counts as public, so that the stricter rule holds."""
    assert asyncio.run(is_private_host(host)) is private


@given(st.text(alphabet="ab.@:/\\?#[]%0x1é\t ", max_size=30))
def test_the_host_that_is_checked_is_the_host_that_is_asked(rest: str) -> None:
    """Two readers of URLs that disagree on the host are how such a check is passed by."""
    try:
        checked = httpx.URL(f"https://{rest}")
    except (httpx.InvalidURL, ValueError):
        return
    try:
        asked = URL(str(checked), encoded=True).raw_host
    except ValueError:
        return
    # Without a host there is no download.
    assert not checked.host or asked == checked.raw_host.decode()
