"""The frame of soft prompts: a kind says what the rows of `prompt_embeddings` are.

Fields, tensors and the heads that ride along (PEFT saves the head of a classifier beside the
prompt) are accounted for here. Models of two parts (encoder and decoder) are refused.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from lora_quant.adapters.description import Description, PromptShape
from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.files.finite import read_finite
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.fields import check_fields
from lora_quant.adapters.frame.key_table import read_keys
from lora_quant.adapters.frame.replaced_parameters import parameter_shape, replaced_parameters
from lora_quant.adapters.kinds.without_modules import WithoutModules
from lora_quant.adapters.lowered import FloatArray
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where

PROMPT = "prompt_embeddings"
_FIELDS = frozenset(
    {
        "num_attention_heads",
        "num_layers",
        "num_transformer_submodules",
        "num_virtual_tokens",
        "token_dim",
    }
)


class PromptKindRule(WithoutModules):
    """One kind of soft prompt. `more`: its tensors beside `prompt_embeddings`."""

    neutral: ClassVar[frozenset[str]] = frozenset()
    used: ClassVar[frozenset[str]] = frozenset()
    more: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def prompt_shape(self, checkpoint: Checkpoint) -> PromptShape:
        """The shape of the prompt, from the configuration and the headers."""

    @abstractmethod
    def prompt(self, checkpoint: Checkpoint, shape: PromptShape) -> FloatArray:
        """See PromptRule."""

    def describe(self, checkpoint: Checkpoint) -> Description:
        """See LoweringRule."""
        config, source = checkpoint.config, checkpoint.tensors
        check_fields(config, _FIELDS | self.used | self.neutral, {})
        _refuse_two_parts(config)
        names = (PROMPT, *self.more)
        keys = read_keys(source, (), names)
        for name in names:
            if name not in keys.shared:
                raise AdapterError(
                    f"the file has no {name}",
                    where=Where(file=source.path),
                    hint="the checkpoint is incomplete; save or download it again",
                )
        parameters = replaced_parameters(keys.others, config, source, ())
        return Description(parameters=parameters, prompt=self.prompt_shape(checkpoint))


def read(checkpoint: Checkpoint, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """A tensor of the prompt as float32; AdapterError for NaN and Inf."""
    tensor = read_keys(checkpoint.tensors, (), (name,)).shared[name]
    return read_finite(checkpoint.tensors, tensor, name).astype(np.float32)


def expect(checkpoint: Checkpoint, name: str, expected: tuple[int, ...]) -> None:
    """Hold a tensor's shape against what the configuration says; AdapterError if it differs."""
    source = checkpoint.tensors
    tensor = read_keys(source, (), (name,)).shared[name]
    got = parameter_shape(name, tensor, source).shape
    if got != expected:
        raise AdapterError(
            f"{name} has shape {list(got)}, expected {list(expected)} from the configuration",
            where=Where(file=source.path, tensor=tensor),
            hint="the configuration is not the one that the weights were saved with",
        )


def given(config: PeftConfig, field: str) -> int:
    """A size that the configuration has to tell; AdapterError if it does not."""
    if config.fields.get(field) is None:
        raise AdapterError(
            f"{field} is not given, and the shape of the prompt depends on it",
            where=config.where(field),
            hint="PEFT writes it once the adapter is attached to a model; save the adapter again",
        )
    return config.positive(field, 1)


def _refuse_two_parts(config: PeftConfig) -> None:
    by_task = 2 if config.fields.get("task_type") == "SEQ_2_SEQ_LM" else 1
    parts = config.positive("num_transformer_submodules", by_task)
    if parts != 1:
        raise UnsupportedAdapterError(
            f"the prompt is for {parts} parts of a model, an encoder and a decoder, each of which "
            "takes its own",
            where=config.where("num_transformer_submodules"),
            hint="train LoRA on an encoder-decoder model, or a prompt on a decoder alone",
        )
