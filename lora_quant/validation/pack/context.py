"""Compiled graphs of a pack: they open, name their binaries, and have the recorded inputs.

An EPContext node holds what a device's compiler made, or names a file beside the graph.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

from lora_quant.config.manifest_records import PackFile, TargetRecord
from lora_quant.errors import LoraQuantError, some
from lora_quant.findings import Finding
from lora_quant.graph.files.model_check import check_model_file
from lora_quant.validation.documents.relative_paths import normalised
from lora_quant.validation.from_errors import finding_of
from lora_quant.validation.pack.overridable import check_overridable
from lora_quant.validation.pack.view import PackView

_NODE = "EPContext"
_REBUILD = "build the pack again"


def check_context(view: PackView, target: TargetRecord, file: PackFile) -> Iterator[Finding]:
    """One file of the role `context`."""
    try:
        model = check_model_file(view.locate(file.path))
    except LoraQuantError as error:
        yield finding_of(error, shown=view.show(file.path))
        return
    yield from check_overridable(view, target, file, model)
    nodes = [node for node in model.proto.graph.node if node.op_type == _NODE]
    if not nodes:
        message = f"the graph has no {_NODE} node: it is not compiled"
        yield view.error("context", message, file.path, hint=_REBUILD)
    binaries = {normalised(f.path): f for f in view.files(target, "context-data")}
    for node in nodes:
        name = _binary(node)
        if name is None:
            continue
        path = normalised(posixpath.join(posixpath.dirname(file.path), name))
        if path not in binaries:
            yield view.error(
                "context",
                f"the graph reads the binary {name!r}, which is not among the pack's: "
                f"{some(list(binaries)) or 'there are none'}",
                file.path,
                hint=_REBUILD,
                node=node.name,
            )


def _binary(node: Any) -> str | None:
    """The file that a node reads; None if it holds the binary itself, or another node does."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    numbers = {name: attribute.i for name, attribute in attributes.items()}
    if numbers.get("embed_mode", 1) or not numbers.get("main_context", 1):
        return None
    content = attributes.get("ep_cache_context")
    return "" if content is None else content.s.decode("utf-8", "replace")
