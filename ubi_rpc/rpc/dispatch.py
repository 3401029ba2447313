"""From a parsed request to the bytes of its answer: SPDK's envelope around jsonrpcserver's method table.

jsonrpcserver looks a method up, calls it and guards the call; its own envelope differs from SPDK's in
nearly every member, so it sees one call at a time, with an id of ours, without validator or text.
This is the only module that imports it.

Source: SPDK lib/jsonrpc/jsonrpc_server.c, lib/rpc/rpc.c (jsonrpc_handler: lookup, then state, then params).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.rpc import audit
from ubi_rpc.rpc.decode import decode_params
from ubi_rpc.rpc.encoding import encode
from ubi_rpc.rpc.envelope import NULL_ID, InvalidRequestError, Request, clip, parse_request
from ubi_rpc.rpc.method import Method, State
from ubi_rpc.rpc.session import Session, current_session
from ubi_rpc.rpc.wire_errors import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    TOO_EARLY,
    TOO_LATE,
    WireError,
    from_ubi_error,
)
from ubi_rpc.suggest import did_you_mean

with warnings.catch_warnings():
    # jsonrpcserver 5.0.9 reads its schema with importlib.resources.read_text, deprecated on 3.11 and 3.12.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from jsonrpcserver import Error, Result, Success, async_dispatch
    from jsonrpcserver.codes import ERROR_METHOD_NOT_FOUND

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024
"""Length of one answer, or of a batch's. Source: SPDK_JSONRPC_SEND_BUF_SIZE_MAX."""

_REFUSED: Final[Any] = object()
"""The table's entry for what is no request: a key that no client can name."""


