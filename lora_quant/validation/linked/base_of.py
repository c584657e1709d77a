"""What `--base` names, or the finding that it cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lora_quant.errors import LoraQuantError
from lora_quant.findings import Finding
from lora_quant.validation.from_errors import finding_of

_Value = TypeVar("_Value")


def base_of(base: Path, read: Callable[[Path], _Value]) -> _Value | Finding:
    """What `read` makes of the base graph; its error as a finding at the graph."""
    try:
        return read(base)
    except LoraQuantError as error:
        return finding_of(error, shown=base)
