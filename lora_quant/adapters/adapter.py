"""One adapter, loaded: its modules with their shapes and scales, and its tensors on request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from lora_quant.adapters.checkpoint import Checkpoint, open_checkpoint
from lora_quant.adapters.contract import LoweringRule
from lora_quant.adapters.declared import DeclaredParams, check_declared
from lora_quant.adapters.lowered import Lowered, ModuleShape
from lora_quant.adapters.module_match import Targets, read_targets
from lora_quant.errors import (
    AdapterError,
    LoraQuantError,
    UnsupportedAdapterError,
    Where,
    did_you_mean,
)
from lora_quant.findings import Finding


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter whose headers have been read and checked, and no tensor yet.

    `shapes` holds every adapted module, sorted by name. `scale` is the adapter-wide factor: the one
    that most modules share. A module's own factor is `scale * deviation(module)`.
    """

    name: str
    checkpoint: Checkpoint
    rule: LoweringRule
    shapes: Mapping[str, ModuleShape]
    scale: float
    findings: tuple[Finding, ...]

    @property
    def rank(self) -> int:
        """The largest rank of its modules: the width of its slot."""
        return max(shape.rank for shape in self.shapes.values())

    @cached_property
    def targets(self) -> Targets:
        """What the configuration targets, to hold the modules of a graph against it."""
        return read_targets(self.checkpoint.config)

    def deviation(self, module: str) -> float:
        """The module's scale over the adapter's: exactly 1.0 where they agree."""
        return self._shape(module).scale / self.scale

    def lower(self, module: str) -> Lowered:
        """Read the tensors of one module and bring them to canonical form.

        Raises AdapterError for an unknown module, NaN, Inf, or a file that changed meanwhile.
        """
        shape = self._shape(module)
        with _naming(self.name):
            return self.rule.lower(self.checkpoint, shape)

    def _shape(self, module: str) -> ModuleShape:
        shape = self.shapes.get(module)
        if shape is None:
            raise AdapterError(
                f"adapter {self.name!r} does not adapt this module",
                where=Where(adapter=self.name, module=module),
                hint=did_you_mean(module, self.shapes),
            )
        return shape


def load_adapter(
    name: str,
    path: Path,
    rules: Mapping[str, LoweringRule],
    *,
    declared: DeclaredParams | None = None,
) -> Adapter:
    """Open the checkpoint at `path` (a PEFT folder or one of its two files) and check its headers.

    `rules` maps a `peft_type` to the rule that lowers it. Raises InputMissingError, ConfigError,
    AdapterError or UnsupportedAdapterError; each names the adapter and the place.
    """
    with _naming(name):
        checkpoint = open_checkpoint(path)
        rule = _rule_for(checkpoint, rules)
        shapes, findings = rule.modules(checkpoint)
        if declared is not None:
            check_declared(declared, checkpoint.config, shapes)
        scale = _common_scale(checkpoint, shapes, rule.default_scale(checkpoint))
    named = tuple(replace(f, where=replace(f.where, adapter=name)) for f in findings)
    return Adapter(name, checkpoint, rule, shapes, scale, named)


_SOFT_PROMPTS = frozenset(
    {
        "ADAPTION_PROMPT",
        "CARTRIDGE",
        "CPT",
        "MULTITASK_PROMPT_TUNING",
        "PREFIX_TUNING",
        "PROMPT_TUNING",
        "P_TUNING",
    }
)


def _rule_for(checkpoint: Checkpoint, rules: Mapping[str, LoweringRule]) -> LoweringRule:
    config = checkpoint.config
    rule = rules.get(config.peft_type)
    if rule is None:
        if config.peft_type in _SOFT_PROMPTS:
            hint = "it adds inputs instead of changing weights: feed it to the model as it is"
        elif config.peft_type.upper() in rules:
            hint = did_you_mean(config.peft_type.upper(), rules)
        else:
            hint = (
                "merge it into the base with PEFT and export that, train LoRA instead, or install "
                "a package with a lowering rule for it"
            )
        raise UnsupportedAdapterError(
            f"peft_type is {config.peft_type!r}, expected one of {', '.join(sorted(rules))}",
            where=config.where("peft_type"),
            hint=hint,
        )
    return rule


def _common_scale(
    checkpoint: Checkpoint, shapes: Mapping[str, ModuleShape], default: float
) -> float:
    """The scale that most modules have; at a tie the configuration's own, else the first's.

    A module may be switched off with a scale of 0, but that cannot be the adapter's: every other
    module's deviation is a quotient by it.
    """
    counts = Counter(shape.scale for shape in shapes.values() if shape.scale != 0)
    if not counts:
        raise AdapterError(
            "the scale of every module is 0: the adapter does nothing",
            where=checkpoint.config.where("lora_alpha"),
            hint="set the alpha that it was trained with",
        )
    most = max(counts.values())
    if counts[default] == most:
        return default
    return next(s.scale for _, s in sorted(shapes.items()) if counts[s.scale] == most)


@contextmanager
def _naming(adapter: str) -> Iterator[None]:
    """Add the adapter's name to any error that passes."""
    try:
        yield
    except LoraQuantError as error:
        error.where = replace(error.where, adapter=adapter)
        raise
