"""The bytes of a branched graph, and the shared block of zeros that it may read."""

from __future__ import annotations

from collections.abc import Iterable

from lora_quant.errors import Where
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.files.model_file import serialize


def graph_bytes(base: BaseGraph, lora_weights: Iterable[str], zeros_location: str) -> bytes:
    """The bytes of the edited graph; zero weights that are external read `zeros_location`.

    `lora_weights` names all updatable weights. Those that are the base's own keep their values and
    their place. Raises GraphError above protobuf's limit of 2 GiB.
    """
    base.zeros.place(base.model.proto.graph, lora_weights, zeros_location)
    return serialize(base.model.proto, Where(file=base.path))
