"""The functions of the LoRA module: counting, reading and round trips of what is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lora_quant.config.builder import LoraBuilderOutputConfig
from lora_quant.config.functions import (
    get_adapter_count_by_use_case,
    load_use_case_config,
    serialize_lora_adapter_weight_config,
    serialize_lora_importer_config,
    serialize_lora_input_config,
)
from lora_quant.config.lora_config import (
    AdapterConfig,
    AdapterParamsConfig,
    LoraConfig,
    UseCaseInputConfig,
    read_lora_config,
)
from lora_quant.config.output_files import (
    AdapterWeightConfig,
    LoraOutputFiles,
    UseCaseOutputConfig,
    read_output_files,
)
from lora_quant.errors import ConfigError, PackError

FIXTURES = Path(__file__).parents[1] / "fixtures"


def lora_config(folder: Path) -> LoraConfig:
    return LoraConfig(
        adapter=[
            AdapterConfig(name="off", adapter_lora_config=[folder / "a" / "tone.json"]),
            AdapterConfig(
                name="legal",
                adapter_lora_config=[
                    AdapterParamsConfig(name="x", rank=8, alpha=16, target_modules=["q"])
                ],
            ),
        ],
        attach_point_onnx_mapping=folder / "map.json",
        use_cases=[
            UseCaseInputConfig(
                name="both 1e-3",
                adapter_names=["off", "legal"],
                adapter_alphas=[1, 0.6],
                model=folder / "b.onnx",
                encodings=folder / "b.encodings",
            ),
            UseCaseInputConfig(
                name="base", adapter_names=[], adapter_alphas=[], model=folder / "b.onnx"
            ),
        ],
    )


def test_adapter_count(tmp_path: Path) -> None:
    assert get_adapter_count_by_use_case(lora_config(tmp_path)) == {"both 1e-3": 2, "base": 0}


@pytest.mark.parametrize("target", ["lora.yaml", "sub/lora.yaml"])
def test_input_config_round_trip(target: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    config = lora_config(tmp_path)
    serialize_lora_input_config(config, tmp_path / target)
    assert read_lora_config(tmp_path / target) == config


def test_input_config_text(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    serialize_lora_input_config(lora_config(tmp_path), tmp_path / "sub" / "lora.yaml")
    assert (
        (tmp_path / "sub" / "lora.yaml").read_text()
        == """\
adapter:
  - name: 'off'
    lora_config:
      - ../a/tone.json
  - name: legal
    lora_config:
      - name: x
        rank: 8
        alpha: 16
        target_modules:
          - q
attach_point_onnx_mapping: ../map.json
use-case:
  - name: both 1e-3
    adapter_names:
      - 'off'
      - legal
    adapter_alphas:
      - 1.0
      - 0.6
    model_name: ../b.onnx
    quant_overrides: ../b.encodings
    quant_updatable_tensors: null
  - name: base
    adapter_names: []
    adapter_alphas: []
    model_name: ../b.onnx
    quant_overrides: null
    quant_updatable_tensors: null
"""
    )


def test_paths_stay_absolute_where_a_relative_one_would_be_wrong(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    serialize_lora_input_config(lora_config(tmp_path), tmp_path / "link" / "lora.yaml")
    text = (tmp_path / "link" / "lora.yaml").read_text()
    assert f"attach_point_onnx_mapping: {tmp_path / 'map.json'}\n" in text
    assert read_lora_config(tmp_path / "link" / "lora.yaml") == lora_config(tmp_path)


def items(folder: Path) -> list[UseCaseOutputConfig]:
    return [
        UseCaseOutputConfig(
            name="both",
            model_name=folder / "model.onnx",
            lora_weights=folder / "both" / "lora_weights.safetensors",
            quant_overrides=folder / "both" / "quant_overrides.json",
        )
    ]


def test_importer_config_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "lora_importer_config.yaml"
    serialize_lora_importer_config(items(tmp_path), file)
    assert (
        file.read_text()
        == """\
use_case:
  - name: both
    model_name: model.onnx
    lora_weights: both/lora_weights.safetensors
    quant_overrides: both/quant_overrides.json
    output_path: null
"""
    )
    read = load_use_case_config(file)
    assert read.use_case == items(tmp_path)
    serialize_lora_importer_config(read, tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_bytes() == file.read_bytes()
    made = LoraBuilderOutputConfig(
        use_case=items(tmp_path),
        lora_tensor_names=Path("n"),
        importer_config=file,
        pack=Path("pack.json"),
    )
    serialize_lora_importer_config(made, tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_bytes() == file.read_bytes()


def test_output_files_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "lora_output_files.yaml"
    made = [AdapterWeightConfig(name="both", graph="model", weights=tmp_path / "w", encodings=None)]
    serialize_lora_adapter_weight_config(made, file)
    assert yaml.safe_load(file.read_text()) == {
        "use_case": [{"name": "both", "graph": "model", "weights": "w", "encodings": None}]
    }
    assert read_output_files(file) == LoraOutputFiles(use_case=made)
    serialize_lora_adapter_weight_config(read_output_files(file), tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_bytes() == file.read_bytes()


def test_weights_are_read_under_both_keys(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    for key in ("weights", "lora_weights"):
        file.write_text(f"use_case: [{{name: a, model_name: m, {key}: w}}]\n")
        assert load_use_case_config(file).use_case[0].lora_weights == tmp_path / "w"
        file.write_text(f"use_case: [{{name: a, graph: g, {key}: w}}]\n")
        assert read_output_files(file).use_case[0].weights == tmp_path / "w"


def test_both_weights_keys_at_once_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("use_case: [{name: a, model_name: m, weights: w, lora_weights: w}]\n")
    with pytest.raises(ConfigError, match="unknown key 'weights'"):
        load_use_case_config(file)


def test_use_cases_of_an_importer_config_have_their_own_folders(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    item = "{name: %s, model_name: m, lora_weights: w}"
    file.write_text(f"use_case: [{item % 'a'}, {item % 'A'}]\n")
    with pytest.raises(ConfigError, match=r"use_case\[1\].name: .* same folder as 'a'"):
        load_use_case_config(file)


def test_loading_raises_what_the_module_promises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_use_case_config(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("use_case: [\n")
    with pytest.raises(ValueError, match="the text is not YAML"):
        load_use_case_config(bad)
    bad.write_text("name: a\n")
    with pytest.raises(ValueError, match="use_case: the key is missing"):
        load_use_case_config(bad)


def test_an_importer_config_of_aimet_is_read() -> None:
    folder = FIXTURES / "aimet" / "deployment"
    (one,) = load_use_case_config(folder / "lora_config.yaml").use_case
    assert one.quant_overrides == folder / "net_adapter_a.encodings"


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="the folder of the output file does not exist"):
        serialize_lora_importer_config(items(tmp_path), tmp_path / "none" / "f.yaml")
