"""SPDK's envelope rules around jsonrpcserver's method table (skeleton: the interface is final)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ubi_rpc.rpc.method import Method, State
from ubi_rpc.rpc.session import Session


class Dispatcher:
    """Calls methods. `state` is asked at each call; `allowed` hides every other method."""

    def __init__(
        self,
        methods: Sequence[Method],
        services: object,
        *,
        state: Callable[[], State],
        allowed: frozenset[str] | None = None,
    ) -> None:
        raise NotImplementedError

    @property
    def methods(self) -> Mapping[str, Method]:
        """The methods that can be called, by name, in the order given."""
        raise NotImplementedError

    def method_names(self, *, current: bool = False) -> list[str]:
        """Names for rpc_get_methods; `current`: only those legal in the present state."""
        raise NotImplementedError

    async def handle(self, value: object, session: Session) -> bytes | None:
        """Answer one parsed request or batch; None when nothing is to be sent."""
        raise NotImplementedError

    async def call(self, name: str, params: object) -> object:
        """Call for a configuration file: same decoding and states. Raises WireError (code, message, detail)."""
        raise NotImplementedError
