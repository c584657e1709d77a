"""Changing the adapter files of a pack, through the library that applications read them with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from tests.validation.packs import rehash

Parameters = dict[str, NDArray[Any]]


def adapter_of(pack: Path, use_case: str, target: str = "onnxruntime") -> Path:
    return pack / target / f"{use_case}.onnx_adapter"


def parameters_of(path: Path) -> Parameters:
    """Copies of the parameters, by name."""
    file = onnxruntime.AdapterFormat.read_adapter(str(path))
    return {name: value.numpy().copy() for name, value in file.get_parameters().items()}


def edit_adapter(
    pack: Path, edit: Callable[[Parameters], object], use_case: str, target: str = "onnxruntime"
) -> None:
    """Change the parameters of a use case's file, and the manifest to match."""
    path = adapter_of(pack, use_case, target)
    old = onnxruntime.AdapterFormat.read_adapter(str(path))
    parameters = parameters_of(path)
    edit(parameters)
    new = onnxruntime.AdapterFormat()
    new.set_adapter_version(old.get_adapter_version())
    new.set_model_version(old.get_model_version())
    values = {k: onnxruntime.OrtValue.ortvalue_from_numpy(v) for k, v in parameters.items()}
    new.set_parameters(values)
    new.export_adapter(str(path))
    rehash(pack)


def put_adapter(pack: Path, source: str, use_case: str, target: str = "onnxruntime") -> None:
    """Give a use case the file of another one, and change the manifest to match."""
    content = adapter_of(pack, source, target).read_bytes()
    adapter_of(pack, use_case, target).write_bytes(content)
    rehash(pack)
