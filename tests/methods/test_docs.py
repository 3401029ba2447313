"""docs/rpc.md has every method with every parameter, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ubi_rpc.methods import METHODS
from ubi_rpc.rpc.method import Method

TEXT = (Path(__file__).resolve().parents[2] / "docs/rpc.md").read_text()
SECTIONS = {
    section.partition("\n")[0]: section for section in re.split(r"^#{2,3} ", TEXT, flags=re.MULTILINE) if "_" in section
}
HEADINGS = re.findall(r"^### (\S+)$", TEXT, flags=re.MULTILINE)


def test_every_method_is_described_once() -> None:
    assert sorted(HEADINGS) == sorted(method.name for method in METHODS)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_parameter_is_described_and_required_ones_are_marked(method: Method) -> None:
    rows = re.findall(r"^\| (`[^|]+?) \|", SECTIONS[method.name], flags=re.MULTILINE)
    described = {name: star == "*" for row in rows for name, star in re.findall(r"`(\w+)`(\*?)", row)}
    assert described == {name: field.is_required() for name, field in method.params.model_fields.items()}
