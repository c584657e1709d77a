"""Rules about encodings against the graph that they are of."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

NOT_IN_GRAPH = Rule(
    "encodings/not-in-graph",
    Level.CROSS_FILE,
    Severity.ERROR,
    "an encoding is of a tensor that the graph does not have",
    "AIMET refuses to load the file. Where a converter passes the entry over, the tensor that it "
    "was meant for has no grid.",
    "Take the encodings that were exported with this graph, or correct the name.",
)

ACTIVATION_AS_PARAM = Rule(
    "encodings/activation-as-param",
    Level.CROSS_FILE,
    Severity.ERROR,
    "an activation is listed under param_encodings",
    "What looks for activations under activation_encodings alone does not find the entry: the "
    "tensor has another grid, or none.",
    "Move the entry to activation_encodings.",
)

PARAM_AS_ACTIVATION = Rule(
    "encodings/param-as-activation",
    Level.CROSS_FILE,
    Severity.WARNING,
    "a weight is listed under activation_encodings",
    "What looks for weights under param_encodings alone does not find the entry, and quantizes the "
    "weight on a grid of its own.",
    "Move the entry to param_encodings.",
)

CHANNELS = Rule(
    "encodings/channels",
    Level.CROSS_FILE,
    Severity.ERROR,
    "the number of scales is not the number of channels",
    "Scales are told apart by their place in the list. With another number of them the channels "
    "get each other's grids, or the file is refused.",
    "Export the encodings again from this graph. A weight that was padded needs a scale for every "
    "padded channel too.",
)

BLOCKS = Rule(
    "encodings/blocks",
    Level.CROSS_FILE,
    Severity.ERROR,
    "the blocks do not divide the weight",
    "Each block of a weight has a scale of its own. Other counts leave values without a scale, or "
    "put scales on the wrong values.",
    "Export the encodings again from this graph, with blocks that divide the input features.",
)

AXIS = Rule(
    "encodings/axis",
    Level.CROSS_FILE,
    Severity.ERROR,
    "scales lie along an axis that is not that of the output channels",
    "Integer kernels multiply the sums of an output channel by one scale. Along any other axis the "
    "grid cannot be computed with, or is taken for that of the output channels.",
    "Quantize along the output channels: axis 0 of Conv and of Gemm with transB, axis 1 of MatMul, "
    "Gemm and ConvTranspose.",
)

OF_INTEGERS = Rule(
    "encodings/of-integers",
    Level.CROSS_FILE,
    Severity.WARNING,
    "an encoding is of a tensor that holds no floats",
    "Token ids, masks and shapes are exact. On a grid they would be rounded, and clipped at its "
    "ends.",
    "Remove the entry.",
)

WIDER_FLOAT = Rule(
    "encodings/wider-float",
    Level.CROSS_FILE,
    Severity.NOTE,
    "a float encoding is wider than the tensor",
    "The tensor has fewer bits in the graph than the encoding names: the wider type costs memory "
    "and gains nothing.",
    "Name the float type of the graph.",
)

BIAS_SCALE = Rule(
    "encodings/bias-scale",
    Level.CROSS_FILE,
    Severity.WARNING,
    "the scale of a 32-bit bias is not input scale times weight scale",
    "Codes of a bias are added to sums of products of codes, whose step is input scale times "
    "weight scale. A bias on another grid is rounded once more, or added with the wrong size.",
    "Remove the entry, so that the scale is derived, or make it the product.",
)

UNCOVERED = Rule(
    "encodings/uncovered",
    Level.CROSS_FILE,
    Severity.WARNING,
    "a tensor that is needed on a grid has no encoding",
    "What a linear node reads and gives is computed in integers only if all of it has encodings. "
    "Converters compute such a node in float, which is slower or not possible at all on an NPU.",
    "Calibrate the graph again with a quantizer at these tensors, or list them as float on "
    "purpose.",
)

RULES = (
    NOT_IN_GRAPH,
    ACTIVATION_AS_PARAM,
    PARAM_AS_ACTIVATION,
    CHANNELS,
    BLOCKS,
    AXIS,
    OF_INTEGERS,
    WIDER_FLOAT,
    BIAS_SCALE,
    UNCOVERED,
)
