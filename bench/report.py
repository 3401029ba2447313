"""Results as a table for people and as lines of JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def table(title: str, header: list[str], rows: list[list[str]]) -> str:
    """Return a table in the way of Markdown, its columns aligned; the first is text, the others are figures."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: list[str]) -> str:
        first, *others = (
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join([first, *others])} |"

    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:]), ""])
    return "\n".join([f"\n### {title}\n", line(header), rule, *map(line, rows)])


def save(folder: Path, name: str, record: dict[str, Any]) -> Path:
    """Append a record to the results of a table and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
    return path


def number(value: float) -> str:
    """Return a figure with three digits that mean something."""
    if value >= 10_000:
        return f"{value / 1000:.0f}k"
    if value >= 1000:
        return f"{value / 1000:.1f}k"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def verdict(met: bool) -> str:
    """Return how a table says that a target is met, or not."""
    return "yes" if met else "NO"
