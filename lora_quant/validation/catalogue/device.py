"""Rules about what devices and their tools take.

HTP is the NPU of the device; what is said of it was run on its emulation of QNN 2.51 on x86-64,
what is said of AIMET with AIMET-ONNX 2.42, of ONNX Runtime with 1.31.
"""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

BLOCK_SIZE = Rule(
    "device/block-size",
    Level.DEVICE,
    Severity.ERROR,
    "the block size of an encoding is none that the HTP takes",
    "The HTP takes blocks of 16, 32, 64, ... values, and no others.",
    "Quantize with a block size that is a power of two and at least 16.",
)

JSON_BOOL = Rule(
    "device/json-bool",
    Level.DEVICE,
    Severity.ERROR,
    "is_symmetric of encodings 0.6.1 is a JSON true",
    "AIMET compares it with the text True. A JSON true is read as asymmetric, without a word: the "
    "quantizer of a weight is switched to asymmetric grids.",
    'Write "is_symmetric": "True", in quotes, as AIMET does.',
)

EMPTY_RANGE = Rule(
    "device/empty-range",
    Level.DEVICE,
    Severity.WARNING,
    "the range of an encoding is nearly empty",
    "Tools that compile for devices expect max - min to be at least 1e-5. Scales below that lose "
    "their digits where they are multiplied in fixed point, and everything above the range clips.",
    "Calibrate with data that reaches the tensor, or widen the range to 1e-5.",
)

ODD_OFFSET = Rule(
    "device/odd-offset",
    Level.DEVICE,
    Severity.NOTE,
    "a symmetric encoding does not have 0 in its middle",
    "AIMET takes such an offset over without a word, tools that compute the offset from the flag "
    "would put 0 in the middle: the two disagree by the difference.",
    "Mark the encoding as asymmetric, or give it the offset -2 ** (bits - 1).",
)

OFF_CENTRE_WEIGHT = Rule(
    "device/off-centre-weight",
    Level.DEVICE,
    Severity.WARNING,
    "a weight of a linear node is quantized asymmetrically",
    "The HTP corrects for a zero that is not the middle code with a rounding of its own. With "
    "16-bit activations it was 92 to 217 steps off with asymmetric 8-bit weights, 1 to 2 steps "
    "with symmetric ones.",
    "Quantize weights symmetrically, per output channel.",
)

WIDE_WEIGHT = Rule(
    "device/wide-weight",
    Level.DEVICE,
    Severity.ERROR,
    "a 16-bit weight meets an 8-bit activation",
    "The HTP has no kernel for that pair: every architecture refuses the node.",
    "Give the activation 16 bits, or the weight 8.",
)

ACTIVATION_CHANNELS = Rule(
    "device/activation-channels",
    Level.DEVICE,
    Severity.ERROR,
    "an activation has one scale for each channel",
    "The HTP has one grid for an activation: it refuses the nodes that quantize or read one with "
    "more.",
    "Calibrate activations per tensor. If the tensor is a weight, list it under param_encodings.",
)

NO_NUMBER_TYPE = Rule(
    "device/no-number-type",
    Level.DEVICE,
    Severity.WARNING,
    "an encoding has a width that no number type has",
    "Encodings 2.0.0 and Q/DQ pairs of ONNX have whole numbers of 2, 4, 8, 16 and 32 bits. A grid "
    "of another width exists in a simulation alone.",
    "Quantize with one of these widths.",
)

NEEDS_ARCH_73 = Rule(
    "device/needs-arch-73",
    Level.DEVICE,
    Severity.NOTE,
    "16-bit weights need an HTP of architecture 73 or later",
    "Architectures 68 and 69 refuse a product of 16-bit activations and 16-bit weights.",
    "Quantize the weights with 8 bits for older devices.",
)

BRANCH_IN_4_BITS = Rule(
    "device/branch-in-4-bits",
    Level.DEVICE,
    Severity.WARNING,
    "a LoRA weight has 4 bits or fewer",
    "The vendor's context generator is reported to fail on LoRA weights of 4 bits, and they keep "
    "only some 25 to 31 dB of what the adapter does.",
    "Quantize A and B with 8 or 16 bits.",
)

BIAS_ENTRIES = Rule(
    "device/bias-entries",
    Level.DEVICE,
    Severity.NOTE,
    "the file has 32-bit grids of biases",
    "Converters want them. AIMET, which writes them itself, refuses them when it loads a file "
    "strictly, since its bias has no quantizer.",
    "Load the file with strict=False, or export without 32-bit biases to load it strictly.",
)

