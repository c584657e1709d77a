"""What an adapter description beside the checkpoint declares, held against the checkpoint.

The vendor's adapter JSON has a name, a rank, an alpha and target modules, but no weights. It cannot
express rsLoRA or patterns, so the checkpoint's own configuration stays the source of every scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.module_match import names_module
from lora_quant.adapters.lowered import ModuleShape
from lora_quant.errors import AdapterError, Where, did_you_mean

# Most kinds call it lora_alpha, those of LyCORIS and GraLoRA alpha.
_ALPHAS = ("lora_alpha", "alpha")


@dataclass(frozen=True)
class DeclaredParams:
    """The fields of an adapter JSON; None where it does not say."""

    name: str
    rank: int | None = None
    alpha: float | None = None
    target_modules: tuple[str, ...] | None = None


def check_declared(
    declared: DeclaredParams, config: PeftConfig, shapes: Mapping[str, ModuleShape]
) -> None:
    """Raise AdapterError for the first declared field that the checkpoint contradicts.

    The rank may be the configuration's own or the largest of the modules (they differ with
    rank_pattern, and for kinds whose branch has other ranks than the training). Each declared
    target must name a module of the checkpoint, and each module must be named: an expert by its
    parameter, the output projection of an attention by the attention.
    """
    _check_rank(declared, config, shapes)
    _check_alpha(declared, config)
    _check_targets(declared, config, shapes)


def _check_rank(
    declared: DeclaredParams, config: PeftConfig, shapes: Mapping[str, ModuleShape]
) -> None:
    if declared.rank is None:
        return
    accepted = {shape.rank for shape in shapes.values() if shape.rank}
    accepted = {max(accepted)} if accepted else set()
    if not config.is_neutral("r"):
        accepted.add(config.positive("r", 1))
    if not accepted:
        raise AdapterError(
            f"rank is declared as {declared.rank}, but the checkpoint has no low rank",
            where=config.where("r"),
            hint="remove rank from the adapter's description",
        )
    if declared.rank not in accepted:
        raise _contradicts("rank", declared.rank, " or ".join(map(str, sorted(accepted))), config)


def _check_alpha(declared: DeclaredParams, config: PeftConfig) -> None:
    if declared.alpha is None:
        return
    field = next((field for field in _ALPHAS if not config.is_neutral(field)), None)
    if field is None:
        raise AdapterError(
            f"alpha is declared as {declared.alpha:g}, but the checkpoint does not say it",
            where=config.where(_ALPHAS[0]),
            hint="add the lora_alpha of the training to it, or remove alpha from the description",
        )
    alpha = config.number(field, declared.alpha)
    if declared.alpha != alpha:
        raise _contradicts("alpha", f"{declared.alpha:g}", f"{alpha:g}", config)


def _check_targets(
    declared: DeclaredParams, config: PeftConfig, shapes: Mapping[str, ModuleShape]
) -> None:
    if declared.target_modules is None:
        return
    for entry in declared.target_modules:
        if not any(_declares(entry, module, shapes) for module in shapes):
            raise AdapterError(
                f"target_modules declares {entry!r}, but the checkpoint has no such module",
                where=Where(file=config.file, field="target_modules", module=entry),
                hint=did_you_mean(entry, {part for m in shapes for part in (m, m.split(".")[-1])}),
            )
    for module in shapes:
        if not any(_declares(entry, module, shapes) for entry in declared.target_modules):
            raise AdapterError(
                f"the checkpoint adapts {module!r}, which target_modules does not declare: "
                f"got {list(declared.target_modules)}",
                where=Where(file=config.file, field="target_modules", module=module),
                hint="declare it, or remove target_modules from the adapter's description",
            )


def _declares(entry: str, module: str, shapes: Mapping[str, ModuleShape]) -> bool:
    """Whether an entry names a module, or the layer that it is a part of."""
    owner, _, last = module.rpartition(".")
    names = [module]
    if last.isdecimal():
        names += [owner, owner.rpartition(".")[0]]
    elif last == "out_proj" and owner in shapes:
        names.append(owner)
    return any(names_module(entry, name) for name in names)


def _contradicts(field: str, got: object, expected: str, config: PeftConfig) -> AdapterError:
    return AdapterError(
        f"{field} is declared as {got}, expected {expected} as in the checkpoint",
        where=Where(file=config.file, field=field),
        hint=f"correct {field} in the adapter's description, or remove it: the checkpoint says it",
    )
