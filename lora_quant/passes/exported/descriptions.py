"""What the description of an adapter says of a module: its rank, and what its scale can be.

adapter JSON     rank and alpha of all its target_modules; of several, the most specific entry
PEFT's config    r, lora_alpha, their patterns, use_rslora
a checkpoint     what its lowering rule says; its weights are held against those of the graph
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from lora_quant.adapters.files.peft_config import PeftConfig, read_peft_config
from lora_quant.adapters.formats.synthesis import Strength, make_config
from lora_quant.adapters.frame.module_match import read_targets
from lora_quant.adapters.frame.patterns import match_patterns
from lora_quant.errors import ConfigError, UnsupportedAdapterError, Where, did_you_mean
from lora_quant.passes.adapter_sources import DeclaredEntry
from lora_quant.passes.exported.readings import Law
from lora_quant.passes.exported.target_index import TargetIndex


@dataclass(frozen=True)
class Setting:
    """Rank of an adapter at one module, and its scale without the strength, by law."""

    rank: int
    laws: dict[Law, float]


class Described(Protocol):
    """One adapter as it was described, before its weights are known."""

    @property
    def where(self) -> Where:
        """The place of the description."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the description; none where all of it is inline."""

    def settings(self, modules: Sequence[str]) -> Mapping[str, Setting]:
        """Those of `modules` that the adapter can be at."""

    def config(self, modules: Sequence[str], law: Law) -> PeftConfig:
        """The configuration of a checkpoint that adapts exactly `modules`."""


# what acts beyond A, scale and B
_BEYOND = ("use_dora", "alora_invocation_tokens", "layer_replication")
_KEPT = frozenset(
    {
        "alpha_pattern",
        "exclude_modules",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "use_rslora",
    }
)


@dataclass(frozen=True)
class PeftDescribed:
    """`adapter_config.json` without weights beside it.

    What it says beyond targets, ranks and scales (the start of the training, dropout) is in the
    graph, or was of the training alone.
    """

    adapter: str
    peft: PeftConfig

    @classmethod
    def read(cls, adapter: str, file: Path) -> PeftDescribed:
        """Raises UnsupportedAdapterError for kinds that no A, scale and B make."""
        config = read_peft_config(file)
        if config.peft_type != "LORA":
            raise UnsupportedAdapterError(
                f"adapter {adapter!r} is of kind {config.peft_type} and has no weights, expected "
                "LORA",
                where=config.where("peft_type"),
                hint="name its weights as well, and the base graph as model_name of its use cases",
            )
        for name in _BEYOND:
            if not config.is_neutral(name):
                raise UnsupportedAdapterError(
                    f"adapter {adapter!r} sets {name} and has no weights: the branches of a graph "
                    "do not tell what that does",
                    where=config.where(name),
                    hint="name its weights as well, and the base graph as model_name of its use "
                    "cases",
                )
        kept = {name: value for name, value in config.fields.items() if name in _KEPT}
        return cls(adapter, PeftConfig(file, "LORA", MappingProxyType(kept)))

    @property
    def where(self) -> Where:
        """The file."""
        return Where(file=self.peft.file, adapter=self.adapter)

    @property
    def files(self) -> tuple[Path, ...]:
        """See Described."""
        return (self.peft.file,)

    def settings(self, modules: Sequence[str]) -> Mapping[str, Setting]:
        """By PEFT's rules for targets and patterns."""
        config = self.peft
        targets = read_targets(config)
        matched = [module for module in modules if targets.matches(module)]
        ranks, _ = match_patterns(
            config,
            "rank_pattern",
            config.positive_patterns("rank_pattern"),
            config.positive("r", 8),
            matched,
        )
        alphas, _ = match_patterns(
            config,
            "alpha_pattern",
            config.number_patterns("alpha_pattern"),
            config.number("lora_alpha", 8.0),
            matched,
        )
        law = Law.RSLORA if config.flag("use_rslora") else Law.LORA
        return {
            module: Setting(
                ranks[module].value,
                {law: scale_of(law, float(alphas[module].value), ranks[module].value)},
            )
            for module in matched
        }

    def config(self, modules: Sequence[str], law: Law) -> PeftConfig:
        """PEFT's own; the law is in it."""
        del modules, law
        return self.peft


