"""Which check looks at one file or folder by itself, for the kinds that are no YAML or JSON.

Each check is imported with the first file of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from lora_quant.findings import Finding
from lora_quant.validation.kinds import Kind

SingleCheck = Callable[[Path], tuple[Finding, ...]]
"""Gets a path; never raises for content."""


def _adapter(path: Path) -> tuple[Finding, ...]:
    from lora_quant.validation.files.adapter_folder_check import check_adapter_folder

    return check_adapter_folder(path)


def _adapter_file(path: Path) -> tuple[Finding, ...]:
    from lora_quant.validation.files.adapter_check import check_adapter

    return check_adapter(path)


def _graph(path: Path) -> tuple[Finding, ...]:
    from lora_quant.validation.files.graph_check import check_graph

    return check_graph(path)


def _lora_config_text(path: Path) -> tuple[Finding, ...]:
    from lora_quant.validation.files.lora_config_check import check_lora_config_text

    return check_lora_config_text(path)


def _tensor_list(path: Path) -> tuple[Finding, ...]:
    from lora_quant.validation.files.tensor_list_check import check_tensor_list

    return check_tensor_list(path)


def _weights(path: Path) -> tuple[Finding, ...]:
    from lora_quant.validation.files.weights_check import check_weights

    return check_weights(path)


SINGLE: Mapping[Kind, SingleCheck] = MappingProxyType(
    {
        Kind.ADAPTER: _adapter,
        Kind.ADAPTER_FILE: _adapter_file,
        Kind.GRAPH: _graph,
        Kind.QNN_LORA_CONFIG: _lora_config_text,
        Kind.TENSOR_LIST: _tensor_list,
        Kind.WEIGHTS: _weights,
    }
)
