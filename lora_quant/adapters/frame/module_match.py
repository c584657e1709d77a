"""Does the configuration target a module? PEFT's rules, to hold a checkpoint against them.

A text is a regular expression for the whole path ("all-linear" matches everything). A list holds
whole paths or their last parts. `exclude_modules` goes the same way and wins. With a list,
`layers_to_transform` keeps only some layers, except where an entry is the whole path.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.patterns import compile_regex
from lora_quant.errors import AdapterError
from lora_quant.findings import Finding, Severity

ALL_LINEAR = "all-linear"
_ANY_LAYER = re.compile(r".*?\.[^.]*\.(?P<index>\d+)\.")
_OPERATOR = re.compile(r"_(Conv|Gemm|MatMul)$")

_LAYER_OF_PATTERN = r"(?:^|.*?\.)%s\.(?P<index>\d+)\."


class Objection(NamedTuple):
    """Why a module is not adapted, and the field that says so."""

    field: str
    reason: str


@dataclass(frozen=True)
class Targets:
    """The part of a configuration that says which modules are adapted.

    `modules` None means that it does not say (PEFT then chooses by model type).
    """

    modules: str | tuple[str, ...] | None
    excluded: str | tuple[str, ...] | None = None
    layers: tuple[int, ...] = ()
    layer_patterns: tuple[str, ...] = ()

    @property
    def is_all_linear(self) -> bool:
        """Whether every linear module is meant, but for the output layer, which no file names."""
        return self.modules is not None and _is_all_linear(self.modules)

    def objection(self, module: str) -> Objection | None:
        """Why the configuration does not adapt `module`; None if it does."""
        if self.excluded and _selects(self.excluded, module):
            return Objection("exclude_modules", "exclude_modules excludes it")
        if self.modules is None or _is_all_linear(self.modules):
            return None
        if not _selects(self.modules, module):
            return Objection("target_modules", "target_modules does not name it")
        if isinstance(self.modules, str) or module in self.modules or not self.layers:
            return None
        index = self.layer_index(module)
        if index in self.layers:
            return None
        place = "it is in no numbered layer" if index is None else f"it is in layer {index}"
        return Objection("layers_to_transform", f"{place}, layers_to_transform is {self.layers}")

    def matches(self, module: str) -> bool:
        """Whether the configuration adapts `module`."""
        return self.objection(module) is None

    def layer_index(self, module: str) -> int | None:
        """The index of the layer that `module` is in: of the first numbered part that counts."""
        if not self.layer_patterns:
            found = _ANY_LAYER.match(module)
            return None if found is None else int(found["index"])
        for pattern in self.layer_patterns:
            found = re.match(_LAYER_OF_PATTERN % pattern, module)
            if found is not None:
                return int(found["index"])
        return None


def read_targets(config: PeftConfig) -> Targets:
    """Read and check the fields that select modules; AdapterError names the one at fault."""
    modules = config.names("target_modules")
    patterns = config.names("layers_pattern") or ()
    targets = Targets(
        modules=modules,
        excluded=config.names("exclude_modules"),
        layers=config.indices("layers_to_transform"),
        layer_patterns=(patterns,) if isinstance(patterns, str) else patterns,
    )
    if isinstance(modules, str) and not _is_all_linear(modules):
        compile_regex(config, "target_modules", modules)
    if isinstance(targets.excluded, str):
        compile_regex(config, "exclude_modules", targets.excluded)
    for pattern in targets.layer_patterns:
        compile_regex(config, "layers_pattern", pattern, form=_LAYER_OF_PATTERN)
    if targets.layer_patterns and not targets.layers:
        raise AdapterError(
            "layers_pattern is given without layers_to_transform, which it belongs to",
            where=config.where("layers_pattern"),
            hint="list the layers in layers_to_transform, or remove layers_pattern",
        )
    if isinstance(modules, str) and targets.layers:
        raise AdapterError(
            "layers_to_transform is given beside a target_modules that is a text",
            where=config.where("layers_to_transform"),
            hint="PEFT refuses this too: name the layers in the expression, or list the modules",
        )
    return targets


def check_targets(
    targets: Targets, config: PeftConfig, modules: Collection[str]
) -> tuple[Finding, ...]:
    """Hold the modules of a checkpoint against its configuration.

    A module that has tensors but is not targeted is an AdapterError: PEFT would leave its tensors
    out without an error. What is named but has no tensors is a warning.
    """
    for module in modules:
        objection = targets.objection(module)
        if objection is not None:
            raise AdapterError(
                f"module {module!r} has tensors but is not a target: {objection.reason}",
                where=replace(config.where(objection.field), module=module),
                hint=f"correct {objection.field} so that it agrees with the weights",
            )
    if targets.modules is None:
        return (_unknown_targets(config),)
    findings = [
        _without_tensors(config, "target_modules", f"target {entry!r}")
        for entry in (targets.modules if isinstance(targets.modules, tuple) else ())
        if not any(is_suffix(entry, module) for module in modules)
    ]
    present = {targets.layer_index(module) for module in modules}
    findings += [
        _without_tensors(config, "layers_to_transform", f"layer {index}")
        for index in targets.layers
        if index not in present
    ]
    return tuple(findings)


def _without_tensors(config: PeftConfig, field: str, what: str) -> Finding:
    return Finding(
        rule="adapter/target-without-tensors",
        severity=Severity.WARNING,
        message=f"{what} of {field} has no tensors in the checkpoint",
        where=config.where(field),
        hint="check that the checkpoint is complete; the base is used unchanged there",
    )


def _unknown_targets(config: PeftConfig) -> Finding:
    return Finding(
        rule="adapter/targets-not-given",
        severity=Severity.NOTE,
        message="target_modules is not given: whether the checkpoint is complete is not known",
        where=config.where("target_modules"),
        hint="PEFT writes the modules that were adapted; add them to have them checked",
    )


def is_suffix(entry: str, module: str) -> bool:
    """Whether `entry` is the path `module` or its last parts."""
    return module == entry or module.endswith(f".{entry}")


def names_module(entry: str, module: str) -> bool:
    """Like `is_suffix`, and also the joined form that a prepared model gives to a whole path.

    `model_layers_0_self_attn_q_proj_Conv` names `model.layers.0.self_attn.q_proj`.
    """
    return is_suffix(entry, module) or without_operator(entry) == module.replace(".", "_")


def without_operator(entry: str) -> str:
    """An entry without the operator that a prepared model appends."""
    return _OPERATOR.sub("", entry)


def _is_all_linear(modules: str | tuple[str, ...] | None) -> bool:
    return isinstance(modules, str) and modules.lower() == ALL_LINEAR


def _selects(selector: str | tuple[str, ...], module: str) -> bool:
    if isinstance(selector, str):
        return re.fullmatch(selector, module) is not None
    return any(is_suffix(entry, module) for entry in selector)
