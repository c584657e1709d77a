"""Rules about use cases that come as ONNX graphs of their own."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

RULES = (
    Rule(
        "exported/near-branch",
        Level.CROSS_FILE,
        Severity.WARNING,
        "a place of the use case's graph looks like a branch and was not taken as one",
        "What it computes is taken for a part of the base, which then differs from the base graph.",
        "Read the reason; most often sizes do not fit, or something else reads an inner tensor.",
    ),
    Rule(
        "exported/base-with-branches",
        Level.CROSS_FILE,
        Severity.WARNING,
        "the base graph has branches already",
        "Those of the adapters are added to them, so that the base of every use case contains what "
        "the graph was exported with.",
        "Give the base without branches, unless that is what you want.",
    ),
    Rule(
        "exported/scale-at-run-time",
        Level.CROSS_FILE,
        Severity.WARNING,
        "the scale of a branch comes from an input alone",
        "That lora_alpha / r is a part of what the input carries is known from the description "
        "only. If it is in the weights already, the adapter is too strong or too weak by that "
        "factor.",
        "Set alpha to the rank if lora_alpha / r is in the weights.",
    ),
    Rule(
        "exported/rank-order-assumed",
        Level.CROSS_FILE,
        Severity.WARNING,
        "the order of the adapters in a branch is assumed",
        "The adapters look alike, so their ranks were taken in the order of adapter_names. With "
        "the wrong order each strength acts on the other adapter.",
        "Give a use case with one of the adapters alone, and a graph of its own, to confirm it.",
    ),
    Rule(
        "exported/other-rank-order",
        Level.CROSS_FILE,
        Severity.NOTE,
        "the ranks of a branch fit the adapters only in another order than adapter_names has",
        "They were taken in the order that fits. If a rank or an alpha of a description is wrong, "
        "so is that order.",
        "Check that ranks and alphas in the descriptions are right.",
    ),
    Rule(
        "exported/adapter-without-ranks",
        Level.CROSS_FILE,
        Severity.NOTE,
        "an adapter names a module in whose branch it has no ranks",
        "It stays without effect there. If it was trained there, the graph was exported without a "
        "part of it.",
        "Name whole paths in target_modules to say that it does not act there.",
    ),
    Rule(
        "exported/read-as-rslora",
        Level.CROSS_FILE,
        Severity.NOTE,
        "an adapter was taken as rsLoRA",
        "Its scales are lora_alpha / sqrt(r) in all graphs, which the description cannot say. If "
        "it is plain LoRA, alpha is off by sqrt(r).",
        "Give a PEFT adapter_config.json with use_rslora to confirm it.",
    ),
    Rule(
        "exported/never-on",
        Level.CROSS_FILE,
        Severity.NOTE,
        "an adapter has the strength 0 in every graph",
        "Its lora_alpha / r is known from its description only, and its ranks from their places.",
        "Give a graph of a use case with another strength to confirm both.",
    ),
)
