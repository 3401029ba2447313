"""Who may import whom: a module imports its own folder and those below it, and borders have one crossing each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ubi_rpc"
LAYERS = [
    {"__main__", "daemon", "startup", "config_check", "config_source", "tools"},
    {"rpc", "methods"},
    {"storage"},
    {"bdevs", "images", "frontends"},
    {"engine"},
    {"params", "settings", "errors", "files", "log_control", "spdk_options", "suggest", "log_output", "thread_usage"},
]
ALONE = {"cli_rpc"}  # standard library only
CROSSINGS = {"ubi_rpc._native": "engine.py", "jsonrpcserver": "rpc/dispatch.py"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def _rank(part: str) -> int:
    return next(rank for rank, layer in enumerate(LAYERS) if part in layer)


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_is_below_it(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    own = relative.parts[0].removesuffix(".py")
    for name in _imports(path):
        for target, only in CROSSINGS.items():
            assert not name.startswith(target) or str(relative) == only, f"{target} is imported by {only} alone"
        if own in ALONE | {"__init__"} or not name.startswith("ubi_rpc.") or name.startswith("ubi_rpc._native"):
            continue
        part = name.split(".")[1]
        assert _rank(own) <= _rank(part), f"{own} imports {part}"
