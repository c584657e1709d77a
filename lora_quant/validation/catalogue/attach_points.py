"""Rules about attach point mappings, held against a graph."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

UNKNOWN_NODE = Rule(
    "attach-points/unknown-node",
    Level.CROSS_FILE,
    Severity.WARNING,
    "the mapping names nodes that the graph does not have",
    "The mapping was made for another export, or the graph was optimized since. A build stops "
    "only if an adapter needs the module.",
    "Write the mapping again for this graph, with `lora-quant map`.",
)

SEVERAL_LINEAR_NODES = Rule(
    "attach-points/several-linear-nodes",
    Level.CROSS_FILE,
    Severity.WARNING,
    "the mapping gives a module more than one linear node",
    "A branch goes to one node, and nothing tells which of them. A build stops if an adapter needs "
    "the module.",
    "Leave the one node that computes the module; others may stay under keys of their own.",
)

NO_LINEAR_NODE = Rule(
    "attach-points/no-linear-node",
    Level.CROSS_FILE,
    Severity.WARNING,
    "no module of the mapping has a linear node",
    "No adapter can be placed by this mapping. It belongs to another graph, or to one whose linear "
    "layers were quantized to other operators.",
    "Write the mapping again for this graph, with `lora-quant map`.",
)

OTHER_MODULE = Rule(
    "attach-points/other-module",
    Level.CROSS_FILE,
    Severity.WARNING,
    "the mapping gives a module the node of another one",
    "The graph itself says of which module the node is, and it is not the one of the key. The "
    "adapter's branch of this module would be added to the other layer, and nothing would say so "
    "if the sizes are equal.",
    "Check the entry: were two names confused? Leave it if the graph's names are wrong.",
)

RULES = (UNKNOWN_NODE, SEVERAL_LINEAR_NODES, NO_LINEAR_NODE, OTHER_MODULE)
