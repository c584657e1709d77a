from __future__ import annotations

from pathlib import Path

import pytest

from lora_quant.adapters.checkpoint import open_checkpoint
from lora_quant.errors import (
    AdapterError,
    ConfigError,
    InputMissingError,
    LoraQuantError,
    UnsupportedAdapterError,
)
from tests.adapters.builders import Q0, pair, write


@pytest.mark.parametrize("part", ["", "adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_and_either_of_its_files_name_the_checkpoint(tmp_path: Path, part: str) -> None:
    write(tmp_path, pair(Q0))
    checkpoint = open_checkpoint(tmp_path / part)
    assert checkpoint.config.peft_type == "LORA"
    assert len(checkpoint.tensors.names) == 2


def test_weights_may_have_another_name(tmp_path: Path) -> None:
    write(tmp_path, pair(Q0))
    renamed = tmp_path / "best.safetensors"
    (tmp_path / "adapter_model.safetensors").rename(renamed)
    assert open_checkpoint(renamed).tensors.path == renamed
    with pytest.raises(InputMissingError, match=r"has no adapter_model\.safetensors") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint is not None
    assert "best.safetensors" in caught.value.hint


def test_a_folder_of_adapters_is_refused_with_their_names(tmp_path: Path) -> None:
    write(tmp_path / "tone", pair(Q0))
    with pytest.raises(InputMissingError, match=r"no adapter_config\.json") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint == "did you mean its sub-folder 'tone'?"
    write(tmp_path / "legal", pair(Q0))
    with pytest.raises(InputMissingError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint == "it holds several adapters, name one: 'legal', 'tone'"


def test_a_missing_path_lists_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "tone", pair(Q0))
    with pytest.raises(InputMissingError, match="no such adapter folder or file") as caught:
        open_checkpoint(tmp_path / "tune")
    assert caught.value.hint == "did you mean 'tone'?"
    with pytest.raises(InputMissingError, match="no such adapter"):
        open_checkpoint(tmp_path / "no" / "such")


def test_weights_without_a_config_have_no_known_scale(tmp_path: Path) -> None:
    write(tmp_path, pair(Q0))
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(InputMissingError, match=r"no adapter_config\.json") as caught:
        open_checkpoint(tmp_path / "adapter_model.safetensors")
    assert "no known scale" in str(caught.value)


@pytest.mark.parametrize("named", [False, True])
def test_pickles_are_never_opened(tmp_path: Path, named: bool) -> None:
    write(tmp_path, pair(Q0))
    (tmp_path / "adapter_model.safetensors").unlink()
    pickle = tmp_path / "adapter_model.bin"
    pickle.write_bytes(b"")
    with pytest.raises(UnsupportedAdapterError, match="the weights are a pickle") as caught:
        open_checkpoint(pickle if named else tmp_path)
    assert "safe_serialization=True" in str(caught.value)


def test_an_unknown_file_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(AdapterError, match=r"ends in '\.gguf', expected a folder"):
        open_checkpoint(path)


def test_a_folder_without_weights_is_an_input_error(tmp_path: Path) -> None:
    write(tmp_path, pair(Q0))
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(InputMissingError) as caught:
        open_checkpoint(tmp_path)
    assert "save_pretrained" in str(caught.value)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {})
    with pytest.raises(AdapterError, match="the file holds no tensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("{", ConfigError, "not JSON"),
        ('{"peft_type": "LORA", "r": 4, "r": 8}', ConfigError, "'r' appears twice"),
        ('{"peft_type": "LORA", "lora_alpha": NaN}', ConfigError, "NaN"),
        ("[]", AdapterError, "the file holds a list, expected an object"),
        ('{"r": 4}', AdapterError, "peft_type is None, expected the name of an adapter kind"),
    ],
)
def test_a_damaged_configuration_is_refused(
    tmp_path: Path, text: str, kind: type[LoraQuantError], message: str
) -> None:
    write(tmp_path, pair(Q0))
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(kind, match=message) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.where.file == tmp_path / "adapter_config.json"
