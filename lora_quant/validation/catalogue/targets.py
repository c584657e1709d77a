"""Rules about what one target cannot take over from the options of a build."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

RULES = (
    Rule(
        "onnxruntime/companions",
        Level.CROSS_FILE,
        Severity.NOTE,
        "the target's folder is no model folder of ONNX Runtime GenAI",
        "ONNX Runtime GenAI needs genai_config.json and the tokenizer beside the graph. ONNX "
        "Runtime itself does not.",
        "Copy them beside the graph, with the graph's name in model.decoder.filename.",
    ),
    Rule(
        "onnxruntime/alpha-layout",
        Level.CROSS_FILE,
        Severity.NOTE,
        "the alpha input has one strength for each slot",
        "Ranks of this target differ from use case to use case, so that the layout `rank` does not "
        "apply to it. Whoever feeds one value for each rank has the wrong shape.",
        "Feed one strength for each slot.",
    ),
    Rule(
        "qnn/beside-base",
        Level.CROSS_FILE,
        Severity.NOTE,
        "the target does not share the data file of the base",
        "Its weights are quantized, so that it has a data file of its own in the pack, which takes "
        "the space again.",
        "Nothing to do.",
    ),
)
