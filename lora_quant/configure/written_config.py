"""The text of a `lora_config.yaml` that a person goes on editing, and where it is written.

LoraConfig + notes  ->  comments, `adapter`, `use-case`; paths relative to the file, with `/`

Beside the file lies its schema, which the first line names by a relative path: editors resolve
paths and web addresses there, and the schema's own `$id`, a URN, is neither.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_quant.config.base_model import relative_path, to_document
from lora_quant.config.documents import dump_yaml
from lora_quant.config.lora_config import LoraConfig, map_paths
from lora_quant.config.schema_files import schema_file, schema_text
from lora_quant.config.whole_files import write_files

SCHEMA_NAME = "lora-config"


@dataclass(frozen=True)
class Notes:
    """What the comments of a file say of an adapter or use case."""

    adapters: Mapping[str, Sequence[str]] = field(default_factory=dict)
    use_cases: Mapping[str, Sequence[str]] = field(default_factory=dict)


def config_text(
    config: LoraConfig,
    folder: Path,
    notes: Notes,
    *,
    schema: str | None = None,
    build: str = "lora-quant build lora_config.yaml -o OUT",
) -> str:
    """The text of `config` for a file in `folder`; `schema` is the path that its first line names.

    `build` is the command that compiles it. Raises ConfigError for a path or name that YAML cannot
    hold.
    """
    document = to_document(map_paths(config, lambda p: relative_path(p, folder)))
    lines = [] if schema is None else [f"# yaml-language-server: $schema={schema}"]
    lines += [f"# {build}", "# Relative paths start at the folder of this file."]
    lines += ["", "# What was trained: PEFT folders, weights files or adapter JSON.", "adapter:"]
    for item in document["adapter"]:
        lines += _item(_short(item), notes.adapters)
    mapping = document.get("attach_point_onnx_mapping")
    if mapping is not None:
        lines += ["", "# Module path -> ONNX nodes, as `lora-quant map` writes it."]
        lines += dump_yaml({"attach_point_onnx_mapping": mapping}).splitlines()
    lines += [
        "",
        "# What the device switches between. A strength of 1 is as trained, 0 is off.",
        "use-case:",
    ]
    for item in document["use-case"]:
        lines += _item(_given(item), notes.use_cases)
    return "\n".join(lines) + "\n"


def write_config(text: str, path: Path, *, force: bool, schema: bool) -> tuple[Path, ...]:
    """Write the text, and with `schema` the schema beside it, both or none; the paths of both.

    Raises PackError if a file is there and `force` is not given, or cannot be written. A schema
    that is there already is left as it is.
    """
    texts = {path: text}
    if schema:
        beside = path.with_name(schema_file(SCHEMA_NAME))
        if not os.path.lexists(beside):
            texts[beside] = schema_text(SCHEMA_NAME)
    write_files(texts, force=force)
    return tuple(texts)


def _short(adapter: dict[str, Any]) -> dict[str, Any]:
    sources = adapter["lora_config"]
    return adapter | {"lora_config": sources[0] if len(sources) == 1 else sources}


def _given(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if value is not None}


def _item(item: dict[str, Any], notes: Mapping[str, Sequence[str]]) -> list[str]:
    said = [f"# {line}" for line in notes.get(item["name"], ())]
    return [*said, *dump_yaml([item]).splitlines()]
