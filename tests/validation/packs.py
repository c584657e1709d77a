"""A small pack, and the means to damage it so that only one thing is wrong at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_quant.config.manifest_seal import seal_manifest
from lora_quant.findings import Finding

SAMPLE = Path(__file__).parents[2] / "samples" / "tiny_llama"

Edit = Callable[[dict[str, Any]], object]


def edit_manifest(pack: Path, edit: Edit, *, seal: bool = True) -> None:
    """Change `pack.json`, and seal it again."""
    path = pack / "pack.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    edit(document)
    text = json.dumps(document, indent=1)
    path.write_text(seal_manifest(text) if seal else text, encoding="utf-8")


def edit_json(path: Path, edit: Edit) -> None:
    """Change a JSON file of a pack, and the manifest to match."""
    document = json.loads(path.read_text(encoding="utf-8"))
    edit(document)
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    rehash(pack_of(path))


def edit_text(path: Path, old: str, new: str) -> None:
    """Replace a text that occurs in a file of a pack, and change the manifest to match."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    rehash(pack_of(path))


def flip_byte(path: Path, offset: int) -> None:
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x40
    path.write_bytes(content)


def rehash(pack: Path) -> None:
    """Make sizes and hashes of the manifest those of the files as they are now."""

    def edit(manifest: dict[str, Any]) -> None:
        for file in manifest["targets"][0]["files"]:
            content = (pack / file["path"]).read_bytes()
            file.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())

    edit_manifest(pack, edit)


def pack_of(path: Path) -> Path:
    """The pack that a file is in."""
    return next(folder for folder in path.parents if (folder / "pack.json").is_file())


def manifest_files(pack: Path) -> list[dict[str, Any]]:
    """The file records of the manifest."""
    document = json.loads((pack / "pack.json").read_text(encoding="utf-8"))
    files: list[dict[str, Any]] = document["targets"][0]["files"]
    return files


def rules(findings: tuple[Finding, ...]) -> list[str]:
    """The rules of findings, each once, sorted."""
    return sorted({f.rule for f in findings})


def one(findings: tuple[Finding, ...], rule: str) -> Finding:
    """The only finding of a rule."""
    found = [f for f in findings if f.rule == rule]
    assert len(found) == 1, [str(f) for f in findings]
    return found[0]
