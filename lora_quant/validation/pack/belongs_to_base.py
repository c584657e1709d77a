"""Whether a pack was built on a given base: its graph and its weights, as the manifest has them.

graph    by SHA-256
weights  by the sampled hash of each data file, in the order of the manifest; their names may differ

The manifest tells graph and weights apart, and so does the message: a graph that was exported again
has other bytes with the same weights, a model that was trained on has other weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_quant.config.documents import read_json_located
from lora_quant.config.manifest import MANIFEST_FILE, Manifest, read_manifest
from lora_quant.config.manifest_records import StoredFile
from lora_quant.errors import LoraQuantError, Where
from lora_quant.findings import Finding
from lora_quant.graph.files.data_files import sampled_sha256, sha256_of
from lora_quant.graph.files.external_data import DataFile
from lora_quant.graph.files.model_file import load_model
from lora_quant.validation.catalogue.pack_contents import OTHER_BASE
from lora_quant.validation.from_errors import finding_of


def check_belongs_to_base(pack: Path, base: Path) -> tuple[Finding, ...]:
    """Findings if the pack in the folder `pack` was built on another base than the graph `base`.

    A base that cannot be opened is a finding at the base; a manifest that cannot be read is left
    to the check of the pack. Never raises for content.
    """
    try:
        manifest = read_manifest(pack)
    except LoraQuantError:
        return ()
    try:
        different = _different(manifest, base)
    except LoraQuantError as error:
        return (finding_of(error, shown=base),)
    if not different:
        return ()
    part, what = different
    message = f"the pack was built on another base than {base.name}: {what}"
    return (OTHER_BASE.finding(message, _place(pack / MANIFEST_FILE, part)),)


def _place(manifest: Path, part: str) -> Where:
    """Where the record is in the manifest."""
    try:
        return read_json_located(manifest).where(("base", part), field=f"base.{part}")
    except LoraQuantError:  # larger than what is scanned for positions
        return Where(file=manifest, field=f"base.{part}")


def _different(manifest: Manifest, base: Path) -> tuple[str, str] | None:
    """The part of the base's record and what is different, None if nothing is."""
    recorded = manifest.base
    digest = sha256_of(base)
    data = load_model(base).data_files
    same_graph = recorded.graph.sha256 in (None, digest)
    same_data = _same_data(recorded.data, data)
    if same_graph and same_data:
        return None
    if same_graph:
        return "data", "the graph is the same, its weights are not"
    told = f"its SHA-256 is {digest[:12]}..., the manifest has {(recorded.graph.sha256 or '')[:12]}"
    if not recorded.data:
        return "graph", f"the graph, with the weights inside, is not the same: {told}..."
    if same_data:
        return "graph", f"the graph is not the same, its weights are: {told}..."
    return "graph", f"neither the graph nor its weights are the same: {told}..."


def _same_data(recorded: Sequence[StoredFile], data: Sequence[DataFile]) -> bool:
    """Files may have been renamed together with the graph; their order is that of their names."""
    if len(recorded) != len(data):
        return False
    known = sorted((r.size, r.sampled_sha256 or "") for r in recorded)
    found = sorted((one.size, sampled_sha256(one.path)) for one in data)
    return all(
        size == own_size and digest in ("", own)
        for (size, digest), (own_size, own) in zip(known, found, strict=True)
    )
