"""Does an adapter's module fit the node that was found for it? Only what is known is compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_quant.errors import AttachPointError, Where
from lora_quant.graph.attach.name_table import same_module
from lora_quant.graph.records import Form, Gate, LinearNode, Vector


@dataclass(frozen=True)
class ModuleRequest:
    """What an adapter needs of the node of one module; `adapter` is named in errors.

    Features and kernel are None where the adapter's files do not tell them. The kernel counts only
    beside `in_features`, `groups` only with `low_rank`. For an embedding, `in_features` is the
    vocabulary.
    """

    module: str
    in_features: int | None
    out_features: int | None
    kernel: tuple[int, ...] | None
    adapter: str
    is_embedding: bool = False
    groups: int = 1
    low_rank: bool = True
    vectors: frozenset[Vector] = frozenset()
    gates: frozenset[Gate] = frozenset()


class Fit:
    """The checks; each raises an AttachPointError that names adapter, module and node."""

    def __init__(self, graph_file: Path) -> None:
        self._graph_file = graph_file

    def check_same_module(self, linear: LinearNode, requests: Sequence[ModuleRequest]) -> None:
        """One part of a node is one module, however adapters spell it."""
        first = requests[0]
        spelled: dict[str, str] = {}
        for other in requests:
            is_only = spelled.setdefault(other.adapter, other.module) == other.module
            if not is_only or not same_module(first.module, other.module):
                raise AttachPointError(
                    f"two modules lead to {label(linear)}: {first.module!r} of adapter "
                    f"{first.adapter!r} and {other.module!r} of adapter {other.adapter!r}",
                    where=self.where(linear, other.module),
                    hint="give each module its own node in `attach_point_onnx_mapping`",
                )

    def check_input(self, linear: LinearNode, request: ModuleRequest) -> None:
        """The adapter reads what the node reads, where its files tell that."""
        if linear.form is Form.EMBEDDING and Vector.H in request.vectors:
            raise self.unfit(
                linear,
                request,
                "the adapter scales its inputs, but an embedding reads indices",
                hint="take the module out of the adapter",
            )
        if request.in_features is None:
            return
        kernel = linear.conv.kernel if linear.conv else ()
        groups = linear.conv.groups if linear.conv else 1
        wanted = kernel if request.kernel is None else request.kernel
        if request.kernel is None:
            flat = linear.in_features // groups * math.prod(kernel)
            fits = request.in_features in (flat, linear.in_features)
        else:
            # "Prepared" graphs compute a linear layer as a convolution of kernel 1, in any number
            # of axes; the factors of both are the same numbers.
            fits = kernel == wanted or is_pointwise(kernel, wanted)
            fits = fits and request.in_features in (
                linear.in_features // groups if request.groups == 1 else linear.in_features,
                linear.in_features,
            )
        if not fits:
            name = "lora_A" if request.low_rank else "the adapter"
            raise self.unfit(
                linear,
                request,
                f"{name} is for input {[request.in_features, *wanted]}, the node's weight "
                f"for {[linear.in_features, *kernel]}",
            )

    def check_groups(self, linear: LinearNode, request: ModuleRequest) -> None:
        """A grouped B is grouped as the convolution is.

        Without groups of its own, A must read the channels of one group; vectors have no groups.
        """
        groups = linear.conv.groups if linear.conv else 1
        kernel = linear.conv.kernel if linear.conv else ()
        channels = linear.in_features // groups
        flat = math.prod(kernel) if request.kernel is None else 1
        is_per_group = request.groups == 1 and request.in_features == channels * flat
        if request.low_rank and request.groups != groups and not is_per_group:
            raise self.unfit(
                linear,
                request,
                f"the adapter is for {request.groups} groups of channels, the node has {groups}",
            )

    def check_shared_input(self, linear: LinearNode, requests: Sequence[ModuleRequest]) -> None:
        """The parts of a fused projection read one input, which cannot be scaled for one alone."""
        for request in requests:
            if Vector.H in request.vectors:
                raise self.unfit(
                    linear,
                    request,
                    "the adapter scales its inputs, which other projections of the node read too",
                    hint="export the graph without fusing projections",
                )

    def unfit(
        self,
        linear: LinearNode,
        request: ModuleRequest,
        reason: str,
        hint: str = "the adapter was trained on another base model, or the mapping is off",
    ) -> AttachPointError:
        """The error for a module that does not fit."""
        return AttachPointError(
            f"module {request.module!r} of adapter {request.adapter!r} does not fit "
            f"{label(linear)}: {reason}",
            where=self.where(linear, request.module),
            hint=hint,
        )

    def where(self, linear: LinearNode, module: str) -> Where:
        """The place of a module in the graph."""
        return Where(file=self._graph_file, module=module, node=linear.node or None)


def is_pointwise(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether both kernels only have axes of size one, or none."""
    return set(one) | set(other) <= {1}


def label(linear: LinearNode) -> str:
    """The node in words."""
    return f"node {linear.node!r}" if linear.node else f"the node of {linear.product!r}"
