"""Children that work on the HTP: how they end is told, and they leave nothing behind.

A script stands for the children here; what the vendor's compiler does is in
tests/heavy/test_engines_htp.py.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_quant.engines import qnn
from lora_quant.engines.htp_processes import compile_context, run_on_htp
from lora_quant.errors import VerificationError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the child is a shell script")

MODEL = Path("m.onnx")

Child = Callable[[str], None]


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    """Lets Python code stand for the programs; it has their arguments in sys.argv."""
    real = sys.executable

    def set_up(code: str) -> None:
        script = tmp_path / "child.py"
        script.write_text(f"import os, sys, time\n{code}\n", encoding="utf-8")
        starter = tmp_path / "child.sh"
        starter.write_text(
            f'#!/bin/sh\nexec {shlex.quote(real)} {shlex.quote(str(script))} "$@"\n',
            encoding="utf-8",
        )
        starter.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(starter))

    return set_up


ENDS: Mapping[str, tuple[str, str]] = {
    "an abort": ("os.abort()", "was stopped by SIGABRT: nothing was said"),
    "a refusal": ("sys.stderr.write('one\\n\\ntwo\\n'); sys.exit(1)", "was refused: one | two"),
    "silence": ("sys.exit(4)", "was refused: nothing was said"),
    "no end": ("print('noise'); time.sleep(60)", "did not finish the graph within 1 s"),
}


@pytest.mark.parametrize("end", ENDS)
def test_how_a_child_ends_is_told(
    end: str, child: Child, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, message = ENDS[end]
    child(code)
    before = sorted(tmp_path.iterdir())
    began = time.monotonic()
    for work in (
        lambda: compile_context(MODEL, tmp_path / "m_ctx.onnx", seconds=1),
        lambda: run_on_htp(MODEL, [{"x": np.zeros(3, np.float32)}], seconds=1),
    ):
        with pytest.raises(VerificationError) as caught:
            work()
        assert message in caught.value.message
        assert caught.value.where.file == MODEL
    assert time.monotonic() - began < 30  # the child would sleep for 60
    assert sorted(tmp_path.iterdir()) == before
    assert capfd.readouterr() == ("", "")


def test_what_the_compiler_writes_appears_together(child: Child, tmp_path: Path) -> None:
    child(
        "output = sys.argv[4]\n"
        "open(output, 'w').write('graph')\n"
        "open(output.replace('.onnx', '_qnn.bin'), 'w').write('binary')\n"
        "print('# LIBNATIVE: noise')"
    )
    target = tmp_path / "out ä"
    target.mkdir()
    files = compile_context(MODEL, target / "m_ctx.onnx")
    assert files == (target / "m_ctx.onnx", target / "m_ctx_qnn.bin")
    assert sorted(target.iterdir()) == sorted(files)
    assert files[0].read_text() == "graph"


def test_a_compiler_that_writes_nothing_is_told(child: Child, tmp_path: Path) -> None:
    child("pass")
    with pytest.raises(VerificationError, match="the compiler for the HTP wrote nothing"):
        compile_context(MODEL, tmp_path / "m_ctx.onnx")


def test_feeds_and_outputs_go_through_files_one_set_at_a_time(child: Child) -> None:
    child(
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from safetensors.numpy import load_file, save_file\n"
        "for path in Path(sys.argv[4]).glob('*.safetensors'):\n"
        "    values = load_file(path)\n"
        "    doubled = {k: np.array(v + v) for k, v in values.items()}\n"
        "    save_file(doubled, path.with_suffix('.out.safetensors'))"
    )
    random = np.random.default_rng(0)
    sets: list[Mapping[str, NDArray[Any]]] = [
        {
            "x/ä": random.standard_normal((2, 3)).astype(np.float32).T,
            "codes": random.integers(0, 9, (2, 2), dtype=np.uint16),
            "scalar": np.array(float(number), np.float32),
        }
        for number in range(3)
    ]
    for got, fed in zip(run_on_htp(MODEL, iter(sets)), sets, strict=True):
        assert got.keys() == fed.keys()
        for name, value in fed.items():
            assert got[name].shape == value.shape
            assert np.array_equal(got[name], value + value)


def test_without_the_provider_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)  # not installed, for the importer
    assert qnn.unavailable_reason() == "onnxruntime-qnn is not installed"
    with pytest.raises(VerificationError, match="needs onnxruntime-qnn") as caught:
        qnn.open_on_htp(MODEL)
    assert "pip install 'lora-quant[qnn]'" in str(caught.value)
