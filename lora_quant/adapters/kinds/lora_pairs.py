"""The A and B of every module of a LORA checkpoint, found by name and checked by shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lora_quant.adapters.kinds.lora_refusals import PARAMETERS, refuse_key, refuse_nested
from lora_quant.adapters.lowered import ModuleShape
from lora_quant.adapters.routing import Role, RoutedKey, route_keys
from lora_quant.adapters.safetensors_file import FLOAT_DTYPES, SafetensorsFile
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where

_A = "lora_A.weight"
_B = "lora_B.weight"
_MAX_SPATIAL = 2


@dataclass(frozen=True)
class Pair:
    """Names of the two tensors of one module."""

    a: str
    b: str


def find_pairs(tensors: SafetensorsFile) -> Mapping[str, Pair]:
    """Module -> its two tensors, sorted by module. Every tensor of the file is accounted for.

    Raises UnsupportedAdapterError for a tensor that is no A or B, AdapterError for a lone or a
    repeated one and for two adapters in one file.
    """
    found: dict[str, dict[str, RoutedKey]] = {}
    names: dict[str | None, str] = {}
    routed = route_keys(tensors.names, PARAMETERS)
    # adapter tensors first: what they are explains the replacements that come with them
    for key in sorted(routed, key=lambda key: key.role is not Role.ADAPTER):
        if key.role is not Role.ADAPTER or key.suffix not in (_A, _B):
            raise refuse_key(key, tensors.path)
        if "base_layer" in key.module.split("."):
            raise refuse_nested(key, tensors.path)
        names.setdefault(key.adapter_name, key.key)
        other = found.setdefault(key.module, {}).setdefault(key.suffix, key)
        if other is not key:
            raise AdapterError(
                f"two tensors are {key.suffix} of one module: {other.key!r} and {key.key!r}",
                where=Where(file=tensors.path, module=key.module, tensor=key.key),
                hint="save one adapter a file, with one prefix",
            )
    if len(names) > 1:
        raise AdapterError(
            "the file holds tensors of several adapters: "
            + ", ".join(f"{name or 'no name'} ({key!r})" for name, key in _sorted(names)),
            where=Where(file=tensors.path),
            hint="save one adapter a file with PEFT's save_pretrained",
        )
    return {module: _pair(module, found[module], tensors) for module in sorted(found)}


def _sorted(names: Mapping[str | None, str]) -> list[tuple[str | None, str]]:
    return sorted(names.items(), key=lambda item: item[0] or "")


def _pair(module: str, parts: Mapping[str, RoutedKey], tensors: SafetensorsFile) -> Pair:
    for missing, present in ((_A, _B), (_B, _A)):
        if missing not in parts:
            raise AdapterError(
                f"the module has {present} but no {missing}",
                where=Where(file=tensors.path, module=module, tensor=parts[present].key),
                hint="the checkpoint is incomplete; save or download it again",
            )
    return Pair(parts[_A].key, parts[_B].key)


def pair_shape(module: str, pair: Pair, tensors: SafetensorsFile) -> ModuleShape:
    """Shape of one module from the headers of A and B; its scale is left at 1.

    A `[rank, in, *kernel]` and B `[out, rank, 1, ...]` with as many ones as the kernel has axes.
    """
    a, b = tensors.info(pair.a), tensors.info(pair.b)
    for name, info in ((pair.a, a), (pair.b, b)):
        where = Where(file=tensors.path, module=module, tensor=name)
        if info.dtype not in FLOAT_DTYPES:
            raise UnsupportedAdapterError(
                f"the tensor is {info.dtype}, expected one of {', '.join(FLOAT_DTYPES)}",
                where=where,
                hint="save the adapter's weights in float32, float16 or bfloat16",
            )
        if len(info.shape) < 2 or 0 in info.shape:
            raise AdapterError(
                f"the tensor has shape {list(info.shape)}, expected two or more axes without "
                "a zero",
                where=where,
                hint="a checkpoint saved from sharded weights has such tensors; gather them first",
            )
    rank, in_features, *kernel = a.shape
    out_features, b_rank, *ones = b.shape
    where = Where(file=tensors.path, module=module, tensor=pair.b)
    if len(kernel) > _MAX_SPATIAL:
        raise UnsupportedAdapterError(
            f"the module is a convolution over {len(kernel)} axes, expected at most {_MAX_SPATIAL}",
            where=where,
            hint="leave it out of target_modules",
        )
    if len(ones) != len(kernel) or any(size != 1 for size in ones):
        raise AdapterError(
            f"B has shape {list(b.shape)} beside A of shape {list(a.shape)}, expected "
            f"{[out_features, rank] + [1] * len(kernel)}",
            where=where,
            hint="A and B are not of one module; save the adapter again",
        )
    if kernel and b_rank < rank and rank % b_rank == 0:
        raise UnsupportedAdapterError(
            f"B has {b_rank} columns beside {rank} rows of A: the module is a convolution with "
            f"{rank // b_rank} groups",
            where=where,
            hint="leave grouped convolutions out of target_modules",
        )
    if b_rank != rank:
        raise AdapterError(
            f"B has {b_rank} columns, expected {rank} as A has rows",
            where=where,
            hint="A and B are not of one training; save the adapter again",
        )
    return ModuleShape(
        module, rank, in_features, out_features, tuple(kernel), tensors=(pair.a, pair.b)
    )
