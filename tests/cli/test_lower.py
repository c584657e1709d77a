"""What `lora-quant lower` says and writes, and which options belong together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from lora_quant.cli.main import run
from lora_quant.config.schema_files import load_schema
from tests.adapters.fixture_base import KINDS

BASE = str(KINDS / "bases" / "llama" / "weights.safetensors")


def lower(case: str, *arguments: str | Path) -> int:
    return run(["lower", str(KINDS / case), *map(str, arguments)])


def test_a_lowered_adapter_is_said_to_be_exact(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert lower("loha_linear", "-o", out, "--base", BASE) == 0
    shown, error = capfd.readouterr()
    assert error == ""
    assert shown.endswith(f"lowered {out} (exact)\n")
    assert sorted(p.name for p in out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_what_was_assumed_is_noted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert lower("loha_linear", "-o", tmp_path / "out") == 0
    shown = capfd.readouterr().out
    assert (
        "note the files do not tell linear modules from convolutions: "
        "'model.layers.0.mlp.up_proj' and 5 more were written as linear" in shown
    )


def test_an_approximation_shows_the_error_of_every_group(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--approximate", "--approximate-rank", "6", "--max-error", "0.9", "--base", BASE]
    assert lower("lora_dora", "-o", out, *options) == 0
    shown = capfd.readouterr().out
    assert "base    error  such as" in shown
    assert "6 of 6 modules are approximated; the largest relative Frobenius error is 0." in shown
    assert f"lowered {out} (largest error 0." in shown
    assert lower("lora_dora", "-o", out, *options, "--json", "--force") == 0
    report = json.loads(capfd.readouterr().out)
    Draft202012Validator(load_schema("report")).validate(report)
    assert report["outputs"] == [out.as_posix()]
    errors = [module["error"] for module in report["details"]["modules"]]
    assert max(errors) == report["details"]["max_error"]
    assert {module["rank"] for module in report["details"]["modules"]} == {6}


def test_the_rank_of_an_approximation_is_32_by_default(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """That is the full rank of every module of the fixture, so that nothing is left over."""
    options = ["--approximate", "--max-error", "1e-9", "--base", BASE]
    assert lower("lora_dora", "-o", tmp_path / "out", *options) == 0
    capfd.readouterr()
    help_text = "Rank of these approximations. Default 32."
    assert run(["lower", "--help"]) == 0
    assert help_text in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--approximate"], "--approximate is given without --max-error"),
        (["--max-error", "0.1"], "--max-error is given without --approximate"),
        (["--approximate-rank", "4"], "--approximate-rank is given without --approximate"),
        (["--approximate", "--max-error", "1"], "1.0 is not in the range 0<=x<1"),
        (["--approximate", "--approximate-rank", "0"], "0 is not in the range x>=1"),
        (["--task", "one"], "'one' is not a valid integer range"),
    ],
)
def test_options_that_do_not_belong_together_are_wrong_usage(
    options: list[str], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert lower("lora_plain", "-o", tmp_path / "out", *options) == 2
    assert words in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_output_is_required(capfd: pytest.CaptureFixture[str]) -> None:
    assert lower("lora_plain") == 2
    assert "Missing option '-o'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("case", "options", "words"),
    [
        ("lora_dora", [], "it scales the outputs of the base's modules (6 of its 6 modules)"),
        ("lora_pissa", [], "with the weight of the base's module, and no base is given"),
        ("lora_plain", ["--base", "absent"], "the base model does not exist"),
        ("absent", [], "the adapter does not exist"),
        ("lora_conv2d", ["--base", BASE], "the base has no module 'point'"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_what_is_refused_leaves_nothing(
    case: str,
    options: list[str],
    words: str,
    as_json: bool,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert lower(case, "-o", tmp_path / "out", *options, *(["--json"] if as_json else [])) == 1
    out, error = capfd.readouterr()
    assert words in error
    assert "  where:" in error
    assert "  hint:" in error
    assert not list(tmp_path.iterdir())
    if as_json:
        (finding,) = json.loads(out)["findings"]
        assert words in finding["message"]
        assert json.loads(out)["ok"] is False


def test_an_output_that_exists_needs_force(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert lower("lora_plain", "-o", out) == 0
    capfd.readouterr()
    assert lower("lora_plain", "-o", out) == 1
    error = capfd.readouterr().err
    assert error.startswith("error LQ500: the output folder already holds an adapter\n")
    assert "hint:  add --force to replace it" in error
    assert lower("lora_plain", "-o", out, "--force") == 0
