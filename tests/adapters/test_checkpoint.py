from __future__ import annotations

import pickle
import tarfile
from pathlib import Path

import numpy as np
import onnx
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
    assert open_checkpoint(tmp_path).tensors.path == renamed
    assert open_checkpoint(tmp_path / "adapter_config.json").tensors.path == renamed


def test_what_a_training_leaves_is_not_taken_for_the_weights(tmp_path: Path) -> None:
    write(tmp_path, pair(Q0))
    renamed = tmp_path / "best.safetensors"
    (tmp_path / "adapter_model.safetensors").rename(renamed)
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth"):
        (tmp_path / name).write_bytes(b"not read")
    assert open_checkpoint(tmp_path).tensors.path == renamed
    renamed.unlink()
    with pytest.raises(InputMissingError, match=r"has no adapter_model\.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "names",
    [("a.safetensors", "b.safetensors"), ("adapter_model-00001-of-00002.safetensors",)],
    ids=["two", "a part"],
)
def test_weights_of_another_name_are_taken_only_if_there_is_no_doubt(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    write(tmp_path, pair(Q0))
    (tmp_path / "adapter_model.safetensors").unlink()
    for name in names:
        (tmp_path / name).write_bytes(b"not read")
    with pytest.raises(InputMissingError, match=r"has no adapter_model\.safetensors") as caught:
        open_checkpoint(tmp_path)
    assert f"name the file itself: {', '.join(names)}" in (caught.value.hint or "")


def test_a_file_beside_a_folder_with_an_adapter_is_not_taken_for_it(tmp_path: Path) -> None:
    write(tmp_path / "tone", pair(Q0))
    (tmp_path / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(InputMissingError, match=r"no adapter_config\.json") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint == "did you mean its sub-folder 'tone'?"


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


@pytest.mark.parametrize("data", [b"GIF89a", bytes(16), b"{}", b"\x80", b"PK\x05\x06", b"\x08"])
def test_an_unknown_file_is_refused_with_what_was_looked_for(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(data)
    with pytest.raises(AdapterError, match="of no format that is known here, expected safetensors"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        (b"", "the file is empty", "save or download the adapter again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n",
            "the file is a pointer of git-lfs, and the weights it stands for are not here",
            "git lfs pull",
        ),
        (b"\n<!DOCTYPE html>\n<html>", "the file is a web page", "download the file itself"),
        (b"\xef\xbb\xbf<HTML>{}", "the file is a web page", "download the file itself"),
        (
            onnx.ModelProto(ir_version=10, producer_name="pytorch").SerializeToString(),
            "the file is an ONNX graph",
            "the graph as the base model",
        ),
    ],
    ids=["empty", "git-lfs", "page", "page with a mark", "onnx"],
)
def test_a_file_that_is_no_checkpoint_is_called_by_its_name(
    tmp_path: Path, data: bytes, message: str, hint: str
) -> None:
    write(tmp_path, pair(Q0))
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(data)
    with pytest.raises(AdapterError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.message.startswith(message)
    assert "expected safetensors, a zip archive of torch.save or GGUF" in caught.value.message
    assert hint in (caught.value.hint or "")
    assert caught.value.where.file == path


def test_a_graph_is_told_by_its_name_too(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x3a\x02\x0a\x00")
    with pytest.raises(AdapterError, match="the file is an ONNX graph"):
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
    with pytest.raises(InputMissingError, match="of no format that does without it"):
        open_checkpoint(tmp_path)
    (tmp_path / "more.safetensors").write_bytes(b"not read")
    with pytest.raises(InputMissingError, match="no weights under a known name") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint is not None
    assert "name the file itself: more.safetensors, style.safetensors" in caught.value.hint


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
