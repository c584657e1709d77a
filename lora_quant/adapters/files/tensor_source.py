"""Where the tensors of an adapter come from, whatever the file, and a view under other names.

    file:  layers.0.attn.q_proj.lora_b.weight   [out, r], rows in another order
    view:  model.layers.0.self_attn.q_proj.lora_B.weight

A lowering rule sees PEFT's names only. A view computes nothing before `read`, and an error of it
names the tensor as the file does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np

from lora_quant.adapters.files.dtypes import NumberArray
from lora_quant.adapters.files.safetensors_header import TensorInfo
from lora_quant.adapters.lowered import FloatArray
from lora_quant.errors import (
    AdapterError,
    UnsupportedAdapterError,
    Where,
    did_you_mean,
)


class TensorSource(Protocol):
    """The tensors of one file: names, shapes and dtypes at once, values on request.

    A dtype is spelled as safetensors does (`F32`, `BF16`, `I64`).
    """

    @property
    def path(self) -> Path:
        """The file, for errors."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Free text that the writer put beside the tensors."""

    def info(self, name: str) -> TensorInfo:
        """Dtype and shape of one tensor; AdapterError if there is none of that name."""

    def read(self, name: str) -> FloatArray:
        """One float tensor as a contiguous array in its own dtype and shape.

        Raises UnsupportedAdapterError for a dtype that is no float, AdapterError for damage.
        """

    def read_numbers(self, name: str) -> NumberArray:
        """Like `read`, and for whole numbers as well."""


@dataclass(frozen=True, eq=False)
class Derived:
    """One tensor of a view: the tensors of the file that it is made of, and how.

    `compute` takes their arrays in that order and returns an array of `shape` and `dtype`.
    """

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    compute: Callable[..., FloatArray]


def same(source: TensorSource, name: str) -> Derived:
    """The tensor as it is, under another name."""
    info = source.info(name)
    return Derived((name,), info.shape, info.dtype, lambda array: array)


def transposed(source: TensorSource, name: str) -> Derived:
    """`[a, b]` as `[b, a]`; UnsupportedAdapterError for another number of axes."""
    info = source.info(name)
    if len(info.shape) != 2:
        raise UnsupportedAdapterError(
            f"the tensor has shape {list(info.shape)}, expected two axes",
            where=Where(file=source.path, tensor=name),
            hint="adapters of experts or convolutions are not read from this format; leave those "
            "modules out, or train with PEFT",
        )
    return Derived((name,), info.shape[::-1], info.dtype, np.transpose)


def reshaped(source: TensorSource, name: str, shape: Sequence[int]) -> Derived:
    """The same values in another shape of the same size; AdapterError if the sizes differ."""
    info = source.info(name)
    if np.prod(info.shape, dtype=object) != np.prod(shape, dtype=object):
        raise AdapterError(
            f"the tensor has shape {list(info.shape)}, expected {list(shape)}",
            where=Where(file=source.path, tensor=name),
            hint="the tensors of this module are not of one training; save the adapter again",
        )
    return Derived((name,), tuple(shape), info.dtype, lambda array: array.reshape(shape))


def reordered(
    source: TensorSource, name: str, rows: np.ndarray[tuple[int], np.dtype[np.intp]]
) -> Derived:
    """The tensor's rows in another order: row i of the view is row `rows[i]` of the file."""
    info = source.info(name)
    return Derived((name,), info.shape, info.dtype, lambda array: array[rows])


class RenamedTensors:
    """A view of a source: new name -> how it is made of the source's tensors.

    What `tensors` does not mention is not in the view. A name of the view in an error is replaced
    by the name in the file.
    """

    def __init__(self, source: TensorSource, tensors: Mapping[str, Derived]) -> None:
        self._source = source
        self._tensors = MappingProxyType(dict(tensors))

    @property
    def path(self) -> Path:
        """The file of the source."""
        return self._source.path

    @property
    def names(self) -> tuple[str, ...]:
        """The new names, in the order given."""
        return tuple(self._tensors)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The source's."""
        return self._source.metadata

    def originals(self, name: str) -> tuple[str, ...]:
        """The names in the file of what one tensor of the view is made of."""
        return self._derived(name).sources

    def info(self, name: str) -> TensorInfo:
        """Dtype and shape in the view; offset and size are those of the first tensor in the file.

        Raises AdapterError if the view has no such name.
        """
        derived = self._derived(name)
        first = self._source.info(derived.sources[0])
        return TensorInfo(derived.dtype, derived.shape, first.offset, first.size)

    def read(self, name: str) -> FloatArray:
        """Read what the tensor is made of and compute it; raises what the source raises."""
        return self._computed(name, self._source.read)

    def read_numbers(self, name: str) -> NumberArray:
        """Like `read`, and of whole numbers as well."""
        return self._computed(name, self._source.read_numbers)

    def _computed(self, name: str, read: Callable[[str], NumberArray]) -> NumberArray:
        derived = self._derived(name)
        arrays = [read(source) for source in derived.sources]
        # values that are not finite are refused by name afterwards, by who reads
        with np.errstate(all="ignore"):
            return np.ascontiguousarray(derived.compute(*arrays))

    def _derived(self, name: str) -> Derived:
        derived = self._tensors.get(name)
        if derived is None:
            raise AdapterError(
                "the file has no such tensor",
                where=Where(file=self.path, tensor=name),
                hint=did_you_mean(name, self._tensors),
            )
        return derived


def read_number(source: TensorSource, name: str) -> float:
    """The value of a tensor that holds one number, whole or not.

    Raises AdapterError when it holds several, none or no finite one.
    """
    info = source.info(name)
    where = Where(file=source.path, tensor=name)
    if np.prod(info.shape, dtype=object) != 1:
        raise AdapterError(
            f"the tensor has shape {list(info.shape)}, expected a single number", where=where
        )
    value = float(source.read_numbers(name).reshape(-1)[0])
    if not np.isfinite(value):
        raise AdapterError(
            f"the tensor holds {value}, expected a finite number",
            where=where,
            hint="the adapter was saved from a failed training; use a good step",
        )
    return value
