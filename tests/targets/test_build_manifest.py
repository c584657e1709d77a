"""The manifest's records of what a build read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lora_quant.api import build
from lora_quant.graph.files.data_files import sha256_of
from lora_quant.targets.files import input_records
from tests.final_graphs import final, lora_config
from tests.sample import edit_yaml, keep_use_cases


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each input was hashed."""
    found: Counter[Path] = Counter()

    def counted(path: Path) -> str:
        found[path] += 1
        return sha256_of(path)

    monkeypatch.setattr(input_records, "sha256_of", counted)
    return found


def test_a_file_that_use_cases_share_is_hashed_once(sample: Path, hashed: Counter[Path]) -> None:
    config = keep_use_cases(sample, ["tone"])
    edit_yaml(config, lambda d: d["use-case"].append({**d["use-case"][0], "name": "again"}))
    manifest = build(config, sample.parent / "out").manifest
    shared = [r for r in manifest.inputs if r.role == "encodings"]
    assert [r.name for r in shared] == ["tone", "again"]
    assert shared[0].path == shared[1].path
    assert shared[0].sha256 == shared[1].sha256
    assert set(hashed.values()) == {1}


def test_a_final_graph_is_hashed_once_as_base_and_as_graph_of_a_use_case(
    tmp_path: Path, hashed: Counter[Path]
) -> None:
    config = lora_config(tmp_path / "in")
    manifest = final(config, tmp_path / "out", mode="all").manifest
    (record,) = [r for r in manifest.inputs if r.role == "graph" and r.name == "base"]
    assert record.sha256 == manifest.base.graph.sha256
    assert hashed[config.parent / "base_lora_zero.fp32.onnx"] == 1
    assert set(hashed.values()) == {1}
