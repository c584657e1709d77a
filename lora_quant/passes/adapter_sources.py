"""What an adapter's `lora_config` names: weights, or descriptions without weights.

params.json, inline objects       the vendor's adapter JSON: rank, alpha, target modules
folder, .safetensors, ...         a checkpoint
adapter_config.json alone         PEFT's configuration, its weights elsewhere: in a graph
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_quant.adapters.files.checkpoint import config_without_weights
from lora_quant.config.adapter_params import AdapterParamsConfig, read_adapter_params
from lora_quant.config.documents import read_json
from lora_quant.config.lora_config import AdapterConfig
from lora_quant.errors import ConfigError, Where


@dataclass(frozen=True)
class DeclaredEntry:
    """One adapter JSON, and the file that it is in; None for an inline object."""

    params: AdapterParamsConfig
    file: Path | None


@dataclass(frozen=True)
class AdapterSources:
    """The entries of one adapter, sorted by what they are.

    `checkpoint` has weights; `config` is a PEFT configuration that no weights lie beside. At most
    one of them is there. `declared` is in the order of the list.
    """

    entry: AdapterConfig
    checkpoint: Path | None = None
    config: Path | None = None
    declared: tuple[DeclaredEntry, ...] = ()

    @property
    def name(self) -> str:
        """The adapter's."""
        return self.entry.name


def read_sources(entry: AdapterConfig, config_file: Path | None) -> AdapterSources:
    """Sort an adapter's entries; descriptions are read, checkpoints are not opened.

    Raises ConfigError for a description that is not accepted, and for two of the others.
    """
    checkpoints: list[Path] = []
    declared: list[DeclaredEntry] = []
    configs: list[Path] = []
    for source in entry.adapter_lora_config:
        if isinstance(source, AdapterParamsConfig):
            declared.append(DeclaredEntry(source, None))
            continue
        path = Path(source)
        if _is_description(path):
            declared.append(DeclaredEntry(read_adapter_params(path), path))
            continue
        config = config_without_weights(path)
        if config is None:
            checkpoints.append(path)
        else:
            configs.append(config)
    count = len(checkpoints) + len(configs)
    if count > 1:
        raise ConfigError(
            f"adapter {entry.name!r} names {count} checkpoints, expected one",
            where=Where(file=config_file, field="lora_config", adapter=entry.name),
            hint="make each an adapter of its own and list them together in a use case",
        )
    checkpoint, config = next(iter(checkpoints), None), next(iter(configs), None)
    return AdapterSources(entry, checkpoint, config, tuple(declared))


def _is_description(path: Path) -> bool:
    """Whether a file is the vendor's adapter JSON, which has a rank and no `peft_type`."""
    if path.suffix != ".json" or not path.is_file():
        return False
    content = read_json(path)
    return isinstance(content, dict) and "rank" in content and "peft_type" not in content
