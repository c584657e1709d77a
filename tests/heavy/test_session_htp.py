"""Sessions of the qnn target on the emulated HTP: switching, strengths, threads, the context.

Against the CPU the numbers differ by rounding on every grid of the graph. What is asked for here is
that the difference is small beside what an adapter changes, so that no use case can stand for
another; how many steps it may be is what `lora-quant verify` says.
"""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lora_quant.api import build
from lora_quant.config.options import BuildOptions
from lora_quant.config.run_config import AdapterRunConfig, UseCaseRunConfig
from lora_quant.errors import ConfigError
from lora_quant.runtime import BASE, Session
from lora_quant.runtime.session.choice import Choice
from tests.command_line import command
from tests.sample import CONFIG, SAMPLE

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        importlib.util.find_spec("onnxruntime_qnn") is None, reason="needs onnxruntime_qnn"
    ),
]

Array = NDArray[Any]
IDS = load_file(SAMPLE / "reference" / "inputs.safetensors")["input_ids"][:1]
USE_CASES = ["base", "tone", "legal", "style", "both"]
# The difference of the engines is below this part of what the adapters change.
PART = 1 / 4


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(
        CONFIG, tmp_path_factory.mktemp("htp") / "pack ö", BuildOptions(targets=("qnn",))
    ).output


@pytest.fixture(scope="module")
def htp(pack: Path) -> Iterator[Session]:
    with Session(pack, device="htp") as session:
        yield session


def logits(session: Session, choice: Choice) -> Array:
    (values,) = session.run({"input_ids": IDS}, choice).values()
    return values


def strong(**alphas: float) -> UseCaseRunConfig:
    adapters = [AdapterRunConfig(name=name, alpha=alpha) for name, alpha in alphas.items()]
    return UseCaseRunConfig(name="both", adapters=adapters)


def test_every_use_case_is_that_of_the_cpu(pack: Path, htp: Session) -> None:
    with Session(pack) as cpu:
        base = logits(cpu, BASE)
        assert (
            np.abs(logits(htp, BASE) - base).max()
            <= PART * np.abs(logits(cpu, "both") - base).max()
        )
        for name in USE_CASES[1:]:
            wanted = logits(cpu, name)
            effect = float(np.abs(wanted - base).max())
            assert effect > 0
            assert np.abs(logits(htp, name) - wanted).max() <= PART * effect, name


def test_use_cases_never_mix(htp: Session) -> None:
    alone = {name: logits(htp, name) for name in USE_CASES}
    base = logits(htp, BASE)
    for name in ("both", "base", "style", "tone", "both", "legal", "base", "style"):
        assert np.array_equal(logits(htp, name), alone[name]), name
        assert np.array_equal(logits(htp, BASE), base)
    assert np.array_equal(alone["base"], base)


def test_strengths_are_absolute(htp: Session) -> None:
    """0 is the base, bit for bit, as it is with weights of zeros."""
    off = logits(htp, strong(tone=0.0, legal=0.0))
    half = logits(htp, strong(tone=0.5, legal=0.3))
    full = logits(htp, "both")
    assert np.array_equal(logits(htp, strong(tone=1.0, legal=0.6)), full)
    assert np.array_equal(off, logits(htp, BASE))
    assert 0 < np.abs(half - off).max() < np.abs(full - off).max()


def test_threads_get_what_each_would_get_alone(htp: Session) -> None:
    alone = {name: logits(htp, name) for name in USE_CASES}
    wrong: list[str] = []

    def work(number: int) -> None:
        for step in range(3):
            name = USE_CASES[(number + step) % len(USE_CASES)]
            if not np.array_equal(logits(htp, name), alone[name]):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_is_compiled_gives_the_same_bits(tmp_path: Path, htp: Session) -> None:
    options = BuildOptions(targets=("qnn",), qnn_context=True)
    output = build(CONFIG, tmp_path / "pack", options).output
    with Session(output, device="htp") as compiled:
        assert compiled.graph_file.name == "model.onnx"
        choices: list[Choice] = [*USE_CASES, BASE, strong(tone=0.5)]
        for choice in choices:
            assert np.array_equal(logits(compiled, choice), logits(htp, choice))


def test_an_unknown_architecture_is_refused(pack: Path) -> None:
    with pytest.raises(ConfigError, match="the HTP has no architecture '7'"):
        Session(pack, device="htp", htp_arch="7")


def test_the_command_line_prints_nothing_of_the_vendor_s(pack: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", input_ids=IDS)
    words: list[str | Path] = ["run", pack, "--use-case", "both", "--device", "htp", "--json"]
    done = command(*words, "--inputs", tmp_path / "x.npz", "-o", tmp_path / "y.npz")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["details"]["device"] == "htp"
    with np.load(tmp_path / "y.npz") as written:
        assert written["logits"].shape[:2] == IDS.shape
