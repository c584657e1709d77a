"""Rules about the `lora_config` text of the QNN provider, by itself."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.catalogue.sections import section_rules
from lora_quant.validation.rule import Level, Rule

RULES = (
    Rule(
        "qnn-lora-config/form",
        Level.SCHEMA,
        Severity.ERROR,
        "the text is not `graph name;section path`",
        "The QNN provider of ONNX Runtime splits the first line at the semicolon. Without two "
        "parts it applies nothing.",
        "Write one line: the name of the graph, a semicolon, the path of the section.",
    ),
    Rule(
        "qnn-lora-config/characters",
        Level.SCHEMA,
        Severity.ERROR,
        "a character would be taken for a part of a name",
        "Quotes, white space, a byte order mark or a carriage return become a part of the graph's "
        "name or the path, and neither is found.",
        "Remove the character; save the file as plain UTF-8 with line ends of Linux.",
    ),
    Rule(
        "qnn-lora-config/more-lines",
        Level.SCHEMA,
        Severity.WARNING,
        "the text has more than one line",
        "Only the first line is known to be read: graphs that later lines name keep the weights "
        "that they have.",
        "Write a file for each graph, and give each session its own.",
    ),
    Rule(
        "qnn-lora-config/size",
        Level.SCHEMA,
        Severity.ERROR,
        "the text is larger than one line can be",
        "It is another kind of file: the provider would take its first line for a name and a path.",
        "Write one line: the name of the graph, a semicolon, the path of the section.",
    ),
    Rule(
        "qnn-lora-config/unreadable",
        Level.SCHEMA,
        Severity.ERROR,
        "the text cannot be read",
        "The QNN provider goes on without it: the run gives what the base gives, and only the log "
        "has an error.",
        "Check the path and the permissions.",
    ),
    *section_rules("qnn-lora-config"),
)
