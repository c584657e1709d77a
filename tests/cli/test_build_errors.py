"""What a person sees for each thing that can be wrong with a build: text, place, exit code."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lora_quant.cli.main import run
from lora_quant.findings import Finding, Severity
from tests.adapters.builders import pair, write
from tests.command_line import command
from tests.sample import Document, copy_sample, edit_json, edit_yaml, make_float

Edit = Callable[[Document], object]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return copy_sample(tmp_path)


@pytest.fixture
def build(config: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run `lora-quant build` on the copy of the sample; an error must leave nothing behind."""

    def built(*options: str, given: Path | None = None) -> Outcome:
        folder = config.parent.parent
        before = sorted(folder.iterdir())
        code = run(["build", str(given or config), "-o", str(folder / "out"), *options])
        captured = capfd.readouterr()
        if code:
            assert sorted(folder.iterdir()) == before
            assert "Traceback" not in captured.err
        return Outcome(code, captured.out, captured.err)

    return built


Build = Callable[..., Outcome]


def test_missing_config(build: Build, tmp_path: Path) -> None:
    outcome = build(given=tmp_path / "absent.yaml")
    assert outcome.code == 1
    assert outcome.out == ""
    assert outcome.err.startswith("error LQ110: the configuration does not exist\n")
    assert f"where: {tmp_path / 'absent.yaml'}\n" in outcome.err


def test_yaml_error_has_its_line(build: Build, config: Path) -> None:
    lines = config.read_text(encoding="utf-8").splitlines()
    lines[2] = "  lora_config: ["
    config.write_text("\n".join(lines), encoding="utf-8")
    outcome = build()
    assert outcome.code == 1
    assert "error LQ100" in outcome.err
    assert f"{config}:4" in outcome.err  # where the list is seen not to end


def test_a_place_is_shown_as_it_is(build: Build, config: Path) -> None:
    """`:100:` is an emoji code for the library that prints."""
    text = config.read_text(encoding="utf-8")
    count = len(text.splitlines())
    config.write_text(text + "#\n" * (99 - count) + "extra: 1\n", encoding="utf-8")
    outcome = build()
    assert outcome.code == 1
    assert f"{config}:100:" in outcome.err


@pytest.mark.parametrize(
    ("edit", "texts"),
    [
        pytest.param(
            lambda d: d["use-case"][1].update(adapter_names=["tonne"]),
            ["LQ100", "'tonne'", "did you mean 'tone'?"],
            id="unknown adapter",
        ),
        pytest.param(
            lambda d: d["use-case"][4].update(adapter_alphas=[1.0]),
            ["LQ100", "1 strengths for 2 adapter names"],
            id="alphas",
        ),
        pytest.param(
            lambda d: d["use-case"][1].update(quant_overrides="encodings/absent.encodings"),
            ["LQ110", "the file does not exist", "absent.encodings"],
            id="encodings file",
        ),
        pytest.param(
            lambda d: d["adapter"][0].update(lora_config="adapters/absent"),
            ["LQ110", "adapters/absent"],
            id="adapter folder",
        ),
        pytest.param(
            lambda d: [u.update(model_name="model/absent.onnx") for u in d["use-case"]],
            ["LQ110", "the ONNX graph does not exist", "check `model_name`"],
            id="base graph",
        ),
        pytest.param(
            lambda d: [u.update(model_name="model/model.data") for u in d["use-case"]],
            ["LQ300", "model/model.data"],
            id="not a graph",
        ),
        pytest.param(
            lambda d: d["use-case"][2].update(model_name="model/other.onnx"),
            ["LQ110", "the ONNX graph does not exist", "/sample/model/other.onnx"],
            id="graph of a use case",
        ),
        pytest.param(
            lambda d: d["use-case"][2].update(model_name="model\\model.onnx"),
            ["LQ110", "the ONNX graph does not exist", "write '/' between folders"],
            id="graph with a backslash",
        ),
        pytest.param(
            lambda d: d["use-case"][1].update(quant_overrides="encodings/tome.encodings"),
            ["LQ110", "the file does not exist", "did you mean 'tone.encodings'?"],
            id="misspelt encodings file",
        ),
        pytest.param(
            lambda d: d["adapter"][0].update(lora_config="adapters\\tone"),
            ["LQ110", "no such adapter folder or file", "write '/' between folders"],
            id="adapter with a backslash",
        ),
        pytest.param(
            lambda d: d["use-case"][1].update(name="model.onnx"),
            [
                "LQ100",
                "the use case name 'model.onnx' is the name of a file of the pack",
                "use case 'model.onnx'",
            ],
            id="name of a file",
        ),
        pytest.param(
            lambda d: d["use-case"][1].update(name="Model.ONNX"),
            ["the use case name 'Model.ONNX' is the name of a file of the pack"],
            id="name of a file where case does not matter",
        ),
        pytest.param(
            lambda d: d["adapter"][0].update(lora_config={"name": "t", "rank": 4, "alpha": 8,
                                                          "target_modules": ["q_proj"]}),
            ["LQ100", "adapter 'tone' has a description and no weights", "name its PEFT folder"],
            id="no weights",
        ),
        pytest.param(
            lambda d: d["adapter"][0].update(lora_config=["adapters/tone", "adapters/legal"]),
            ["LQ100", "adapter 'tone' names 2 checkpoints, expected one"],
            id="two checkpoints",
        ),
    ],
)  # fmt: skip
def test_configuration(edit: Edit, texts: list[str], build: Build, config: Path) -> None:
    edit_yaml(config, edit)
    outcome = build()
    assert outcome.code == 1
    assert outcome.out == ""
    for text in texts:
        assert text in outcome.err
    assert outcome.err.startswith("error LQ")


