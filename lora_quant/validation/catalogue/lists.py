"""Rules about lists of tensors: text files with one name a line."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

TOO_LARGE = Rule(
    "list/too-large",
    Level.SCHEMA,
    Severity.ERROR,
    "the file is larger than any list of tensors",
    "A build refuses it rather than fill the memory with it. Lists of real graphs take some "
    "hundred kilobytes.",
    "Check that the path names the list and not the weights.",
)

NOT_UTF_8 = Rule(
    "list/not-utf-8",
    Level.SCHEMA,
    Severity.ERROR,
    "the list is not UTF-8 text",
    "Names of tensors are UTF-8 in ONNX. In another encoding no name with such a character is "
    "found in the graph.",
    "Save the file as UTF-8.",
)

BYTE_ORDER_MARK = Rule(
    "list/byte-order-mark",
    Level.SCHEMA,
    Severity.ERROR,
    "the list begins with a byte order mark",
    "The three bytes become part of the first name, and no tensor has that name.",
    "Save the file as UTF-8 without a byte order mark.",
)

CONTROL_CHARACTER = Rule(
    "list/control-character",
    Level.SCHEMA,
    Severity.ERROR,
    "a name holds a control character",
    "Such a character cannot be seen. It is part of the name for the tools, and no tensor of the "
    "graph has that name.",
    "Write the list again from the names in the graph.",
)

WHITE_SPACE = Rule(
    "list/white-space",
    Level.SCHEMA,
    Severity.WARNING,
    "a name has white space around it",
    "We strip it. A tool that does not looks for a name that ends in a space, and leaves the "
    "tensor out.",
    "Remove the white space.",
)

LINE_ENDS = Rule(
    "list/line-ends",
    Level.SCHEMA,
    Severity.NOTE,
    "the lines end as on Windows",
    "A tool on Linux that splits at the line feed alone has a carriage return at the end of every "
    "name, and finds none of them.",
    "Save the file with line ends of Linux.",
)

EMPTY_LINE = Rule(
    "list/empty-line",
    Level.SCHEMA,
    Severity.NOTE,
    "the list has empty lines",
    "We skip them. A tool that does not looks for a tensor without a name.",
    "Remove the empty lines.",
)

TWICE = Rule(
    "list/twice",
    Level.SCHEMA,
    Severity.WARNING,
    "a name is in the list more than once",
    "It counts once. A list that was put together from two often has wrong names as well.",
    "Remove all but one.",
)

NOT_SORTED = Rule(
    "list/not-sorted",
    Level.SCHEMA,
    Severity.NOTE,
    "the names are not sorted",
    "The flow writes sorted lists. Unsorted ones are read just as well, but cannot be compared "
    "line by line.",
    "Sort the lines by code point (LC_ALL=C sort).",
)

RULES = (
    TOO_LARGE,
    NOT_UTF_8,
    BYTE_ORDER_MARK,
    CONTROL_CHARACTER,
    WHITE_SPACE,
    LINE_ENDS,
    EMPTY_LINE,
    TWICE,
    NOT_SORTED,
)
