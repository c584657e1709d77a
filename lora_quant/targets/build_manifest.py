"""Putting the manifest together from the records that the passes left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from lora_quant import __version__
from lora_quant.adapters.adapter import Adapter
from lora_quant.config.finding_records import FindingRecord, portable_relative
from lora_quant.config.manifest import Manifest
from lora_quant.config.manifest_records import (
    AdapterRecord,
    AlphaRecord,
    AttachPointRecord,
    BaseRecord,
    BranchTensors,
    InputRecord,
    ModuleRecord,
    PackFile,
    SlotRecord,
    StoredFile,
    TargetRecord,
    TensorRecord,
    ToolRecord,
    UseCaseRecord,
)
from lora_quant.graph.data_files import sampled_sha256, sha256_of
from lora_quant.graph.records import Branch, BranchedGraph
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.slots import SlotTable
from lora_quant.targets.pack_folder import PackFolder


def build_manifest(
    compilation: Compilation, folder: PackFolder, targets: Sequence[str]
) -> Manifest:
    """The manifest of everything in `folder`; inputs are hashed here."""
    branched: BranchedGraph = compilation.having("branched")
    slots: SlotTable = compilation.having("slots")
    adapters = compilation.having("adapters")
    inputs = _Inputs(folder)
    hashes = {a.name: inputs.add_adapter(a) for a in adapters.values()}
    inputs.add_config(compilation)
    alpha = branched.scale.alpha
    return Manifest(
        tool=ToolRecord(name="lora-quant", version=__version__),
        mode=compilation.options.mode,
        max_rank=branched.max_rank,
        alpha=AlphaRecord(
            tensor=alpha.name,
            layout=compilation.options.alpha_layout,
            dtype=alpha.dtype,
            shape=alpha.shape,
        ),
        base=_base(compilation, folder),
        inputs=tuple(inputs.records),
        adapters=tuple(
            AdapterRecord(
                name=a.name, kind=a.rule.kind, rank=a.rank, scale=a.scale, sha256=hashes[a.name]
            )
            for a in adapters.values()
        ),
        attach_points=tuple(_attach_point(branch) for branch in branched.branches),
        use_cases=tuple(
            UseCaseRecord(
                name=name,
                slots=tuple(
                    SlotRecord(
                        adapter=s.adapter, start=s.start, rank=s.rank, alpha=s.alpha, scale=s.scale
                    )
                    for s in owned
                ),
            )
            for name, owned in slots.use_cases.items()
        ),
        tensors=tuple(_tensors(branched)),
        targets=tuple(TargetRecord(name=t, files=tuple(_files(folder, t))) for t in targets),
        findings=tuple(
            FindingRecord.of(f, relative_to=folder.output) for f in compilation.findings
        ),
    )


class _Inputs:
    """Records of what was read, by use; a file that several share is hashed once."""

    def __init__(self, folder: PackFolder) -> None:
        self._folder = folder.output
        self._digests: dict[Path, str] = {}
        self.records: list[InputRecord] = []

    def add(self, role: str, path: Path, name: str | None = None) -> str:
        digest = self._digests.get(path) or sha256_of(path)
        self._digests[path] = digest
        self.records.append(
            InputRecord(
                role=role,
                name=name,
                path=portable_relative(path.absolute(), self._folder),
                size=path.stat().st_size,
                sha256=digest,
            )
        )
        return digest

    def add_adapter(self, adapter: Adapter) -> tuple[str, ...]:
        files = (adapter.checkpoint.config.file, adapter.checkpoint.tensors.path)
        return tuple(self.add("adapter", path, adapter.name) for path in files)

    def add_config(self, compilation: Compilation) -> None:
        if compilation.config_file is not None:
            self.add("config", compilation.config_file)
        mapping = compilation.config.attach_point_onnx_mapping
        if mapping is not None:
            self.add("attach-points", mapping)
        for use_case in compilation.config.use_cases:
            if use_case.encodings is not None:
                self.add("encodings", use_case.encodings, use_case.name)
            updatable = use_case.updatable_tensors_file()
            if updatable is not None:
                self.add("updatable-tensors", updatable, use_case.name)


def _base(compilation: Compilation, folder: PackFolder) -> BaseRecord:
    """The base graph is hashed whole, its data by samples: see lora_quant.graph.data_files."""
    base = compilation.base
    output = folder.output
    return BaseRecord(
        graph=StoredFile(
            path=portable_relative(base.path.absolute(), output),
            size=base.path.stat().st_size,
            sha256=sha256_of(base.path),
        ),
        data=tuple(
            StoredFile(
                path=portable_relative(data.path.absolute(), output),
                size=data.size,
                sampled_sha256=sampled_sha256(data.path),
            )
            for data in base.model.data_files
        ),
        beside_base=compilation.options.beside_base,
    )


def _attach_point(branch: Branch) -> AttachPointRecord:
    point = branch.attach
    return AttachPointRecord(
        name=point.name,
        modules=tuple(
            ModuleRecord(module=p.module, offset=p.offset, size=p.size) for p in point.parts
        ),
        node=point.linear.node or point.linear.product,
        form=point.linear.form.value,
        in_features=point.linear.in_features,
        out_features=point.linear.out_features,
        tensors=BranchTensors(
            a_weight=branch.a_weight.name,
            b_weight=branch.b_weight.name,
            x=branch.x,
            h=branch.h,
            a=branch.a,
            m=branch.m,
            l=branch.l,
            y=branch.y,
            relayouts=branch.relayouts,
        ),
    )


def _tensors(branched: BranchedGraph) -> Iterable[TensorRecord]:
    for branch in branched.branches:
        for role, record in (("a_weight", branch.a_weight), ("b_weight", branch.b_weight)):
            yield TensorRecord(name=record.name, shape=record.shape, dtype=record.dtype, role=role)
    expansion = branched.scale.expansion
    if expansion is not None:
        yield TensorRecord(
            name=expansion.name, shape=expansion.shape, dtype=expansion.dtype, role="expansion"
        )


def _files(folder: PackFolder, target: str) -> Iterable[PackFile]:
    for path, file in folder.files.items():
        if file.target == target:
            yield PackFile(
                role=file.role,
                use_case=file.use_case,
                path=path,
                size=file.size,
                sha256=file.sha256,
            )
