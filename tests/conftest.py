from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import hypothesis
import onnxruntime
import pytest

from lora_quant.api import BuildResult, build
from lora_quant.config.options import BuildOptions
from tests.sample import CONFIG, CONFIG_ALL, copy_sample, make_float

# Time is measured by tests/timing.py alone: on a busy machine any example may take long.
# `--hypothesis-profile=thorough` looks for longer.
hypothesis.settings.register_profile("ordinary", deadline=None, max_examples=50)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("ordinary")

Packs = Callable[[str], BuildResult]

_OPTIONS = {
    "adapter_only": (CONFIG, BuildOptions()),
    "all": (CONFIG_ALL, BuildOptions(mode="all")),
    "none": (CONFIG, BuildOptions(mode="none")),
    "rank": (CONFIG, BuildOptions(alpha_layout="rank")),
    "0.6.1": (CONFIG, BuildOptions(encodings_version="0.6.1")),
    "2.0.0": (CONFIG, BuildOptions(encodings_version="2.0.0")),
}


class _OneThread(onnxruntime.SessionOptions):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.intra_op_num_threads = 1


@pytest.fixture(scope="session", autouse=True)
def _one_thread_of_a_session() -> Iterator[None]:
    """The workers of a run fill the cores: other threads of ONNX Runtime only wait, and spin.

    A test that sets a number of threads gets it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "SessionOptions", _OneThread)
        yield


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
