"""What somebody may have meant who misspelled a name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache

_COMPARED = 64
"""Characters of a name that are compared; nothing here has a longer one."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for the known name that is closest, "" where none is close."""
    return _closest(name[:_COMPARED].lower(), tuple(known))


@lru_cache(maxsize=256)  # a comparison with a hundred names takes a millisecond, and callers repeat their mistakes
def _closest(name: str, known: tuple[str, ...]) -> str:
    names = {one.lower(): one for one in known}
    close = get_close_matches(name, names, n=1)
    return f", did you mean {names[close[0]]!r}?" if close else ""
