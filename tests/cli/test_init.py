"""`lora-quant init`: what it writes, and what it says before it writes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from lora_quant.cli.main import run
from lora_quant.config.lora_config import read_lora_config
from lora_quant.config.schema_files import load_schema, schema_text
from tests.sample import SAMPLE

BASE = SAMPLE / "model" / "model.onnx"
ADAPTERS = SAMPLE / "adapters"
FIXTURES = Path(__file__).parents[1] / "fixtures"


def init(*arguments: str | Path) -> int:
    return run(["init", *map(str, arguments)])


def every(*more: str | Path) -> int:
    return init(BASE, *(ADAPTERS / name for name in ("tone", "legal", "style")), *more)


def test_the_written_file_builds_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lora_config.yaml"
    assert every("--mix", "both=tone:1.0,legal:0.6", "-o", path) == 0
    shown, error = capfd.readouterr()
    assert error == ""
    assert "tone: LORA, rank 4, 4 modules\n" in shown
    assert f"wrote {path}\n" in shown
    config = read_lora_config(path)
    assert {u.name: (u.adapter_names, u.adapter_alphas) for u in config.use_cases} == {
        "base": ([], []),
        "tone": (["tone"], [1.0]),
        "legal": (["legal"], [1.0]),
        "style": (["style"], [1.0]),
        "both": (["tone", "legal"], [1.0, 0.6]),
    }
    assert config.attach_point_onnx_mapping is None  # the names suffice
    assert run(["build", str(path), "-o", str(tmp_path / "out")]) == 0


def test_paths_are_relative_to_the_file_and_have_forward_slashes(tmp_path: Path) -> None:
    sample = tmp_path / "one" / "sample"
    shutil.copytree(SAMPLE / "model", sample / "model")
    shutil.copytree(ADAPTERS / "tone", sample / "tone")
    path = tmp_path / "two" / "lora_config.yaml"
    path.parent.mkdir()
    assert init(sample / "model" / "model.onnx", sample / "tone", "-o", path) == 0
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert document["adapter"] == [{"name": "tone", "lora_config": "../one/sample/tone"}]
    assert document["use-case"][0]["model_name"] == "../one/sample/model/model.onnx"


def test_the_first_line_names_the_schema_that_lies_beside(tmp_path: Path) -> None:
    path = tmp_path / "lora_config.yaml"
    assert every("-o", path) == 0
    first = path.read_text(encoding="utf-8").splitlines()[0]
    key, _, name = first.partition("$schema=")
    assert key == "# yaml-language-server: "
    schema = (tmp_path / name).read_text(encoding="utf-8")
    assert schema == schema_text("lora-config")
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    Draft202012Validator(json.loads(schema)).validate(document)


def test_without_the_schema_there_is_one_file(tmp_path: Path) -> None:
    assert every("-o", tmp_path / "lora_config.yaml", "--no-schema") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["lora_config.yaml"]
    assert "$schema" not in (tmp_path / "lora_config.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("target", [(), ("-o", "-")])
def test_standard_output_holds_the_file_alone(
    target: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    assert every(*target) == 0
    shown, _ = capfd.readouterr()
    document = yaml.safe_load(shown)
    assert [u["name"] for u in document["use-case"]] == ["base", "tone", "legal", "style"]


def test_the_report_holds_the_file_where_none_is_written(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert every("--json") == 0
    report = json.loads(capfd.readouterr().out)
    Draft202012Validator(load_schema("report")).validate(report)
    assert report["ok"]
    assert report["outputs"] == []
    assert "adapter" in yaml.safe_load(report["details"]["config"])


def test_equal_calls_write_equal_bytes(tmp_path: Path) -> None:
    texts = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "lora_config.yaml"
        assert every("-o", path) == 0
        texts.append(path.read_bytes())
    assert texts[0] == texts[1]


def test_an_existing_file_is_replaced_only_on_request(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lora_config.yaml"
    path.write_text("mine", encoding="utf-8")
    assert every("-o", path) == 1
    assert "the output file exists" in capfd.readouterr().err
    assert path.read_text(encoding="utf-8") == "mine"
    assert every("-o", path, "--force") == 0
    assert path.read_text(encoding="utf-8") != "mine"


def test_modules_that_the_base_lacks_are_counted_before_anything_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "foreign"
    shutil.copytree(FIXTURES / "exports" / "branches" / "adapter_a", adapter)
    path = tmp_path / "lora_config.yaml"
    assert init(BASE, ADAPTERS / "tone", adapter, "-o", path) == 1
    shown = capfd.readouterr().out
    assert "modules of adapter 'foreign' do not fit the base: " in shown
    assert "nothing was written" in shown
    assert not path.exists()


def test_an_adapter_may_have_a_name_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "lora_config.yaml"
    assert init(BASE, f"polite={ADAPTERS / 'tone'}", ADAPTERS / "legal", "-o", path) == 0
    assert [a.name for a in read_lora_config(path).adapter] == ["polite", "legal"]


def test_an_adapter_called_base_leaves_the_base_another_name(tmp_path: Path) -> None:
    path = tmp_path / "lora_config.yaml"
    assert init(BASE, f"base={ADAPTERS / 'tone'}", "-o", path) == 0
    assert [u.name for u in read_lora_config(path).use_cases] == ["base only", "base"]


def test_encodings_go_to_the_use_cases_that_they_are_given_for(tmp_path: Path) -> None:
    path = tmp_path / "lora_config.yaml"
    files = {n: SAMPLE / "encodings" / f"{n}.encodings" for n in ("base", "tone")}
    options = [f"--encodings={name}={file}" for name, file in files.items()]
    assert init(BASE, ADAPTERS / "tone", *options, "-o", path) == 0
    given = {u.name: u.encodings for u in read_lora_config(path).use_cases}
    assert {name: file and file.resolve() for name, file in given.items()} == files


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--mix", "both"], "--mix is 'both', expected NAME=..."),
        (["--mix", "both=tone:much"], "--mix both holds 'tone:much', expected ADAPTER:STRENGTH"),
        (["--mix", "both=tone:nan"], "--mix both holds 'tone:nan'"),
        (["--mix", "both=tone,tone"], "--mix both names 'tone' twice"),
        (["--mix", "a=tone", "--mix", "a=tone"], "--mix is given twice for 'a'"),
        ([f"tone={ADAPTERS / 'legal'}"], "two adapters are called 'tone'"),
    ],
)
def test_wrong_usage_is_told_by_its_option(
    arguments: list[str], text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert init(BASE, ADAPTERS / "tone", *arguments) == 2
    assert text in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--mix", "both=tone,lega:1"], "there is no adapter 'lega'"),
        (["--mix", "tone=tone:0.5"], "the name 'tone' is that of 'tone' already"),
        (["--mix", "a/b=tone"], "the name 'a/b' holds the character '/'"),
        (["--encodings", f"ton={BASE}"], "there is no use case 'ton'"),
    ],
)
def test_names_that_do_not_go_together_are_refused(
    arguments: list[str], text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert init(BASE, ADAPTERS / "tone", *arguments) == 1
    assert text in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("nowhere.onnx", "a"), "ONNX graph"),
        ((BASE, "nowhere"), "adapter"),
        ((BASE, ADAPTERS / "tone", "--encodings", "tone=nowhere"), "encodings file"),
    ],
)
def test_paths_that_lead_nowhere_are_named(
    arguments: tuple[str | Path, ...], what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert init(*arguments) == 1
    error = capfd.readouterr().err
    assert error.startswith(f"error LQ110: the {what} does not exist\n  where: nowhere")


def test_a_description_alone_is_sent_to_the_other_command(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copy(SAMPLE / "adapter_params" / "tone.json", tmp_path)
    assert init(BASE, path) == 1
    assert "run `lora-quant convert-config` on their folder" in capfd.readouterr().err


def test_a_quantized_base_is_taken_as_well(tmp_path: Path) -> None:
    folder = FIXTURES / "exports" / "genai_int4"
    (graph,) = folder.glob("*.onnx")
    path = tmp_path / "lora_config.yaml"
    assert init(graph, f"tone={FIXTURES / 'exports' / 'adapter'}", "-o", path) == 0
    assert read_lora_config(path).use_cases[0].model.resolve() == graph.resolve()
