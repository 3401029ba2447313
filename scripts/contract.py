#!/usr/bin/env python3
"""Write schemas/ and docs/rpc.md from the methods' models and docs/rpc.notes.md.

python scripts/contract.py            write them
python scripts/contract.py --check    say which are not as they would be written; exit 1 if any
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ubi_rpc.methods import METHODS  # noqa: E402
from ubi_rpc.rpc.contract import openrpc, parameter_rows, params_schema, states, summary  # noqa: E402
from ubi_rpc.rpc.method import Method  # noqa: E402

NOTES = ROOT / "docs/rpc.notes.md"
HEADING = re.compile(r"^### (\S+)$", re.MULTILINE)
EXAMPLE = re.compile(r"^> (.*)\n< (.*)$", re.MULTILINE)

WHEN = {("startup",): "Only before the subsystems are up.", ("startup", "runtime"): "In any state.", ("runtime",): ""}


def version() -> str:
    """Return the product's version."""
    manifest = tomllib.loads((ROOT / "native/Cargo.toml").read_text())
    return str(manifest["workspace"]["package"]["version"])


def to_json(value: object) -> str:
    """Return a document's text."""
    return json.dumps(value, indent=2) + "\n"


def section(method: Method, notes: str) -> str:
    """Return a method's section: what it does, its parameters, its notes, its example.

    The notes' first paragraph says what it does where there are notes, else the handler's docstring.
    """
    first, _, prose = EXAMPLE.sub("", notes).strip().partition("\n\n")
    parts = [f"{first or summary(method)} {WHEN[tuple(states(method))]}".strip()]
    rows = parameter_rows(method)
    if rows:
        lines = ["| parameter | type | meaning |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
        parts.append("\n".join(lines))
    else:
        parts.append("No parameters.")
    if prose:
        parts.append(prose.strip())
    for params, result in EXAMPLE.findall(notes):
        request = {"jsonrpc": "2.0", "id": 1, "method": method.name}
        if params.strip() != "{}":
            request["params"] = json.loads(params)
        answer = {"jsonrpc": "2.0", "id": 1, "result": json.loads(result)}
        texts = (json.dumps(one, ensure_ascii=False) for one in (request, answer))
        parts.append("```json\n" + "\n".join(texts) + "\n```")
    return "\n\n".join(parts) + "\n\n"


def reference(notes: str) -> str:
    """Return docs/rpc.md: the notes with every `### method` filled in from its model."""
    methods = {method.name: method for method in METHODS}
    head, *rest = HEADING.split(notes)
    missing = set(methods) - set(rest[::2])
    if missing or set(rest[::2]) - set(methods):
        raise SystemExit(f"{NOTES.name} and the methods differ: {sorted(missing ^ (set(rest[::2]) - set(methods)))}")
    text = head
    for name, body in zip(rest[::2], rest[1::2], strict=True):
        own, divider, after = body.partition("\n## ")
        text += f"### {name}\n\n{section(methods[name], own)}"
        text += f"{divider.lstrip()}{after}"
    return text.rstrip() + "\n"


def documents() -> dict[Path, str]:
    """Return every generated file with its text."""
    found = {ROOT / f"schemas/{method.name}.json": to_json(params_schema(method)) for method in METHODS}
    found[ROOT / "schemas/openrpc.json"] = to_json(openrpc(METHODS, version()))
    found[ROOT / "docs/rpc.md"] = reference(NOTES.read_text())
    return found


def main() -> int:
    """Write, or check."""
    wanted = documents()
    stale = [path for path in (ROOT / "schemas").glob("*.json") if path not in wanted]
    stale += [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if sys.argv[1:] == ["--check"]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not fresh: run make contract")
        return 1 if stale else 0
    for path in stale:
        path.unlink(missing_ok=True)
    for path, text in wanted.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
