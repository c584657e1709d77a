"""Input and output of the builder."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_quant.config.builder import (
    LoraBuilderInputConfig,
    LoraBuilderOutputConfig,
    UseCaseOutputConfig,
)
from lora_quant.config.lora_config import AdapterConfig, LoraConfig, UseCaseInputConfig
from lora_quant.errors import ConfigError

CONFIG = LoraConfig(
    adapter=[AdapterConfig(name="a", adapter_lora_config=["a"])],
    use_cases=[
        UseCaseInputConfig(name="u", adapter_names=["a"], adapter_alphas=[1], model=Path("m"))
    ],
)


def test_defaults() -> None:
    config = LoraBuilderInputConfig(lora_config_obj=CONFIG, alpha_tensor_name="lora_alpha")
    assert config.create_lora_graph is True
    assert config.quant_updatable_mode == "adapter_only"
    assert config.lora_config() is CONFIG


def test_the_configuration_comes_from_one_place() -> None:
    text = "expected exactly one of lora_config_path and lora_config_obj, got none of them"
    with pytest.raises(ConfigError, match=text):
        LoraBuilderInputConfig(alpha_tensor_name="lora_alpha")
    with pytest.raises(ConfigError, match="got both of them"):
        LoraBuilderInputConfig(
            lora_config_path=Path("c"), lora_config_obj=CONFIG, alpha_tensor_name="lora_alpha"
        )


def test_a_path_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "adapter: [{name: a, lora_config: a}]\n"
        "use-case: [{name: u, adapter_names: [a], adapter_alphas: [1], model_name: m}]\n"
    )
    config = LoraBuilderInputConfig(lora_config_path=tmp_path / "c.yaml", alpha_tensor_name="x")
    assert config.lora_config().use_cases[0].model == tmp_path / "m"


def test_the_alpha_tensor_needs_a_name() -> None:
    with pytest.raises(ConfigError, match="alpha_tensor_name: the key is missing"):
        LoraBuilderInputConfig(lora_config_obj=CONFIG)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="alpha_tensor_name: the name '' is empty"):
        LoraBuilderInputConfig(lora_config_obj=CONFIG, alpha_tensor_name="")


def test_modes_are_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        LoraBuilderInputConfig(
            lora_config_obj=CONFIG,
            alpha_tensor_name="x",
            quant_updatable_mode="some",  # type: ignore[arg-type]
        )
    assert caught.value.message == (
        "quant_updatable_mode: expected 'none', 'adapter_only' or 'all', got the text 'some'"
    )


def test_words_are_not_truth_values() -> None:
    with pytest.raises(ConfigError) as caught:
        LoraBuilderInputConfig(
            lora_config_obj=CONFIG,
            alpha_tensor_name="x",
            create_lora_graph="no",  # type: ignore[arg-type]
        )
    assert caught.value.message == "create_lora_graph: expected true or false, got the text 'no'"
    assert caught.value.hint == ("write true or false without quotes; yes, no, on and off are text")


def test_output() -> None:
    made = LoraBuilderOutputConfig(
        use_case=[UseCaseOutputConfig(name="u", model_name=Path("m.onnx"), lora_weights=Path("w"))],
        lora_tensor_names=Path("names.txt"),
        importer_config=Path("i.yaml"),
        pack=Path("pack.json"),
    )
    assert made.base_encodings is None
    assert made.use_case[0].quant_overrides is None
    assert made.use_case[0].output_path is None
