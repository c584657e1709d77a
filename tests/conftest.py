from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from lora_quant.api import BuildResult, build
from lora_quant.config.options import BuildOptions
from tests.sample import CONFIG, CONFIG_ALL, copy_sample, make_float

Packs = Callable[[str], BuildResult]

_OPTIONS = {
    "adapter_only": (CONFIG, BuildOptions()),
    "all": (CONFIG_ALL, BuildOptions(mode="all")),
    "none": (CONFIG, BuildOptions(mode="none")),
    "rank": (CONFIG, BuildOptions(alpha_layout="rank")),
    "0.6.1": (CONFIG, BuildOptions(encodings_version="0.6.1")),
    "2.0.0": (CONFIG, BuildOptions(encodings_version="2.0.0")),
}


@pytest.fixture(scope="session")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Packs:
    """Builds of the sample by name, each made once; nobody may change them."""
    folder = tmp_path_factory.mktemp("packs")

    @cache
    def built(name: str) -> BuildResult:
        if name == "float":
            config = make_float(copy_sample(folder / "float_sample"))
            return build(config, folder / name)
        config, options = _OPTIONS[name]
        return build(config, folder / name, options)

    return built


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """lora_config.yaml of a copy of the sample that may be changed."""
    return copy_sample(tmp_path)
