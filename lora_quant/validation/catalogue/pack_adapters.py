"""Rules about adapter files for ONNX Runtime in a pack, held against manifest and graph."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

_REBUILD = "Build the pack again."
_OTHER_BUILD = "Take all files from one build: adapter and manifest come from different ones."


def _error(name: str, title: str, why: str, mend: str) -> Rule:
    return Rule(f"pack/{name}", Level.CROSS_FILE, Severity.ERROR, title, why, mend)


RULES = (
    _error(
        "adapter-files",
        "a target has inputs to replace, and no adapter files",
        "Every use case would compute what the defaults of the graph say: the base.",
        _REBUILD,
    ),
    _error(
        "adapter-format",
        "an adapter file of the pack is not sound",
        "Its parts leave the file, overlap, or end too early. The engine follows such offsets.",
        _REBUILD,
    ),
    _error(
        "adapter-twice",
        "an adapter file holds a tensor more than once",
        "ONNX Runtime keeps one of them without a word, and which one is not defined.",
        _REBUILD,
    ),
    _error(
        "adapter-no-axes",
        "a tensor of an adapter file has no axes",
        "ONNX Runtime refuses such a tensor when the adapter is loaded.",
        _REBUILD,
    ),
    _error(
        "adapter-values",
        "a tensor of an adapter file holds NaN or Inf",
        "One such value makes every output behind the branch NaN.",
        "Look at the checkpoint that it was made from.",
    ),
    _error(
        "adapter-version",
        "an adapter file was made for another graph",
        "The engine does not check it: it takes the file, and the model answers with weights that "
        "belong elsewhere.",
        _OTHER_BUILD,
    ),
    _error(
        "adapter-tensors",
        "an adapter file replaces no input, or none of its tensors is a weight",
        "The use case would compute the base though it has adapters.",
        _OTHER_BUILD,
    ),
    _error(
        "adapter-dtype",
        "a tensor of an adapter file has another dtype than the input",
        "The run fails as soon as the adapter is active.",
        _OTHER_BUILD,
    ),
    _error(
        "adapter-shape",
        "a tensor of an adapter file has another shape than the input",
        "The run fails as soon as the adapter is active.",
        _OTHER_BUILD,
    ),
    _error(
        "adapter-alpha",
        "an adapter file lacks the strengths of its use case, or has others",
        "The default of the input is 0: the use case would be off, or of another strength.",
        _REBUILD,
    ),
    _error(
        "adapter-grid",
        "an adapter file has a part of a quantized tensor",
        "With the codes of one grid and the scale of another the weight is another one.",
        _REBUILD,
    ),
    _error(
        "adapter-scale",
        "a scale in an adapter file is 0 or negative",
        "Every value of the tensor would be 0, or of the wrong sign.",
        _REBUILD,
    ),
    _error(
        "adapter-branch",
        "an adapter file has one factor of a branch without the other",
        "The default of the other is zero, so that the adapter would do nothing there.",
        _REBUILD,
    ),
    _error(
        "adapter-rank",
        "tensors that share a rank have different ones",
        "The engine finds out in the middle of a run, and fails.",
        _REBUILD,
    ),
)
