"""The frame of every lowering rule: a kind declares its names and gives two short functions.

    shape(headers)    -> rank and sizes of one module, from the headers alone
    formula(module)   -> Lowered or Dense, from the values

Fields of the configuration, tensor names, module patterns and replaced parameters are accounted for
here, the same way for all kinds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from lora_quant.adapters.base_modules import BaseModules
from lora_quant.adapters.description import Description, ParameterShape
from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.bias_field import check_bias
from lora_quant.adapters.frame.defaults import Setting, absent_field, alpha_notice
from lora_quant.adapters.frame.fields import Refusal, check_fields
from lora_quant.adapters.frame.key_table import KeyTable, read_keys
from lora_quant.adapters.frame.module_match import check_targets, read_targets
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.frame.patterns import Matched, match_patterns
from lora_quant.adapters.frame.replaced_parameters import bias_notices, replaced_parameters
from lora_quant.adapters.lowered import Dense, Lowered, ModuleShape
from lora_quant.errors import AdapterError, Where
from lora_quant.findings import Finding


class KindRule(ABC):
    """One adapter kind. Subclasses set the class variables and write `shape` and `formula`.

    `required`, `optional`: parameter names of a module as the file has them; `shared`: those of
    the whole model. `rank_field`, `alpha_field`: fields of the configuration with PEFT's default,
    None for a kind without one. `patterns`: whether rank_pattern and alpha_pattern apply. `used`:
    other fields that the rule reads; `neutral`: fields that change nothing; `refused`: fields that
    it refuses when they are set. `adds_up`: whether updates of this kind can be added to others, as
    in ModuleShape. `form` and `rank` are for the table of kinds (see
    lora_quant.adapters.table): the formula, where the docstring's first line is not one, and the
    rank in terms of the configuration.
    """

    kind: ClassVar[str]
    form: ClassVar[str] = ""
    rank: ClassVar[str] = ""
    required: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    shared: ClassVar[tuple[str, ...]] = ()
    rank_field: ClassVar[tuple[str, int] | None] = None
    alpha_field: ClassVar[tuple[str, float] | None] = None
    patterns: ClassVar[bool] = False
    used: ClassVar[frozenset[str]] = frozenset()
    neutral: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[Mapping[str, Refusal]] = MappingProxyType({})
    adds_up: ClassVar[bool] = True

    @abstractmethod
    def shape(self, headers: Headers) -> ModuleShape:
        """Rank, sizes and vectors of one module; AdapterError if its tensors contradict."""

    @abstractmethod
    def formula(self, module: ModuleTensors) -> Lowered | Dense:
        """The canonical form of one module; the docstring gives the formula."""

    def scale(self, config: PeftConfig, alpha: float, rank: int) -> float:
        """The factor of s: alpha / rank, 1 for a kind without the two."""
        del config
        return alpha / rank if self.alpha_field else 1.0

    def check(self, config: PeftConfig) -> None:
        """Refuse what single fields do not tell; nothing by default."""
        del config

    def describe(self, checkpoint: Checkpoint) -> Description:
        """See LoweringRule."""
        config, source = checkpoint.config, checkpoint.tensors
        self.check(config)
        check_bias(config, self.kind)
        check_fields(config, self._accepted(), self.refused)
        keys = read_keys(source, (*self.required, *self.optional), self.shared)
        keys = self.arrange(keys, checkpoint)
        findings = self.check_targets(keys, checkpoint)
        ranks, rank_findings = self._settings(config, "rank_pattern", keys)
        alphas, alpha_findings = self._settings(config, "alpha_pattern", keys)
        shapes = {}
        for module, names in keys.modules.items():
            self._require(module, names, source.path)
            rank, alpha = int(ranks[module].value), float(alphas[module].value)
            scale = self.scale(config, alpha, rank)
            absent = absent_field(config, self.rank_field, [ranks[module]])
            headers = Headers(
                module, names, keys.shared, source, config, rank, alpha, scale, absent
            )
            for shape in self.shapes(headers):
                tensors = shape.tensors or {**keys.shared, **names}
                adds_up = self.adds_up and shape.adds_up
                shapes[shape.module] = replace(shape, tensors=tensors, adds_up=adds_up)
        parameters = self.parameters(keys, checkpoint, shapes)
        noticed = (
            *alpha_notice(config, self.alpha_field, alphas.values()),
            *bias_notices(config, parameters, shapes),
            *self.notices(checkpoint, shapes),
        )
        return Description(
            shapes, parameters, findings=(*findings, *rank_findings, *alpha_findings, *noticed)
        )

    def default_scale(self, checkpoint: Checkpoint) -> float:
        """See LoweringRule."""
        config = checkpoint.config
        return self.scale(config, self._alpha(config), self._rank(config))

    def lower(
        self, checkpoint: Checkpoint, shape: ModuleShape, base: BaseModules | None
    ) -> Lowered | Dense:
        """See LoweringRule."""
        return self.formula(ModuleTensors(shape, checkpoint.tensors, checkpoint.config, base))

    def arrange(self, keys: KeyTable, checkpoint: Checkpoint) -> KeyTable:
        """The tensors as the rule wants them; for kinds whose names do not say what they adapt."""
        del checkpoint
        return keys

    def check_targets(self, keys: KeyTable, checkpoint: Checkpoint) -> tuple[Finding, ...]:
        """Hold the modules against the fields that select them; see `check_targets`."""
        config = checkpoint.config
        return check_targets(read_targets(config), config, self.targeted(keys.modules))

    def shapes(self, headers: Headers) -> Iterable[ModuleShape]:
        """What the tensors of one module adapt: that module, but for kinds that hold several."""
        return (self.shape(headers),)

    def parameters(
        self, keys: KeyTable, checkpoint: Checkpoint, shapes: Mapping[str, ModuleShape]
    ) -> dict[str, ParameterShape]:
        """The parameters of the base that the checkpoint brings anew."""
        return replaced_parameters(keys.others, checkpoint.config, checkpoint.tensors, shapes)

    def notices(
        self, checkpoint: Checkpoint, shapes: Mapping[str, ModuleShape]
    ) -> tuple[Finding, ...]:
        """What a person should know of this adapter; nothing by default."""
        del checkpoint, shapes
        return ()

    def setting_name(self, module: str) -> str:
        """The name that rank_pattern and alpha_pattern are matched with."""
        return module

    def targeted(self, modules: Mapping[str, Mapping[str, str]]) -> Collection[str]:
        """The modules that `target_modules` has to name: all of them, but for special kinds."""
        return modules.keys()

    def _accepted(self) -> frozenset[str]:
        own = {field[0] for field in (self.rank_field, self.alpha_field) if field}
        patterns = {"rank_pattern", "alpha_pattern"} if self.patterns else set()
        return self.used | self.neutral | own | patterns | {"bias"}

    def _rank(self, config: PeftConfig) -> int:
        return config.positive(*self.rank_field) if self.rank_field else 1

    def _alpha(self, config: PeftConfig) -> float:
        return config.number(*self.alpha_field) if self.alpha_field else 1.0

    def _settings(
        self, config: PeftConfig, field: str, keys: KeyTable
    ) -> tuple[Mapping[str, Setting], tuple[Finding, ...]]:
        """Rank or alpha of each module, by pattern or the same for all."""
        is_rank = field == "rank_pattern"
        default: float = self._rank(config) if is_rank else self._alpha(config)
        if not self.patterns:
            return dict.fromkeys(keys.modules, Matched(default, None)), ()
        given = config.positive_patterns(field) if is_rank else config.number_patterns(field)
        names = {module: self.setting_name(module) for module in keys.modules}
        matched, findings = match_patterns(
            config, field, given, default, dict.fromkeys(names.values())
        )
        return {module: matched[name] for module, name in names.items()}, findings

    def _require(self, module: str, names: Mapping[str, str], file: Path) -> None:
        for parameter in self.required:
            if parameter not in names:
                present = next(iter(names))
                raise AdapterError(
                    f"the module has {present} but no {parameter}",
                    where=Where(file=file, module=module, tensor=names[present]),
                    hint="the checkpoint is incomplete; save or download it again",
                )
