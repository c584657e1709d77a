"""How thoroughly to check, and against what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_quant.validation.rule import ALL_LEVELS, Level


@dataclass(frozen=True)
class Request:
    """What holds for every file of a validation.

    levels: levels whose rules are wanted; others need not be looked at. base: a base graph that
    everything which names nodes or tensors is held against, None for the graph that a file itself
    names. It is pickled: files are checked in several processes.
    """

    levels: frozenset[Level] = ALL_LEVELS
    base: Path | None = None


EVERYTHING = Request()
