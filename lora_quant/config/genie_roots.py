"""The keys of a Genie configuration below which there are engines.

{"dialog": {"engine": {...}}}  ->  a configuration, or a part of one
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

GENIE_ROOTS: Final = ("dialog", "standalone-engine", "text-generator")
"""Keys of a configuration below which there is an `engine`."""


def has_engines(document: Mapping[str, Any]) -> bool:
    """Whether a document is a configuration, or a part of one, rather than the block alone."""
    return any(isinstance(document.get(root), Mapping) for root in GENIE_ROOTS)
