"""TRAINABLE_TOKENS: some rows of an embedding, trained as they are.

    <embedding>.trainable_tokens_delta [tokens, dim]      replaces rows of  <embedding>.weight

The tensor is called a delta, but holds the rows themselves. Where the output layer shares the
embedding's table, PEFT replaces the rows there too, and the file has them once or for both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from lora_quant.adapters.description import Description, ParameterShape
from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.files.tensor_source import TensorSource
from lora_quant.adapters.frame.fields import check_fields
from lora_quant.adapters.frame.key_table import KeyTable, read_keys
from lora_quant.adapters.frame.module_match import check_targets, read_targets
from lora_quant.adapters.frame.replaced_parameters import parameter_shape, replaced_parameters
from lora_quant.adapters.frame.tied_rows import ties_notice
from lora_quant.adapters.kinds.without_modules import WithoutModules
from lora_quant.errors import AdapterError, Where
from lora_quant.findings import Finding, Severity

_ROWS = "trainable_tokens_delta"


class TrainableTokensRule(WithoutModules):
    """Rows of the named modules' weights are replaced."""

    kind: ClassVar[str] = "TRAINABLE_TOKENS"

    def describe(self, checkpoint: Checkpoint) -> Description:
        """See LoweringRule."""
        config, source = checkpoint.config, checkpoint.tensors
        check_fields(config, ("token_indices", "init_weights"), {})
        keys = read_keys(source, (_ROWS,))
        targets, tokens = read_targets(config), _token_indices(config)
        named = [module for module in keys.modules if targets.matches(module)]
        findings = check_targets(targets, config, named or keys.modules)
        findings += _tied(keys, named, source, config)
        parameters = replaced_parameters(keys.others, config, source, ())
        with_ties = len(keys.modules) == 1
        for module, tensors in keys.modules.items():
            rows = token_rows(f"{module}.weight", tensors[_ROWS], source, tokens)
            parameters[rows.parameter] = replace(rows, with_ties=with_ties)
        if with_ties:
            (module,) = keys.modules
            findings = (*findings, ties_notice(module, config.where("token_indices")))
        return Description(parameters=parameters, findings=findings)


def _tied(
    keys: KeyTable, named: list[str], source: TensorSource, config: PeftConfig
) -> tuple[Finding, ...]:
    """A warning for each module that only a tie to a named one explains.

    PEFT also writes the layers that are tied to a target, and does not name them; whether the base
    ties them is not in the configuration. AdapterError where the shapes say that it does not.
    """
    if not named:
        return ()
    shapes = {module: source.info(names[_ROWS]).shape for module, names in keys.modules.items()}
    findings = []
    for module in keys.modules:
        if module in named:
            continue
        like = next((other for other in named if shapes[other] == shapes[module]), None)
        where = replace(config.where("target_modules"), module=module)
        if like is None:
            raise AdapterError(
                f"module {module!r} has rows of shape {list(shapes[module])} but is not a target, "
                f"expected those of {named[0]!r}, {list(shapes[named[0]])}, if the two are tied",
                where=where,
                hint="correct target_modules so that it agrees with the weights",
            )
        findings.append(
            Finding(
                rule="adapter/rows-not-named",
                severity=Severity.WARNING,
                message=f"target_modules does not name {module!r}, and its rows are replaced too: "
                f"PEFT does so only if the base ties it to {like!r}, which the configuration does "
                "not tell",
                where=where,
                hint="if the base does not tie them, remove the tensor of that module",
            )
        )
    return tuple(findings)


def token_rows(
    parameter: str, tensor: str, source: TensorSource, tokens: tuple[int, ...]
) -> ParameterShape:
    """The rows that a tensor `[tokens, dim]` replaces; AdapterError for another count."""
    shape = parameter_shape(parameter, tensor, source)
    if len(shape.shape) != 2 or shape.shape[0] != len(tokens):
        raise AdapterError(
            f"the tensor has shape {list(shape.shape)}, expected [{len(tokens)}, dim]: one row for "
            "each of the token indices",
            where=Where(file=source.path, module=parameter.rpartition(".")[0], tensor=tensor),
            hint="the configuration is not the one that the weights were saved with",
        )
    return replace(shape, rows=tokens)


def _token_indices(config: PeftConfig) -> tuple[int, ...]:
    tokens = config.indices("token_indices")
    if len(set(tokens)) != len(tokens):
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise AdapterError(
            f"token_indices names {twice} twice, so that it is not clear which row is meant",
            where=config.where("token_indices"),
            hint="name each token once, and save the adapter again",
        )
    return tokens
