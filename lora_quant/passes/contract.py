"""What a pass is: a frozen dataclass with options as fields, conditions before and after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from lora_quant.passes.compilation import Compilation


@dataclass(frozen=True)
class Condition:
    """A named fact about a compilation; `broken` returns what is wrong with it, or None."""

    name: str
    broken: Callable[[Compilation], str | None]


@dataclass(frozen=True, eq=False)
class PassResult:
    """The next state, and whether the pass changed anything (truthfully)."""

    compilation: Compilation
    changed: bool


@runtime_checkable
class Pass(Protocol):
    """One step of the compilation. `name` is also its entry point in `lora_quant.passes`."""

    name: ClassVar[str]
    requires: ClassVar[tuple[Condition, ...]]
    ensures: ClassVar[tuple[Condition, ...]]

    def run(self, compilation: Compilation) -> PassResult:
        """Return the next state; raises LoraQuantError for anything that a user can mend."""
