"""Addresses and URIs of NBD exports."""

from __future__ import annotations

from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.frontends.nbd import nbd_uri, plan_address, split_address

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@settings(deadline=None)
@given(NAMES, NAMES)
def test_a_unix_uri_gives_name_and_path_back(name: str, path: str) -> None:
    uri = urlsplit(nbd_uri(f"/{path}", name, is_encrypted=False))
    assert (uri.scheme, uri.netloc) == ("nbd+unix", "")
    assert nbd_uri(f"/{path}", name, is_encrypted=True) == nbd_uri(f"/{path}", name, is_encrypted=False).replace(
        "nbd", "nbds", 1
    )
    assert unquote(uri.path) == f"/{name}"
    assert parse_qs(uri.query, keep_blank_values=True) == {"socket": [f"/{path}"]}


@settings(deadline=None)
@given(NAMES)
def test_a_tcp_uri_gives_name_and_address_back(name: str) -> None:
    uri = urlsplit(nbd_uri("[::1]:10809", name, is_encrypted=False))
    assert (uri.scheme, uri.hostname, uri.port) == ("nbd", "::1", 10809)
    assert unquote(uri.path) == f"/{name}"


@settings(deadline=None)
@given(st.text())
def test_an_address_is_split_or_refused(address: str) -> None:
    try:
        host, port = split_address(address)
    except UbiError as error:
        if error.kind is not ErrorKind.INVALID_PARAMS:
            raise
    else:
        assert host
        assert 0 <= port <= 65535


def test_a_port_of_absurd_length_is_refused() -> None:
    with pytest.raises(UbiError, match="is not HOST:PORT"):
        split_address("127.0.0.1:" + "9" * 10_000)


@pytest.mark.parametrize(
    ("address", "planned"),
    [
        ("localhost:1", "127.0.0.1:1"),
        ("127.0.0.2:65535", "127.0.0.2:65535"),
        ("[::1]:00010", "[::1]:10"),
        ("::1:10", "[::1]:10"),
        ("[0:0:0:0:0:0:0:1]:10", "[::1]:10"),
    ],
)
def test_an_address_has_one_spelling(address: str, planned: str) -> None:
    assert plan_address(address, may_be_reached=False) == planned


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "8.8.8.8:1", "[::ffff:8.8.8.8]:1"])
def test_what_other_machines_reach_needs_permission(address: str) -> None:
    with pytest.raises(UbiError, match="allow_plaintext") as caught:
        plan_address(address, may_be_reached=False)
    assert caught.value.kind is ErrorKind.PERMISSION
    assert plan_address(address, may_be_reached=True)
