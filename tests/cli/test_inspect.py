"""What `lora-quant inspect` says of adapters, and of paths that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from lora_quant.cli.main import run
from lora_quant.config.schema_files import load_schema
from tests.adapters.builders import Q0, Q1, V0, pair, write
from tests.adapters.fixture_base import KINDS


def lines(capfd: pytest.CaptureFixture[str]) -> list[str]:
    out, error = capfd.readouterr()
    assert error == ""
    return [line.rstrip() for line in out.splitlines()]


def report(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert run(["inspect", "--json", *map(str, arguments)]) == 0
    document: dict[str, Any] = json.loads(capfd.readouterr().out)
    Draft202012Validator(load_schema("report")).validate(document)
    assert document["command"] == "inspect"
    assert document["ok"] is True
    return document


def test_modules_that_are_alike_share_a_row(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tensors = {**pair(Q0, rank=4), **pair(V0, rank=2), **pair(Q1, rank=4)}
    write(
        tmp_path / "tone",
        tensors,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"v_proj": 2},
    )
    assert run(["inspect", str(tmp_path / "tone")]) == 0
    assert lines(capfd) == [
        f"adapter      tone ({tmp_path / 'tone'})",
        "format       peft",
        "kind         LORA, low rank",
        "of the base  nothing is needed",
        "plain LoRA   yes",
        "modules  rank  in -> out  scale  such as",
        "      2     4  6 -> 5         2  model.layers.0.self_attn.q_proj",
        "      1     2  6 -> 5         4  model.layers.0.self_attn.v_proj",
    ]


def test_what_an_adapter_takes_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(KINDS / "lora_dora")]) == 0
    shown = lines(capfd)
    assert "of the base  the weight of 6 modules" in shown
    assert "plain LoRA   no: it scales the outputs of the base's modules (6 of its 6 modules)" in (
        shown
    )
    assert shown[-1].split()[:7] == ["2", "4", "16", "->", "8", "2", "c,"]


def test_a_prompt_has_no_modules(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(KINDS / "prompt_tuning")]) == 0
    shown = lines(capfd)
    assert shown[2:] == [
        "kind         PROMPT_TUNING, a soft prompt",
        "prompt       prefix_embeds [4, 16]",
        "plain LoRA   no: it is a soft prompt, and LoRA changes weights only",
    ]


def test_replaced_parameters_are_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(KINDS / "lora_modules_to_save")]) == 0
    assert "replaces     1 parameter: 'lm_head.weight'" in lines(capfd)


def test_a_base_fills_in_sizes(capfd: pytest.CaptureFixture[str]) -> None:
    base = KINDS / "bases" / "llama"
    for name in ("model.onnx", "weights.safetensors", ""):
        assert run(["inspect", str(KINDS / "ia3_out"), "--base", str(base / name)]) == 0
        assert "16 -> 24" in "".join(lines(capfd))


def test_json_has_every_module(capfd: pytest.CaptureFixture[str]) -> None:
    details = report(capfd, KINDS / "lora_bias_all")["details"]
    assert len(details["modules"]) == 3
    assert details["modules"][0]["module"] == "model.layers.0.mlp.up_proj"
    assert details["plain_lora"] is True
    assert "k_proj.bias" in details["parameters"][0]["parameter"]
    details = report(capfd, KINDS / "oft_default")["details"]
    assert (details["class"], details["plain_lora"], details["needs"]) == ("dense", False, "weight")
    assert details["obstacle"].startswith("its update has no low rank")


def test_a_task_is_chosen(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(KINDS / "poly_task0")]) == 1
    assert "the adapter holds 3 tasks, and none is chosen" in capfd.readouterr().err
    assert run(["inspect", str(KINDS / "poly_task0"), "--task", "1"]) == 0
    assert run(["inspect", str(KINDS / "poly_task0"), "--task", "-1"]) == 2


@pytest.mark.parametrize("as_json", [False, True])
def test_a_path_that_leads_nowhere(
    as_json: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "absent"
    assert run(["inspect", str(path), *(["--json"] if as_json else [])]) == 1
    out, error = capfd.readouterr()
    assert error.startswith("error LQ110: the adapter does not exist\n")
    if as_json:
        (finding,) = json.loads(out)["findings"]
        assert finding["rule"] == "error/LQ110"
    assert run(["inspect", str(KINDS / "lora_plain"), "--base", str(path)]) == 1
    assert "the base model does not exist" in capfd.readouterr().err


def test_a_folder_without_an_adapter(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tmp_path)]) == 1
    assert "the folder has no adapter_config.json" in capfd.readouterr().err


def test_an_adapter_may_be_named_from_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(write(tmp_path / "tone", pair(Q0)))
    assert run(["inspect", "."]) == 0
    assert lines(capfd)[0] == "adapter      tone (.)"