FLOAT_BIAS = Rule(
    "device/float-bias",
    Level.DEVICE,
    Severity.NOTE,
    "the bias of a quantized node has no 32-bit encoding",
    "The vendor's quantizer then leaves the bias, and with it the sum, in float: on the HTP the "
    "node is cut in two, or refused.",
    "Export encodings 2.0.0 with 32-bit biases, or let the converter derive them.",
)

STRUCTURE_DIFFERS = Rule(
    "device/structure-differs",
    Level.DEVICE,
    Severity.ERROR,
    "use cases of one graph have encodings of different structure",
    "Switching the use case changes scales and offsets alone. Bits, symmetry, granularity, axis "
    "and block size are compiled into the graph, once for all use cases.",
    "Calibrate all use cases with the same quantizers, and give every one of them an entry for "
    "the tensor.",
)

GRAPHS_DIFFER = Rule(
    "device/graphs-differ",
    Level.DEVICE,
    Severity.WARNING,
    "use cases to switch between are of different graphs",
    "The importer makes updates of one compiled graph. Those of another graph apply only if it is "
    "the same but for its weights.",
    "Name the same max-rank graph for every use case.",
)

STRENGTH_CLIPS = Rule(
    "device/strength-clips",
    Level.DEVICE,
    Severity.WARNING,
    "a strength lies outside the grid of the alpha input",
    "The device feeds the strength through the grid of the input, and clips it at its ends: the "
    "adapter acts weaker than it was built, or not at all.",
    "Widen the encoding of the alpha input in the base's encodings, and build again.",
)

ENDLESS_PRODUCT = Rule(
    "device/endless-product",
    Level.DEVICE,
    Severity.ERROR,
    "a quantized product with one slot, or with rank 1",
    "The compiler of the HTP does not finish on a quantized product of [1, 1] by [1, N].",
    "Build with two slots and two ranks, of which the second stays empty; lora-quant does so.",
)

WEIGHT_IS_INPUT = Rule(
    "device/weight-is-input",
    Level.DEVICE,
    Severity.ERROR,
    "a LoRA weight for the converter is an input of the graph",
    "The weights that the converter is told to update have to be initializers alone. An input of "
    "the same name becomes an input of the compiled graph, which the importer does not fill.",
    "Take the name out of the inputs of the graph.",
)

OPEN_AXIS = Rule(
    "device/open-axis",
    Level.DEVICE,
    Severity.ERROR,
    "a graph for the QNN provider has an input with an open axis",
    "The QNN provider refuses graphs whose sizes are not all known.",
    "Build with --dim NAME=SIZE for every symbolic axis.",
)

OPEN_SIZES = Rule(
    "device/open-sizes",
    Level.DEVICE,
    Severity.NOTE,
    "inputs of the graph have open axes",
    "ONNX Runtime takes them. Compilers for devices need a size for each, and the QNN provider "
    "refuses the graph as it is.",
    "Give sizes when you compile, or build with --dim NAME=SIZE.",
)

ENGINE_VERSION = Rule(
    "device/engine-version",
    Level.DEVICE,
    Severity.WARNING,
    "the graph is newer than the engines",
    "ONNX Runtime 1.31 loads operators up to opset 26 and graphs up to IR version 13, and refuses "
    "what is newer.",
    "Export with an older opset, or lower the IR version if nothing of the new one is used.",
)

MIXED_SDK = Rule(
    "device/mixed-sdk",
    Level.DEVICE,
    Severity.ERROR,
    "compiled parts of one graph are of different SDK versions",
    "A context and its sections have to come from the same version of the SDK; a device refuses "
    "others, or fails while it loads them.",
    "Compile all parts again with one version of the SDK.",
)

NAME_CLASH = Rule(
    "device/name-clash",
    Level.DEVICE,
    Severity.WARNING,
    "tensors have names that the converter makes equal",
    "Names become identifiers of C: every character but letters, digits and underscores is "
    "replaced by an underscore. Updates and encodings that go by such a name can reach the wrong "
    "one of two tensors.",
    "Rename one of the tensors.",
)

RULES = (
    BLOCK_SIZE,
    JSON_BOOL,
    EMPTY_RANGE,
    ODD_OFFSET,
    OFF_CENTRE_WEIGHT,
    WIDE_WEIGHT,
    ACTIVATION_CHANNELS,
    NO_NUMBER_TYPE,
    NEEDS_ARCH_73,
    BRANCH_IN_4_BITS,
    BIAS_ENTRIES,
    FLOAT_BIAS,
    STRUCTURE_DIFFERS,
    GRAPHS_DIFFER,
    STRENGTH_CLIPS,
    ENDLESS_PRODUCT,
    WEIGHT_IS_INPUT,
    OPEN_AXIS,
    OPEN_SIZES,
    ENGINE_VERSION,
    MIXED_SDK,
    NAME_CLASH,
)
