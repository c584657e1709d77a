"""The values of named initializers of a graph, as its file holds them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.errors import GraphError, Where
from lora_quant.graph.files.model_file import ModelFile, load_model
from lora_quant.graph.files.stored_values import stored_values
from lora_quant.graph.records import TensorRecord


class VerbatimWeights:
    """One graph, opened; its data files are read tensor by tensor."""

    def __init__(self, model: ModelFile) -> None:
        self._model = model
        self._tensors = {tensor.name: tensor for tensor in model.proto.graph.initializer}

    def read(self, record: TensorRecord) -> NDArray[Any]:
        """Values of the shape and dtype of the record, bfloat16 as ml_dtypes.

        Raises GraphError if the graph has no such initializer, InputMissingError if its data file
        cannot be read.
        """
        where = Where(file=self._model.path, tensor=record.name)
        tensor = self._tensors.get(record.name)
        if tensor is None or tuple(tensor.dims) != record.shape:
            got = "none of that name" if tensor is None else f"the shape {list(tensor.dims)}"
            raise GraphError(
                f"the graph's LoRA weights have changed: got {got}, expected {list(record.shape)}",
                where=where,
                hint="build again when nothing writes to this file",
            )
        with stored_values(self._model, tensor, where) as read:
            return read(0, math.prod(record.shape)).reshape(record.shape)

    def is_zero(self, record: TensorRecord) -> bool:
        """Whether all values are 0."""
        return not np.any(self.read(record))


class VerbatimGraphs:
    """Opens graphs; the last one stays open, since its values are asked for part by part."""

    def __init__(self) -> None:
        self._last: tuple[Path, VerbatimWeights] | None = None

    def open(self, path: Path) -> VerbatimWeights:
        """The graph at `path`; errors as for load_model."""
        if self._last is None or self._last[0] != path:
            self._last = None  # two graphs with their weights inside are never held at once
            self._last = path, VerbatimWeights(load_model(path))
        return self._last[1]
