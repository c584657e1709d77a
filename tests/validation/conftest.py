from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lora_quant.api import build
from lora_quant.config.functions import serialize_lora_input_config
from lora_quant.config.lora_config import LoraConfig, read_lora_config
from tests.validation.packs import SAMPLE


@pytest.fixture(scope="session")
def small_config() -> LoraConfig:
    """The sample with three of its use cases."""
    config = read_lora_config(SAMPLE / "lora_config.yaml")
    kept = [u for u in config.use_cases if u.name in ("base", "tone", "both")]
    return config.model_copy(update={"use_cases": kept})


@pytest.fixture(scope="session")
def built(small_config: LoraConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack that nobody changes."""
    output = tmp_path_factory.mktemp("built") / "pack"
    build(small_config, output)
    return output


@pytest.fixture
def pack(built: Path, tmp_path: Path) -> Path:
    """A copy of the pack, to be damaged."""
    return Path(shutil.copytree(built, tmp_path / "pack"))


@pytest.fixture
def movable_config(small_config: LoraConfig, tmp_path: Path) -> Path:
    """The small config over a copy of the base graph, whose folder may be written into."""
    shutil.copytree(SAMPLE / "model", tmp_path / "model")
    use_cases = [
        u.model_copy(update={"model": tmp_path / "model" / "model.onnx"})
        for u in small_config.use_cases
    ]
    path = tmp_path / "lora_config.yaml"
    serialize_lora_input_config(small_config.model_copy(update={"use_cases": use_cases}), path)
    return path
