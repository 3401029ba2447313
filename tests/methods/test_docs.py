"""The generated documents are fresh, and every method's example is true."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest

from tests.conftest import MIB, Domain
from ubi_rpc.methods import METHODS
from ubi_rpc.rpc.contract import params_schema
from ubi_rpc.rpc.method import Method, State

ROOT = Path(__file__).resolve().parents[2]
NOTES = (ROOT / "docs/rpc.notes.md").read_text()
BY_NAME = {method.name: method for method in METHODS}


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("contract_script", ROOT / "scripts/contract.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _examples() -> Iterator[tuple[str, Any, Any]]:
    sections = re.split(r"^### (\S+)$", NOTES, flags=re.MULTILINE)
    for name, body in zip(sections[1::2], sections[2::2], strict=True):
        for params, result in re.findall(r"^> (.*)\n< (.*)$", body, flags=re.MULTILINE):
            yield name, json.loads(params), json.loads(result)


LATE = {
    "bdev_get_bdevs": 1,
    "nbd_delete_export": 2,
    "vhost_delete_controller": 2,
    "bdev_ubi_delete": 3,
    "bdev_aio_rescan": 2,
} | {f"bdev_{kind}_delete": 4 for kind in ("aio", "malloc", "null")}
EXAMPLES = sorted(_examples(), key=lambda example: LATE.get(example[0], 0))
"""In the order of the document, but what needs others' work, or undoes it, comes later."""


def _matches(shown: Any, answered: Any) -> bool:
    """Compare with an example: "…" stands for anything, in a text, in place of a value, or of further members."""
    if shown in ("…", ["…"]):
        return shown == "…" or isinstance(answered, list)
    if isinstance(shown, str) and "…" in shown:
        return isinstance(answered, str) and all(part in answered for part in shown.split("…"))
    if isinstance(shown, dict):
        rest = {key: value for key, value in shown.items() if key != "…"}
        return (
            isinstance(answered, dict)
            and (len(rest) < len(shown) or rest.keys() == answered.keys())
            and all(key in answered and _matches(value, answered[key]) for key, value in rest.items())
        )
    if isinstance(shown, list):
        return len(shown) == len(answered) and all(map(_matches, shown, answered))
    return bool(shown == answered)


def test_generated_files_are_fresh() -> None:
    documents: dict[Path, str] = _generator().documents()
    assert {path for path, text in documents.items() if not path.exists() or path.read_text() != text} == set(), (
        "run make contract"
    )
    assert set((ROOT / "schemas").iterdir()) == {path for path in documents if path.parent.name == "schemas"}


def test_every_method_has_an_example() -> None:
    assert {name for name, _, _ in EXAMPLES} == set(BY_NAME)


async def test_examples_are_answered_as_shown(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(domain.dir)
    domain.file("aio0.raw", 64 * MIB)
    domain.file("image.raw", 4 * MIB)
    for name, params, result in EXAMPLES:
        domain.startup.state = State.STARTUP if BY_NAME[name].states is State.STARTUP else State.RUNTIME
        answered = await domain.call(name, **params)
        assert _matches(result, json.loads(json.dumps(answered))), (name, answered)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_schemas_are_schemas_and_accept_the_examples(method: Method) -> None:
    schema = params_schema(method)
    jsonschema.Draft202012Validator.check_schema(schema)
    for name, params, _ in EXAMPLES:
        if name == method.name:
            jsonschema.validate(params, schema)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_schemas_name_what_the_model_has(method: Method) -> None:
    schema = params_schema(method)
    assert set(schema["properties"]) == set(method.params.model_fields)
    assert set(schema["required"]) == {n for n, field in method.params.model_fields.items() if field.is_required()}
    assert '"null"' not in json.dumps(schema["properties"])


async def test_discover_is_the_committed_document_with_the_running_version(domain: Domain) -> None:
    found = await domain.call("rpc.discover")
    committed = json.loads((ROOT / "schemas/openrpc.json").read_text())
    assert found["info"].pop("version") != committed["info"].pop("version")
    assert json.loads(json.dumps(found)) == committed
