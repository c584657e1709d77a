"""The safetensors files of a base model: one file, or shards with an index.

model.safetensors                  one file, under any name
model.safetensors.index.json       {"weight_map": {tensor: file beside the index}}
path/                              a folder that holds one of them

Headers are read when a tensor of the file is first asked for; no tensor is.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from lora_quant.adapters.files.peft_config import CONFIG_FILE
from lora_quant.adapters.files.safetensors_file import SafetensorsFile
from lora_quant.config.documents import read_json
from lora_quant.errors import ConfigError, InputMissingError, Where, some

_SINGLE = "model.safetensors"
_SUFFIX = ".safetensors"
_INDEX_SUFFIX = ".safetensors.index.json"
# An entry takes about 100 bytes, and large mixtures of experts have a hundred thousand.
_MAX_INDEX_BYTES = 256 * 1024 * 1024


class ModelFiles:
    """Tensor names of a model, and the file of each. `path` is what was named, for errors."""

    def __init__(self, path: Path, files: Mapping[str, Path]) -> None:
        self.path = path
        self._files = files
        self._open = cache(SafetensorsFile)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return tuple(self._files)

    def file_of(self, name: str) -> SafetensorsFile:
        """The opened file of a tensor; InputMissingError or AdapterError if it is bad."""
        return self._open(self._files[name])


def is_model_checkpoint(path: Path) -> bool:
    """Whether a path names safetensors by its form: a folder, an index or such a file."""
    return path.is_dir() or path.name.endswith((_SUFFIX, _INDEX_SUFFIX))


def open_model_files(path: Path) -> ModelFiles:
    """Find the files of the model that `path` names: a folder, an index or a safetensors file.

    Raises InputMissingError if there are none, ConfigError for several or a damaged index, and
    AdapterError for a damaged file.
    """
    if not path.exists():
        raise InputMissingError(
            "there is no such base model", where=Where(file=path), hint="check the path"
        )
    file = _file_in(path) if path.is_dir() else path
    if file.name.endswith(".json"):
        return ModelFiles(path, _indexed(file))
    return ModelFiles(path, dict.fromkeys(SafetensorsFile(file).names, file))


def _file_in(folder: Path) -> Path:
    """The index or the one file of a folder."""
    indexes = sorted(folder.glob(f"*{_INDEX_SUFFIX}"))
    files = sorted(folder.glob(f"*{_SUFFIX}"))
    where = Where(file=folder)
    if len(indexes) == 1:
        return indexes[0]
    if not indexes and folder / _SINGLE in files:
        return folder / _SINGLE
    if (folder / CONFIG_FILE).is_file():
        raise ConfigError(
            f"the folder holds an {CONFIG_FILE}: it is an adapter, expected the base model",
            where=where,
            hint="name the model that the adapter was trained on",
        )
    if not indexes and len(files) == 1:
        return files[0]
    if indexes or files:
        raise ConfigError(
            "the folder holds several models: " + some([f.name for f in indexes or files]),
            where=where,
            hint="name the file or the index that is meant",
        )
    raise InputMissingError(
        f"the folder holds no safetensors: looked for {_SINGLE}, *{_INDEX_SUFFIX} and *{_SUFFIX}",
        where=where,
        hint="save the model with save_pretrained(safe_serialization=True), or name an ONNX graph",
    )


def _indexed(index: Path) -> dict[str, Path]:
    """Tensor -> shard, of the files beside the index only."""
    document = read_json(index, max_bytes=_MAX_INDEX_BYTES)
    listed = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise ConfigError(
            "the index has no weight_map of tensors to files",
            where=Where(file=index, field="weight_map"),
            hint="name the model.safetensors.index.json that transformers wrote",
        )
    for tensor, name in listed.items():
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
            raise ConfigError(
                f"the file of a tensor is {str(name)[:80]!r}, expected a name without folders",
                where=Where(file=index, field="weight_map", tensor=tensor),
                hint="shards lie beside their index; download the model again",
            )
    return {tensor: index.parent / name for tensor, name in listed.items()}
