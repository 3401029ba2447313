"""What the documents say can be followed: links lead somewhere, examples are accepted, options exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ubi_rpc import __main__ as daemon
from ubi_rpc.settings import parser

CHECKOUT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").rglob("*.md")])
OPERATIONS = (CHECKOUT / "docs/operations.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_links_within_the_project_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())

    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_configuration_in_operations_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```json\n(.*?)```", OPERATIONS, re.DOTALL)
    (tmp_path / "conf.json").write_text(example)
    monkeypatch.setattr("sys.argv", ["ubi_tgt", "--check-config", str(tmp_path / "conf.json")])

    assert daemon.main() == 0


def test_operations_tells_the_options_that_the_daemon_has() -> None:
    rows = re.findall(r"^\| `(-.*?)` \|", OPERATIONS, re.MULTILINE)
    told = {option for row in rows for option in re.findall(r"(?<![\w-])(?:--[a-z-]+|-[A-Za-z])\b", row)}
    options = [set(action.option_strings) for action in parser()._actions if action.help != "==SUPPRESS=="]

    assert told <= set().union(*options)
    assert [option for option in options if not told & option] == [{"-h", "--help"}]
