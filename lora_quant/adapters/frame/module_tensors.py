"""The tensors of one adapted module, as a lowering rule sees them: first headers, then values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.base_modules import BaseModules
from lora_quant.adapters.files.dtypes import expect_float
from lora_quant.adapters.files.finite import read_finite
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.files.tensor_source import TensorSource
from lora_quant.adapters.frame.index_tensors import index_shape, read_indices
from lora_quant.adapters.lowered import FloatArray, ModuleShape
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where


@dataclass(frozen=True, eq=False)
class Headers:
    """What a rule may look at to tell the shape of one module.

    `names`: parameter (`lora_A.weight`) -> tensor in the file. `rank`, `alpha` and `scale` are what
    the configuration gives to this module. `absent`: the field that it does not have, so that
    `rank` is PEFT's default.
    """

    module: str
    names: Mapping[str, str]
    shared: Mapping[str, str]
    source: TensorSource
    config: PeftConfig
    rank: int
    alpha: float
    scale: float
    absent: str | None = None

    def has(self, parameter: str) -> bool:
        """Whether the module has this parameter."""
        return parameter in self.names

    def dims(
        self, parameter: str, axes: int | None = None, *, may_be_empty: bool = False
    ) -> tuple[int, ...]:
        """Shape of a parameter's tensor: of floats, without an empty axis, of `axes` axes."""
        name = self.names.get(parameter)
        if name is None:
            raise AdapterError(
                f"the module has no {parameter}",
                where=Where(file=self.source.path, module=self.module),
                hint="the checkpoint is incomplete; save or download it again",
            )
        return self._dims(name, axes, may_be_empty=may_be_empty)

    def shared_dims(self, name: str, axes: int | None = None) -> tuple[int, ...]:
        """Shape of a tensor that all modules share."""
        tensor = self.shared.get(name)
        if tensor is None:
            raise AdapterError(
                f"the file has no {name}, which its modules share",
                where=Where(file=self.source.path, module=self.module),
                hint="the checkpoint is incomplete; save or download it again",
            )
        return self._dims(tensor, axes)

    def index_dims(self, parameter: str, axes: int) -> tuple[int, ...]:
        """Shape of a parameter's tensor of whole numbers, of `axes` axes without an empty one."""
        if parameter not in self.names:
            return self.dims(parameter, axes)
        shape = index_shape(self.source, self.names[parameter], self.module)
        if 0 in shape or len(shape) != axes:
            raise self.error(
                parameter,
                f"the tensor has shape {list(shape)}, expected {axes} axes without a zero",
            )
        return shape

    def expect(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Hold parameters that follow from the others against the shapes they must have."""
        for parameter, expected in shapes.items():
            got = self.dims(parameter)
            if got != expected:
                raise self.error(
                    parameter,
                    f"{parameter} has shape {list(got)}, expected {list(expected)} from the "
                    "module's other tensors",
                )

    def expect_rank(self, parameter: str, rank: int) -> None:
        """Hold the rank of the tensors against the configuration's: the scale depends on it."""
        if rank == self.rank:
            return
        expected, hint = f"{self.rank} from the configuration", ""
        if self.absent is not None:
            expected = f"{self.rank}, PEFT's default, since the configuration has no {self.absent}"
            hint = f"add {self.absent}, as it was in the training; "
        raise self.error(
            parameter,
            f"module {self.module!r} has rank {rank} in the weights, expected {expected}",
            hint=f"{hint}the configuration is not the one that the weights were saved with, and "
            "their scale depends on it",
        )

    def error(self, parameter: str, message: str, hint: str = "") -> AdapterError:
        """An error about one parameter, to be raised."""
        return AdapterError(
            message,
            where=Where(
                file=self.source.path, module=self.module, tensor=self.names.get(parameter)
            ),
            hint=hint or "the tensors are not of one training; save the adapter again",
        )

    def _dims(self, name: str, axes: int | None, *, may_be_empty: bool = False) -> tuple[int, ...]:
        info = self.source.info(name)
        where = Where(file=self.source.path, module=self.module, tensor=name)
        expect_float(info.dtype, where)
        is_empty = 0 in info.shape and not may_be_empty
        if is_empty or (axes is not None and len(info.shape) != axes):
            expected = "no zero" if axes is None else f"{axes} axes without a zero"
            raise AdapterError(
                f"the tensor has shape {list(info.shape)}, expected {expected}",
                where=where,
                hint="a checkpoint saved from sharded weights has such tensors; gather them first",
            )
        return tuple(info.shape)


@dataclass(frozen=True, eq=False)
class ModuleTensors:
    """What a rule's formula works on. `module["lora_A.weight"]` reads a tensor as float64.

    Tensors that all modules share are read by their names in the same way.

    `base` is there if the shape's `need` asks for it.
    """

    shape: ModuleShape
    source: TensorSource
    config: PeftConfig
    base_modules: BaseModules | None = None

    def __contains__(self, parameter: str) -> bool:
        return parameter in self.shape.tensors

    def __getitem__(self, parameter: str) -> NDArray[np.float64]:
        return self.stored(parameter).astype(np.float64)

    def stored(self, parameter: str) -> FloatArray:
        """A tensor in the dtype of the file; AdapterError for NaN and Inf."""
        return read_finite(self.source, self.shape.tensors[parameter], self.shape.module)

    def indices(self, parameter: str, below: int | None = None) -> NDArray[np.int64]:
        """A tensor of whole numbers from 0; AdapterError for one that is not below `below`."""
        return read_indices(self.source, self.shape.tensors[parameter], self.shape.module, below)

    @property
    def where(self) -> Where:
        """The module, for errors of its formula."""
        return Where(file=self.source.path, module=self.shape.module)

    @property
    def s(self) -> NDArray[np.float64]:
        """The module's one scale for all its ranks, `[rank]`."""
        return np.full(self.shape.rank, self.shape.scale)

    @property
    def base(self) -> BaseModules:
        """The base model, for a rule whose shape says that it needs it."""
        if self.base_modules is None:
            raise UnsupportedAdapterError(
                f"this module is lowered with the {self.shape.need.value} of the base's module, "
                "and no base is given",
                where=Where(file=self.source.path, module=self.shape.module),
                hint="name the base graph with --base",
            )
        return self.base_modules
