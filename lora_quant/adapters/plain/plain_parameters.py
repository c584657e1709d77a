"""Parameters that an adapter replaces, where PEFT's LoRA has a place for them.

whole parameters      modules_to_save, by the full path of the module
biases                bias = "all" or "lora_only"
rows of a table       trainable_token_indices
table of a target     `<module>.base_layer.weight`, without a field

Other fields that are kept say which base the adapter belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_quant.adapters.adapter import Adapter
from lora_quant.adapters.files.dtypes import FLOAT_DTYPES
from lora_quant.errors import UnsupportedAdapterError, Where

_WRAPPER = "base_model.model."
_SAVED = "modules_to_save"
_BASE_LAYER = "base_layer"
_ROWS = "trainable_token_indices"
_OF_THE_BASE = (
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "layer_replication",
    "revision",
    "task_type",
)


@dataclass(frozen=True)
class StoredParameter:
    """One such parameter in the checkpoint: its name without PEFT's prefix, shape and dtype.

    The dtype is that of the source, float32 for float64.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


def stored_parameters(adapter: Adapter) -> dict[str, StoredParameter]:
    """Parameter path -> how it is stored, sorted.

    Raises UnsupportedAdapterError for rows of a table that only the adapter's own kind replaces.
    """
    source = adapter.checkpoint.tensors
    found = {}
    for name, parameter in sorted(adapter.parameters.items()):
        if parameter.rows is not None and not adapter.checkpoint.config.fields.get(_ROWS):
            raise UnsupportedAdapterError(
                f"the adapter replaces rows of {name!r}, and has no {_ROWS}, which PEFT's LoRA "
                "names them with",
                where=Where(file=source.path, adapter=adapter.name, tensor=parameter.tensor),
                hint="compile it onto a graph with lora-quant build",
            )
        dtype = FLOAT_DTYPES[source.info(parameter.tensor).dtype].name
        stored = "float32" if dtype == "float64" else dtype
        found[name] = StoredParameter(_plain_name(parameter.tensor), parameter.shape, stored)
    return found


def kept_fields(adapter: Adapter, parameters: Mapping[str, StoredParameter]) -> dict[str, Any]:
    """Fields of the configuration that name the base, and those that name `parameters`."""
    config = adapter.checkpoint.config
    fields: dict[str, Any] = {"base_model_name_or_path": None, "task_type": None}
    fields |= {name: config.fields[name] for name in _OF_THE_BASE if name in config.fields}
    bias = config.names("bias") or "none"
    fields["bias"] = bias if bias in ("none", "all") else "lora_only"
    modules = set()
    for name in parameters:
        module, _, leaf = name.rpartition(".")
        is_row = adapter.parameters[name].rows is not None
        is_bias = leaf == "bias" and bias != "none" and not _is_saved(adapter, module)
        if not (is_row or is_bias or module in adapter.shapes):
            modules.add(module)
    fields[_SAVED] = _outermost(modules) or None
    if any(parameter.rows is not None for parameter in adapter.parameters.values()):
        fields[_ROWS] = config.fields[_ROWS]
    return fields


def _is_saved(adapter: Adapter, module: str) -> bool:
    """Whether another parameter of the module is replaced as well: then the module is."""
    return f"{module}.weight" in adapter.parameters and module not in adapter.shapes


def _outermost(modules: Iterable[str]) -> list[str]:
    """The modules that are not inside another one of them."""
    kept: list[str] = []
    for module in sorted(modules):
        if not any(module.startswith(f"{other}.") for other in kept):
            kept.append(module)
    return kept


def _plain_name(tensor: str) -> str:
    """PEFT's name without prefixes, and without the adapter's name that a plain save leaves in."""
    name = tensor
    while name.startswith(_WRAPPER):
        name = name.removeprefix(_WRAPPER)
    parts = name.split(".")
    if _SAVED in parts:
        at = parts.index(_SAVED)
        parts[at : at + 2] = []
    return ".".join(parts)
