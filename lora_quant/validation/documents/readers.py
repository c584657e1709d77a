"""Which reader of a build reads a document of a kind.

Each reader is imported with the first file of its kind: to make the models of all kinds takes
longer than to check a small file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lora_quant.validation.kinds import Kind

Reader = Callable[[Path], Any]
"""Gets the path of a document that its schema accepts; raises LoraQuantError for content."""


def _lora_config(path: Path) -> Any:
    from lora_quant.config.lora_config import read_lora_config

    return read_lora_config(path)


def _adapter_params(path: Path) -> Any:
    from lora_quant.config.adapter_params import read_adapter_params

    return read_adapter_params(path)


def _peft_config(path: Path) -> Any:
    from lora_quant.adapters.files.peft_config import read_peft_config

    return read_peft_config(path)


def _attach_map(path: Path) -> Any:
    from lora_quant.config.attach_map import read_attach_map

    return read_attach_map(path)


def _importer_config(path: Path) -> Any:
    from lora_quant.config.output_files import read_importer_config

    return read_importer_config(path)


def _output_files(path: Path) -> Any:
    from lora_quant.config.output_files import read_output_files

    return read_output_files(path)


def _run_config(path: Path) -> Any:
    from lora_quant.config.run_config import read_run_config

    return read_run_config(path)


def _manifest(path: Path) -> Any:
    from lora_quant.config.manifest import read_manifest

    # A changed manifest is a finding, and the rest of the pack is still worth a look.
    return read_manifest(path, check_seal=False)


def _genie_lora(path: Path) -> Any:
    from lora_quant.config.genie import read_genie_lora

    return read_genie_lora(path)


def _genie_config(path: Path) -> Any:
    from lora_quant.config.genie import read_genie_config

    return read_genie_config(path)


READERS: Mapping[Kind, Reader] = MappingProxyType(
    {
        Kind.LORA_CONFIG: _lora_config,
        Kind.ADAPTER_PARAMS: _adapter_params,
        Kind.PEFT_CONFIG: _peft_config,
        Kind.ATTACH_POINTS: _attach_map,
        Kind.IMPORTER_CONFIG: _importer_config,
        Kind.OUTPUT_FILES: _output_files,
        Kind.RUN_CONFIG: _run_config,
        Kind.MANIFEST: _manifest,
        Kind.GENIE_LORA: _genie_lora,
        Kind.GENIE_CONFIG: _genie_config,
    }
)