def test_description_beside_the_weights(build: Build, config: Path) -> None:
    """The vendor's adapter JSON is held against the checkpoint."""
    params = {"name": "tone", "rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    both = {"lora_config": [params, "adapters/tone"]}
    edit_yaml(make_float(config), lambda d: d["adapter"][0].update(both))
    assert build().code == 0
    edit_yaml(config, lambda d: d["adapter"][0]["lora_config"][0].update(rank=5))
    outcome = build("--force")
    assert outcome.code == 1
    assert "error LQ2" in outcome.err
    edit_yaml(
        config, lambda d: d["adapter"][0].update(lora_config=[params, params, "adapters/tone"])
    )
    assert "adapter 'tone' has 2 descriptions, expected at most one" in build("--force").err


def test_broken_encodings_name_tensor_and_file(build: Build, config: Path) -> None:
    path = config.parent / "encodings" / "tone.encodings"
    edit_json(path, lambda d: d["param_encodings"][0].update(scale=[-1.0]))
    outcome = build()
    assert outcome.code == 1
    assert outcome.err.startswith("error LQ400: ")
    assert f"where: {path}, " in outcome.err
    assert "tensor '" in outcome.err


def test_existing_output(build: Build, config: Path) -> None:
    assert build().code == 0
    outcome = build()
    assert outcome.code == 1
    assert outcome.err.splitlines()[0] == "error LQ500: the output folder already holds a pack"
    assert "hint:  add --force to replace it, or choose another folder" in outcome.err
    assert build("--force").code == 0


def test_unknown_target(build: Build) -> None:
    outcome = build("--target", "qiart")
    assert outcome.code == 2
    assert "--target is 'qiart', and there is no such target" in outcome.err
    assert "did you mean 'qairt'?" in outcome.err


def test_alpha_name_that_the_graph_has(build: Build) -> None:
    outcome = build("--alpha-name", "input_ids")
    assert outcome.code == 1
    assert "error LQ300: the graph already has a tensor or node named 'input_ids'" in outcome.err
    assert "--alpha-name" in outcome.err


def test_adapter_of_another_model(build: Build, config: Path) -> None:
    """Nothing in the graph is called that; what is near is listed."""
    tensors = pair("model.layers.0.self_attn.query_proj", features=(64, 64))
    write(config.parent / "adapters" / "tone", tensors, target_modules=["query_proj"])
    outcome = build()
    assert outcome.code == 1
    assert "error LQ310" in outcome.err
    assert "query_proj" in outcome.err
    assert "q_proj'" in outcome.err


def test_adapter_of_another_size(build: Build, config: Path) -> None:
    edit_yaml(config, lambda d: d.pop("attach_point_onnx_mapping"))
    tensors = pair("model.layers.0.self_attn.q_proj", features=(32, 64))
    write(config.parent / "adapters" / "tone", tensors)
    outcome = build()
    assert outcome.code == 1
    assert "error LQ310" in outcome.err
    assert "lora_A is for input [32], the node's weight for [64]" in outcome.err


def test_output_that_may_not_be_written(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write anywhere, so the refusal is made here.
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    outcome = build()
    assert outcome.code == 1
    assert "cannot write: Permission denied" in outcome.err


def test_output_below_a_file(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["build", str(config), "-o", str(config / "out")]) == 1
    error = capfd.readouterr().err
    assert "error LQ500: cannot write: " in error
    assert "check permissions and free space of the output folder" in error


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["build"], "Missing argument 'CONFIG'"),
        (["build", "x.yaml"], "Missing option '-o' / '--output'"),
        (["build", "x.yaml", "-o", "o", "--mode", "some"], "'some' is not one of"),
        (["build", "x.yaml", "-o", "o", "--frobnicate"], "No such option"),
        (["biuld"], "No such command 'biuld'"),
        (["verify", "p", "--tolerance", "-1"], "is not in the range"),
    ],
)
def test_wrong_usage(arguments: list[str], text: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert text in capfd.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--weight-bits", "1", "Error: --weight-bits is 1, expected 2 to 32"),
        ("--rank-multiple", "0", "Error: --rank-multiple is 0, expected 1 to 65536"),
        ("--alpha-name", " ", "Error: --alpha-name is empty"),
        ("--strict-none", "--force", "Error: --strict-none is given without --mode 'none'; give"),
        ("--max-error", "0.1", "Error: --max-error is given without --approximate; give both"),
        ("--approximate", "--force", "Error: --approximate is given without --max-error; say how"),
    ],
)
def test_options_out_of_range(option: str, value: str, text: str, build: Build) -> None:
    outcome = build(option, value)
    assert outcome.code == 2
    assert text in outcome.err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--beside-base"], "--beside-base is given with --merge: the data file of the base"),
        (["--alpha-layout", "rank"], "--alpha-layout is given with --merge: a merged graph has no"),
        (["--approximate", "--max-error", "0.1"], "--approximate is given with --merge: it is"),
        (["--mode", "all"], "--mode is given with --merge: a merged graph has nothing to switch"),
        (["--rank-multiple", "4"], "--rank-multiple is given with --merge: a merged graph has no"),
    ],
)
def test_what_means_nothing_beside_merge_is_wrong_usage(
    options: list[str], text: str, build: Build
) -> None:
    outcome = build("--merge", "tone", *options)
    assert outcome.code == 2
    assert f"Error: {text}" in outcome.err
    assert outcome.err.endswith("; leave one of them out\n")


