"""Rules about the files of a pack and the records of its manifest."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

_REBUILD = "Build the pack again."
_COPY = "Build the pack again, or take the file from an undamaged copy."


def _error(name: str, title: str, why: str, mend: str) -> Rule:
    return Rule(f"pack/{name}", Level.CROSS_FILE, Severity.ERROR, title, why, mend)


RULES = (
    _error(
        "missing-file",
        "a file of the manifest is not there",
        "A tool of the flow or a session that needs it stops, or runs another use case.",
        _COPY,
    ),
    _error(
        "unreadable",
        "a file of the pack cannot be read",
        "Nobody can tell whether it is the one that was built.",
        "Check the permissions, or build the pack again.",
    ),
    _error(
        "size",
        "a file has another size than was written",
        "It was cut short or edited after the build: it no longer belongs to the other files.",
        _COPY,
    ),
    _error(
        "hash",
        "a file has other bytes than were written",
        "A bit flipped, or somebody edited it. A flipped bit in weights is an adapter that nobody "
        "trained.",
        _COPY,
    ),
    _error(
        "listed-twice",
        "the manifest lists a file twice",
        "One file cannot have two roles or belong to two use cases: one of them gets wrong data.",
        _REBUILD,
    ),
    _error(
        "outside",
        "the manifest leads out of the pack",
        "Whoever copies or loads the pack would read a file that its maker does not own, such as "
        "one of yours.",
        "Do not use this pack unless you know who made it.",
    ),
    _error(
        "stray-file",
        "the pack holds a file that the manifest does not list",
        "Nothing says where it comes from, and a tool that reads whole folders would take it for a "
        "part of the pack.",
        "Remove it: a pack holds only what its build wrote.",
    ),
    _error(
        "base-data",
        "the base's data, which the pack shares, was changed",
        "The pack's graph reads its weights from there: with other bytes at these places it "
        "computes another base, or noise.",
        "Build the pack again, on the base as it is now.",
    ),
    _error(
        "unknown-use-case",
        "a file belongs to a use case that the manifest does not have",
        "No session would ever load it, and a use case may lack it.",
        _REBUILD,
    ),
    _error(
        "use-case-files",
        "a use case has no file of a role, or several",
        "Switching to it would change weights without encodings, or encodings without weights.",
        _REBUILD,
    ),
    _error(
        "merged-files",
        "a merged pack has files to switch use cases with",
        "The adapter is in the weights of the graph already: a switch would add it once more.",
        _REBUILD,
    ),
    _error(
        "merged",
        "a merged pack has use cases, attach points or an alpha input",
        "There is nothing to switch in such a pack. The manifest is not that of its graph.",
        _REBUILD,
    ),
    _error(
        "attach-point",
        "an attach point has neither a branch nor a vector",
        "Nothing can act there, so an adapter that was placed on it is lost.",
        _REBUILD,
    ),
    _error(
        "tensor-roles",
        "attach points and tensors of the manifest contradict each other",
        "A weight would be loaded as another part of a branch, or not at all.",
        _REBUILD,
    ),
    _error(
        "alpha",
        "the manifest has branches without an alpha input, or the input without branches",
        "Strengths could not be set, or would be fed to a graph that has no such input.",
        _REBUILD,
    ),
    _error(
        "gate",
        "a slot is gated and the graph has no gate input",
        "The adapter would act on every token and not from its invocation tokens on.",
        _REBUILD,
    ),
    _error(
        "prompt",
        "the record of a soft prompt contradicts itself",
        "Its adapter is not in the use case, or its shape does not fit the inputs that take it.",
        _REBUILD,
    ),
    Rule(
        "pack/not-filled-in",
        Level.CROSS_FILE,
        Severity.NOTE,
        "entries wait for the device compiler",
        "Paths of sections and names of compiled graphs are known only once it has run. The pack "
        "is sound, and not ready for a device.",
        "Run `lora-quant fill-in PACK SECTIONS` on what the compiler wrote, and validate its "
        "copies.",
    ),
)
