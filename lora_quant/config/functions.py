"""Reading, counting and serialising the files of the LoRA module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lora_quant.config.base_model import relative_path, to_document
from lora_quant.config.builder import LoraBuilderOutputConfig
from lora_quant.config.documents import dump_yaml
from lora_quant.config.lora_config import LoraConfig, map_paths
from lora_quant.config.output_files import (
    AdapterWeightConfig,
    LoraImporterConfig,
    LoraOutputFiles,
    UseCaseOutputConfig,
    read_importer_config,
)
from lora_quant.config.whole_files import write_file


def get_adapter_count_by_use_case(config: LoraConfig) -> dict[str, int]:
    """How many adapters each use case mixes, in the order of the file; 0 for the base alone."""
    return {use_case.name: len(use_case.adapter_names) for use_case in config.use_cases}


def load_use_case_config(path: Path | str) -> LoraImporterConfig:
    """Read `lora_importer_config.yaml`; the use cases are in its `use_case`.

    Raises InputMissingError (a FileNotFoundError) if the file is missing, and ConfigError (a
    ValueError) if it is bad YAML, has no `use_case` or is otherwise not accepted.
    """
    return read_importer_config(Path(path))


def serialize_lora_input_config(config: LoraConfig, path: Path | str) -> None:
    """Write `lora_config.yaml`, with paths relative to it where there is such a path."""
    folder = Path(path).parent
    _write(map_paths(config, lambda p: relative_path(p, folder)), Path(path))


def serialize_lora_importer_config(
    config: LoraImporterConfig | LoraBuilderOutputConfig | Sequence[UseCaseOutputConfig],
    path: Path | str,
) -> None:
    """Write `lora_importer_config.yaml`, with paths relative to it where there is such a path."""
    items = config if isinstance(config, Sequence) else config.use_case
    fields = ("model_name", "lora_weights", "quant_overrides", "output_path")
    folder = Path(path).parent
    _write(LoraImporterConfig(use_case=[_relative(i, fields, folder) for i in items]), Path(path))


def serialize_lora_adapter_weight_config(
    config: LoraOutputFiles | Sequence[AdapterWeightConfig], path: Path | str
) -> None:
    """Write `lora_output_files.yaml`, with paths relative to it where there is such a path."""
    items = config if isinstance(config, Sequence) else config.use_case
    fields = ("weights", "encodings")
    folder = Path(path).parent
    _write(LoraOutputFiles(use_case=[_relative(i, fields, folder) for i in items]), Path(path))


def _relative(item: Any, fields: tuple[str, ...], folder: Path) -> Any:
    given = {name: getattr(item, name) for name in fields}
    return item.model_copy(
        update={
            name: relative_path(path, folder) for name, path in given.items() if path is not None
        }
    )


def _write(model: BaseModel, path: Path) -> None:
    write_file(path, dump_yaml(to_document(model)), force=True)
