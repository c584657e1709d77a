"""Pass: read back what was written, with other readers than the writers, before it is published."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from lora_quant.config.finding_records import portable_relative
from lora_quant.errors import GraphError, PackDefectError
from lora_quant.findings import Finding, Severity
from lora_quant.graph.files.model_check import check_model_file
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.contract import Condition, PassResult
from lora_quant.targets.files.pack_folder import MANIFEST, PackFolder
from lora_quant.validation.documents.schema_check import Depth
from lora_quant.validation.pack.check import check_pack

_SHOWN = 5


def _not_written(compilation: Compilation) -> str | None:
    if compilation.staging is None:
        return "there is no staging folder"
    return None if (compilation.staging.root / MANIFEST).is_file() else f"there is no {MANIFEST}"


PACKS_WRITTEN = Condition("packs are written", _not_written)


@dataclass(frozen=True)
class ValidatePacks:
    """Checks everything but hashes, which were made from the same bytes a moment ago."""

    name: ClassVar[str] = "validate-packs"
    requires: ClassVar[tuple[Condition, ...]] = (PACKS_WRITTEN,)
    ensures: ClassVar[tuple[Condition, ...]] = ()

    def run(self, compilation: Compilation) -> PassResult:
        """Raises PackDefectError if a file fails its own checks; nothing is published then.

        Raises GraphError instead if the base graph is what fails the check of the pack's graph.
        """
        folder: PackFolder = compilation.having("staging")
        findings = check_pack(
            folder.root, shown=folder.output, locate=folder.locate, depth=Depth.QUICK
        )
        errors = [f for f in findings if f.severity is Severity.ERROR]
        if not errors:
            return PassResult(compilation.with_findings(*findings), changed=bool(findings))
        if any(f.rule.startswith("graph/") for f in errors):
            _check_base(compilation.base.path)
        lines = [_line(f, folder) for f in errors[:_SHOWN]]
        if len(errors) > _SHOWN:
            lines.append(f"and {len(errors) - _SHOWN} more")
        raise PackDefectError(
            "the pack that was written fails its own checks, and was not published:\n  "
            + "\n  ".join(lines),
            hint="this is a defect of lora-quant or of a plugin: please report it with these lines",
        )


def _check_base(path: Path) -> None:
    """The file, since the graph in memory has the branches by now."""
    try:
        check_model_file(path)
    except GraphError as error:
        raise GraphError(
            f"in the base graph itself, {error.message}",
            where=error.where,
            hint=error.hint or "export it again, and run onnx.checker on the result",
        ) from error


def _line(finding: Finding, folder: PackFolder) -> str:
    """One problem; its file by the path in the pack, since what is not published has no other."""
    where = finding.where
    if where.file is not None:
        inside = portable_relative(where.file.absolute(), folder.output)
        where = replace(where, file=Path(inside or where.file.name))
    return f"{finding.message} [{finding.rule}] {where or ''}".rstrip()
