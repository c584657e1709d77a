"""Feeding a soft prompt: its values take the place of the first tokens in the inputs.

prefix_embeds      inputs_embeds [batch, tokens, dim]: the first n rows of every sequence
past_key_values    past_key_values.l.key and .value [batch, heads, past, dim]: the first n of them

So the inputs are those of the whole sequence, and masks and positions need no change.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file

from lora_quant.config.manifest_records import PromptRecord
from lora_quant.engines.onnxruntime import Array
from lora_quant.errors import VerificationError, Where

_AXIS = -2  # of the tokens, in either form


def prompt_tokens(prompt: PromptRecord) -> int:
    """The number of virtual tokens."""
    return prompt.shape[_AXIS]


def read_prompt(path: Path, prompt: PromptRecord) -> Array:
    """The prompt's values in a pack; VerificationError unless they are as the manifest says."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise VerificationError(
            f"the soft prompt cannot be read: {error}",
            where=Where(file=path, adapter=prompt.adapter),
            hint="build the pack again",
        ) from error
    found = {name: values.shape for name, values in tensors.items()}
    if found != {prompt.form: prompt.shape}:
        raise VerificationError(
            f"the soft prompt's file has {found or 'nothing'}, expected {prompt.form!r} of shape "
            f"{list(prompt.shape)}",
            where=Where(file=path, adapter=prompt.adapter),
            hint="build the pack again",
        )
    return tensors[prompt.form]


def with_prompt(
    feeds: Mapping[str, Array], prompt: PromptRecord, values: Array
) -> dict[str, Array]:
    """The feeds with a prompt in them; VerificationError if they leave no room for it."""
    count, is_prefix = prompt_tokens(prompt), prompt.form == "prefix_embeds"
    least = count + is_prefix
    fed = dict(feeds)
    rows = [values] if is_prefix else list(values)
    for name, part in zip(prompt.inputs, rows, strict=True):
        array = feeds.get(name)
        if array is None or array.ndim < -_AXIS or array.shape[_AXIS] < least:
            shape = "nothing" if array is None else f"shape {list(array.shape)}"
            raise VerificationError(
                f"the input {name!r} leaves no room for the soft prompt: got {shape}, expected at "
                f"least {least} tokens on axis {_AXIS}",
                where=Where(adapter=prompt.adapter, tensor=name),
                hint="give inputs of a whole sequence with --inputs FILE: the prompt takes the "
                "place of its first tokens",
            )
        fed[name] = array.copy()
        fed[name][..., :count, :] = part
    return fed
