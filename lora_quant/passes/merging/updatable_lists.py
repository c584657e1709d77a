"""Holding a given list of quant-updatable tensors against the set of the mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from lora_quant.config.lora_config import UseCaseInputConfig
from lora_quant.config.tensor_list import read_lines
from lora_quant.encodings.encoding import Encoding
from lora_quant.errors import Where, some
from lora_quant.findings import Finding, Severity
from lora_quant.passes.merging.collected import UseCaseEncodings
from lora_quant.passes.merging.exported_names import ExportedNames
from lora_quant.passes.merging.tensor_names import TensorNames
from lora_quant.passes.updatable import UpdatableTensors


def updatable_findings(
    use_case: UseCaseInputConfig,
    names: TensorNames | ExportedNames,
    found: UseCaseEncodings,
    updatable: UpdatableTensors,
    base: Mapping[str, Encoding],
) -> Iterator[Finding]:
    """Both differences, as far as the use case's own encodings name the tensors.

    `names` translates those of the list's graph. A list knows only the tensors of that graph:
    branches that are idle in the use case, and what we compute, are not expected in it; nor is a
    tensor whose encoding is the base's.
    """
    path = use_case.updatable_tensors_file()
    if path is None:
        if use_case.quant_updatable_tensors is not None:
            yield _no_list(use_case)
        return
    given = names.translate(read_tensor_list(path))
    where = Where(file=path, use_case=use_case.name)
    if given.unknown:
        yield _finding(
            "updatable/unknown-tensor", given.unknown, "of the list are not in the graph", where
        )
    listed = {t: n for t, n in given.names.items() if t not in names.scale}
    fixed = [name for tensor, name in listed.items() if tensor not in updatable]
    if fixed:
        yield _finding(
            "updatable/fixed-in-mode",
            fixed,
            f"of the list are fixed in mode {updatable.mode.value}",
            where,
        )
    unlisted = sorted(
        tensor
        for tensor in (found.given & updatable.encodings) - set(listed)
        if tensor not in base or not base[tensor].same_grid(found.encodings[tensor])
    )
    if unlisted:
        yield _finding("updatable/not-listed", unlisted, "are updated and not in the list", where)


def read_tensor_list(path: Path) -> tuple[str, ...]:
    """Names, one a line; empty lines are skipped.

    Raises as `read_lines` does.
    """
    return tuple(dict.fromkeys(line.strip() for line in read_lines(path) if line.strip()))


def _no_list(use_case: UseCaseInputConfig) -> Finding:
    """The format lets a file be missing; that it is may still be a slip."""
    return Finding(
        rule="updatable/no-list",
        severity=Severity.NOTE,
        message="the list of tensors does not exist: the mode alone says which may change",
        where=Where(file=use_case.quant_updatable_tensors, use_case=use_case.name),
        hint="correct quant_updatable_tensors, or leave it out",
    )


def _finding(rule: str, tensors: list[str] | tuple[str, ...], text: str, where: Where) -> Finding:
    return Finding(
        rule=rule,
        severity=Severity.WARNING,
        message=f"{len(tensors)} tensors {text}: {some(tensors)}",
        where=where,
        hint="check that the mode is the one that the list was made for",
    )
