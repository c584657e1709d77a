"""The base's modules from its own checkpoint, by the names that one adapter gives them.

    adapter:  model.language_model.layers.0.self_attn.q_proj
    base:     language_model.model.layers.0.self_attn.q_proj.weight   [out, in], or [in, out]

Leading levels may differ: beside the longest suffix that two names share, no number may be left
over, and the levels left over on one side must be among those of the other. Exactly one module of
the base may fit. Weights are read in row blocks, by their place in the file.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.base_modules import BaseSizes, Tile
from lora_quant.adapters.files.dtypes import FLOAT_DTYPES
from lora_quant.adapters.files.finite import all_finite, read_finite
from lora_quant.adapters.files.model_files import ModelFiles
from lora_quant.adapters.files.safetensors_file import SafetensorsFile
from lora_quant.adapters.lowered import ModuleShape
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where, did_you_mean, some

_TILE_BYTES = 2 << 20
_QUANTIZED_HINT = "name the model in float32, float16 or bfloat16 that it was quantized from"


@dataclass(frozen=True, eq=False)
class _Stored:
    """One weight in its file; `flipped`: stored as [in, out], or [vocabulary, dim].

    `kernel` is the adapter's view of it: none for a linear layer that is stored as a convolution.
    """

    file: SafetensorsFile
    tensor: str
    shape: tuple[int, ...]
    flipped: bool
    kernel: tuple[int, ...]


class BaseCheckpoint:
    """The modules of one adapter in a checkpoint; meets BaseModules.

    `shapes` are the adapter's modules, `fan_in_fan_out` what its configuration says of the storage
    order. A linear weight is taken as [in, out] where its size tells so, or where its size does not
    tell and either the configuration or the other modules of the adapter do. `order` lists modules
    as the model defines them, None if that is not known.
    """

    def __init__(
        self,
        files: ModelFiles,
        shapes: Mapping[str, ModuleShape],
        *,
        fan_in_fan_out: bool = False,
        order: Sequence[str] | None = None,
    ) -> None:
        self._files = files
        self._shapes = shapes
        self._fan_in_fan_out = fan_in_fan_out
        self._order = order
        self._leaves: dict[str, dict[str, str]] = defaultdict(dict)
        for name in files.names:
            module, _, leaf = name.rpartition(".")
            self._leaves[module][leaf] = name
        self._names = _by_last_level(self._leaves)

    def sizes(self, module: str) -> BaseSizes:
        """Sizes of a module, from the header of its file; raises as `tiles` does.

        A file does not tell the groups of a convolution: they follow from what the adapter tells.
        """
        stored = self._stored(module)
        first, second = stored.shape[:2]
        told = self._told(module)
        if stored.flipped:
            return BaseSizes(first, second, is_embedding=told.is_embedding)
        groups = told.in_features // second if told.kernel and told.in_features else 1
        return BaseSizes(second * groups, first, stored.kernel, groups)

    def tiles(self, module: str) -> Iterator[Tile]:
        """The weight in blocks of rows as they are stored, of 2 MiB or one row.

        Raises AdapterError for a module that the base does not have, or has twice, for a weight of
        another shape and for NaN; UnsupportedAdapterError for quantized weights.
        """
        stored = self._stored(module)
        rows, columns = stored.shape[:2]
        width = FLOAT_DTYPES[stored.file.info(stored.tensor).dtype].itemsize
        step = max(_TILE_BYTES // (math.prod(stored.shape[1:]) * width), 1)
        for start in range(0, rows, step):
            block, across = slice(start, min(start + step, rows)), slice(0, columns)
            values = stored.file.read_rows(stored.tensor, block.start, block.stop)
            values = values.reshape(-1, columns, *stored.kernel)
            if not all_finite(values):
                raise AdapterError(
                    "the base's weight holds values that are not finite",
                    where=self._where(module, stored.tensor, stored.file),
                    hint="download the base model again",
                )
            if stored.flipped:
                yield Tile(across, block, values.T)
            else:
                yield Tile(block, across, values)

    def bias(self, module: str) -> NDArray[np.float64]:
        """The bias `[out]`; zeros for a module without one. Raises as `tiles` does."""
        out = self.sizes(module).out_features
        name = self._leaves[self._find(module)].get("bias")
        if name is None:
            return np.zeros(out)
        file = self._files.file_of(name)
        info = file.info(name)
        if info.dtype not in FLOAT_DTYPES or info.shape != (out,):
            raise AdapterError(
                f"the base's bias is {info.dtype} of shape {list(info.shape)}, expected floats of "
                f"shape {[out]}",
                where=self._where(module, name, file),
                hint="check that this is the base that the adapter was trained on",
            )
        return read_finite(file, name, module).astype(np.float64)

    def order(self) -> tuple[str, ...]:
        """The order that was given, its modules by the adapter's own names.

        A checkpoint itself lists its tensors in another order: UnsupportedAdapterError without one.
        """
        if self._order is None:
            raise UnsupportedAdapterError(
                "the kind numbers its modules in the order of the model's definition, which a "
                "checkpoint does not tell",
                where=Where(file=self._files.path),
                hint="give an attach point mapping that lists the modules in the order of "
                "`named_modules()`",
            )
        listed = _by_last_level(self._order)
        spelled = {found[0]: m for m in self._shapes if len(found := _matches(m, listed)) == 1}
        return tuple(spelled.get(name, name) for name in self._order)

    def _stored(self, module: str) -> _Stored:
        name = self._leaves[self._find(module)].get("weight")
        if name is None:
            raise self._without_weight(module)
        file = self._files.file_of(name)
        info = file.info(name)
        where = self._where(module, name, file)
        if info.dtype not in FLOAT_DTYPES:
            raise UnsupportedAdapterError(
                f"the base's weight is {info.dtype}, expected one of {', '.join(FLOAT_DTYPES)}: "
                "it is quantized",
                where=where,
                hint=_QUANTIZED_HINT,
            )
        if len(info.shape) < 2 or 0 in info.shape:
            raise AdapterError(
                f"the base's weight has shape {list(info.shape)}, expected [out, in, ...]",
                where=where,
                hint="check that this is the base that the adapter was trained on",
            )
        told = self._told(module)
        fits = _fitting(told, info.shape)
        if not fits:
            raise AdapterError(
                f"the base's weight has shape {list(info.shape)}, which does not fit the adapter: "
                f"expected {_expected(told)}",
                where=where,
                hint="check that this is the base that the adapter was trained on",
            )
        flipped = self._is_flipped if len(fits) > 1 else fits[0]
        kernel = info.shape[2:] if told.kernel is None else told.kernel
        return _Stored(file, name, info.shape, flipped, kernel)

    @cached_property
    def _is_flipped(self) -> bool:
        """How a square weight is stored."""
        if self._fan_in_fan_out:
            return True
        certain: set[bool] = set()
        for module, told in self._shapes.items():
            name = self._leaves[self._find(module)].get("weight")
            if name is not None and not told.is_embedding:
                fits = _fitting(told, self._files.file_of(name).info(name).shape)
                certain.update(fits if len(fits) == 1 else ())
        return certain == {True}

    def _told(self, module: str) -> ModuleShape:
        shape = self._shapes.get(module)
        if shape is None:
            raise AdapterError(
                f"the adapter has no module {module!r}",
                where=self._where(module),
                hint=did_you_mean(module, self._shapes),
            )
        return shape

    def _find(self, module: str) -> str:
        """The base's own name of a module; AdapterError unless there is exactly one."""
        best = _matches(module, self._names)
        if len(best) == 1:
            return best[0]
        if best:
            raise AdapterError(
                f"module {module!r} can be {len(best)} modules of the base: {some(sorted(best))}",
                where=self._where(module),
                hint="the adapter spells its modules in another way than the base; name the base "
                "that it was trained on",
            )
        raise AdapterError(
            f"the base has no module {module!r}",
            where=self._where(module),
            hint=did_you_mean(module, self._leaves),
        )

    def _without_weight(self, module: str) -> UnsupportedAdapterError:
        own = self._find(module)
        return UnsupportedAdapterError(
            f"the base has no weight of this module: it has {some(sorted(self._leaves[own]))}",
            where=self._where(module),
            hint=f"if the base is quantized, {_QUANTIZED_HINT}",
        )

    def _where(
        self, module: str, tensor: str | None = None, file: SafetensorsFile | None = None
    ) -> Where:
        return Where(
            file=self._files.path if file is None else file.path, module=module, tensor=tensor
        )


