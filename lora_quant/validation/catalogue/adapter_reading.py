"""Rules about adapters that are seen when a checkpoint is read."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

_PATTERNS = ("alpha_pattern", "rank_pattern")


def _of_pattern(field: str) -> tuple[Rule, Rule]:
    name = field.replace("_", "-")
    return (
        Rule(
            f"adapter/competing-{name}",
            Level.SCHEMA,
            Severity.WARNING,
            f"several keys of {field} match one module",
            "PEFT takes the first key in the file. The file may have been sorted since the "
            "training, so that the module was trained with the value of another key.",
            "Make the keys exclude each other, in the order that was used in training.",
        ),
        Rule(
            f"adapter/unused-{name}",
            Level.SCHEMA,
            Severity.WARNING,
            f"a key of {field} matches no module",
            "It has no effect. If it is spelt wrong, the module that it meant has the default in "
            "place of its own value, and so another scale.",
            "Check its spelling, or remove it.",
        ),
    )


RULES = (
    *(rule for field in _PATTERNS for rule in _of_pattern(field)),
    Rule(
        "adapter/alpha-not-given",
        Level.SCHEMA,
        Severity.NOTE,
        "the alpha of the training, or its rank, is not given",
        "A default is used, as the library that wrote the file does. The scale depends on it: with "
        "another one the adapter is too strong or too weak.",
        "Add the value of the training.",
    ),
    Rule(
        "adapter/target-without-tensors",
        Level.CROSS_FILE,
        Severity.WARNING,
        "a target of the configuration has no tensors in the weights",
        "The base is used unchanged there. If it was trained, the checkpoint is incomplete.",
        "Check that the checkpoint is complete, or remove the target.",
    ),
    Rule(
        "adapter/targets-not-given",
        Level.CROSS_FILE,
        Severity.NOTE,
        "target_modules is not given",
        "Whether the weights are complete cannot be known: missing tensors look like modules that "
        "were never adapted.",
        "Add the modules that were adapted, as PEFT writes them.",
    ),
    Rule(
        "adapter/bias-without-tensors",
        Level.CROSS_FILE,
        Severity.WARNING,
        "the configuration trains a bias that the weights do not have",
        "A bias of the base is used unchanged there.",
        "Check that the checkpoint is complete.",
    ),
    Rule(
        "adapter/layers-without-tensors",
        Level.CROSS_FILE,
        Severity.WARNING,
        "fewer layers have tensors than the configuration says",
        "The base is used unchanged in the others.",
        "Check that the file is complete.",
    ),
    Rule(
        "adapter/rows-with-ties",
        Level.SCHEMA,
        Severity.NOTE,
        "rows of a table are replaced that the base may tie to its output layer",
        "Where it does, the rows of the output layer are replaced too, as PEFT does.",
        "Nothing to do.",
    ),
    Rule(
        "adapter/rows-not-named",
        Level.SCHEMA,
        Severity.WARNING,
        "rows of a module are replaced that the configuration does not name",
        "PEFT replaces them only where the base ties the module to another, which the "
        "configuration does not tell.",
        "Remove the tensor of that module if the base does not tie them.",
    ),
    Rule(
        "adapter/out-proj-twice",
        Level.SCHEMA,
        Severity.WARNING,
        "the scale of an out_proj is doubled, as PEFT does",
        "PEFT adds the update of a MultiheadAttention's out_proj twice. A version that does not "
        "trained with half of this scale.",
        "Compare with the model that was trained if it was another version.",
    ),
    Rule(
        "adapter/layer-replication",
        Level.SCHEMA,
        Severity.NOTE,
        "the adapter was trained on a stack with repeated layers",
        "Its modules are counted in that stack. On the base as it is, layers are missing or mean "
        "others.",
        "Export the base graph from the model with its layers repeated.",
    ),
    Rule(
        "adapter/invocation-tokens",
        Level.SCHEMA,
        Severity.NOTE,
        "the adapter waits for invocation tokens",
        "It acts from their last occurrence on. Without its gate it would act on every token, or "
        "on none.",
        "Feed its gate: 1 for every token from there on, 0 before.",
    ),
    Rule(
        "adapter/quantized-base",
        Level.SCHEMA,
        Severity.NOTE,
        "the adapter was trained on a quantized base",
        "It makes up for the errors of that base. On another one these corrections are errors.",
        "Export the base graph with the dequantized weights of that base.",
    ),
    Rule(
        "adapter/rslora-of-a-mix",
        Level.SCHEMA,
        Severity.WARNING,
        "the adapter may be a mix that is scaled once too often",
        "PEFT's add_weighted_adapter writes such a configuration for weights that hold every scale "
        "already. PEFT scales them by sqrt(r) once more on loading, as is done here.",
        "Set use_rslora to false if add_weighted_adapter made it; otherwise do nothing.",
    ),
    Rule(
        "adapter/seeded-bfloat16",
        Level.SCHEMA,
        Severity.NOTE,
        "random bases of the adapter are made from a seed",
        "They are not in the file. A machine without bfloat16 draws others, and trained factors of "
        "those give noise on these.",
        "Train with save_projection to be independent of the machine.",
    ),
    Rule(
        "adapter/kernel-not-told",
        Level.CROSS_FILE,
        Severity.NOTE,
        "linear modules cannot be told from convolutions",
        "They were written as linear. PEFT refuses the file if one of them is a convolution.",
        "Name the base model with --base.",
    ),
    Rule(
        "adapter/groups-not-told",
        Level.CROSS_FILE,
        Severity.NOTE,
        "the groups of a convolution are not known",
        "It was written for one group. PEFT refuses the file if there are several.",
        "Name an ONNX graph with --base.",
    ),
    Rule(
        "adapter/approximated",
        Level.CROSS_FILE,
        Severity.WARNING,
        "a module is approximated by a low rank",
        "Its update has none of its own. The error was asked for, but nobody knows what it does to "
        "the model's answers.",
        "Measure the quality of the model; `--merge` is exact.",
    ),
    Rule(
        "adapter/routed-mean",
        Level.CROSS_FILE,
        Severity.NOTE,
        "ranks are weighed by the mean over the tokens that are fed",
        "Padding, and tokens that are fed one at a time, change that mean, so that the adapter "
        "acts otherwise than in training.",
        "Feed as many tokens as the adapter saw in training.",
    ),
    Rule(
        "adapter/untrained-target",
        Level.CROSS_FILE,
        Severity.WARNING,
        "the adapter targets modules of the graph for which it has no tensors",
        "They stay as in the base. If they were trained, the checkpoint is incomplete.",
        "Check that the checkpoint is complete.",
    ),
    Rule(
        "adapter/tied-rows",
        Level.CROSS_FILE,
        Severity.NOTE,
        "rows are replaced in two tables of the graph",
        "The graph holds the same values twice: the base's embeddings are tied, and PEFT replaces "
        "the rows in both.",
        "Nothing to do.",
    ),
    Rule(
        "adapter/unchanged-parameter",
        Level.CROSS_FILE,
        Severity.NOTE,
        "the adapter brings a parameter as the base has it",
        "It is not replaced, which saves its size in every use case.",
        "Nothing to do.",
    ),
)
