"""The refusal of a graph that is not the base with branches added."""

from __future__ import annotations

from pathlib import Path

from lora_quant.errors import GraphError, Where, cut

_HINT = "export both from the same checkpoint, with the same exporter and options"


def differing(
    message: str,
    base: Path,
    exported: Path,
    *,
    node: str | None = None,
    tensor: str | None = None,
) -> GraphError:
    """`message` names what the base and the exported graph have; the place is in the latter."""
    return GraphError(
        f"without its branches, the graph differs from the base {cut(str(base), most=200)!r}: "
        f"{message}",
        where=Where(file=exported, node=node or None, tensor=tensor or None),
        hint=_HINT,
    )
