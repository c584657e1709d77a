"""The text file that the run option `qnn.lora_config` of ONNX Runtime's QNN provider names.

    graph name;section path        name of the graph in the context binary; its section's file

It has one line. Every character of it belongs to the name or to the path: nothing is quoted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SEPARATOR: Final = ";"


@dataclass(frozen=True)
class QnnLoraConfig:
    """The graph that a session runs, and the file of the section that is applied to it."""

    graph: str
    section: str

    def dump(self) -> str:
        """The content of the file."""
        return f"{self.graph}{SEPARATOR}{self.section}\n"


def parse_line(line: str) -> QnnLoraConfig | None:
    """What a line says, None if it does not have two parts."""
    parts = line.split(SEPARATOR)
    return QnnLoraConfig(parts[0], parts[1]) if len(parts) == 2 else None
