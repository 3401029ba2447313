"""TLS of NBD listeners: what a request's parameters ask for. The engine reads the credentials and speaks TLS."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ubi_rpc.engine import TlsOptions
from ubi_rpc.errors import ErrorKind, UbiError

TlsMode = Literal["off", "on", "require"]
"""Clients cannot use TLS, may use it, must use it."""


def plan_tls(mode: TlsMode, creds: str | None, psk: str | None, *, verify_peer: bool) -> TlsOptions | None:
    """Decide how a listener speaks TLS; None: not at all.

    Raises:
        UbiError: invalid_params for TLS without credentials or the other way round.
    """
    if mode == "off":
        if creds is not None or psk is not None:
            raise UbiError(ErrorKind.INVALID_PARAMS, 'tls_creds and tls_psk need tls "on" or "require"')
        return None
    if not creds and not psk:
        raise UbiError(
            ErrorKind.INVALID_PARAMS,
            f'tls "{mode}" needs tls_creds, a directory with server-cert.pem and server-key.pem, '
            "or tls_psk, a file of keys",
        )
    return TlsOptions(
        required=mode == "require",
        certificates=str(Path(creds).absolute()) if creds else None,
        verify_peer=verify_peer and bool(creds),
        psk_file=str(Path(psk).absolute()) if psk else None,
    )


def tls_mode(tls: TlsOptions | None) -> TlsMode:
    """Return the mode that asks for this."""
    if tls is None:
        return "off"
    return "require" if tls.required else "on"


def keeps_strangers_out(tls: TlsOptions | None) -> bool:
    """Whether nothing is said in the clear, and only to clients that prove who they are."""
    return tls is not None and tls.required and (tls.verify_peer or tls.certificates is None)
