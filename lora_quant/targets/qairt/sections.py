"""Which binary section is whose, by the names that the device compiler gives.

part_2_tone.bin, part_10_tone.bin, part_2_both.bin, part_10_both.bin
    ->  graphs part_2, part_10; tone: a section of each; both: a section of each

A section is called <graph>_<use case>.bin. The longest name of a use case decides.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_quant.errors import ConfigError, InputMissingError, Where, some

SUFFIX = ".bin"


@dataclass(frozen=True)
class Sections:
    """`files`: use case -> graph -> file name; every use case has one for each of `graphs`.

    `graphs` are in the order of the numbers in their names.
    """

    graphs: tuple[str, ...]
    files: Mapping[str, Mapping[str, str]]


def find_sections(folder: Path, use_cases: Sequence[str]) -> Sections:
    """The sections in a folder.

    Raises InputMissingError if it cannot be read, or lacks sections of a use case; ConfigError if
    use cases have sections of different graphs.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise InputMissingError(
            f"the folder of sections cannot be read: {error.strerror or error}",
            where=Where(file=folder),
            hint="name the folder that qnn-context-binary-generator wrote the sections into",
        ) from error
    found = _by_use_case(names, use_cases)
    for use_case in use_cases:
        if use_case not in found:
            binaries = [name for name in names if name.endswith(SUFFIX)]
            raise InputMissingError(
                f"the folder has no section of use case {use_case!r}: expected a file "
                f"'<graph>_{use_case}{SUFFIX}', it has {some(binaries) or 'no ' + SUFFIX}",
                where=Where(file=folder, use_case=use_case),
                hint="name the folder that qnn-context-binary-generator wrote the sections into, "
                "or give the sections these names",
            )
    first = use_cases[0]
    graphs = sorted(found[first], key=_natural)
    for use_case in use_cases:
        if set(found[use_case]) != set(graphs):
            raise ConfigError(
                f"use case {use_case!r} has sections of {some(sorted(found[use_case]))}, use case "
                f"{first!r} of {some(graphs)}",
                where=Where(file=folder, use_case=use_case),
                hint="every use case needs a section for each graph, and no others: remove what is "
                "left of an earlier run",
            )
    return Sections(tuple(graphs), {use_case: found[use_case] for use_case in use_cases})


def _by_use_case(names: Iterable[str], use_cases: Sequence[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = defaultdict(dict)
    longest_first = sorted(use_cases, key=len, reverse=True)
    for name in names:
        stem = name.removesuffix(SUFFIX)
        owner = next((u for u in longest_first if stem.endswith(f"_{u}")), None)
        if stem != name and owner is not None:
            graph = stem.removesuffix(f"_{owner}")
            if graph:
                found[owner][graph] = name
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    """part_2 before part_10."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]
