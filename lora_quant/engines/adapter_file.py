"""Reading an .onnx_adapter file into values that a graph takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lora_quant.engines.onnxruntime import GraphValue, load_onnxruntime, spelt
from lora_quant.errors import InputMissingError, VerificationError, Where


@dataclass(frozen=True, eq=False)
class AdapterFile:
    """The parameters of one adapter file.

    values: what LoadedGraph.run takes, by name. They point into the file's content, which `keeper`
    holds: whoever keeps the values keeps this object.
    """

    path: Path
    adapter_version: int
    model_version: int
    values: Mapping[str, Any]
    keeper: object

    def parameters(self) -> tuple[GraphValue, ...]:
        """Name, dtype and shape of every parameter."""
        return tuple(
            GraphValue(name, _dtype(value.data_type()), tuple(value.shape()))
            for name, value in self.values.items()
        )


def read_adapter(path: Path) -> AdapterFile:
    """Read an adapter file.

    Raises InputMissingError if there is none, VerificationError if the engine cannot read it. The
    engine sees only what is wrong with the file's structure: hashes are for the caller to check.
    """
    if not path.is_file():
        raise InputMissingError("the adapter file is not there", where=Where(file=path))
    library = load_onnxruntime()
    try:
        adapter = library.AdapterFormat.read_adapter(str(path))
        values = MappingProxyType(dict(adapter.get_parameters()))
        versions = adapter.get_adapter_version(), adapter.get_model_version()
    except Exception as error:  # the library has no common base for its errors
        raise VerificationError(
            f"ONNX Runtime cannot read the adapter file: {str(error).strip()}",
            where=Where(file=path),
            hint="build the pack again",
        ) from error
    return AdapterFile(path, *versions, values, adapter)


def _dtype(text: str) -> str:
    return spelt(text.removeprefix("tensor(").removesuffix(")"))
