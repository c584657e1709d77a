"""The manifest's records of what a build read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lora_quant.api import build
from lora_quant.graph.files.data_files import sha256_of
from lora_quant.targets import build_manifest
from tests.sample import edit_yaml, keep_use_cases


def test_a_file_that_use_cases_share_is_hashed_once(
    sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: Counter[Path] = Counter()

    def counted(path: Path) -> str:
        hashed[path] += 1
        return sha256_of(path)

    monkeypatch.setattr(build_manifest, "sha256_of", counted)
    config = keep_use_cases(sample, ["tone"])
    edit_yaml(config, lambda d: d["use-case"].append({**d["use-case"][0], "name": "again"}))
    manifest = build(config, sample.parent / "out").manifest
    shared = [r for r in manifest.inputs if r.role == "encodings"]
    assert [r.name for r in shared] == ["tone", "again"]
    assert shared[0].path == shared[1].path
    assert shared[0].sha256 == shared[1].sha256
    assert set(hashed.values()) == {1}
