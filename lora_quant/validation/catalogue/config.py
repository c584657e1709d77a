"""Rules about configurations and what they name."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

UNUSED_ADAPTER = Rule(
    "config/unused-adapter",
    Level.CROSS_FILE,
    Severity.NOTE,
    "an adapter is in no use case",
    "It is ignored: no use case can switch it on. Composite entries such as `tone+legal` of other "
    "tools are meant to be so.",
    "Name it in a use case, or remove it.",
)

MISSING_FILE = Rule(
    "config/missing-file",
    Level.CROSS_FILE,
    Severity.ERROR,
    "a file that the configuration names does not exist",
    "A build stops at it. Relative paths start at the folder of the configuration.",
    "Correct the path, or put the file there.",
)

WRONG_FILE = Rule(
    "config/wrong-file",
    Level.CROSS_FILE,
    Severity.ERROR,
    "a path leads to a file of another kind",
    "The key says what the file has to be: a graph, encodings, an attach point mapping. A build "
    "stops at anything else.",
    "Name a file of the kind that the key asks for.",
)

BAD_FILE = Rule(
    "config/bad-file",
    Level.CROSS_FILE,
    Severity.ERROR,
    "a file that the configuration names is not sound",
    "It is of the right kind, and a build stops at what is wrong inside of it. The message has the "
    "first of its problems; validating the file itself tells all of them.",
    "Mend the file; `lora-quant validate` with its path lists what is wrong.",
)

NO_BASE = Rule(
    "config/no-base",
    Level.CROSS_FILE,
    Severity.ERROR,
    "nothing tells which graph is the base",
    "Use cases may have graphs of their own, with their branches inside. Branches are added to "
    "one graph, which all use cases share.",
    "Add a use case with `adapter_names: []` that names the base graph without branches.",
)

ADAPTER = Rule(
    "config/adapter",
    Level.CROSS_FILE,
    Severity.ERROR,
    "an adapter cannot be used",
    "Its files are damaged, contradict each other, lack weights, or are of a kind or have a "
    "setting that cannot be lowered without changing what the adapter computes. A build refuses "
    "it rather than leave a part of it out.",
    "Mend the adapter as the message says; `lora-quant inspect` with its path tells more.",
)

ADAPTER_PARAMS = Rule(
    "config/adapter-params",
    Level.CROSS_FILE,
    Severity.ERROR,
    "an adapter JSON contradicts the weights beside it",
    "Rank, alpha or target modules are not those of the checkpoint. One of the two is from another "
    "training, and a wrong alpha makes the adapter too strong or too weak.",
    "Correct the adapter JSON, or name the weights that it was written for.",
)

MODULES = Rule(
    "config/modules",
    Level.CROSS_FILE,
    Severity.ERROR,
    "modules of an adapter have no place in the base graph",
    "Each module has to find exactly one node that computes it, with the sizes of the adapter. An "
    "adapter that acts on some of its modules alone is another adapter.",
    "Write a mapping with `lora-quant map` and correct it, or check that the adapter was trained "
    "on this model.",
)

BUILD_REFUSED = Rule(
    "config/build-refused",
    Level.CROSS_FILE,
    Severity.ERROR,
    "a build of this configuration stops",
    "All steps of a build but the writing were run, with the options that the encodings may call "
    "for, and one of them refused what it got.",
    "Change what the message names: `lora-quant build` stops with the same words.",
)

NEEDS_OPTIONS = Rule(
    "config/needs-options",
    Level.CROSS_FILE,
    Severity.WARNING,
    "a build of this configuration needs options",
    "Without them it stops, for the reason that the message gives. Options are not a part of the "
    "configuration, so whoever builds has to know them.",
    "Build with these options, or remove the reason.",
)

RULES = (
    UNUSED_ADAPTER,
    MISSING_FILE,
    WRONG_FILE,
    BAD_FILE,
    NO_BASE,
    ADAPTER,
    ADAPTER_PARAMS,
    MODULES,
    BUILD_REFUSED,
    NEEDS_OPTIONS,
)
