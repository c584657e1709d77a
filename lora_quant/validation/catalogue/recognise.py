"""Rules about what a path holds."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

UNKNOWN = Rule(
    "recognise/unknown",
    Level.SCHEMA,
    Severity.ERROR,
    "the document is of no known kind",
    "Nothing was checked in it. A file that was named is an error; one that was met in a folder "
    "is a note.",
    "Check the spelling of its top keys, or leave the file out.",
)

BINARY = Rule(
    "recognise/binary",
    Level.SCHEMA,
    Severity.ERROR,
    "the file is binary and of no known kind",
    "Nothing was checked in it. It may be cut short: the first bytes tell a graph, weights and "
    "an adapter.",
    "Name the graph, the weights or the pack's folder, or leave the file out.",
)

NOTHING = Rule(
    "recognise/nothing",
    Level.SCHEMA,
    Severity.ERROR,
    "the folder holds nothing that can be checked",
    "A check of nothing would pass for the wrong reason, for example after a renamed folder.",
    "Name the folder of a pack, or one with configurations, encodings or graphs.",
)

NOT_A_FILE = Rule(
    "recognise/not-a-file",
    Level.SCHEMA,
    Severity.ERROR,
    "the path leads to a pipe, a socket or a device",
    "Reading such a path can wait for ever or never end, so it is not opened. One that is met in "
    "a folder is a note.",
    "Save the content in a file, and name that.",
)

BROKEN_LINK = Rule(
    "recognise/broken-link",
    Level.SCHEMA,
    Severity.ERROR,
    "the link leads nowhere",
    "There is no file to check, and no other program will find one. A link that is met in a "
    "folder is a note.",
    "Make the link lead to the file, or remove it.",
)

UNREADABLE_FOLDER = Rule(
    "recognise/unreadable-folder",
    Level.SCHEMA,
    Severity.ERROR,
    "the folder cannot be looked into",
    "Nothing that lies in it was checked.",
    "Ask for the right to read the folder, or leave it out with `exclude` in the settings.",
)

TOO_DEEP = Rule(
    "recognise/too-deep",
    Level.SCHEMA,
    Severity.WARNING,
    "folders lie deeper in each other than is looked into",
    "The depth is bounded, so that an endless folder is left again. What lies below was not "
    "checked.",
    "Name the folder itself.",
)

LFS_POINTER = Rule(
    "recognise/lfs-pointer",
    Level.SCHEMA,
    Severity.ERROR,
    "the file is a pointer of Git LFS instead of its content",
    "The content was never fetched: nothing of it was checked, and no tool can read it.",
    "Run `git lfs pull`.",
)

RULES = (
    UNKNOWN,
    BINARY,
    NOTHING,
    NOT_A_FILE,
    BROKEN_LINK,
    UNREADABLE_FOLDER,
    TOO_DEEP,
    LFS_POINTER,
)
