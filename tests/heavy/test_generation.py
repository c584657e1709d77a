"""ONNX Runtime GenAI generates with packs of the generation sample, switching between requests.

Tokens are numbers: either all of them are PEFT's, or the test fails. The requests are such that
rounding cannot change one (see samples/generation/make.py).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lora_quant.api import build
from lora_quant.config.options import BuildOptions
from tests.sample import ROOT

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]

SAMPLE = ROOT / "samples" / "generation"
EXPECTED = SAMPLE / "expected.json"
CONFIGS = {"fp32": "lora_config.yaml", "int4": "lora_config_int4.yaml"}


@pytest.fixture(scope="module", params=list(CONFIGS))
def graph(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pack(graph: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack in a folder with spaces and umlauts."""
    output = tmp_path_factory.mktemp(graph) / "Paket für Gäste"
    build(SAMPLE / CONFIGS[graph], output, BuildOptions(targets=("onnxruntime",)))
    return output


def generate(pack: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The sample's script in a process of its own."""
    pytest.importorskip("onnxruntime_genai")
    command = [sys.executable, "-W", "ignore", str(SAMPLE / "generate.py"), str(pack), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8")


def test_genai_generates_the_tokens_of_peft(pack: Path, graph: str) -> None:
    done = generate(pack, "--check", str(EXPECTED), "--graph", graph)
    assert (done.returncode, done.stdout) == (0, "all tokens are PEFT's\n"), done.stderr


def test_requests_name_their_use_case(pack: Path, graph: str) -> None:
    request = json.loads(EXPECTED.read_text(encoding="utf-8"))["requests"][0]
    names = ("tone", "", "mix", "base", "tone")
    options = [f"--request={name}: {request['text']}" for name in names]
    done = generate(pack, *options)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name, title, tokens in zip(names, lines[::2], lines[1::2], strict=True):
        assert title.startswith(f"[{name or 'no adapter'}] {request['text']!r} -> ")
        assert tokens.strip().startswith(str(request[graph][name or "base"]))


def test_an_unknown_use_case_is_named_with_those_that_there_are(pack: Path) -> None:
    done = generate(pack, "--request", "tune: Please")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "there is no use case 'tune'; the pack has base, tone, legal, style, mix"
    )


def test_the_expected_tokens_are_those_of_peft_today(tmp_path: Path) -> None:
    """The checked-in tokens, made again with the PEFT that is installed."""
    pytest.importorskip("peft")
    copy = tmp_path / "generation"
    shutil.copytree(SAMPLE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / EXPECTED.name).unlink()
    command = [sys.executable, "-W", "ignore", "-c", "import make; make.make_expected()"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert answers(copy / EXPECTED.name) == answers(EXPECTED)


def answers(path: Path) -> list[dict[str, object]]:
    """The requests of a file of expected tokens, without their margins."""
    requests = json.loads(path.read_text(encoding="utf-8"))["requests"]
    return [{k: v for k, v in request.items() if k != "margin"} for request in requests]
