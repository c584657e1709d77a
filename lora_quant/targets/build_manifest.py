"""Putting the manifest together from the records that the passes left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from lora_quant import __version__
from lora_quant.adapters.adapter import Adapter
from lora_quant.adapters.frame.tasks import TASK_FIELD
from lora_quant.config.finding_records import FindingRecord, portable_relative
from lora_quant.config.manifest import Manifest
from lora_quant.config.manifest_records import (
    AdapterRecord,
    AttachPointRecord,
    BaseRecord,
    BranchTensors,
    ModuleRecord,
    PackFile,
    PromptRecord,
    RouterRecord,
    SlotRecord,
    StoredFile,
    TargetRecord,
    TensorRecord,
    ToolRecord,
    UseCaseRecord,
    VectorRecord,
)
from lora_quant.config.manifest_seal import UNSEALED
from lora_quant.graph.attach.resolver import Resolution
from lora_quant.graph.branching.updatable_weights import updatable_weights
from lora_quant.graph.files.data_files import sampled_sha256
from lora_quant.graph.records import Branch, BranchedGraph
from lora_quant.passes.beyond_alpha import beyond_alpha
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.exported.records import ExportedUseCases
from lora_quant.passes.final.records import DescribedAdapter
from lora_quant.passes.slots import Slot, SlotTable
from lora_quant.targets.files.alpha_record import pack_alpha_record
from lora_quant.targets.files.input_records import InputRecords
from lora_quant.targets.files.pack_folder import PackFolder, TargetDetails


def build_manifest(
    compilation: Compilation, folder: PackFolder, targets: Sequence[str]
) -> Manifest:
    """The manifest of everything in `folder`; inputs are hashed here."""
    branched: BranchedGraph = compilation.having("branched")
    slots: SlotTable = compilation.having("slots")
    adapters = compilation.having("adapters")
    inputs = InputRecords(folder.output)
    exported = compilation.exported or ExportedUseCases()
    hashes = {a.name: inputs.add_adapter(a, exported) for a in adapters.values()}
    inputs.add_graphs(compilation)
    described = tuple(_described(one, inputs) for one in _in_graphs(compilation))
    inputs.add_config(compilation)
    return Manifest(
        manifest_sha256=UNSEALED,
        tool=ToolRecord(name="lora-quant", version=__version__),
        mode=compilation.options.mode,
        max_rank=branched.max_rank,
        alpha=pack_alpha_record(compilation),
        given_graph=None if compilation.given is None else True,
        merged=compilation.options.merge,
        merged_modules=None if compilation.options.merge is None else _merged_modules(compilation),
        base=_base(compilation, folder, inputs),
        inputs=tuple(inputs.records),
        adapters=tuple(
            AdapterRecord(
                name=a.name,
                kind=a.checkpoint.config.peft_type,
                format=a.checkpoint.format,
                task_id=a.checkpoint.config.fields.get(TASK_FIELD),
                invocation_tokens=_invocation_tokens(a),
                max_error=a.max_error,
                rank=a.rank,
                scale=a.scale,
                sha256=hashes[a.name],
            )
            for a in adapters.values()
        )
        + described,
        attach_points=tuple(_attach_points(branched)),
        use_cases=tuple(
            _use_case(compilation, name, owned) for name, owned in slots.use_cases.items()
        ),
        tensors=tuple(
            TensorRecord(
                name=w.record.name, shape=w.record.shape, dtype=w.record.dtype, role=w.role.value
            )
            for w in updatable_weights(branched)
        ),
        targets=tuple(_target(folder, name) for name in targets),
        findings=tuple(
            FindingRecord.of(f, relative_to=folder.output) for f in compilation.findings
        ),
    )


def _in_graphs(compilation: Compilation) -> Iterable[DescribedAdapter]:
    """Adapters of a final graph whose values are in the graphs of use cases alone."""
    return () if compilation.given is None else compilation.given.described.values()


def _described(adapter: DescribedAdapter, inputs: InputRecords) -> AdapterRecord:
    return AdapterRecord(
        name=adapter.name,
        kind=adapter.kind,
        format=adapter.format,
        rank=adapter.rank,
        scale=adapter.scale,
        sha256=tuple(inputs.add("adapter", path, adapter.name) for path in adapter.files),
    )


def _base(compilation: Compilation, folder: PackFolder, inputs: InputRecords) -> BaseRecord:
    """The base graph is hashed whole, its data by samples (lora_quant.graph.files.data_files)."""
    base = compilation.base
    output = folder.output
    return BaseRecord(
        graph=StoredFile(
            path=portable_relative(base.path.absolute(), output),
            size=base.path.stat().st_size,
            sha256=inputs.digest(base.path),
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


def _invocation_tokens(adapter: Adapter) -> tuple[int, ...]:
    if not any(shape.gated for shape in adapter.shapes.values()):
        return ()
    return adapter.checkpoint.config.indices("alora_invocation_tokens")


def _merged_modules(compilation: Compilation) -> int:
    """Modules that adapters change, by their names in the graph where they have an attach point."""
    resolution: Resolution = compilation.having("resolution")
    names = {
        module: resolution.place(module)[1].module
        for adapter in compilation.having("adapters").values()
        for module in adapter.shapes
    }
    owners = {one.target.parameter.rpartition(".")[0] for one in compilation.replacements}
    return len(set(names.values()) | {names.get(owner, owner) for owner in owners})


def _use_case(compilation: Compilation, name: str, owned: Sequence[Slot]) -> UseCaseRecord:
    adapters = compilation.having("adapters")
    prompt = None
    for slot in owned:
        inputs = compilation.prompts.get(slot.adapter)
        if inputs is not None:
            prompt = PromptRecord(
                adapter=slot.adapter,
                form=inputs.shape.form,
                shape=inputs.shape.shape,
                inputs=inputs.names,
            )
    slots = tuple(
        SlotRecord(
            adapter=s.adapter,
            start=s.start,
            rank=s.rank,
            alpha=s.alpha,
            scale=s.scale,
            gated=s.adapter in adapters
            and any(shape.gated for shape in adapters[s.adapter].shapes.values()),
            beyond_alpha=beyond_alpha(compilation, adapters[s.adapter])
            if s.adapter in adapters
            else (),
        )
        for s in owned
    )
    return UseCaseRecord(name=name, slots=slots, prompt=prompt)


def _attach_points(branched: BranchedGraph) -> Iterable[AttachPointRecord]:
    branches = {branch.attach.name: branch for branch in branched.branches}
    vectors: dict[str, list[VectorRecord]] = defaultdict(list)
    for made in branched.vectors:
        vectors[made.attach.name].append(
            VectorRecord(vector=made.vector.value, weight=made.weight.name, output=made.output)
        )
    for point in branched.points:
        branch = branches.get(point.name)
        if branch is None and not vectors[point.name]:
            continue  # an adapter that was pruned to nothing here
        yield AttachPointRecord(
            name=point.name,
            modules=tuple(
                ModuleRecord(module=p.module, offset=p.offset, size=p.size) for p in point.parts
            ),
            node=point.linear.node or point.linear.product,
            form=point.linear.form.value,
            in_features=point.linear.in_features,
            out_features=point.linear.out_features,
            tensors=None if branch is None else _tensors(branch),
            vectors=tuple(vectors[point.name]),
            router=None if branch is None else _router(branch),
        )


def _tensors(branch: Branch) -> BranchTensors:
    return BranchTensors(
        a_weight=branch.a_weight.name,
        b_weight=branch.b_weight.name,
        x=branch.x,
        h=branch.h,
        a=branch.a,
        m=branch.m,
        l=branch.l,
        y=branch.y,
        relayouts=branch.relayouts,
    )


def _router(branch: Branch) -> RouterRecord | None:
    router = branch.router
    if router is None:
        return None
    return RouterRecord(
        weight=router.weight.name, expansion=router.expansion.name, rest=router.rest.name
    )


def _target(folder: PackFolder, name: str) -> TargetRecord:
    details = folder.details.get(name, TargetDetails())
    return TargetRecord(
        name=name,
        files=tuple(_files(folder, name)),
        alpha=details.alpha,
        inputs=details.inputs,
        fingerprint=details.fingerprint,
        htp_arch=details.htp_arch,
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
