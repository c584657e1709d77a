"""Rules about encodings of use cases, as a build brings them together."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

_WIDEN_BASE = "Widen the encoding of the input in the base's encodings."

RULES = (
    Rule(
        "encodings/no-base",
        Level.CROSS_FILE,
        Severity.WARNING,
        "no use case without adapters brings encodings",
        "Those of another use case stand for the base. Its ranges were calibrated with its "
        "adapters, and fixed tensors of all use cases have them.",
        "Add a use case with `adapter_names: []` and the base's encodings.",
    ),
    Rule(
        "encodings/missing-activation",
        Level.CROSS_FILE,
        Severity.WARNING,
        "an activation of a branch has no encoding",
        "It gets the range of the other use cases; if none has one, the converter computes it in "
        "float or calibrates it with random data.",
        "Calibrate the use case with its branches.",
    ),
    Rule(
        "encodings/computed-activation",
        Level.CROSS_FILE,
        Severity.NOTE,
        "the encoding of an activation was computed",
        "The file has none for it, and other encodings determine its range.",
        "Nothing to do.",
    ),
    Rule(
        "encodings/computed-weight",
        Level.CROSS_FILE,
        Severity.NOTE,
        "the encoding of a weight was computed from its values",
        "The file has none that fits the weight as it is compiled, so that its grid is not the "
        "one that was calibrated.",
        "Nothing to do, unless the weight was trained for a certain grid.",
    ),
    Rule(
        "encodings/weight-clips",
        Level.CROSS_FILE,
        Severity.WARNING,
        "the encoding of a weight ends before its values do",
        "Values beyond the grid are clipped to its end. The encodings were made for other values, "
        "for example with the strength folded into A.",
        "Leave the tensor out of the file to have its encoding computed.",
    ),
    Rule(
        "encodings/unknown-tensor",
        Level.CROSS_FILE,
        Severity.WARNING,
        "encodings belong to no tensor of the graph",
        "They are left out, and the tensors that they were meant for have none. The file was made "
        "on another export, or on one with other adapters.",
        "Make the encodings on this graph, or correct the names.",
    ),
    Rule(
        "encodings/ambiguous-tensor",
        Level.CROSS_FILE,
        Severity.WARNING,
        "several encodings claim one tensor",
        "None was taken. Adapters that are chained in the use case's graph have no common grid "
        "where there is one branch for all.",
        "Name that graph as the use case's `model_name`.",
    ),
    Rule(
        "encodings/other-strength",
        Level.CROSS_FILE,
        Severity.NOTE,
        "the encoding of an input for strengths was left out",
        "The input of that graph carries lora_alpha / r as well as the strength, or ours does, so "
        "that its range means something else here.",
        "Give the range of the strengths in the base's encodings, under the alpha input's name.",
    ),
    Rule(
        "encodings/alpha-differs",
        Level.CROSS_FILE,
        Severity.WARNING,
        "a use case has another encoding for the alpha input than the base",
        "The input is fixed in every mode, and the base's range is kept. Strengths beyond it clip.",
        "Put the encoding of the alpha input into the base's file.",
    ),
    Rule(
        "encodings/gate-differs",
        Level.CROSS_FILE,
        Severity.WARNING,
        "a use case has another encoding for the gate input than the base",
        "The input is fixed in every mode, and the base's range is kept. Gates beyond it clip.",
        "Put the encoding of the gate input into the base's file.",
    ),
    Rule(
        "encodings/alpha-clips",
        Level.DEVICE,
        Severity.WARNING,
        "a strength lies outside the range of the alpha input",
        "The device clips it to the end of the range: the adapter is weaker than the use case "
        "says.",
        _WIDEN_BASE,
    ),
    Rule(
        "encodings/gate-clips",
        Level.DEVICE,
        Severity.WARNING,
        "an open gate lies outside the range of the gate input",
        "An open gate is 1. The device clips it to the end of the range, and the adapter is weaker "
        "than it was trained.",
        _WIDEN_BASE,
    ),
    Rule(
        "encodings/idle-branch",
        Level.CROSS_FILE,
        Severity.WARNING,
        "encodings are for branches that the use case leaves idle",
        "They were left out. The file may belong to another use case, and then its other ranges "
        "are wrong as well.",
        "Check that the use case names its own file.",
    ),
    Rule(
        "encodings/fixed-tensor-differs",
        Level.CROSS_FILE,
        Severity.WARNING,
        "a use case has other encodings than the base for fixed tensors",
        "The mode fixes them, so the base's are kept: activations of the use case that go beyond "
        "those ranges clip.",
        "Calibrate the use case with the base's encodings frozen, or choose the mode `all`.",
    ),
    Rule(
        "encodings/one-is-rounded",
        Level.CROSS_FILE,
        Severity.WARNING,
        "1 is not on the grid of a factor",
        "Where no adapter scales, the base is multiplied by 1, which this grid rounds: the base "
        "changes a little.",
        "Give a scale of 1 / n, such as 1/127, or build with `--mode adapter_only`.",
    ),
    Rule(
        "encodings/united",
        Level.CROSS_FILE,
        Severity.NOTE,
        "branch tensors got the union of all use cases' ranges",
        "The mode `none` fixes them. A use case with small ranges loses steps of its grid.",
        "Build with `--mode adapter_only` to keep the grid of each use case.",
    ),
    Rule(
        "encodings/no-union",
        Level.CROSS_FILE,
        Severity.NOTE,
        "grids of the use cases have no union",
        "They differ in more than their ranges. The base encodings hold that of the first use "
        "case, and each use case has its own.",
        "Nothing to do.",
    ),
    Rule(
        "encodings/chained-union",
        Level.CROSS_FILE,
        Severity.NOTE,
        "tensors of chained branches got the union of their ranges",
        "In the use case's graph each adapter has a branch, and here all share one, which has one "
        "grid.",
        "Nothing to do.",
    ),
    Rule(
        "encodings/chained-sum",
        Level.CROSS_FILE,
        Severity.NOTE,
        "encodings of sums were computed from the ranges of chained branches",
        "The sum of all branches is no tensor of the use case's graph, so nobody calibrated it.",
        "Nothing to do; the range is an upper bound.",
    ),
    Rule(
        "encodings/output-may-clip",
        Level.CROSS_FILE,
        Severity.NOTE,
        "an output that an adapter scales up keeps the base's range",
        "The mode fixes it. Values beyond the range clip.",
        "Build with `--mode all`, or calibrate the base with a range that serves all use cases.",
    ),
)
