"""Which tensors of an encodings file belong to LoRA branches, told by their names.

    q.lora_A.weight                            weight A of q
    /q/MatMul_output_0                         h = W x
    /q/lora_A/MatMul_output_0                  a = A x
    /q/lora_alpha/Mul_output_0                 m = s * a
    /q/lora_B/MatMul_output_0                  l = B m
    /q/lora_add/Add_output_0                   y = h + l

A marked name (one with `lora_` or another spelling that only branches have) tells module and role
by itself. A plain one, such as the `/q/Mul_output_0` of an exported PEFT layer, counts only in a
module that a marked name has shown to have a branch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum


class Role(Enum):
    """The part that a tensor plays: a weight, the scale, or the output of a node of the branch.

    BA_OUT is B (A x) where the scale follows B instead of A.
    """

    A = "A"
    B = "B"
    SCALE = "scale"
    H_OUT = "h"
    A_OUT = "a"
    M_OUT = "m"
    BA_OUT = "ba"
    L_OUT = "l"
    Y_OUT = "y"


@dataclass(frozen=True)
class BranchName:
    """A tensor of a branch. `adapter` is what the name says: an adapter's name, a number or None.

    role None and module "": the name has a branch mark but fits no known spelling.
    """

    tensor: str
    module: str
    role: Role | None
    adapter: str | None = None


_PATH = r"(?P<path>(?:[^/]+/)*?)"
_OP = r"(?:MatMul|Gemm|Conv)(?:_\d+)?_output_0"
_MUL = r"Mul(?:_\d+)?_output_0"
_ADD = r"Add(?:_\d+)?_output_0"

MARKED: tuple[tuple[str, Role], ...] = (
    # PEFT checkpoints and torch exports of conv weights, AIMET's LoRA package:
    # [base_model.model.]q.lora_A[.tone].weight
    (r"(?P<module>.+)\.lora_A(?:\.(?P<adapter>[^.]+))?\.weight", Role.A),
    (r"(?P<module>.+)\.lora_B(?:\.(?P<adapter>[^.]+))?\.weight", Role.B),
    # AIMET's LoRA package: q.lora_scale[.tone]; AIMET's PyTorch layers: q.scaling.0
    (r"(?P<module>.+)\.lora_scale(?:\.(?P<adapter>[^.]+))?", Role.SCALE),
    (r"(?P<module>.+)\.scaling\.(?P<adapter>\d+)", Role.SCALE),
    # Modules lora_A, lora_B as exported; PEFT's ModuleDict adds the adapter, AIMET's list .0
    (rf"/{_PATH}lora_A(?:[./](?P<adapter>[^/]+))?/{_OP}", Role.A_OUT),
    (rf"/{_PATH}lora_B(?:[./](?P<adapter>[^/]+))?/{_OP}", Role.L_OUT),
    # AIMET's sample network lora_alpha, AIMET's PyTorch layers mul_scale, this tool lora_scale
    (rf"/{_PATH}(?:lora_alpha|lora_scale|mul_scale)(?:_(?P<adapter>\d+))?/{_MUL}", Role.M_OUT),
    (rf"/{_PATH}(?:lora_add|add_lora_to_res)(?:_(?P<adapter>\d+))?/{_ADD}", Role.Y_OUT),
    # Branches inserted by AIMET's LoRA package: the weight's prefix with _ for .
    (r"lora_a_out_(?P<flat>.+)", Role.A_OUT),
    (r"lora_b_out_(?P<flat>.+)", Role.BA_OUT),
    (r"lora_scaled_(?P<flat>.+)", Role.L_OUT),
)

PLAIN: tuple[tuple[str, Role], ...] = (
    (rf"/{_PATH}base_layer/(?:{_OP}|{_ADD})", Role.H_OUT),  # PEFT's wrapper; the Add is a bias
    (rf"/{_PATH}{_OP}", Role.H_OUT),
    (rf"/{_PATH}{_MUL}", Role.L_OUT),  # PEFT scales behind B
    (rf"/{_PATH}{_ADD}", Role.Y_OUT),
)

_MARK = re.compile(r"lora_|mul_scale|add_lora_to_res")
_MARKED = tuple((re.compile(pattern), role) for pattern, role in MARKED)
_PLAIN = tuple((re.compile(pattern), role) for pattern, role in PLAIN)
_PREFIXES = ("base_model.model.", "base_model.")


def find_branch_names(
    names: Iterable[str], *, adapters: Iterable[str] = ()
) -> dict[str, BranchName]:
    """The branch tensors among the names of one file, by name, in order.

    adapters: names of PEFT adapters. An export with one MatMul per call drops `lora_A` and
    `lora_B` from node names and leaves `/q/tone/MatMul_output_0` for a and
    `/q/tone_1/MatMul_output_0` for l, which is only understood with the adapter's name.

    A name with a branch mark that fits no spelling has the role None; so has the alpha input of
    the graph if its name has a mark, which the caller knows by name.
    """
    all_names = tuple(names)
    patterns = (*_MARKED, *_adapter_patterns(adapters))
    hits = {name: hit for name in all_names if (hit := _match(name, patterns)) is not None}
    modules = _module_names(hits)
    found = {
        name: BranchName(name, modules[hit.module], hit.role, hit.adapter)
        for name, hit in hits.items()
        if hit.module in modules
    }
    _add_plain(found, hits, all_names)
    for name in all_names:
        if name not in found and _MARK.search(name):
            found[name] = BranchName(name, "", None)
    return {name: found[name] for name in all_names if name in found}


def _add_plain(
    found: dict[str, BranchName], hits: dict[str, _Hit], all_names: tuple[str, ...]
) -> None:
    """Add the plain names of modules that have a branch."""
    roles: dict[str, set[Role | None]] = {}
    for branch in found.values():
        roles.setdefault(branch.module, set()).add(branch.role)
    scaled_behind = set()
    for name in all_names:
        hit = None if name in hits else _match(name, _PLAIN)
        if hit is None or hit.module not in roles:
            continue
        role = hit.role
        if role is Role.L_OUT:
            if Role.M_OUT in roles[hit.module]:
                continue  # the scale lies before B: this Mul is the module's own
            scaled_behind.add(hit.module)
        if role is Role.Y_OUT and Role.Y_OUT in roles[hit.module]:
            role = Role.H_OUT  # the module's bias
        found[name] = BranchName(name, hit.module, role)
    for name in hits.keys() & found.keys():
        if found[name].role is Role.L_OUT and found[name].module in scaled_behind:
            found[name] = replace(found[name], role=Role.BA_OUT)


def module_of_path(path: str) -> str:
    """The module of a node path by AIMET's rule: `layer2/layer2.0/q/` -> `layer2.0.q`.

    A part is dropped when the next one contains a `.` and contains it.
    """
    parts = [part for part in path.split("/") if part]
    kept = [
        part
        for part, following in zip(parts, [*parts, ""][1:], strict=True)
        if not ("." in following and part in following)
    ]
    return ".".join(kept)


@dataclass(frozen=True)
class _Hit:
    module: str
    role: Role
    adapter: str | None
    spelling: str


def _match(name: str, patterns: Iterable[tuple[re.Pattern[str], Role]]) -> _Hit | None:
    for pattern, role in patterns:
        match = pattern.fullmatch(name)
        if match is None:
            continue
        parts = match.groupdict()
        spelling = next(key for key in ("path", "module", "flat") if key in parts)
        module = parts[spelling]
        if spelling == "path":
            module = module_of_path(module)
        if module:
            return _Hit(module, role, parts.get("adapter"), spelling)
    return None


def _module_names(hits: dict[str, _Hit]) -> dict[str, str]:
    """Every module spelling -> the module.

    PEFT puts `base_model.model.` before a weight's module, AIMET `base_model.`: what the node
    paths say decides, else PEFT's. A flat spelling is that of a weight.
    """
    modules = {hit.module: hit.module for hit in hits.values() if hit.spelling == "path"}
    in_paths = set(modules)
    for hit in hits.values():
        if hit.spelling == "module":
            candidates = [hit.module.removeprefix(p) for p in _PREFIXES if hit.module.startswith(p)]
            candidates.append(hit.module)
            module = next((c for c in candidates if c in in_paths), candidates[0])
            modules[hit.module] = module
            modules[hit.module.replace(".", "_")] = module
    return modules


def _adapter_patterns(adapters: Iterable[str]) -> tuple[tuple[re.Pattern[str], Role], ...]:
    choice = "|".join(re.escape(adapter) for adapter in adapters)
    if not choice:
        return ()
    return (
        (re.compile(rf"/{_PATH}(?P<adapter>{choice})/{_OP}"), Role.A_OUT),
        (re.compile(rf"/{_PATH}(?P<adapter>{choice})_1/{_OP}"), Role.L_OUT),
    )
