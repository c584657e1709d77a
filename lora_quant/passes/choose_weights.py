"""Pass: where each use case of a final graph has its LoRA weights from.

model_name is another graph      from that graph, as they are
no adapters                      from the given graph
adapters with weights            placed into the ranks of the given graph's branches
adapters with descriptions alone from the given graph, if it stands for nothing else
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from lora_quant.config.lora_config import UseCaseInputConfig
from lora_quant.config.use_case_graphs import with_own_graphs
from lora_quant.errors import ConfigError, Where
from lora_quant.passes.adapter_sources import AdapterSources, read_sources
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.conditions import WEIGHTS_CHOSEN
from lora_quant.passes.contract import Condition, PassResult
from lora_quant.passes.final.described import described
from lora_quant.passes.final.records import GivenGraph


@dataclass(frozen=True)
class ChooseWeights:
    """Opens no graph; of adapters whose values are in graphs, headers alone."""

    name: ClassVar[str] = "choose-weights"
    requires: ClassVar[tuple[Condition, ...]] = ()
    ensures: ClassVar[tuple[Condition, ...]] = (WEIGHTS_CHOSEN,)

    def run(self, compilation: Compilation) -> PassResult:
        """Raises ConfigError for a use case whose weights nothing tells."""
        if compilation.given is not None:
            return PassResult(compilation, changed=False)
        config = compilation.config
        unused = config.unused_adapters()
        sources = {
            entry.name: read_sources(entry, compilation.config_file)
            for entry in config.adapter
            if entry.name not in unused
        }
        own = {u.name for u in with_own_graphs(config, compilation.base.path)}
        has_base = any(not u.adapter_names for u in config.use_cases)
        stored: dict[str, Path] = {}
        placed: set[str] = set()
        for use_case in config.use_cases:
            if use_case.name in own:
                stored[use_case.name] = use_case.model
            elif _is_placed(use_case, sources, compilation.config_file, has_base=has_base):
                placed.update(use_case.adapter_names)
            else:
                stored[use_case.name] = compilation.base.path
        given = GivenGraph(
            stored,
            {name: described(one) for name, one in sources.items() if name not in placed},
        )
        return PassResult(replace(compilation, given=given), changed=True)


def _is_placed(
    use_case: UseCaseInputConfig,
    sources: Mapping[str, AdapterSources],
    config_file: Path | None,
    *,
    has_base: bool,
) -> bool:
    """Whether a use case on the given graph has its values from checkpoints."""
    names = use_case.adapter_names
    without = [name for name in names if sources[name].checkpoint is None]
    if not without:
        return bool(names)
    if len(without) == len(names) and not has_base:
        return False
    reason = "which is the graph of a use case without adapters as well"
    if len(without) < len(names):
        reason = "and others of the use case have weights of their own"
    raise ConfigError(
        f"nothing tells the weights of adapter {without[0]!r}: it has a description alone, the use "
        f"case names the given graph, {reason}",
        where=Where(file=config_file, field="model_name", use_case=use_case.name),
        hint="name the graph that holds this use case's weights as its model_name, or the "
        "adapter's PEFT folder in its lora_config",
    )
