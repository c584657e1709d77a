"""The state that flows through the passes: frozen, filled in step by step, no tensor values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lora_quant.adapters.adapter import Adapter
from lora_quant.config.options import BuildOptions
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.findings import Finding
from lora_quant.graph.attach.resolver import Resolution
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.records import BranchedGraph
from lora_quant.passes.exported.records import ExportedUseCases
from lora_quant.passes.final.records import GivenGraph, StrengthLayout
from lora_quant.passes.module_map import ModuleMap
from lora_quant.passes.prompt_inputs import PromptInputs
from lora_quant.passes.replacements import Replacement
from lora_quant.passes.slots import SlotTable
from lora_quant.passes.updatable import UpdatableTensors

if TYPE_CHECKING:
    from lora_quant.config.lora_config import LoraConfig

Progress = Callable[[str, int, int], None]


class Staging(Protocol):
    """The folder that a pack grows in (see lora_quant.targets.files.pack_folder)."""

    root: Path
    output: Path


class CompleteEncodings(Protocol):
    """Encodings of the final graph (see lora_quant.passes.merging.merged)."""

    @property
    def base(self) -> EncodingFile:
        """Those of the graph as it is initialised."""

    def for_use_case(self, name: str, ranges: Any) -> tuple[EncodingFile, tuple[Finding, ...]]:
        """Those of one use case, whose weights have these ranges, and what was noticed."""


def no_progress(_what: str, _done: int, _total: int) -> None:
    """The default: say nothing."""


@dataclass(frozen=True, eq=False)
class Compilation:
    """Inputs, then what each pass found.

    `modules` tells the nodes of modules, where the base does not tell them itself. `staging` is
    where packs are written; None if nothing will be. `progress` is told
    (what, done, total) by long steps. `replacements` are the parameters of the base that adapters
    replace; `prompts` tells the inputs that a soft prompt feeds, by adapter. `exported` is what the
    graphs of use cases tell that come with their branches inside. `given` is there if the graph is
    final.
    """

    config: LoraConfig
    options: BuildOptions
    base: BaseGraph
    staging: Staging | None = None
    config_file: Path | None = None
    findings: tuple[Finding, ...] = ()
    exported: ExportedUseCases | None = None
    given: GivenGraph | None = None
    adapters: Mapping[str, Adapter] | None = None
    modules: ModuleMap | None = None
    resolution: Resolution | None = None
    replacements: tuple[Replacement, ...] = ()
    prompts: Mapping[str, PromptInputs] = field(default_factory=dict)
    slots: SlotTable | None = None
    branched: BranchedGraph | None = None
    updatable: UpdatableTensors | None = None
    merged: CompleteEncodings | None = None
    progress: Progress = field(default=no_progress)

    def with_findings(self, *findings: Finding) -> Compilation:
        """The same state with more findings."""
        return replace(self, findings=self.findings + findings)

    @property
    def alpha_layout(self) -> StrengthLayout:
        """The layout of the input for strengths: as the options say, or as a final graph has it."""
        return self.options.alpha_layout if self.given is None else self.given.alpha_layout

    def having(self, name: str) -> Any:
        """A field that an earlier pass fills in; a missing one is a defect of the pass order."""
        value = getattr(self, name)
        if value is None:
            raise RuntimeError(f"{name} is not there yet: a pass that requires it ran too early")
        return value
