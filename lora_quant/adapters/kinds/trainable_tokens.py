"""TRAINABLE_TOKENS: some rows of an embedding, trained as they are.

    <embedding>.trainable_tokens_delta [tokens, dim]      replaces rows of  <embedding>.weight

The tensor is called a delta, but holds the rows themselves. Where the output layer shares the
embedding's table, the file has them for both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from lora_quant.adapters.description import Description, ParameterShape
from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.files.tensor_source import TensorSource
from lora_quant.adapters.frame.fields import check_fields
from lora_quant.adapters.frame.key_table import read_keys
from lora_quant.adapters.frame.module_match import check_targets, read_targets
from lora_quant.adapters.frame.replaced_parameters import parameter_shape, replaced_parameters
from lora_quant.adapters.kinds.without_modules import WithoutModules
from lora_quant.errors import AdapterError, Where

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
        # PEFT also writes the output layer that is tied to a target, and does not name it
        named = [module for module in keys.modules if targets.matches(module)]
        findings = check_targets(targets, config, named or keys.modules)
        parameters = replaced_parameters(keys.others, config, source, ())
        for module, tensors in keys.modules.items():
            rows = token_rows(f"{module}.weight", tensors[_ROWS], source, tokens)
            parameters[rows.parameter] = rows
        return Description(parameters=parameters, findings=findings)


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
