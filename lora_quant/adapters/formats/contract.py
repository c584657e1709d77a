"""What a checkpoint format must offer: know its own files, and read them into PEFT's vocabulary.

A format is told by what is in the files, never by how they are called. What PEFT's vocabulary has
no place for is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.files.tensor_source import TensorSource
from lora_quant.findings import Finding


@dataclass(frozen=True, eq=False)
class Found:
    """The files of a checkpoint before its format is known.

    `document` is the object in `config_file`; both are None when there is none.
    """

    tensors: TensorSource
    config_file: Path | None = None
    document: Mapping[str, Any] | None = None

    @property
    def is_peft_config(self) -> bool:
        """Whether the configuration is PEFT's."""
        return self.document is not None and "peft_type" in self.document


@dataclass(frozen=True, eq=False)
class Reading:
    """A checkpoint in PEFT's vocabulary."""

    config: PeftConfig
    tensors: TensorSource
    findings: tuple[Finding, ...] = ()


class CheckpointFormat(Protocol):
    """One format. `signature` says in a few words what it is told by."""

    name: ClassVar[str]
    signature: ClassVar[str]

    def claims(self, found: Found) -> bool:
        """Whether names, metadata or configuration are of this format; reads no tensor."""

    def read(self, found: Found) -> Reading:
        """Bring it to PEFT's vocabulary.

        Reads single numbers (scales) and no weight. Raises AdapterError or UnsupportedAdapterError
        naming the tensor or the field.
        """
