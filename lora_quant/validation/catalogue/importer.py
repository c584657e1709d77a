"""Rules about lora_importer_config.yaml and lora_output_files.yaml, against what they name."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

MISSING_FILE = Rule(
    "importer/missing-file",
    Level.CROSS_FILE,
    Severity.ERROR,
    "a file that the configuration names does not exist",
    "The importer stops at it. Relative paths start at the folder of the configuration.",
    "Correct the path, or put the file there.",
)

WRONG_FILE = Rule(
    "importer/wrong-file",
    Level.CROSS_FILE,
    Severity.ERROR,
    "a path leads to a file of another kind",
    "The key says what the file has to be: a graph, weights, encodings. The importer stops at "
    "anything else, or reads it as what it is not.",
    "Name a file of the kind that the key asks for.",
)

BAD_FILE = Rule(
    "importer/bad-file",
    Level.CROSS_FILE,
    Severity.ERROR,
    "a file that the configuration names is not sound",
    "It is of the right kind, and what is wrong inside of it stops the importer or the converter. "
    "The message has the first of its problems; validating the file itself tells all of them.",
    "Mend the file; `lora-quant validate` with its path lists what is wrong.",
)

ABSOLUTE_PATH = Rule(
    "importer/absolute-path",
    Level.CROSS_FILE,
    Severity.WARNING,
    "a path is absolute",
    "It leads nowhere on another machine, and after the folder was moved.",
    "Write the path relative to the folder of the configuration.",
)

OUTSIDE = Rule(
    "importer/outside",
    Level.CROSS_FILE,
    Severity.NOTE,
    "a path leads out of the folder of the configuration",
    "The file is left behind when the folder is copied.",
    "Copy both folders together, or put the file into that of the configuration.",
)

WEIGHTS_SHARED = Rule(
    "importer/weights-shared",
    Level.CROSS_FILE,
    Severity.WARNING,
    "use cases share weights and have different encodings",
    "One of them has the weights of the other, or both the same adapters: then its encodings were "
    "made for other values, or the two do not need to differ.",
    "Name the weights of each use case.",
)

WEIGHTS_TENSOR = Rule(
    "importer/weights-tensor",
    Level.CROSS_FILE,
    Severity.ERROR,
    "the weights name tensors that are no initializers of the graph",
    "The importer replaces initializers by name. A tensor that is not there is not replaced, so "
    "that the use case runs with the weights of another.",
    "Give the graph and the weights of one build.",
)

WEIGHTS_SHAPE = Rule(
    "importer/weights-shape",
    Level.CROSS_FILE,
    Severity.ERROR,
    "a tensor of the weights has another shape than in the graph",
    "The max rank or the layer's sizes are not those of the graph.",
    "Give the graph and the weights of one build.",
)

WEIGHTS_DTYPE = Rule(
    "importer/weights-dtype",
    Level.CROSS_FILE,
    Severity.ERROR,
    "a tensor of the weights has another type than in the graph",
    "The bytes would be read as numbers of the graph's type.",
    "Save the weights in the type that the graph has.",
)

WEIGHTS_DIFFER = Rule(
    "importer/weights-differ",
    Level.CROSS_FILE,
    Severity.ERROR,
    "use cases bring different tensors",
    "Each switch has to replace everything that the one before replaced: names, shapes and types "
    "are the same in all use cases, with zeros where an adapter does nothing.",
    "Give the weights of one build.",
)

RULES = (
    MISSING_FILE,
    WRONG_FILE,
    BAD_FILE,
    ABSOLUTE_PATH,
    OUTSIDE,
    WEIGHTS_SHARED,
    WEIGHTS_TENSOR,
    WEIGHTS_SHAPE,
    WEIGHTS_DTYPE,
    WEIGHTS_DIFFER,
)
