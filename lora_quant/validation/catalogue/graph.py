"""Rules about ONNX graphs."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

INVALID = Rule(
    "graph/invalid",
    Level.SCHEMA,
    Severity.ERROR,
    "the graph cannot be used",
    "It is no readable ONNX file, breaks a rule of ONNX, or is older than opset 7 or IR version 4. "
    "A build, ONNX Runtime and the converter would stop at it, or compute something else.",
    "Export the graph again; onnx.checker on the result tells more.",
)

ATTACH_POINT = Rule(
    "graph/attach-point",
    Level.CROSS_FILE,
    Severity.ERROR,
    "a module finds no node of the graph, or more than one",
    "The branch of an adapter has no place. Left out, the adapter would act on a part of what it "
    "was trained on.",
    "Name the node in `attach_point_onnx_mapping`, or take the graph that the adapter was trained "
    "for.",
)

DATA_OVERLAP = Rule(
    "graph/data-overlap",
    Level.SCHEMA,
    Severity.ERROR,
    "a tensor begins within the bytes of another",
    "Tensors may begin at one place, as tied weights do. Where one begins within another, at "
    "least one of them reads values that are not its own.",
    "Save the graph again from its source.",
)

DATA_IN_GRAPH = Rule(
    "graph/data-in-graph",
    Level.SCHEMA,
    Severity.ERROR,
    "external data lies in the graph file itself",
    "The tensor's values would be the bytes of the graph, and change whenever the graph is saved.",
    "Save the graph again with a data file of its own.",
)

NODE_NAME_TWICE = Rule(
    "graph/node-name-twice",
    Level.SCHEMA,
    Severity.WARNING,
    "several nodes have one name",
    "A mapping of attach points names nodes. One that names this node finds several, and the "
    "module is refused.",
    "Export with unique names of nodes, or rename all but one.",
)

NODE_WITHOUT_NAME = Rule(
    "graph/node-without-name",
    Level.SCHEMA,
    Severity.NOTE,
    "linear nodes have no names",
    "A mapping of attach points cannot name them, and their modules cannot be told from names.",
    "Export with names, if adapters are to be placed on these nodes.",
)

OUTPUT_TWICE = Rule(
    "graph/output-twice",
    Level.SCHEMA,
    Severity.ERROR,
    "a tensor is twice among the outputs of the graph",
    "ONNX Runtime refuses such a graph, and the converter keeps one of the two.",
    "Remove one of them.",
)

NEWER_THAN_KNOWN = Rule(
    "graph/newer-than-known",
    Level.SCHEMA,
    Severity.WARNING,
    "the graph is newer than the installed onnx",
    "Operators of an opset that is not known here were not checked, and may mean something else.",
    "Install a newer onnx, or export with an older opset.",
)

NOT_LISTABLE = Rule(
    "graph/not-listable",
    Level.SCHEMA,
    Severity.WARNING,
    "the name of a tensor cannot stand in a list of tensors",
    "Lists have one name a line. A name with a line end, or with white space around it, is read "
    "back as another one, and the tensor is not found.",
    "Rename the tensor before anything is made from the graph.",
)

NEAR_BRANCH = Rule(
    "graph/near-branch",
    Level.CROSS_FILE,
    Severity.WARNING,
    "a place looks like a branch and was not taken as one",
    "Its weights stay as they are in the given graph: no use case can switch them.",
    "Read the reason; most often sizes do not fit, or something else reads an inner tensor.",
)

CONTENT = Rule(
    "graph/content",
    Level.SCHEMA,
    Severity.NOTE,
    "what the graph holds",
    "It tells whether the graph is quantized and has branches of adapters already, which decides "
    "how it can be used in a configuration.",
    "Nothing to do.",
    describes=True,
)

RULES = (
    INVALID,
    ATTACH_POINT,
    DATA_OVERLAP,
    DATA_IN_GRAPH,
    NODE_NAME_TWICE,
    NODE_WITHOUT_NAME,
    OUTPUT_TWICE,
    NEWER_THAN_KNOWN,
    NOT_LISTABLE,
    NEAR_BRANCH,
    CONTENT,
    Rule(
        "graph/told-by-order",
        Level.CROSS_FILE,
        Severity.WARNING,
        "modules were told apart by the order of the nodes alone",
        "Nodes with equal weights and connections cannot be told apart. If a quantizer changed "
        "their order, branches sit on each other's modules.",
        "Check the nodes that are named, or name them in `attach_point_onnx_mapping`.",
    ),
    Rule(
        "graph/not-in-quantized",
        Level.CROSS_FILE,
        Severity.NOTE,
        "modules of the float graph have no node in the quantized one",
        "An adapter of such a module cannot be placed on the quantized graph.",
        "Nothing to do if no adapter needs them.",
    ),
    Rule(
        "graph/not-neutral",
        Level.CROSS_FILE,
        Severity.WARNING,
        "the branches of the given graph are not zero",
        "As it is, the graph computes an adapter and not the base. A use case without adapters "
        "would keep these weights.",
        "Give a graph whose B are zero for the base alone.",
    ),
    Rule(
        "graph/alpha-name",
        Level.CROSS_FILE,
        Severity.NOTE,
        "the given graph calls its input for strengths otherwise",
        "The name of the graph is kept: an application that feeds the configured name fails.",
        "Feed the input by the name that the manifest has.",
    ),
)
