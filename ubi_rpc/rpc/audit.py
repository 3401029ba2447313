"""Who changed what: one line of the log for each call that changed something.

A client is who the kernel says it is (SO_PEERCRED, when it connected); no parameter is repeated but the object's name.
Calls that failed are in the log as errors, with the same client.
"""

from __future__ import annotations

import logging

from ubi_rpc.params import Params
from ubi_rpc.rpc.envelope import clip
from ubi_rpc.rpc.method import Method
from ubi_rpc.rpc.session import Session

_log = logging.getLogger(__name__)

OBJECTS = ("name", "export_name", "ctrlr", "bdev_name", "impl_name", "flag", "level", "sig_name")
"""Parameters that name what a call is about, the first that is given."""


def peer(session: Session | None) -> str:
    """Return who called: a client's user and process, or the configuration."""
    return "peer=config" if session is None else f"peer_uid={session.peer_uid} peer_pid={session.peer_pid}"


def changed(method: Method, params: Params, session: Session | None) -> None:
    """Log a call that succeeded, if its method changes anything."""
    if method.changes:
        given = (getattr(params, name, None) for name in OBJECTS)
        name = next((text for text in given if isinstance(text, str)), None)
        _log.info("%s method=%s object=%s done", peer(session), method.name, "-" if name is None else clip(name))
