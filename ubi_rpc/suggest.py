"""What somebody may have meant who misspelled a name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_COMPARED = 64
"""Characters of a name that are compared; nothing here has a longer one."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for the known name that is closest, "" where none is close."""
    names = {one.lower(): one for one in known}
    close = get_close_matches(name[:_COMPARED].lower(), names, n=1)
    return f", did you mean {names[close[0]]!r}?" if close else ""
