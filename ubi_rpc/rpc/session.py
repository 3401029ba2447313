"""One client's connection as handlers see it: options, peer, and work for after the answer.

Owns no socket. `unix_server` makes one `Session` a connection; `dispatch` makes it current for the
length of a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Session:
    """What is known of one connection.

    Args:
        error_data: errors carry a `data` member {kind, message, context}; off until the client asks.
        peer_pid: process id of the client when it connected, 0 when unknown.
        peer_uid: user id of the client when it connected, -1 when unknown.
        last_error: what the `data` of the connection's last error says, sent or not.
    """

    error_data: bool = False
    peer_pid: int = 0
    peer_uid: int = -1
    last_error: dict[str, object] | None = None


current_session: ContextVar[Session | None] = ContextVar("current_session", default=None)
"""The session whose request is being handled; None while a configuration file is applied."""

answer_actions: ContextVar[list[Callable[[], None]] | None] = ContextVar("answer_actions", default=None)
"""What the current request wants done after its answer; None where nothing is answered."""


def after_answer(action: Callable[[], None]) -> None:
    """Run `action` once the current request's answer is handed to the socket.

    Without a connection (a configuration file) it runs in the next turn of the event loop. For
    methods that end what they answer on, such as spdk_kill_instance.
    """
    actions = answer_actions.get()
    if actions is None:
        asyncio.get_running_loop().call_soon(action)
    else:
        actions.append(action)