def _by_last_level(modules: Iterable[str]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        found[module.rpartition(".")[2]].append(module)
    return found


def _matches(module: str, names: Mapping[str, list[str]]) -> list[str]:
    """The names that share the most last levels with a module and can be it; itself if it is one.

    `names` is by last level.
    """
    found = names.get(module.rpartition(".")[2], [])
    if module in found:
        return [module]
    shared = {name: _shared_levels(module, name) for name in found}
    longest = max(shared.values(), default=0)
    return [name for name in found if longest and shared[name] == longest]


def _shared_levels(one: str, other: str) -> int:
    """How many last levels two names share; 0 if what is left over makes them different modules."""
    left, right = one.split("."), other.split(".")
    shared = 0
    while left and right and left[-1] == right[-1]:
        left.pop()
        right.pop()
        shared += 1
    numbered = any(part.isdecimal() for part in (*left, *right))
    same = set(left) <= set(right) or set(right) <= set(left)
    return 0 if numbered or not same else shared


def _fitting(told: ModuleShape, shape: tuple[int, ...]) -> list[bool]:
    """The storage orders that agree with what the adapter tells: [out, in] (False), [in, out]."""
    first, second, *kernel = shape
    if told.is_embedding:
        fits = not kernel and _agrees(told, first, second, [])
        return [True] if fits else []
    found = [False] if _agrees(told, second, first, kernel) else []
    if not kernel and _agrees(told, first, second, []):
        found.append(True)
    return found


def _agrees(told: ModuleShape, inputs: int, outputs: int, kernel: list[int]) -> bool:
    if told.out_features not in (None, outputs):
        return False
    if told.kernel is None:
        return told.in_features in (None, inputs * math.prod(kernel))
    if tuple(kernel) != told.kernel and math.prod(kernel) != math.prod(told.kernel):
        return False
    if told.in_features is None:
        return True
    # a grouped convolution stores a part of its inputs for each output
    is_grouped = bool(kernel) and told.in_features % inputs == 0
    return told.in_features == inputs or is_grouped


def _expected(told: ModuleShape) -> str:
    sizes = ["?" if n is None else str(n) for n in (told.out_features, told.in_features)]
    if told.is_embedding:
        sizes.reverse()
    return f"[{', '.join([*sizes, *map(str, told.kernel or ())])}]"
