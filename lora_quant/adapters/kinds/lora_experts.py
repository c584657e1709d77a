"""target_parameters: LoRA on parameters, such as the fused weights [experts, ., .] of a mixture.

    A [r * experts, in]    A_e = rows e r .. e r + r
    B [out, r * experts]   B_e = B.reshape(out, r, experts)[:, :, e]

Expert e of parameter p of module m becomes the module `m.p.e`; a parameter without experts that is
the weight of its module becomes that module. A file names no parameter. PEFT wraps a module
once for each, the last one that the model defines outermost:

    experts.lora_A                down_proj
    experts.base_layer.lora_A     gate_up_proj

Which is which follows from ranks and sizes, or the checkpoint is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.module_match import Targets, read_targets
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.kinds.lora_levels import Level, assign_parameters
from lora_quant.adapters.kinds.lora_pairs import LINEAR
from lora_quant.adapters.lowered import Lowered, ModuleShape
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from lora_quant.findings import Finding, Severity

_A, _B = "experts.lora_A", "experts.lora_B"
_LEVEL = ".base_layer"
_OWN_WEIGHTS = ("weight", "in_proj_weight")

Modules = Mapping[str, Mapping[str, str]]


def named_parameters(modules: Modules, checkpoint: Checkpoint) -> dict[str, Mapping[str, str]]:
    """The modules, with wrapped parameters as `m.p`. Refuses what cannot be told apart."""
    config = checkpoint.config
    entries = _entries(config)
    targets = read_targets(config)
    named: dict[str, Mapping[str, str]] = {}
    wrapped: dict[str, list[str]] = {}
    for module in modules:
        inner = _without_levels(module)
        is_target = not targets.is_all_linear and targets.modules and targets.matches(inner)
        if not is_target and _parameters_of(inner, entries):
            wrapped.setdefault(inner, []).append(module)
        else:
            named[module] = modules[module]
    for inner, paths in wrapped.items():
        # the shortest path is the outermost wrapper
        levels = [Level(path, modules[path], checkpoint.tensors) for path in sorted(paths, key=len)]
        for parameter, level in assign_parameters(
            inner, levels, _parameters_of(inner, entries), checkpoint
        ).items():
            a, b = level.pair
            named[f"{inner}.{parameter}"] = {_A: a, _B: b}
    return dict(sorted(named.items()))


def is_parameter(names: Collection[str]) -> bool:
    """Whether the tensors of a module are those of a wrapped parameter."""
    return _A in names


def parameter_modules(modules: Modules) -> set[str]:
    """The entries `m.p` among the modules."""
    return {module for module, names in modules.items() if is_parameter(names)}


def expert_shapes(headers: Headers) -> Iterator[ModuleShape]:
    """The modules of one parameter, one for each expert; AdapterError if A and B do not fit."""
    rows, inputs = headers.dims(_A, 2)
    out, _ = headers.dims(_B, 2)
    headers.expect({_B: (out, rows)})
    if rows % headers.rank:
        raise headers.error(
            _A,
            f"A has {rows} rows, expected a multiple of the rank {headers.rank}, one for each "
            "expert",
            hint="the configuration is not the one that the weights were saved with",
        )
    experts = rows // headers.rank
    shape = ModuleShape(headers.module, headers.rank, inputs, out, scale=headers.scale)
    module, _, parameter = headers.module.rpartition(".")
    if experts == 1 and parameter in _OWN_WEIGHTS:
        names = dict(zip(LINEAR, (headers.names[_A], headers.names[_B]), strict=True))
        yield replace(shape, module=module, tensors=names)
        return
    for expert in range(experts):
        yield replace(shape, module=f"{headers.module}.{expert}", tensors=headers.names)


def expert(module: ModuleTensors) -> Lowered:
    """A_e `[r, in]` and B_e `[out, r]` of the expert that ends the module's name, as stored."""
    rank = module.shape.rank
    at = int(module.shape.module.rpartition(".")[2])
    A, B = module.stored(_A), module.stored(_B)
    A_e = A[at * rank : (at + 1) * rank].copy()
    B_e = B.reshape(len(B), rank, -1)[:, :, at].copy()
    return Lowered(A_e, B_e, module.s)


def without_parameters(targets: Targets, config: PeftConfig) -> Targets:
    """With target_parameters alone, no module is targeted."""
    if targets.modules is None and _entries(config):
        return replace(targets, modules=())
    return targets


def check_parameters(config: PeftConfig, parameters: Collection[str]) -> tuple[Finding, ...]:
    """A warning for every entry of target_parameters that has no tensors."""
    return tuple(
        Finding(
            rule="adapter/target-without-tensors",
            severity=Severity.WARNING,
            message=f"target {entry!r} of target_parameters has no tensors in the checkpoint",
            where=config.where("target_parameters"),
            hint="check that the checkpoint is complete; the base is used unchanged there",
        )
        for entry in _entries(config)
        if not any(name == entry or name.endswith(f".{entry}") for name in parameters)
    )


def _entries(config: PeftConfig) -> tuple[str, ...]:
    entries = config.names("target_parameters") or ()
    if isinstance(entries, str):
        entries = (entries,)
    if any(not entry.rpartition(".")[2] for entry in entries):
        raise AdapterError(
            f"target_parameters is {list(entries)}, expected names of parameters",
            where=config.where("target_parameters"),
            hint="write the parameters with their modules, as in 'mlp.experts.down_proj'",
        )
    if any("." not in entry for entry in entries) and read_targets(config).is_all_linear:
        raise UnsupportedAdapterError(
            "target_parameters names a parameter without its module, beside a target_modules of "
            "'all-linear': the file does not tell which modules are meant by which",
            where=config.where("target_parameters"),
            hint="write the parameters with their modules, as in 'mlp.experts.down_proj'",
        )
    return entries


def _parameters_of(module: str, entries: Collection[str]) -> list[str]:
    found = []
    for entry in entries:
        owner, _, parameter = entry.rpartition(".")
        if not owner or module == owner or module.endswith(f".{owner}"):
            found.append(parameter)
    return sorted(set(found))


def _without_levels(module: str) -> str:
    while module.endswith(_LEVEL):
        module = module.removesuffix(_LEVEL)
    return module
