"""The generation sample: its packs give PEFT's greedy tokens, and its script speaks plainly.

Tokens are numbers: either all of them are PEFT's, or the test fails. `make.py` of the sample keeps
only requests whose best logit is ahead of the second by 1e-3 at every step, and float kernels
differ from PyTorch by 4e-6 on these graphs, so another order of sums cannot change a token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_quant.api import build
from lora_quant.config.options import BuildOptions
from lora_quant.runtime import Session
from tests.quality.paths import run_python
from tests.sample import ROOT

SAMPLE = ROOT / "samples" / "generation"
SCRIPT = SAMPLE / "generate.py"
CONFIGS = {"fp32": "lora_config.yaml", "int4": "lora_config_int4.yaml"}
REQUESTS = json.loads((SAMPLE / "expected.json").read_text(encoding="utf-8"))["requests"]
USE_CASES = ("base", "tone", "legal", "style", "mix")

Inputs = dict[str, NDArray[Any]]
Step = Callable[[Inputs], NDArray[Any]]


@pytest.fixture(scope="module", params=list(CONFIGS))
def graph(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pack(graph: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack in a folder with spaces and umlauts."""
    output = tmp_path_factory.mktemp(graph) / "Paket für Gäste"
    build(SAMPLE / CONFIGS[graph], output, BuildOptions(targets=("onnxruntime",)))
    return output


def without_cache(tokens: list[int]) -> Inputs:
    """All tokens at once, nothing in the cache: 2 layers, 2 heads of 16."""
    ids = np.array([tokens])
    inputs: Inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for layer in (0, 1):
        for kind in ("key", "value"):
            empty = np.zeros((1, 2, 0, 16), np.float32)
            inputs[f"past_key_values.{layer}.{kind}"] = empty
    return inputs


def greedy(step: Step, prompt: list[int], count: int) -> list[int]:
    """The best token after the prompt, then the best one after that, and so on."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(step(without_cache(tokens))[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_every_use_case_generates_the_tokens_of_peft(pack: Path, graph: str) -> None:
    """The use case changes from one answer to the next, forth and back."""
    with Session(pack) as session:
        for request in REQUESTS:
            for name in (*USE_CASES, *reversed(USE_CASES)):
                expected = request[graph][name]

                def step(inputs: Inputs, use_case: str = name) -> NDArray[Any]:
                    return session.run(inputs, use_case, outputs=["logits"])["logits"]

                got = greedy(step, request["prompt"], len(expected))
                assert got == expected, (name, request["text"])


def test_requests_that_take_turns_at_every_token_do_not_mix(pack: Path, graph: str) -> None:
    request = REQUESTS[0]
    with Session(pack) as session:

        def answer(name: str) -> Iterator[int]:
            tokens = list(request["prompt"])
            for _ in request[graph][name]:
                logits = session.run(without_cache(tokens), name, outputs=["logits"])["logits"]
                tokens.append(int(logits[0, -1].argmax()))
                yield tokens[-1]

        rounds = list(zip(*map(answer, USE_CASES), strict=True))
    for name, tokens in zip(USE_CASES, zip(*rounds, strict=True), strict=True):
        assert list(tokens) == request[graph][name]


def test_the_base_without_an_adapter_generates_the_tokens_of_the_base(
    pack: Path, graph: str
) -> None:
    with Session(pack) as session:
        session.base()
        for request in REQUESTS:
            expected = request[graph]["base"]
            got = greedy(lambda i: session.run(i)["logits"], request["prompt"], len(expected))
            assert got == expected


def test_the_pack_is_a_model_folder_of_genai(pack: Path) -> None:
    folder = pack / "onnxruntime"
    settings = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    assert (folder / settings["model"]["decoder"]["filename"]).is_file()
    assert (folder / "tokenizer.json").is_file()
    assert {p.stem for p in folder.glob("*.onnx_adapter")} == set(USE_CASES)


def test_every_use_case_has_an_answer_of_its_own() -> None:
    for request in REQUESTS:
        for graph in CONFIGS:
            assert set(request[graph]) == set(USE_CASES)
        assert len({tuple(tokens) for tokens in request["fp32"].values()}) == len(USE_CASES)
        assert request["margin"] > 1e-3


def generate(*arguments: str | Path) -> tuple[int, str]:
    done = run_python(str(SCRIPT), *map(str, arguments))
    return done.returncode, done.stdout


def test_the_script_says_what_a_request_looks_like(tmp_path: Path) -> None:
    code, text = generate(tmp_path, "--request", "no colon")
    assert (code, text) == (
        2,
        "'no colon' is no request: write 'use case: text' or ': text'\n",
    )


@pytest.fixture
def imitation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An onnxruntime_genai that can be imported, for what is checked before it is used."""
    (tmp_path / "onnxruntime_genai.py").write_text("", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_the_script_says_that_a_folder_is_no_pack(imitation: Path) -> None:
    code, text = generate(imitation)
    assert code == 2
    assert text.startswith(f"{imitation} is not a pack of lora-quant: ")


def test_the_script_says_that_a_target_was_not_built(imitation: Path) -> None:
    (imitation / "pack.json").write_text('{"targets": [{"name": "qairt"}]}', encoding="utf-8")
    code, text = generate(imitation)
    assert (code, text) == (2, f"{imitation} was not built with --target onnxruntime\n")


def test_the_script_says_that_a_pack_is_no_model_folder(imitation: Path) -> None:
    manifest = '{"targets": [{"name": "onnxruntime", "files": []}]}'
    (imitation / "pack.json").write_text(manifest, encoding="utf-8")
    code, text = generate(imitation)
    assert code == 2
    assert "has no genai_config.json and no tokenizer.json: build it from a base graph" in text


def test_the_script_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime_genai.py").write_text("raise ImportError('absent')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, text = generate(tmp_path)
    assert (code, text) == (
        2,
        "onnxruntime-genai cannot be imported (absent): pip install onnxruntime-genai\n",
    )
