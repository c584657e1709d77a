"""New nodes for a graph, under names that nothing else in it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnx import NodeProto, helper

from lora_quant.errors import GraphError, Where


class NodeMaker:
    """Keeps the names of tensors and nodes that are taken; `hint` says what to do about one."""

    def __init__(self, taken: set[str], file: Path, hint: str) -> None:
        self._taken = taken
        self._file = file
        self._hint = hint

    def claim(self, name: str) -> str:
        """Reserve a tensor or node name; one that is taken is an error, never silently altered."""
        if name in self._taken:
            raise GraphError(
                f"the graph already has a tensor or node named {name!r}, which the branches need",
                where=Where(file=self._file, tensor=name),
                hint=self._hint,
            )
        self._taken.add(name)
        return name

    def node(
        self,
        nodes: list[NodeProto],
        op: str,
        inputs: list[str],
        name: str,
        *,
        output: str | None = None,
        **attributes: Any,
    ) -> str:
        """Append a node to `nodes`; returns its output, `<name>_output_0` unless told otherwise."""
        produced = output if output is not None else self.claim(f"{name}_output_0")
        nodes.append(helper.make_node(op, inputs, [produced], name=self.claim(name), **attributes))
        return produced
