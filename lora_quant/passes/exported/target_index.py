"""Which of many modules an entry of `target_modules` names, without trying each.

q_proj, self_attn.q_proj                      the last parts of a path
model_layers_0_self_attn_q_proj_Conv          the joined form of a whole path ("prepared" models)
base.model.layers.0.self_attn.q_proj          a path with other leading levels, if one module fits
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from lora_quant.adapters.frame.module_match import without_operator
from lora_quant.graph.attach.name_table import NameTable


class TargetIndex:
    """An index of modules by everything that an entry can say."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._by_suffix: dict[str, list[str]] = defaultdict(list)
        self._by_joined: dict[str, list[str]] = defaultdict(list)
        for module in modules:
            levels = module.split(".")
            for start in range(len(levels)):
                self._by_suffix[".".join(levels[start:])].append(module)
            self._by_joined["_".join(levels)].append(module)
        self._by_levels = NameTable(modules)

    def by_suffix(self, target: str) -> Sequence[str]:
        """The modules whose path ends in `target`: what PEFT itself would match."""
        return self._by_suffix.get(target, ())

    def find(self, target: str) -> Sequence[tuple[str, int]]:
        """The modules that `target` names, and how many of its levels it tells."""
        named = self.by_suffix(target)
        if named:
            return [(module, target.count(".") + 1) for module in named]
        whole = self._by_joined.get(without_operator(target)) or self._by_levels.find(target)
        return [(module, module.count(".") + 1) for module in whole] if len(whole) == 1 else ()
