"""One file of weights by itself: safetensors, or GGUF.

A file that is an adapter, with all that it takes to read it as one, is checked as an adapter. Any
other is looked at for what every tool that loads it trips over; a pack says what has to be in it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lora_quant.adapters.files.peft_config import CONFIG_FILE
from lora_quant.adapters.files.tensor_source import TensorSource
from lora_quant.adapters.formats.contract import Found
from lora_quant.adapters.formats.detect import find_format, open_weights
from lora_quant.errors import AdapterError, LoraQuantError, Where, some
from lora_quant.findings import Finding
from lora_quant.validation.catalogue.weights import (
    CONTENT,
    EMPTY_TENSOR,
    INVALID,
    NO_TENSORS,
    NOT_FLOAT,
    VALUES,
)
from lora_quant.validation.files.adapter_folder_check import check_adapter_folder
from lora_quant.validation.files.stored_tensors import FLOATS, stored_values
from lora_quant.validation.from_errors import finding_of

# What PEFT and MLX call the weights beside their configuration.
_BESIDE_CONFIG = ("adapter_model.safetensors", "adapters.safetensors")


def check_weights(path: Path) -> tuple[Finding, ...]:
    """Findings `weights/...`, or `adapter/...` for an adapter; bad content never raises."""
    try:
        tensors = open_weights(path)
        if _is_adapter(tensors):
            return check_adapter_folder(path)
        return tuple(_findings(tensors))
    except AdapterError as error:
        where = Where(file=path, tensor=error.where.tensor)
        return (INVALID.finding(error.message, where, error.hint),)
    except LoraQuantError as error:
        return (finding_of(error, shown=path),)


def _is_adapter(tensors: TensorSource) -> bool:
    """Whether the names in a file say so, or its own name and what lies beside it."""
    path = tensors.path
    if path.name in _BESIDE_CONFIG and (path.parent / CONFIG_FILE).exists():
        return True
    return find_format(Found(tensors)) is not None


def _findings(tensors: TensorSource) -> Iterator[Finding]:
    where = Where(file=tensors.path)
    infos = {name: tensors.info(name) for name in tensors.names}
    if not infos:
        yield NO_TENSORS.finding("the file holds no tensors", where)
        return
    empty = [name for name, info in infos.items() if 0 in info.shape]
    if empty:
        yield EMPTY_TENSOR.finding(
            f"{len(empty)} tensors have no elements: {some(empty)}",
            Where(file=tensors.path, tensor=empty[0]),
        )
    other = [name for name, info in infos.items() if info.dtype not in FLOATS]
    if other:
        dtypes = sorted({infos[name].dtype for name in other})
        yield NOT_FLOAT.finding(
            f"{len(other)} tensors are {' or '.join(dtypes)}: {some(other)}",
            Where(file=tensors.path, tensor=other[0]),
        )
    for values in stored_values(tensors):
        if values.not_finite:
            count = math.prod(infos[values.name].shape)
            yield VALUES.finding(
                f"{values.not_finite} of {count} values are NaN or Inf",
                Where(file=tensors.path, tensor=values.name),
            )
    dtypes_told = Counter(info.dtype for info in infos.values())
    told = ", ".join(f"{count} {dtype}" for dtype, count in sorted(dtypes_told.items()))
    size = sum(info.size for info in infos.values())
    yield CONTENT.finding(
        f"{len(infos)} tensors ({told}) with {size:,} bytes: {some(list(infos))}", where, hint=""
    )