def test_a_use_case_without_adapters_cannot_be_merged(build: Build, config: Path) -> None:
    outcome = build("--merge", "base")
    assert outcome.code == 1
    assert "use case 'base' names no adapter, so there is nothing to merge" in outcome.err
    assert "hint:  choose one that does" in outcome.err


def test_a_pack_that_fails_its_own_checks_is_a_defect_of_ours(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = Finding("pack/size", Severity.ERROR, "it is too small")
    monkeypatch.setattr(
        "lora_quant.validation.validate_packs.check_pack", lambda *_, **__: [finding]
    )
    outcome = build()
    assert outcome.code == 3
    assert "error LQ510: the pack that was written fails its own checks" in outcome.err
    assert "it is too small [pack/size]" in outcome.err
    assert "please report it" in outcome.err


def test_a_defect_of_ours_says_so(
    build: Build, monkeypatch: pytest.MonkeyPatch, config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("lora_quant.api.run_passes", fail)
    assert run(["build", str(config), "-o", str(config.parent / "out")]) == 3
    error = capfd.readouterr().err
    assert "RuntimeError: unforeseen" in error
    assert "This is a defect of lora-quant, not of your input." in error
    assert not (config.parent / "out").exists()


def test_the_program_itself_exits_with_the_code(config: Path, tmp_path: Path) -> None:
    missing = command("build", tmp_path / "absent.yaml", "-o", tmp_path / "out")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.startswith("error LQ110: the configuration does not exist\n")
    usage = command("build")
    assert usage.returncode == 2
    fine = command("build", config, "-o", tmp_path / "out")
    assert (fine.returncode, fine.stderr) == (0, "")
