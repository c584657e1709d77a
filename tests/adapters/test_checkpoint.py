from __future__ import annotations

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from lora_quant.adapters.files.checkpoint import open_checkpoint
from lora_quant.adapters.formats.detect import FORMATS
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
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_bare_pickles_are_never_opened(tmp_path: Path, named: bool, protocol: int) -> None:
    write(tmp_path, pair(Q0))
    (tmp_path / "adapter_model.safetensors").unlink()
    file = tmp_path / "adapter_model.bin"
    file.write_bytes(pickle.dumps({"lora_A": [1.0]}, protocol))
    with pytest.raises(UnsupportedAdapterError, match=r"a pickle of torch before 1\.6") as caught:
        open_checkpoint(file if named else tmp_path)
    assert "safe_serialization=True" in str(caught.value)


def test_tar_files_of_old_torch_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "adapter.bin"
    with tarfile.open(file, "w") as archive:
        archive.addfile(tarfile.TarInfo("tensors"))
    with pytest.raises(UnsupportedAdapterError, match="it is not opened"):
        open_checkpoint(file)


@pytest.mark.parametrize("data", [b"", b"GIF89a", bytes(16), b"{}", b"\x80", b"PK\x05\x06"])
def test_an_unknown_file_is_refused_with_what_was_looked_for(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(data)
    with pytest.raises(AdapterError, match=r"the file begins with b'.*', expected safetensors"):
        open_checkpoint(path)


def test_what_a_file_is_its_bytes_say_and_not_its_name(tmp_path: Path) -> None:
    write(tmp_path, pair(Q0))
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    assert open_checkpoint(tmp_path).tensors.read(f"base_model.model.{Q0}.lora_A.weight").ndim == 2
    other = tmp_path / "tone.gguf"
    (tmp_path / "adapter_model.bin").rename(other)
    assert open_checkpoint(other).format == "peft"


def test_safetensors_come_before_a_copy_of_them_in_another_format(tmp_path: Path) -> None:
    write(tmp_path, pair(Q0))
    for name in ("adapter_model.bin", "adapter_model.pt"):
        (tmp_path / name).write_bytes(b"not read")
    assert open_checkpoint(tmp_path).tensors.path.name == "adapter_model.safetensors"


def test_a_folder_with_two_adapters_is_refused(tmp_path: Path) -> None:
    write(tmp_path, pair(Q0))
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"not read")
    with pytest.raises(AdapterError, match="the folder holds several adapters: 'adapter_model"):
        open_checkpoint(tmp_path)


def test_tensors_of_several_formats_are_refused_with_their_marks(tmp_path: Path) -> None:
    kohya = {"lora_unet_q.lora_down.weight": np.ones((2, 3), np.float32)}
    torchtune = {"layers.0.attn.q_proj.lora_a.weight": np.ones((2, 3), np.float32)}
    write(tmp_path, kohya | torchtune)
    with pytest.raises(AdapterError, match="the file could be of several formats") as caught:
        open_checkpoint(tmp_path)
    assert "kohya (tensors lora_unet_PATH.lora_down.weight" in caught.value.message
    assert "torchtune (tensors layers.N.attn.q_proj.lora_a.weight)" in caught.value.message


def test_a_configuration_of_mlx_is_not_pefts(tmp_path: Path) -> None:
    write(tmp_path, {"layers.0.q.lora_a": np.ones((3, 2), np.float32)})
    config = tmp_path / "adapter_config.json"
    config.write_text('{"lora_parameters": {"rank": 2, "scale": 1.5}}', encoding="utf-8")
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.format, checkpoint.config.peft_type) == ("mlx", "LORA")
    assert checkpoint.config.fields["lora_alpha"] == 3.0


def test_without_a_configuration_every_format_says_what_it_is_told_by(tmp_path: Path) -> None:
    write(tmp_path, pair(Q0))
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(InputMissingError) as caught:
        open_checkpoint(tmp_path)
    for form in FORMATS:
        assert f"{form.name}: {form.signature}" in caught.value.message
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "style.safetensors")
    with pytest.raises(InputMissingError, match="no weights under a known name") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint is not None
    assert "name the file itself: style.safetensors" in caught.value.hint


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
    write(tmp_path, {}, peft_type="XLORA")
    with pytest.raises(UnsupportedAdapterError, match="PEFT does not save what X-LoRA mixes"):
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
