"""The adapter file of one use case in a pack: <target>/<use case>.onnx_adapter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from numpy.typing import NDArray

from lora_quant.graph.records import TensorRecord
from lora_quant.targets.files.onnx_adapter_writer import ADAPTER_SUFFIX, write_adapter
from lora_quant.targets.files.pack_folder import PackFolder

_VERSION = 1


def write_use_case(
    folder: PackFolder,
    target: str,
    use_case: str,
    records: Sequence[TensorRecord],
    values: Iterable[tuple[str, NDArray[Any]]],
    *,
    fingerprint: int,
) -> None:
    """Write it, with the fingerprint of the target's graph; see write_adapter for the tensors.

    Raises PackError if the file cannot be written.
    """
    with folder.create(f"{target}/{use_case}{ADAPTER_SUFFIX}", "adapter", use_case) as sink:
        write_adapter(sink, records, values, adapter_version=_VERSION, model_version=fingerprint)
