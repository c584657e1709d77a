"""What the base graph and the compiled one are run with, and what cannot be run at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx import ModelProto, TensorProto

from lora_quant.config.manifest import Manifest
from lora_quant.config.manifest_records import PromptRecord
from lora_quant.engines.onnxruntime import Array
from lora_quant.errors import VerificationError, Where
from lora_quant.runtime.feeds.inputs import (
    SEQUENCE_LENGTH,
    Lengths,
    graph_inputs,
    guessed_axes,
    random_inputs,
)
from lora_quant.runtime.feeds.prompts import prompt_tokens


class Feeds:
    """Inputs for use cases with a soft prompt and without one."""

    def __init__(self, proto: ModelProto, given: Mapping[str, Array] | None, seed: int) -> None:
        self._proto = proto
        self._given = given
        self._seed = seed

    @property
    def guessed(self) -> tuple[str, ...]:
        """Axes whose length nothing tells."""
        return guessed_axes(self._proto) if self._given is None else ()

    def of(self, prompt: PromptRecord | None) -> Mapping[str, Array]:
        """Inputs of the base graph, with room for the prompt."""
        if self._given is not None:
            return self._given
        lengths = Lengths()
        if prompt is not None and prompt.form == "prefix_embeds":
            lengths = Lengths(tokens=SEQUENCE_LENGTH + prompt_tokens(prompt))
        elif prompt is not None:
            lengths = Lengths(past=prompt_tokens(prompt))
        return random_inputs(self._proto, self._seed, lengths)


def check_types(manifest: Manifest, base: ModelProto, path: Path) -> None:
    """Raise VerificationError for bfloat16.

    ONNX Runtime neither takes nor gives it in Python, and has few operators for it.
    """
    found = [f"LoRA weight {t.name!r}" for t in manifest.tensors if t.dtype == "bfloat16"]
    for what, values in (("input", graph_inputs(base)), ("output", base.graph.output)):
        found += [
            f"{what} {value.name!r}"
            for value in values
            if value.type.tensor_type.elem_type == TensorProto.BFLOAT16
        ]
    if found:
        raise VerificationError(
            "ONNX Runtime on the CPU cannot run this graph: got bfloat16, expected float32 or "
            f"float16, in {first_of(found)}",
            where=Where(file=path),
            hint="verify a pack that is built from a float32 export of the same model; "
            "`lora-quant validate` checks this one without running it",
        )


def first_of(texts: Sequence[str], most: int = 3) -> str:
    """The first of some texts, and how many there are beyond."""
    rest = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + rest
