"""Giving files to use cases: what the content proves, then what is stated, then what names say.

tone.encodings    fits tone                   -> tone, its names are in no other graph
a.encodings       fits legal, both            -> by its name; if that is none of them, nobody's
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lora_quant.config.names import folder_key
from lora_quant.config.real_path import real_path
from lora_quant.configure.found.walk import shown_path
from lora_quant.errors import Where, some
from lora_quant.findings import Finding, Severity

_SUFFIXES = frozenset({".encodings", ".onnx", ".json", ".txt"})
_TAGS = re.compile(
    r"(?:[._-](?:fp16|fp32|bf16|int4|int8|int16|w\d+a\d+|v?\d+(?:\.\d+)+|qdq|quantized|sim))+$",
    re.IGNORECASE,
)
_SEPARATORS = str.maketrans("._-+", "    ")


@dataclass(frozen=True, eq=False)
class Claim:
    """One file, and the use cases that its content fits; `proof` says how.

    `version`: that of its format, where files of one content can differ in it.
    """

    path: Path
    fits: tuple[str, ...]
    proof: str
    version: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Given:
    """Use case -> its file, how that was decided, and what was not."""

    files: Mapping[str, Path] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


def give(
    what: str,
    claims: Sequence[Claim],
    use_cases: Sequence[str],
    stated: Mapping[str, Path],
    folder: Path,
) -> Given:
    """One file of a kind for each use case; `stated`: use case -> file, as a configuration says.

    What fits no use case is left out with a note, what stays ambiguous with a warning.
    """
    said = {real_path(path): name for name, path in stated.items()}
    by_use_case: dict[str, list[tuple[Claim, str]]] = defaultdict(list)
    findings: list[Finding] = []
    for claim in claims:
        if not claim.fits:
            findings.append(_unused(what, claim))
            continue
        name, reason = _choose(claim, said.get(real_path(claim.path)), folder)
        if name is None:
            findings.append(_ambiguous(what, claim))
            continue
        called = named_after(claim.path, use_cases, folder)
        if called is not None and called not in claim.fits:
            findings.append(_contradicted(what, claim, called, name))
        by_use_case[name].append((claim, reason))
    files: dict[str, Path] = {}
    reasons: dict[str, str] = {}
    for name, found in by_use_case.items():
        kept = _best(found, name, stated.get(name), folder)
        if len(kept) > 1 and len({claim.version for claim, _ in kept}) == len(kept):
            kept = [max(kept, key=lambda one: one[0].version)]
            findings.append(_newest(what, kept[0][0], name, len(found)))
        if len(kept) > 1:
            paths = [shown_path(claim.path, folder) for claim, _ in kept]
            findings.append(
                Finding(
                    "convert/ambiguous",
                    Severity.WARNING,
                    f"several {what} fit use case {name!r}, and none was taken: {some(paths)}",
                    Where(file=folder, use_case=name),
                    "leave one of them in the folder, or write it into the file",
                )
            )
            continue
        ((claim, reason),) = kept
        files[name], reasons[name] = claim.path, reason
    return Given(files, reasons, tuple(findings))


def named_after(path: Path, names: Sequence[str], folder: Path) -> str | None:
    """The one of `names` that a file is called by: its stem, its folder, or a part of its stem."""
    for parts in (_stems(path), (path.parent.name,) if path.parent != folder else ()):
        keys = {folder_key(part) for part in parts}
        found = [name for name in names if folder_key(name) in keys]
        if len(found) == 1:
            return found[0]
    stem = f" {folder_key(_stems(path)[-1]).translate(_SEPARATORS)} "
    inside = [n for n in names if f" {folder_key(n).translate(_SEPARATORS)} " in stem]
    longest = [n for n in inside if len(n) == max(map(len, inside))]
    return longest[0] if len(longest) == 1 else None


def plain_stem(path: Path) -> str:
    """The stem without what tells a format: `tone.fp32.onnx`, `tone.v1.0.0.encodings` -> tone."""
    stem = path.stem
    if Path(stem).suffix.lower() in _SUFFIXES:  # tone.encodings.json
        stem = Path(stem).stem
    return _TAGS.sub("", stem) or stem


def _choose(claim: Claim, stated: str | None, folder: Path) -> tuple[str | None, str]:
    if len(claim.fits) == 1:
        return claim.fits[0], claim.proof
    if stated in claim.fits:
        return stated, "as a configuration in the folder says"
    by_name = named_after(claim.path, claim.fits, folder)
    return by_name, "by its name"


def _best(
    found: list[tuple[Claim, str]], name: str, stated: Path | None, folder: Path
) -> list[tuple[Claim, str]]:
    """Of several files of one use case: the stated one, or the one that bears its name."""
    if len(found) == 1:
        return found
    if stated is not None:
        said = [one for one in found if real_path(one[0].path) == real_path(stated)]
        if said:
            return said
    exact = [one for one in found if folder_key(name) in map(folder_key, _stems(one[0].path))]
    if len(exact) == 1:
        return exact
    own = [one for one in found if named_after(one[0].path, [name], folder) is not None]
    return own if len(own) == 1 else found


def _stems(path: Path) -> tuple[str, ...]:
    """What a file can be called by: its name, its stem, and its stem without tags."""
    return tuple(dict.fromkeys((path.name, path.stem, plain_stem(path))))


def _contradicted(what: str, claim: Claim, called: str, name: str) -> Finding:
    return Finding(
        "convert/name-contradicted",
        Severity.WARNING,
        f"the {what} are called like use case {called!r}, but fit {name!r} alone: {claim.proof}",
        Where(file=claim.path, use_case=name),
        "check that the file is the one that was meant",
    )


def _newest(what: str, claim: Claim, name: str, count: int) -> Finding:
    version = ".".join(map(str, claim.version))
    return Finding(
        "convert/newest-version",
        Severity.NOTE,
        f"{count} {what} of different versions fit use case {name!r}; the newest was taken, "
        f"{version}",
        Where(file=claim.path, use_case=name),
        "leave those of one version in the folder to choose it",
    )


def _unused(what: str, claim: Claim) -> Finding:
    return Finding(
        "convert/unused-file",
        Severity.NOTE,
        f"the {what} fit no use case and were left out: {claim.proof}",
        Where(file=claim.path),
    )


def _ambiguous(what: str, claim: Claim) -> Finding:
    return Finding(
        "convert/ambiguous",
        Severity.WARNING,
        f"the {what} fit several use cases, and their name tells none: {some(list(claim.fits))}",
        Where(file=claim.path),
        "name the file after its use case, or write it into the file",
    )
