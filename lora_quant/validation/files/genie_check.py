"""A Genie configuration by itself: what its schema and its reader do not see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lora_quant.config.genie import genie_blocks
from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity
from lora_quant.validation.documents.opened import OpenedDocument
from lora_quant.validation.files.sections import NamedSection, check_sections
from lora_quant.validation.kinds import Kind

_AREA = "genie"


def check_genie(document: OpenedDocument, kind: Kind) -> Iterator[Finding]:
    """Sections of an accepted document that are open, missing, shared, or too few."""
    alone = kind is Kind.GENIE_LORA
    blocks = [((), document.value)] if alone else list(genie_blocks(document.value))
    if not blocks:
        yield Finding(
            f"{_AREA}/no-lora",
            Severity.NOTE,
            "the configuration has no lora block: nothing switches",
            Where(file=document.shown),
        )
        return
    places = document.places()
    for path, block in blocks:
        adapters = block["adapters"]
        sections = [
            NamedSection(
                text,
                adapter["name"],
                replace(
                    places((*path, "adapters", index, "bin-sections", number)),
                    use_case=adapter["name"],
                ),
            )
            for index, adapter in enumerate(adapters)
            for number, text in enumerate(adapter["bin-sections"])
        ]
        yield from check_sections(_AREA, sections, document.path.parent)
        binary = document.value
        for key in path[:-1]:
            binary = binary[key]
        contexts = binary.get("ctx-bins") if path else None
        count = len(adapters[0]["bin-sections"])
        if isinstance(contexts, list) and len(contexts) != count:
            yield Finding(
                f"{_AREA}/section-count",
                Severity.ERROR,
                f"every adapter has {count} bin-sections for {len(contexts)} ctx-bins",
                places((*path, "adapters")),
                "name one section for each context binary, in the same order",
            )