@dataclass(frozen=True)
class DeclaredDescribed:
    """One adapter JSON, or several that each tell of some modules."""

    adapter: str
    entries: tuple[DeclaredEntry, ...]
    config_file: Path

    @property
    def where(self) -> Where:
        """The first file; for an inline object the configuration."""
        return Where(file=self._file(self.entries[0]), adapter=self.adapter)

    @property
    def files(self) -> tuple[Path, ...]:
        """See Described."""
        return tuple(dict.fromkeys(one.file for one in self.entries if one.file is not None))

    @cached_property
    def _targets(self) -> tuple[tuple[int, str], ...]:
        return tuple(
            (number, target)
            for number, entry in enumerate(self.entries)
            for target in entry.params.target_modules
        )

    def settings(self, modules: Sequence[str]) -> Mapping[str, Setting]:
        """Rank and alpha of the most specific entry that names a module; both laws are possible.

        Raises ConfigError if two that are equally specific say different things.
        """
        found = {}
        for module, strength in self._strengths(modules, TargetIndex(modules)).items():
            laws = {law: scale_of(law, strength.alpha, strength.rank) for law in Law}
            found[module] = Setting(strength.rank, laws)
        return found

    def config(self, modules: Sequence[str], law: Law) -> PeftConfig:
        """PEFT's vocabulary for what the entries say.

        Raises ConfigError for a target that none of `modules` is.
        """
        index = TargetIndex(modules)
        self._check_targets(modules, index)
        first = self.entries[0].params
        targets = sorted({target for _, target in self._targets})
        if len({module for t in targets for module in index.by_suffix(t)}) < len(modules):
            targets = sorted(modules)
        fields: dict[str, Any] = {"use_rslora": True} if law is Law.RSLORA else {}
        return make_config(
            self._file(self.entries[0]),
            "LORA",
            self._strengths(modules, index),
            default=Strength(first.rank, float(first.alpha)),
            **{"target_modules": targets, **fields},
        )

    def _strengths(self, modules: Sequence[str], index: TargetIndex) -> dict[str, Strength]:
        best: dict[str, tuple[int, DeclaredEntry]] = {}
        for number, target in self._targets:
            entry = self.entries[number]
            for module, levels in index.find(target):
                before = best.get(module)
                if before is not None and before[0] == levels:
                    self._check_equal(module, before[1], entry)
                if before is None or levels > before[0]:
                    best[module] = (levels, entry)
        params = {module: best[module][1].params for module in modules if module in best}
        return {module: Strength(one.rank, float(one.alpha)) for module, one in params.items()}

    def _check_equal(self, module: str, one: DeclaredEntry, other: DeclaredEntry) -> None:
        a, b = one.params, other.params
        if (a.rank, a.alpha) != (b.rank, b.alpha):
            raise ConfigError(
                f"two descriptions of adapter {self.adapter!r} tell of one module: rank {a.rank}, "
                f"alpha {a.alpha:g} and rank {b.rank}, alpha {b.alpha:g}",
                where=Where(file=self._file(other), adapter=self.adapter, module=module),
                hint="name the module with more of its levels in the entry that counts",
            )

    def _check_targets(self, modules: Sequence[str], index: TargetIndex) -> None:
        for number, target in self._targets:
            if index.find(target):
                continue
            known = {part for m in modules for part in (m, m.rpartition(".")[2])}
            raise ConfigError(
                f"target_modules of adapter {self.adapter!r} names {target!r}, and no graph has a "
                "branch of it there",
                where=Where(
                    file=self._file(self.entries[number]),
                    field="target_modules",
                    adapter=self.adapter,
                    module=target,
                ),
                hint=did_you_mean(target, known),
            )

    def _file(self, entry: DeclaredEntry) -> Path:
        return entry.file or self.config_file


def scale_of(law: Law, alpha: float, rank: int) -> float:
    """The factor that training gave to the ranks of a module."""
    return alpha / (math.sqrt(rank) if law is Law.RSLORA else rank)
