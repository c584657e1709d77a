"""One adapter, loaded: what it adapts, with shapes and scales, and its tensors on request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from lora_quant.adapters.base_modules import BaseModules
from lora_quant.adapters.contract import LoweringRule, PromptRule
from lora_quant.adapters.declared import DeclaredParams, check_declared
from lora_quant.adapters.description import Description, ParameterShape
from lora_quant.adapters.files.checkpoint import Checkpoint, open_checkpoint
from lora_quant.adapters.files.finite import read_finite
from lora_quant.adapters.frame.module_match import Targets, read_targets
from lora_quant.adapters.frame.tasks import with_task
from lora_quant.adapters.lowered import Dense, FloatArray, Lowered, ModuleShape, Need
from lora_quant.adapters.lowered_store import LoweredStore
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

    `description` is what the files tell. `scale` is the adapter-wide factor: the one that most
    modules share. A module's own factor is `scale * deviation(module)`. `stored` holds the modules
    that were lowered once for all, and `settled` the shapes that all modules have then; `max_error`
    is the largest relative error of those that are approximations, None without any.
    """

    name: str
    checkpoint: Checkpoint
    rule: LoweringRule
    description: Description
    scale: float
    findings: tuple[Finding, ...]
    stored: LoweredStore | None = None
    settled: Mapping[str, ModuleShape] | None = None
    max_error: float | None = None

    @property
    def shapes(self) -> Mapping[str, ModuleShape]:
        """Every adapted module, sorted by name."""
        return self.description.shapes if self.settled is None else self.settled

    @property
    def parameters(self) -> Mapping[str, ParameterShape]:
        """Every parameter of the base that the adapter replaces."""
        return self.description.parameters

    @property
    def rank(self) -> int:
        """The largest rank of its modules: the width of its slot."""
        return max((shape.rank for shape in self.shapes.values()), default=0)

    @cached_property
    def targets(self) -> Targets:
        """What the configuration targets, to hold the modules of a graph against it."""
        return read_targets(self.checkpoint.config)

    def deviation(self, module: str) -> float:
        """The module's scale over the adapter's: exactly 1.0 where they agree."""
        return self._shape(module).scale / self.scale

    def lower(self, module: str, base: BaseModules | None = None) -> Lowered | Dense:
        """Read the tensors of one module and bring them to canonical form.

        Raises AdapterError for an unknown module, NaN, Inf, or a file that changed meanwhile, and
        UnsupportedAdapterError if the module needs a base and none is given.
        """
        shape = self._shape(module)
        if self.stored is not None and module in self.stored:
            return self.stored.get(module)
        with _naming(self.name):
            return self.rule.lower(self.checkpoint, shape, base)

    def parameter(self, name: str) -> FloatArray:
        """The values that replace a parameter of the base, or those of its `rows`."""
        with _naming(self.name):
            return read_finite(self.checkpoint.tensors, self.parameters[name].tensor, name)

    def prompt(self) -> FloatArray:
        """The values of the soft prompt, float32, of the shape in the description."""
        shape = self.description.prompt
        if shape is None or not isinstance(self.rule, PromptRule):
            raise AdapterError(
                f"adapter {self.name!r} is no soft prompt", where=Where(adapter=self.name)
            )
        with _naming(self.name):
            return self.rule.prompt(self.checkpoint, shape)

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
    task: int | None = None,
) -> Adapter:
    """Open the checkpoint at `path` (see open_checkpoint for what it may be) and check its headers.

    `rules` maps a `peft_type` to the rule that lowers it. `task` chooses one of a kind that was
    trained for several. Raises InputMissingError, ConfigError,
    AdapterError or UnsupportedAdapterError; each names the adapter and the place.
    """
    with _naming(name):
        checkpoint = open_checkpoint(path)
    return adapter_of(name, checkpoint, rules, declared=declared, task=task)


def adapter_of(
    name: str,
    checkpoint: Checkpoint,
    rules: Mapping[str, LoweringRule],
    *,
    declared: DeclaredParams | None = None,
    task: int | None = None,
) -> Adapter:
    """The adapter of a checkpoint that is open; see load_adapter."""
    with _naming(name):
        rule = _rule_for(checkpoint, rules)
        if task is not None:
            checkpoint = replace(checkpoint, config=with_task(checkpoint.config, rule, task))
        found = rule.describe(checkpoint)
        if not (found.shapes or found.parameters or found.prompt):
            raise AdapterError(
                "the checkpoint adapts nothing: none of its tensors belongs to a module",
                where=Where(file=checkpoint.tensors.path),
                hint="save the adapter again; PEFT writes such a file for wrong names",
            )
        if declared is not None:
            check_declared(declared, checkpoint.config, found.shapes)
        scale = _common_scale(checkpoint, found, rule.default_scale(checkpoint))
    noticed = (*checkpoint.findings, *found.findings)
    named = tuple(replace(f, where=replace(f.where, adapter=name)) for f in noticed)
    return Adapter(name, checkpoint, rule, found, scale, named)


def _rule_for(checkpoint: Checkpoint, rules: Mapping[str, LoweringRule]) -> LoweringRule:
    config = checkpoint.config
    rule = rules.get(config.peft_type)
    if rule is None:
        if config.peft_type.upper() in rules:
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


def _common_scale(checkpoint: Checkpoint, found: Description, default: float) -> float:
    """The scale that most modules have; at a tie the configuration's own, else the first's.

    A module may be switched off with a scale of 0, but that cannot be the adapter's: every other
    module's deviation is a quotient by it. It is 1 without low rank anywhere, and where all of it
    is switched off but the adapter acts in other ways.
    """
    ranked = {name: shape for name, shape in found.shapes.items() if shape.rank}
    if not ranked:
        return 1.0
    counts = Counter(shape.scale for shape in ranked.values() if shape.scale != 0)
    if not counts and (found.parameters or any(map(_acts_unscaled, found.shapes.values()))):
        return 1.0
    if not counts:
        raise AdapterError(
            "the scale of every module is 0: the adapter does nothing",
            where=checkpoint.config.where("lora_alpha"),
            hint="set the alpha that it was trained with",
        )
    most = max(counts.values())
    if counts[default] == most:
        return default
    return next(s.scale for _, s in sorted(ranked.items()) if counts[s.scale] == most)


def _acts_unscaled(shape: ModuleShape) -> bool:
    """Whether a module may change the base at a scale of 0 too: s is not all that it has."""
    return bool(shape.vectors) or shape.dense or shape.need is Need.WEIGHT


@contextmanager
def _naming(adapter: str) -> Iterator[None]:
    """Add the adapter's name to any error that passes."""
    try:
        yield
    except LoraQuantError as error:
        error.where = replace(error.where, adapter=adapter)
        raise
