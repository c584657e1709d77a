"""Rules about graphs, weights, lists and configurations in a pack, held against its manifest."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.catalogue.sections import section_rules
from lora_quant.validation.rule import Level, Rule

_REBUILD = "Build the pack again."
_OTHER_BUILD = "Take all files from one build: these come from different ones."


def _error(name: str, title: str, why: str, mend: str) -> Rule:
    return Rule(f"pack/{name}", Level.CROSS_FILE, Severity.ERROR, title, why, mend)


_GRAPH = (
    _error(
        "graph-alpha",
        "the graph does not have the manifest's input for strengths",
        "A session feeds strengths under that name and with that shape, and the run fails.",
        _OTHER_BUILD,
    ),
    _error(
        "graph-gate",
        "the graph does not have the manifest's input for gates",
        "A session feeds gates under that name and with that shape, and the run fails.",
        _OTHER_BUILD,
    ),
    _error(
        "graph-prompt",
        "the graph does not have the manifest's inputs for a soft prompt",
        "A session feeds the prompt under these names and with these shapes, and the run fails.",
        _OTHER_BUILD,
    ),
    _error(
        "graph-activations",
        "the graph lacks a tensor that an attach point names",
        "Encodings and lists name that tensor. The converter finds none, and quantizes the one "
        "that is there with another range.",
        _OTHER_BUILD,
    ),
    _error(
        "graph-tensors",
        "the graph lacks a weight of the manifest, or has it in another shape",
        "The importer replaces initializers by name and shape. It stops, or leaves a branch at "
        "zero.",
        _OTHER_BUILD,
    ),
    _error(
        "graph-overridable",
        "an input that adapters replace is not as recorded",
        "The engine takes an adapter only for inputs with a default, of the same dtype and "
        "shape: the run fails, or the default stays.",
        _OTHER_BUILD,
    ),
    _error(
        "target-inputs",
        "an input is recorded as a part of something that the manifest does not have",
        "Nobody can tell what an adapter file has to hold for it.",
        _REBUILD,
    ),
    _error(
        "context",
        "a compiled graph is not compiled, or names a binary that the pack does not have",
        "The provider for the device cannot open the model.",
        _REBUILD,
    ),
)

_WEIGHTS = (
    _error(
        "weights-format",
        "the weights of a use case are no sound safetensors file",
        "The importer stops at it.",
        _REBUILD,
    ),
    _error(
        "weights-tensors",
        "the weights of a use case are not those of the manifest",
        "A tensor that is missing keeps the values of the graph or of the last use case; one "
        "too many stops the importer.",
        _OTHER_BUILD,
    ),
    _error(
        "weights-shape",
        "a weight has another shape than in the manifest",
        "The importer stops, or reads the values in another order.",
        _OTHER_BUILD,
    ),
    _error(
        "weights-dtype",
        "a weight has another dtype than in the manifest",
        "The importer stops, or reads the bytes as other numbers.",
        _OTHER_BUILD,
    ),
    _error(
        "weights-values",
        "weights are NaN or Inf",
        "One such value makes NaN of every sum that it is a part of. The training of the adapter "
        "failed, or the file was damaged before it came into the pack.",
        "Look at the checkpoint that the use case was built from.",
    ),
    _error(
        "prompt-files",
        "a use case has no file of its soft prompt, or several",
        "The model would run without the prompt, or with another one.",
        _REBUILD,
    ),
    _error(
        "prompt-format",
        "the file of a soft prompt is no sound safetensors file",
        "A session cannot load the use case.",
        _REBUILD,
    ),
    _error(
        "prompt-tensor",
        "the tensor of a soft prompt is not that of the manifest",
        "Its sizes do not fit the inputs of the graph, and the run fails.",
        _OTHER_BUILD,
    ),
    _error(
        "prompt-values",
        "a soft prompt holds NaN or Inf",
        "The model attends to every token of the prompt, so that every answer would be NaN.",
        "Look at the checkpoint that it was made from.",
    ),
)

_LISTS = (
    _error(
        "tensor-names",
        "lora_tensor_names.txt does not name the weights of the manifest",
        "The converter makes only listed weights updatable: an adapter could not be switched "
        "there.",
        _REBUILD,
    ),
    _error(
        "updatable-without-encoding",
        "an updatable tensor has no encoding in the use case",
        "The vendor's tools keep the base's encoding for it, with ranges that may clip.",
        _REBUILD,
    ),
)

_CONFIGS = (
    _error(
        "config-use-cases",
        "a configuration of the pack has other use cases than the manifest",
        "A use case gets no section for the device, or one that nobody can name.",
        _REBUILD,
    ),
    _error(
        "config-path",
        "a configuration of the pack names a wrong file",
        "The tool that reads it stops, or gives a use case the weights or encodings of another.",
        _REBUILD,
    ),
    _error(
        "genie-alpha",
        "Genie feeds the strengths to another input than the graph has",
        "Genie refuses the configuration, or the adapters stay off.",
        _REBUILD,
    ),
    _error(
        "genie-use-cases",
        "Genie's block has other use cases than the pack",
        "An application that asks for a use case by name does not find it.",
        _REBUILD,
    ),
    _error(
        "genie-alphas",
        "the names of the strengths do not fit the slots",
        "Setting the strength of one adapter sets that of another.",
        _REBUILD,
    ),
)

_SECTIONS = tuple(rule for rule in section_rules("pack") if rule.id != "pack/not-filled-in")

RULES = (*_GRAPH, *_WEIGHTS, *_LISTS, *_CONFIGS, *_SECTIONS)
