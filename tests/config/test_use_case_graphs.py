"""Which graph is the base: told by files, however their paths are spelled."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_quant.config.lora_config import LoraConfig, UseCaseInputConfig
from lora_quant.config.use_case_graphs import base_model, with_own_graphs


def config(*models: Path) -> LoraConfig:
    """A use case without adapters for the first graph, one with an adapter for each other."""
    params = {"name": "a", "rank": 1, "alpha": 1, "target_modules": ["q"]}
    adapter = {"name": "a", "lora_config": [params]}
    use_cases = [
        {
            "name": f"u{number}",
            "adapter_names": ["a"] if number else [],
            "adapter_alphas": [1.0] if number else [],
            "model_name": str(model),
        }
        for number, model in enumerate(models)
    ]
    return LoraConfig.model_validate({"adapter": [adapter], "use-case": use_cases})


def own(found: tuple[UseCaseInputConfig, ...]) -> list[str]:
    return [use_case.name for use_case in found]


def test_one_graph_in_several_spellings_is_one_graph(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    spelled = tmp_path / "model" / ".." / "a.onnx"
    read = config(tmp_path / "a.onnx", spelled, tmp_path / "b.onnx")
    assert base_model(read) == tmp_path / "a.onnx"
    assert own(with_own_graphs(read, base_model(read))) == ["u2"]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no symbolic links here")
def test_a_link_to_the_base_is_the_base(tmp_path: Path) -> None:
    (tmp_path / "link.onnx").symlink_to("a.onnx")
    read = config(tmp_path / "a.onnx", tmp_path / "link.onnx")
    assert own(with_own_graphs(read, base_model(read))) == []


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no symbolic links here")
def test_a_link_in_a_circle_is_a_graph_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "loop.onnx").symlink_to("loop.onnx")
    read = config(tmp_path / "a.onnx", tmp_path / "loop.onnx")
    assert base_model(read) == tmp_path / "a.onnx"
    assert own(with_own_graphs(read, base_model(read))) == ["u1"]
