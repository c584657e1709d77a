"""Rules about adapters: checkpoints and files for ONNX Runtime, by themselves."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

INVALID = Rule(
    "adapter/invalid",
    Level.SCHEMA,
    Severity.ERROR,
    "the adapter is damaged or contradicts itself",
    "A header that speaks of bytes that are not there, half of a pair of A and B, or shapes that "
    "do not fit the rank: what it would compute is not what was trained.",
    "Save the adapter again from its training, or take it from an undamaged copy.",
)

UNSUPPORTED = Rule(
    "adapter/unsupported",
    Level.SCHEMA,
    Severity.ERROR,
    "the adapter is of a kind, or sets a field, that is refused",
    "It has no form that a graph with branches computes exactly, and what is not exact is never "
    "approximated unasked.",
    "Read the reason: most often the adapter can be merged into the base, approximated on "
    "request, or saved in another form.",
)

VALUES = Rule(
    "adapter/values",
    Level.SCHEMA,
    Severity.ERROR,
    "a tensor holds NaN or Inf",
    "One such value makes every output of the branch NaN in float, and the range of its encoding "
    "meaningless.",
    "Take the adapter from an earlier step of the training, before it failed.",
)

ZERO_FACTOR = Rule(
    "adapter/zero-factor",
    Level.SCHEMA,
    Severity.WARNING,
    "every value of the adapter's B is zero",
    "PEFT initialises B with zeros, so the adapter was saved before its first step. It computes "
    "the base.",
    "Save the adapter after the training.",
)

NO_WEIGHTS = Rule(
    "adapter/no-weights",
    Level.CROSS_FILE,
    Severity.NOTE,
    "a PEFT configuration has no weights beside it",
    "A build that names it stops, unless graphs of use cases hold the weights: then the "
    "configuration only describes them. Weights get lost where large files are left out of a "
    "repository, or an upload stops halfway.",
    "Put the weights beside it, unless graphs of use cases hold them.",
)

CONTENT = Rule(
    "adapter/content",
    Level.SCHEMA,
    Severity.NOTE,
    "what the adapter holds",
    "Without a graph nobody can tell whether the adapter fits it.",
    "Nothing to do.",
    describes=True,
)

RULES = (
    INVALID,
    UNSUPPORTED,
    VALUES,
    ZERO_FACTOR,
    CONTENT,
    NO_WEIGHTS,
    Rule(
        "adapter/twice",
        Level.SCHEMA,
        Severity.ERROR,
        "the file holds a tensor more than once",
        "ONNX Runtime keeps one of them without a word, and which one is not defined.",
        "Write the file again.",
    ),
    Rule(
        "adapter/no-axes",
        Level.SCHEMA,
        Severity.ERROR,
        "a tensor has no axes",
        "ONNX Runtime refuses such a tensor in an adapter file when the adapter is loaded.",
        "Write it with the shape [1].",
    ),
)
