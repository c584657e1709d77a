"""Which SDK made the compiled parts of a graph: EPContext nodes of ONNX Runtime say it."""

from __future__ import annotations

from pathlib import Path

from lora_quant.graph.files.model_file import load_model
from lora_quant.graph.files.node_attributes import attributes


def sdk_versions(path: Path) -> tuple[tuple[str, str], ...]:
    """Name and SDK version of every EPContext node in order, "" where it does not tell.

    Raises GraphError for a graph that cannot be used, InputMissingError for a missing file.
    """
    nodes = [n for n in load_model(path).proto.graph.node if n.op_type == "EPContext"]
    found = []
    for node in nodes:
        version = attributes(node).get("ep_sdk_version", b"")
        text = version.decode("utf-8", "replace") if isinstance(version, bytes) else ""
        found.append((node.name, text))
    return tuple(found)
