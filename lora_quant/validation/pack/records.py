"""The records of a manifest against each other: branches, vectors, gates, prompts, merged packs."""

from __future__ import annotations

from collections.abc import Iterator

from lora_quant.config.manifest_records import AttachPointRecord, TargetRecord, UseCaseRecord
from lora_quant.config.plain_values import PathParts
from lora_quant.errors import some
from lora_quant.findings import Finding
from lora_quant.validation.pack.view import PackView

_REBUILD = "build the pack again"
_SWITCHED = (
    "weights",
    "adapter",
    "lora-tensor-names",
    "importer-config",
    "base-encodings",
    "quant-overrides",
    "quant-updatable-tensors",
    "genie-lora",
    "qnn-lora-config",
)
"""Roles of files that a pack with nothing to switch has none of."""
_UNOWNED = frozenset({"expansion", "replaced", "scale"})
"""Roles of tensors that belong to no attach point."""
_AXES = {"prefix_embeds": 2, "past_key_values": 4}


def check_records(view: PackView) -> Iterator[Finding]:
    """Everything that the records say of each other."""
    manifest = view.manifest
    if manifest.merged is not None:
        yield from _merged(view, manifest.merged)
    yield from _tensors(view)
    yield from _alpha(view)
    for index, use_case in enumerate(manifest.use_cases):
        yield from _prompt(view, index, use_case)


def check_merged_files(view: PackView, target: TargetRecord) -> Iterator[Finding]:
    """A merged pack has no files to switch with."""
    extra = [f for f in target.files if f.role in _SWITCHED]
    if view.manifest.merged is not None and extra:
        yield _error(
            view,
            "merged-files",
            ("merged",),
            f"use case {view.manifest.merged!r} is merged into the weights, but the pack has files "
            f"to switch use cases with: {some([f.path for f in extra])}",
        )


def _merged(view: PackView, name: str) -> Iterator[Finding]:
    manifest = view.manifest
    names = [use_case.name for use_case in manifest.use_cases]
    if names != [name]:
        yield _error(
            view,
            "merged",
            ("merged",),
            f"use case {name!r} is merged into the weights, but the pack has {some(names)}; "
            "expected it alone",
        )
    held = {
        "tensors": ("LoRA tensors", [tensor.name for tensor in manifest.tensors]),
        "attach_points": ("attach points", [point.name for point in manifest.attach_points]),
        "alpha": ("an alpha input", [] if manifest.alpha is None else [manifest.alpha.tensor]),
    }
    for key, (what, found) in held.items():
        if found:
            yield _error(
                view,
                "merged",
                (key,),
                f"use case {name!r} is merged into the weights, but the manifest has {what}: "
                f"{some(found)}",
            )


def _tensors(view: PackView) -> Iterator[Finding]:
    """What attach points name is in the list of tensors in that role, and the other way round."""
    roles = {tensor.name: tensor.role for tensor in view.manifest.tensors}
    places = {tensor.name: index for index, tensor in enumerate(view.manifest.tensors)}
    named: dict[str, tuple[str, int]] = {}
    for index, point in enumerate(view.manifest.attach_points):
        own = dict(_named_by(point))
        if not own:
            yield _error(
                view,
                "attach-point",
                ("attach_points", index),
                f"the attach point {point.name!r} has neither a branch nor a vector",
            )
        named.update({name: (role, index) for name, role in own.items()})
    for name, (role, index) in named.items():
        if roles.get(name) != role:
            got = f"has the role {roles[name]!r}" if name in roles else "is not in the list"
            at: PathParts = ("attach_points", index)
            yield _error(
                view,
                "tensor-roles",
                ("tensors", places[name], "role") if name in places else at,
                f"the tensor is {role!r} of an attach point, but {got} of the manifest's tensors",
                tensor=name,
            )
    for name, role in roles.items():
        if role not in _UNOWNED and name not in named:
            yield _error(
                view,
                "tensor-roles",
                ("tensors", places[name]),
                f"the tensor has the role {role!r}, and no attach point names it",
                tensor=name,
            )


def _named_by(point: AttachPointRecord) -> Iterator[tuple[str, str]]:
    if point.tensors is not None:
        yield point.tensors.a_weight, "a_weight"
        yield point.tensors.b_weight, "b_weight"
    for vector in point.vectors:
        yield vector.weight, vector.vector
    if point.router is not None:
        yield point.router.weight, "router"
        yield point.router.expansion, "router_expansion"
        yield point.router.rest, "router_rest"


def _alpha(view: PackView) -> Iterator[Finding]:
    manifest = view.manifest
    has_branches = any(point.tensors is not None for point in manifest.attach_points)
    alpha = manifest.alpha
    if has_branches != (alpha is not None) and not (has_branches and manifest.given_graph):
        got = "branches and no alpha input" if has_branches else "an alpha input and no branch"
        yield _error(view, "alpha", ("alpha",), f"the manifest has {got}")
    if alpha is None or alpha.gate is None:
        for index, use_case in enumerate(manifest.use_cases):
            if any(slot.gated for slot in use_case.slots):
                yield _error(
                    view,
                    "gate",
                    ("use_cases", index, "slots"),
                    "a slot is gated, and the graph has no gate input",
                    use_case=use_case.name,
                )


def _prompt(view: PackView, index: int, use_case: UseCaseRecord) -> Iterator[Finding]:
    prompt = use_case.prompt
    at: PathParts = ("use_cases", index, "prompt")
    if prompt is None:
        return
    if prompt.adapter not in [slot.adapter for slot in use_case.slots]:
        yield _error(
            view,
            "prompt",
            at,
            f"the soft prompt is of adapter {prompt.adapter!r}, which the use case does not name",
            use_case=use_case.name,
        )
    axes = _AXES[prompt.form]
    inputs = 1 if prompt.form == "prefix_embeds" else next(iter(prompt.shape), 0)
    if len(prompt.shape) != axes or len(prompt.inputs) != inputs or 0 in prompt.shape:
        yield _error(
            view,
            "prompt",
            at,
            f"the soft prompt has the shape {list(prompt.shape)} for {len(prompt.inputs)} inputs, "
            f"expected {axes} axes that are not empty, and {inputs} inputs for {prompt.form!r}",
            use_case=use_case.name,
        )


def _error(
    view: PackView,
    rule: str,
    part: PathParts,
    message: str,
    *,
    tensor: str | None = None,
    use_case: str | None = None,
) -> Finding:
    return view.error_in_manifest(
        rule, message, part, hint=_REBUILD, tensor=tensor, use_case=use_case
    )
