"""The text files of a pack that list tensors, one name a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from lora_quant.config.manifest_records import PackFile
from lora_quant.config.tensor_list import read_lines
from lora_quant.errors import LoraQuantError, some
from lora_quant.findings import Finding
from lora_quant.validation.pack.view import PackView

_REBUILD = "build the pack again"


def check_tensor_names(view: PackView, file: PackFile) -> Iterator[Finding]:
    """`lora_tensor_names.txt` must name the manifest's tensors, each once."""
    names = _names(view, file)
    if isinstance(names, Finding):
        yield names
        return
    expected = [tensor.name for tensor in view.manifest.tensors]
    counts = Counter(names)
    missing = [name for name in expected if name not in counts]
    extra = sorted(counts.keys() - set(expected))
    repeated = sorted(name for name, count in counts.items() if count > 1)
    for found, what in (
        (missing, "the list lacks tensors of the manifest"),
        (extra, "the list names tensors that are not in the manifest"),
        (repeated, "the list names tensors twice"),
    ):
        if found:
            yield view.error("tensor-names", f"{what}: {some(found)}", file.path, hint=_REBUILD)


def check_updatable(
    view: PackView, file: PackFile, encoded: Collection[str] | None
) -> Iterator[Finding]:
    """Each quant-updatable tensor must have an encoding; `encoded` is None if there is no file."""
    names = _names(view, file)
    if isinstance(names, Finding):
        yield names
        return
    bare = [] if encoded is None else sorted(set(names).difference(encoded))
    if bare:
        yield view.error(
            "updatable-without-encoding",
            f"{len(bare)} quant-updatable tensors have no encoding in quant_overrides: "
            f"{some(bare)}",
            file.path,
            hint="the vendor's tools would keep the base's encoding for them; " + _REBUILD,
            use_case=file.use_case,
        )


def listed_names(view: PackView, file: PackFile) -> list[str]:
    """The names of a list; none if it cannot be read, which its own check says."""
    names = _names(view, file)
    return [] if isinstance(names, Finding) else names


def _names(view: PackView, file: PackFile) -> list[str] | Finding:
    try:
        lines = read_lines(view.locate(file.path))
    except LoraQuantError as error:
        return view.error(
            "unreadable",
            f"the list cannot be read: {error.message}",
            file.path,
            hint=_REBUILD,
            use_case=file.use_case,
        )
    return [line for line in lines if line]