class Dispatcher:
    """Calls methods for clients and for configuration files.

    Args:
        methods: all of them; names are unique.
        services: handed to every handler.
        state: gives the present state, STARTUP or RUNTIME; asked at each call.
        allowed: names that may be called; any other is answered as if it did not exist. None: all.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        services: object,
        *,
        state: Callable[[], State],
        allowed: frozenset[str] | None = None,
    ) -> None:
        names = [method.name for method in methods]
        if len(set(names)) != len(names):
            raise ValueError(f"methods with the same name: {sorted({n for n in names if names.count(n) > 1})}")
        self._services = services
        self._state = state
        self._methods = {method.name: method for method in methods if allowed is None or method.name in allowed}
        self._table = {name: self._guard(method) for name, method in self._methods.items()}
        self._table[_REFUSED] = _refuse

    @property
    def methods(self) -> Mapping[str, Method]:
        """The methods that can be called, by name, in the order given."""
        return self._methods

    def only_reads(self, value: object) -> bool:
        """Say whether a parsed request, or each of a batch, changes nothing, so that nobody misses it unanswered."""
        if isinstance(value, list):
            return all(self.only_reads(one) for one in value)
        name = value.get("method") if isinstance(value, dict) else None
        method = self._methods.get(name) if isinstance(name, str) else None
        return method is None or not method.changes

    def method_names(self, *, current: bool = False) -> list[str]:
        """Give the names for rpc_get_methods; `current`: only those legal in the present state."""
        return [name for name, method in self._methods.items() if not current or self._state() in method.states]

    async def handle(self, value: object, session: Session) -> bytes | None:
        """Answer one parsed value: a request, a batch, or something that is neither.

        Args:
            value: as `json_parser` gives it.
            session: the connection it came from.

        Returns:
            The answer's bytes with their newline; None when nothing is to be sent.
        """
        current_session.set(session)
        text = await (self._batch(value, session) if isinstance(value, list) else self._answer(value, session))
        return None if text is None else text.encode("ascii") + b"\n"

    async def call(self, name: str, params: object) -> object:
        """Call a method for a configuration file: the same lookup, states, decoding and errors.

        Args:
            name: the method.
            params: parsed or plain members; None when absent.

        Raises:
            WireError: `code` and `message` as a client would get them, and `detail`.
        """
        request = {"jsonrpc": "2.0", "method": name, "params": [params], "id": 0}
        response: Any = await async_dispatch(
            request, methods=self._table, deserializer=_same, validator=_same, serializer=_same
        )
        if "result" in response:
            return response["result"]
        error = response["error"]
        if isinstance(error.get("data"), WireError):
            raise error["data"]
        if error["code"] == ERROR_METHOD_NOT_FOUND:
            raise self._not_found(name)
        raise WireError(
            INTERNAL_ERROR, ErrorKind.INTERNAL, f"{name} failed unexpectedly; the daemon's log has the cause"
        )

    def _not_found(self, name: str) -> WireError:
        hint = did_you_mean(name, self._methods) or "; rpc_get_methods lists those that do"
        return WireError(METHOD_NOT_FOUND, ErrorKind.NOT_FOUND, f"method {clip(name)} does not exist{hint}")

    def _guard(self, method: Method) -> Callable[[object], Awaitable[Result]]:
        """Make the table's entry for a method: state, decoding, the handler, and our errors as its result.

        Any other exception is jsonrpcserver's to log, with its traceback, and to answer as an internal error.
        """

        async def guarded(params: object) -> Result:
            try:
                self._check_state(method)
                model = decode_params(method, params)
                result = await method.handler(self._services, model)
                audit.changed(method, model, current_session.get())
                return Success(result)
            except WireError as error:
                return Error(error.code, error.message, error)
            except UbiError as error:
                wire = from_ubi_error(error, method.failure_code)
                return Error(wire.code, wire.message, wire)

        # jsonrpcserver binds the arguments at each call; with this it need not inspect the function again.
        guarded.__signature__ = inspect.signature(guarded)  # type: ignore[attr-defined]
        return guarded

    def _check_state(self, method: Method) -> None:
        if self._state() not in method.states:
            if State.RUNTIME in method.states:
                wire, reason = TOO_EARLY, "the framework is not initialized yet; call framework_start_init first"
            else:
                wire, reason = TOO_LATE, "the framework is initialized already"
            raise WireError(wire, ErrorKind.INVALID_STATE, f"{method.name}: {reason}")

    async def _answer(self, value: object, session: Session) -> str | None:
        """Give one request's answer as text; None for a notification that succeeded."""
        try:
            request = parse_request(value)
        except InvalidRequestError as refusal:
            # It goes the way of a call, so that it does not overtake the answers to requests before it.
            request = Request(_REFUSED, refusal.wire, refusal.id_text)
        name = "-" if request.method is _REFUSED else request.method
        try:
            result = await self.call(request.method, request.params)
            if request.is_notification:
                return None
            return f'{{"jsonrpc":"2.0","id":{request.id_text},"result":{_encode(name, result)}}}'
        except WireError as error:
            return _error_text(error, request.id_text, session, name)

    async def _batch(self, values: list[object], session: Session) -> str | None:
        """Answer a batch: its elements start at once and are answered in the order in which they end."""
        if not values:
            return _error_text(
                WireError(INVALID_REQUEST, ErrorKind.INVALID_PARAMS, "an empty batch"), NULL_ID, session, "-"
            )
        answers: list[str] = []
        size_bytes = 0

        async def answer(value: object) -> None:
            nonlocal size_bytes
            text = await self._answer(value, session)
            if text is None:
                return
            if size_bytes + len(text) > MAX_ANSWER_BYTES:
                text = _error_text(_too_large("batch"), NULL_ID, session, "-")
            size_bytes += len(text)
            answers.append(text)

        async with asyncio.TaskGroup() as group:
            for value in values:
                group.create_task(answer(value))
        return f"[{','.join(answers)}]" if answers else None


async def _refuse(error: object) -> Result:
    if not isinstance(error, WireError):
        raise TypeError("a refusal carries its error")
    return Error(error.code, error.message, error)


def _same(value: Any) -> Any:
    return value


def _too_large(name: str) -> WireError:
    return WireError(INTERNAL_ERROR, ErrorKind.UNSUPPORTED, f"{name}: the answer is over {MAX_ANSWER_BYTES} bytes")


def _encode(name: str, result: object) -> str:
    """Encode a handler's result; what has no JSON form is a fault of ours."""
    try:
        text = encode(result)
    except (TypeError, ValueError, RecursionError) as error:
        logger.exception("method=%s its result has no JSON form", name)
        raise WireError(INTERNAL_ERROR, ErrorKind.INTERNAL, f"{name} gave a result that has no JSON form") from error
    if len(text) > MAX_ANSWER_BYTES:
        raise _too_large(name)
    return text


def _error_text(error: WireError, id_text: str, session: Session, name: str) -> str:
    """Log a failure, once, and give its answer."""
    who = audit.peer(session)
    logger.error("%s method=%s code=%d message=%r %s", who, clip(name), error.code, error.message, error.detail)
    body: dict[str, object] = {"code": error.code, "message": error.message}
    session.last_error = error.data
    if session.error_data:
        body["data"] = session.last_error
    return f'{{"jsonrpc":"2.0","id":{id_text},"error":{encode(body)}}}'
