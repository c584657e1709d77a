"""Where the entry of a tensor stands in a document of encodings.

"q.weight" -> base.encodings:12:5, field param_encodings[3], tensor q.weight
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from lora_quant.config.plain_values import PathParts
from lora_quant.errors import Where
from lora_quant.validation.documents.opened import OpenedDocument

_SECTIONS = ("activation_encodings", "param_encodings", "encodings")

Places = Callable[[str | None], Where]
"""A tensor's name -> its place; None -> the file."""


def entry_places(document: OpenedDocument) -> Places:
    """Places are looked up when the first one is asked for: most files have nothing to report."""

    @cache
    def paths() -> dict[str, PathParts]:
        return dict(_entries(document.value))

    @cache
    def places() -> Callable[[PathParts], Where]:
        return document.places()

    def where(tensor: str | None) -> Where:
        if tensor is None:
            return Where(file=document.shown)
        path = paths().get(tensor)
        if path is None:
            return Where(file=document.shown, tensor=tensor)
        return replace(places()(path), tensor=tensor)

    return where


def _entries(value: Any) -> Iterator[tuple[str, PathParts]]:
    if not isinstance(value, Mapping):
        return
    sections = [key for key in _SECTIONS if isinstance(value.get(key), Mapping | list)]
    if not sections:
        yield from ((name, (name,)) for name in value)
    for key in sections:
        section = value[key]
        if isinstance(section, Mapping):
            yield from ((name, (key, name)) for name in section)
            continue
        for index, entry in enumerate(section):
            name = entry.get("name") if isinstance(entry, Mapping) else None
            if isinstance(name, str):
                yield name, (key, index)
