"""Compile LoRA adapters and their quantization encodings onto one ONNX graph.

The public names load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lora_quant.adapters.adapter_report import AdapterReport
    from lora_quant.api import build, build_lora_graph
    from lora_quant.config.adapter_params import AdapterParamsConfig
    from lora_quant.config.builder import LoraBuilderInputConfig, LoraBuilderOutputConfig
    from lora_quant.config.functions import (
        get_adapter_count_by_use_case,
        load_use_case_config,
        serialize_lora_adapter_weight_config,
        serialize_lora_importer_config,
        serialize_lora_input_config,
    )
    from lora_quant.config.lora_config import AdapterConfig, LoraConfig, UseCaseInputConfig
    from lora_quant.config.options import BuildOptions
    from lora_quant.config.output_files import UseCaseOutputConfig
    from lora_quant.config.run_config import AdapterRunConfig, UseCaseRunConfig
    from lora_quant.errors import LoraQuantError
    from lora_quant.findings import Finding, Severity
    from lora_quant.lower import inspect_adapter, lower_adapter
    from lora_quant.runtime.session.choice import BASE
    from lora_quant.runtime.session.session import Session
    from lora_quant.validation.checked import Validation
    from lora_quant.validation.validate import validate_paths

_HOMES = {
    "AdapterConfig": "config.lora_config",
    "AdapterParamsConfig": "config.adapter_params",
    "AdapterReport": "adapters.adapter_report",
    "AdapterRunConfig": "config.run_config",
    "BASE": "runtime.session.choice",
    "BuildOptions": "config.options",
    "Finding": "findings",
    "LoraBuilderInputConfig": "config.builder",
    "LoraBuilderOutputConfig": "config.builder",
    "LoraConfig": "config.lora_config",
    "LoraQuantError": "errors",
    "Session": "runtime.session.session",
    "Severity": "findings",
    "UseCaseInputConfig": "config.lora_config",
    "UseCaseOutputConfig": "config.output_files",
    "UseCaseRunConfig": "config.run_config",
    "Validation": "validation.checked",
    "build": "api",
    "build_lora_graph": "api",
    "get_adapter_count_by_use_case": "config.functions",
    "inspect_adapter": "lower",
    "load_use_case_config": "config.functions",
    "lower_adapter": "lower",
    "serialize_lora_adapter_weight_config": "config.functions",
    "serialize_lora_importer_config": "config.functions",
    "serialize_lora_input_config": "config.functions",
    "validate_paths": "validation.validate",
}

__all__ = [
    "AdapterConfig",
    "AdapterParamsConfig",
    "AdapterReport",
    "AdapterRunConfig",
    "BASE",
    "BuildOptions",
    "Finding",
    "LoraBuilderInputConfig",
    "LoraBuilderOutputConfig",
    "LoraConfig",
    "LoraQuantError",
    "Session",
    "Severity",
    "UseCaseInputConfig",
    "UseCaseOutputConfig",
    "UseCaseRunConfig",
    "Validation",
    "__version__",
    "build",
    "build_lora_graph",
    "get_adapter_count_by_use_case",
    "inspect_adapter",
    "load_use_case_config",
    "lower_adapter",
    "serialize_lora_adapter_weight_config",
    "serialize_lora_importer_config",
    "serialize_lora_input_config",
    "validate_paths",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'lora_quant' has no attribute {name!r}")
    return getattr(import_module(f"lora_quant.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
