"""A case: one YAML file that says what is given, what is checked, and what is found.

`read_case` knows its keys, `prepare` makes its files in a folder. tests/cases/README.md describes
the format for those who write cases.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import yaml
from safetensors.numpy import save

from lora_quant.config.manifest import MANIFEST_FILE
from tests.validation.case_edits import apply_edit
from tests.validation.case_trees import TREES
from tests.validation.packs import edit_manifest, rehash

CASES = Path(__file__).parents[1] / "cases"
PLACES = ("line", "column", "field", "use_case", "adapter", "module", "tensor", "node")
"""Parts of a place that a case names as well where a finding has them."""

_KEYS = {
    "what",
    "given",
    "files",
    "edits",
    "rehash",
    "seal",
    "validate",
    "expect",
    "kinds",
    "notes",
}
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I8": np.int8,
    "U8": np.uint8,
}


@dataclass(frozen=True)
class Validate:
    """paths: what the person names. base and levels are those of a request."""

    paths: tuple[str, ...]
    base: str | None = None
    levels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """expect: the errors and warnings. kinds: path -> what a person calls the file.

    notes: rules of notes that have to be found; notes beside them do not matter.
    """

    path: Path
    what: str
    given: str | None
    files: Mapping[str, Any]
    edits: tuple[Mapping[str, Any], ...]
    rehash: bool
    seal: bool
    validate: Validate
    expect: tuple[Mapping[str, Any], ...]
    kinds: Mapping[str, str | None]
    notes: tuple[str, ...]


def case_paths(folder: str) -> list[str]:
    """The cases of `positive` or `negative`, relative to tests/cases; each is a test."""
    return sorted(p.relative_to(CASES).as_posix() for p in (CASES / folder).rglob("*.yaml"))


def read_case(name: str) -> Case:
    """Read one case; a key that is not known would silently test nothing, and is refused."""
    document = yaml.safe_load((CASES / name).read_text(encoding="utf-8"))
    unknown = set(document) - _KEYS
    assert not unknown, f"{name}: unknown keys {sorted(unknown)}"
    files = document.get("files", {})
    given = document.get("given")
    wanted = document.get("validate", {})
    wanted = wanted if isinstance(wanted, dict) else {"paths": wanted}
    paths = wanted.pop("paths", None) or (["pack"] if given and given != "flow" else list(files))
    assert paths, f"{name}: no `validate` says what is checked"
    return Case(
        path=CASES / name,
        what=document["what"],
        given=given,
        files=files,
        edits=tuple(document.get("edits", ())),
        rehash=bool(document.get("rehash", False)),
        seal=bool(document.get("seal", True)),
        validate=Validate(
            paths=(paths,) if isinstance(paths, str) else tuple(paths),
            base=wanted.pop("base", None),
            levels=tuple(wanted.pop("levels", ())),
            **wanted,
        ),
        expect=tuple(document.get("expect", ())),
        kinds=document.get("kinds", {}),
        notes=tuple(document.get("notes", ())),
    )


def prepare(case: Case, folder: Path, tree: Callable[[str], Path]) -> None:
    """Make the files of a case below an empty folder; `tree` tells where a prepared tree lies."""
    if case.given is not None:
        inside, _ = TREES[case.given]
        copy_tree(tree(case.given), folder / inside)
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content_of(content))
    for edit in case.edits:
        apply_edit(folder, edit, content_of)
    if case.rehash:
        rehash(folder / "pack")
    elif case.seal and any(edit.get("file") == f"pack/{MANIFEST_FILE}" for edit in case.edits):
        edit_manifest(folder / "pack", lambda manifest: None)


def copy_tree(source: Path, target: Path) -> None:
    """A copy that edits may change: they replace a file as a whole, so that most can be links.

    ONNX refuses external data with more than one name, and a manifest is sealed in place.
    """
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".data" or path.name == MANIFEST_FILE:
            shutil.copyfile(path, place)
        else:
            place.hardlink_to(path)


def content_of(given: Any) -> bytes:
    """The bytes of a file as a case writes it down."""
    if isinstance(given, str):
        return given.encode("utf-8")
    ((form, value),) = given.items()
    return _FORMS[form](value)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def _safetensors(tensors: Mapping[str, Mapping[str, Any]]) -> bytes:
    return save({name: values_of(tensor) for name, tensor in tensors.items()})


def values_of(tensor: Mapping[str, Any]) -> Any:
    """{dtype, shape, values or nothing for ones}; a single value fills the tensor."""
    dtype = _DTYPES[tensor.get("dtype", "F32")]
    shape = tuple(tensor["shape"])
    values = np.asarray(tensor.get("values", 1), np.float64).astype(dtype).reshape(-1)
    return np.resize(values, shape) if values.size == 1 else values.reshape(shape)


def _onnx(text: str) -> bytes:
    return bytes(onnx.parser.parse_model(text).SerializeToString(deterministic=True))


_FORMS: Mapping[str, Callable[[Any], bytes]] = {
    "text": lambda value: str(value).encode("utf-8"),
    "json": _json,
    "hex": bytes.fromhex,
    "base64": base64.b64decode,
    "safetensors": _safetensors,
    "onnx": _onnx,
    "repeat": lambda value: str(value[0]).encode("utf-8") * int(value[1]),
}
