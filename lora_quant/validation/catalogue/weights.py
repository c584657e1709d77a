"""Rules about weights: safetensors files that are no adapter, such as a pack's lora_weights."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

INVALID = Rule(
    "weights/invalid",
    Level.SCHEMA,
    Severity.ERROR,
    "the file is no sound safetensors file",
    "Its header is damaged, too large, or speaks of bytes that the file does not have. Every tool "
    "that reads it stops, or reads the bytes of another tensor.",
    "Take the file from an undamaged copy, or build the pack again.",
)

NO_TENSORS = Rule(
    "weights/no-tensors",
    Level.SCHEMA,
    Severity.WARNING,
    "the file holds no tensors",
    "A use case with this file changes nothing: the graph keeps the weights that it has.",
    "Write the file again; a name filter that matches nothing leaves such a file.",
)

EMPTY_TENSOR = Rule(
    "weights/empty-tensor",
    Level.SCHEMA,
    Severity.NOTE,
    "a tensor has no elements",
    "No initializer of a graph can take it: one of its sizes is 0.",
    "Leave the tensor out, or look for what made it empty.",
)

NOT_FLOAT = Rule(
    "weights/not-float",
    Level.SCHEMA,
    Severity.NOTE,
    "a tensor is of a dtype that no branch has",
    "Weights of branches are float32, float16, bfloat16 or float64. The importer expects floats, "
    "and quantizes them itself with the encodings of the use case.",
    "Save the tensor as float if it is a weight of a branch.",
)

VALUES = Rule(
    "weights/values",
    Level.SCHEMA,
    Severity.ERROR,
    "a tensor holds NaN or Inf",
    "One such value makes every output of the branch NaN in float. The converter quantizes it to "
    "an end of the range without a word.",
    "Look at the checkpoint that the weights were made from.",
)

CONTENT = Rule(
    "weights/content",
    Level.SCHEMA,
    Severity.NOTE,
    "what the file holds",
    "Without a pack or a graph nobody can tell whether the tensors are the ones that are needed.",
    "Name the pack to have the file held against its manifest.",
    describes=True,
)

RULES = (INVALID, NO_TENSORS, EMPTY_TENSOR, NOT_FLOAT, VALUES, CONTENT)
