"""Options that clients set and that nothing here acts on: kept, so that they can be read back and saved.

Owns values by method and by instance (`sock_impl_set_options` has one a socket implementation). What a value may be is
the method's business.
"""

from __future__ import annotations

from collections.abc import Mapping


class Options:
    """The values of option methods, in the order in which they were first set."""

    def __init__(self) -> None:
        self._set: dict[tuple[str, str], dict[str, object]] = {}

    def update(self, method: str, values: Mapping[str, object], instance: str = "") -> None:
        """Set values; what is not named keeps its value."""
        self._set[(method, instance)] = {**self._set.get((method, instance), {}), **values}

    def get(self, method: str, instance: str = "") -> dict[str, object]:
        """Return what was set, without defaults."""
        return dict(self._set.get((method, instance), {}))

    def instances(self, method: str) -> list[str]:
        """Return the instances for which a method was called; [""] or [] for one that has none."""
        return [instance for name, instance in self._set if name == method]
