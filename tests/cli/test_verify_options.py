"""What `lora-quant verify` lets a person choose, and what it prints of several targets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_quant.api import build
from lora_quant.cli.main import run
from lora_quant.config.options import BuildOptions
from tests.sample import copy_sample, keep_use_cases


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    config = keep_use_cases(copy_sample(folder), ["base", "both"])
    return build(config, folder / "out", BuildOptions(targets=("qairt", "onnxruntime"))).output


def test_every_target_has_a_table_and_a_verdict(
    pack: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(pack)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("qairt", "onnx"))] == [
        "qairt",
        "onnxruntime",
    ]
    assert [line.split()[0] for line in lines if line.endswith(" ok")] == ["base", "both"] * 2
    assert lines[-1] == "verified for qairt, onnxruntime"


def test_targets_may_be_chosen(pack: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(pack), "--target", "qairt"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "verified for qairt"
    assert run(["verify", str(pack), "--target", "qnn"]) == 1
    error = capfd.readouterr().err
    assert "the pack holds nothing for the target 'qnn'" in error
    assert "qairt" in error


@pytest.mark.parametrize(
    "words", [("--min-sqnr", "nan"), ("--min-sqnr", "-1"), ("--max-steps", "inf")]
)
def test_a_bound_that_judges_nothing_is_refused(
    words: tuple[str, str], pack: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(pack), *words]) == 1
    field = words[0].removeprefix("--").replace("-", "_")
    error = f"{field} is {float(words[1])}, expected a finite number from 0 on"
    assert error in capfd.readouterr().err


def test_a_minimum_that_is_not_reached_fails(pack: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["verify", str(pack), "--min-sqnr", "200"]
    assert run(arguments) == 1
    out = capfd.readouterr().out
    assert "FAILED use case 'both', output 'logits'" in out
    assert "at least 200.0 dB expected" in out
    assert out.splitlines()[-1] == "verification failed for onnxruntime"
    assert run([*arguments, "--json"]) == 1
    report = json.loads(capfd.readouterr().out)
    assert report["ok"] is False
    settings = report["details"]["settings"]
    assert settings == {
        "tolerance": 1e-4,
        "min_sqnr": 200.0,
        "max_steps": None,
        "htp_arch": "73",
    }
    assert [t["ok"] for t in report["details"]["targets"]] == [True, False]
