"""A, B and s as the adapter file of the onnxruntime target has them.

It holds the ranks that a use case needs, in an order of its own: which of them an adapter has is
told by the row of its slot in the expansion matrix E. Which E a branch reads is told by the graph.

    alpha, E  ->  MatMul  ->  ...  ->  s,  a  ->  Mul  ->  m
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import GraphProto, NodeProto

from lora_quant.config.manifest_records import (
    AttachPointRecord,
    BranchTensors,
    TargetRecord,
    UseCaseRecord,
)
from lora_quant.engines.adapter_file import read_adapter
from lora_quant.errors import VerificationError, Where
from lora_quant.runtime.reference.sites import Site
from lora_quant.runtime.reference.updates import Matrix
from lora_quant.runtime.verify.factors import Factors, by_rank


class AdapterFactors:
    """The float adapter file of one use case; all of its values are at hand."""

    def __init__(
        self, graph: GraphProto, target: TargetRecord, use_case: UseCaseRecord, path: Path
    ) -> None:
        self._file = read_adapter(path)
        self._use_case = use_case
        self._expansions = {one.name for one in target.inputs if one.role == "expansion"}
        self._makers = {name: node for node in graph.node for name in node.output}

    def read(
        self, site: Site, point: AttachPointRecord, tensors: BranchTensors, index: int
    ) -> Factors:
        """See FactorSource."""
        left, right = by_rank(point, self._value(tensors.b_weight), self._value(tensors.a_weight))
        scale = self._value(self._expansion(tensors))[index]
        ranks = np.flatnonzero(scale)
        return Factors(left[site.rows][:, ranks], scale[ranks], right[ranks])

    def _expansion(self, tensors: BranchTensors) -> str:
        """The first expansion matrix on the way up from the scale of a branch."""
        waiting = [name for name in self._inputs(tensors.m) if name != tensors.a]
        seen = set(waiting)
        while waiting:
            name = waiting.pop()
            if name in self._expansions:
                return name
            inputs = [one for one in self._inputs(name) if one not in seen]
            seen.update(inputs)
            waiting += inputs
        raise self._lacking(tensors.m)

    def _inputs(self, name: str) -> list[str]:
        node: NodeProto | None = self._makers.get(name)
        return [] if node is None else list(node.input)

    def _value(self, name: str) -> Matrix:
        value = self._file.values.get(name)
        if value is None:
            raise self._lacking(name)
        array: Matrix = value.numpy().astype(np.float64)
        return array

    def _lacking(self, name: str) -> VerificationError:
        return VerificationError(
            f"the adapter file has no float factors for {name!r}",
            where=Where(file=self._file.path, use_case=self._use_case.name, tensor=name),
            hint="build the pack again",
        )
