"""The algorithms of LyCORIS that PEFT has a kind for: how tensors and scales translate.

    lora_down, lora_up                 lora_A, lora_B
    lora_down, lora_mid, lora_up       A[m, i, k] = sum_n mid[m, n, k] down[n, i]  (Tucker)
    hada_*, lokr_*                     the same names
    dora_scale                         lora_magnitude_vector; LyCORIS adds an epsilon to the norm
    weight, on_input (IA3)             ia3_l = 1 + weight

The scale is alpha / rank; alpha absent or 0 means the rank; with both factors of a LoKr whole the
scale is 1 whatever alpha says. rsLoRA and trained scalars are multiplied in when a file is saved.
Where a number differs from PEFT's, a field `lora_quant_*` says so, which a rule has to know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import numpy as np

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.files.tensor_source import (
    Derived,
    TensorSource,
    read_number,
    reshaped,
    same,
)
from lora_quant.adapters.formats.synthesis import Strength, assumed_alpha, make_config
from lora_quant.adapters.lowered import FloatArray
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where
from lora_quant.findings import Finding

NORM_EPS = "lora_quant_norm_eps"
IA3_BIAS = "lora_quant_ia3_bias"
KRONECKER_ORDER = "lora_quant_kronecker_order"
# float32's distance from 1 to the next number, which LyCORIS adds to a norm
_EPS = float(np.finfo(np.float32).eps)
_SAVE_AGAIN = "the file is incomplete; save or download it again"


@dataclass(frozen=True, eq=False)
class LycorisModule:
    """One module: parameter -> tensor in the file."""

    name: str
    source: TensorSource
    names: Mapping[str, str]

    def shape(self, parameter: str) -> tuple[int, ...]:
        """Shape of a parameter; AdapterError if the module lacks it."""
        return self.source.info(self.tensor(parameter)).shape

    def tensor(self, parameter: str) -> str:
        """Its name in the file; AdapterError if the module lacks it."""
        if parameter not in self.names:
            present, name = next(iter(self.names.items()))
            raise AdapterError(
                f"the module has {present} but no {parameter}",
                where=Where(file=self.source.path, module=self.name, tensor=name),
                hint=_SAVE_AGAIN,
            )
        return self.names[parameter]

    def where(self, parameter: str) -> Where:
        """The place of one parameter."""
        return Where(file=self.source.path, module=self.name, tensor=self.names.get(parameter))

    def axis(self, parameter: str, axis: int, axes: int) -> int:
        """Size of one axis; AdapterError unless the tensor has at least `axes` and no empty one."""
        shape = self.shape(parameter)
        if len(shape) < axes or 0 in shape:
            raise AdapterError(
                f"{parameter} has shape {list(shape)}, expected at least {axes} axes without a "
                "zero",
                where=self.where(parameter),
                hint=_SAVE_AGAIN,
            )
        return shape[axis]

    def alpha(self) -> float:
        """The module's alpha; 0 where it has none."""
        return read_number(self.source, self.names["alpha"]) if "alpha" in self.names else 0.0


class LycorisKind(Protocol):
    """One algorithm and its place in PEFT's vocabulary."""

    parameters: ClassVar[frozenset[str]]

    def view(self, module: LycorisModule) -> Mapping[str, Derived]:
        """PEFT's parameter names, each with what it is made of."""

    def config(
        self, file: Path, modules: Mapping[str, LycorisModule]
    ) -> tuple[PeftConfig, tuple[Finding, ...]]:
        """The configuration of the file, and what is worth a note."""


class _Lora:
    parameters: ClassVar[frozenset[str]] = frozenset(
        {"alpha", "dora_scale", "lora_down.weight", "lora_mid.weight", "lora_up.weight"}
    )

    def view(self, module: LycorisModule) -> Mapping[str, Derived]:
        down = same(module.source, module.tensor("lora_down.weight"))
        view = {
            "lora_A.weight": _tucker(module) if "lora_mid.weight" in module.names else down,
            "lora_B.weight": same(module.source, module.tensor("lora_up.weight")),
        }
        if "dora_scale" in module.names:
            view["lora_magnitude_vector"] = _magnitude(module)
        return view

    def config(
        self, file: Path, modules: Mapping[str, LycorisModule]
    ) -> tuple[PeftConfig, tuple[Finding, ...]]:
        ranks = {name: m.axis("lora_down.weight", 0, 2) for name, m in modules.items()}
        fields: dict[str, Any] = {}
        if any("dora_scale" in module.names for module in modules.values()):
            fields = {"use_dora": True, NORM_EPS: _EPS}
        return _with_alphas(file, "LORA", modules, ranks, "lora_alpha", fields)


class _Loha:
    parameters: ClassVar[frozenset[str]] = frozenset(
        {"alpha", "dora_scale", "hada_t1", "hada_t2", "hada_w1_a", "hada_w1_b"}
        | {"hada_w2_a", "hada_w2_b"}
    )

    def view(self, module: LycorisModule) -> Mapping[str, Derived]:
        _refuse_magnitude(module, "LOHA")
        return {p: same(module.source, n) for p, n in module.names.items() if p != "alpha"}

    def config(
        self, file: Path, modules: Mapping[str, LycorisModule]
    ) -> tuple[PeftConfig, tuple[Finding, ...]]:
        ranks = {name: m.axis("hada_w1_b", 0, 2) for name, m in modules.items()}
        fields = {"use_effective_conv2d": any("hada_t1" in m.names for m in modules.values())}
        return _with_alphas(file, "LOHA", modules, ranks, "alpha", fields)


class _Lokr:
    parameters: ClassVar[frozenset[str]] = frozenset(
        {"alpha", "dora_scale", "lokr_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2"}
        | {"lokr_w2_a", "lokr_w2_b"}
    )

    def view(self, module: LycorisModule) -> Mapping[str, Derived]:
        _refuse_magnitude(module, "LOKR")
        return {p: same(module.source, n) for p, n in module.names.items() if p != "alpha"}

    def config(
        self, file: Path, modules: Mapping[str, LycorisModule]
    ) -> tuple[PeftConfig, tuple[Finding, ...]]:
        ranks = {name: _lokr_rank(module) for name, module in modules.items()}
        fields = {
            "use_effective_conv2d": any("lokr_t2" in m.names for m in modules.values()),
            # w1 kron w2 for every number of axes, where PEFT swaps them for three
            KRONECKER_ORDER: "logical",
        }
        return _with_alphas(file, "LOKR", modules, ranks, "alpha", fields)


class _Ia3:
    parameters: ClassVar[frozenset[str]] = frozenset({"on_input", "weight"})

    def view(self, module: LycorisModule) -> Mapping[str, Derived]:
        shape = module.shape("weight")
        if len(shape) == 1:
            shape = (1, *shape) if _is_on_input(module) else (*shape, 1)

        def scale(weight: FloatArray) -> FloatArray:
            result: FloatArray = 1 + weight.astype(np.float32).reshape(shape)
            return result

        return {"ia3_l": Derived((module.tensor("weight"),), shape, "F32", scale)}

    def config(
        self, file: Path, modules: Mapping[str, LycorisModule]
    ) -> tuple[PeftConfig, tuple[Finding, ...]]:
        inputs = [name for name, module in modules.items() if _is_on_input(module)]
        fields: dict[str, Any] = {
            "peft_type": "IA3",
            "target_modules": list(modules),
            # an expression, since entries of a list also match modules that only end like them
            "feedforward_modules": "|".join(map(re.escape, inputs)) or [],
        }
        if len(inputs) < len(modules):
            # y = l * (W x) + b, where PEFT has l * (W x + b)
            fields[IA3_BIAS] = "unscaled"
        return PeftConfig(file, "IA3", MappingProxyType(fields)), ()


KINDS: Mapping[str, LycorisKind] = {
    "LORA": _Lora(),
    "LOHA": _Loha(),
    "LOKR": _Lokr(),
    "IA3": _Ia3(),
}


def kind_of(module: LycorisModule) -> str:
    """The kind whose own parameters the module has; AdapterError for none or several."""
    own = [
        name
        for name, kind in KINDS.items()
        if not module.names.keys().isdisjoint(kind.parameters - {"alpha", "dora_scale"})
    ]
    if len(own) != 1:
        name = next(iter(module.names.values()))
        raise AdapterError(
            f"the module has {', '.join(sorted(module.names))}, which is "
            f"{'no adapter' if not own else 'of ' + ' and '.join(own)}; expected one kind",
            where=Where(file=module.source.path, module=module.name, tensor=name),
            hint=_SAVE_AGAIN,
        )
    return own[0]


def _with_alphas(
    file: Path,
    kind: str,
    modules: Mapping[str, LycorisModule],
    ranks: Mapping[str, int | None],
    alpha_field: str,
    fields: Mapping[str, Any],
) -> tuple[PeftConfig, tuple[Finding, ...]]:
    """A rank of None means that the scale is 1 whatever alpha says."""
    strengths, assumed = {}, []
    for name, module in modules.items():
        rank, alpha = ranks[name], module.alpha()
        if rank is not None and alpha == 0:
            assumed.append(name)
        strengths[name] = Strength(1, 1.0) if rank is None else Strength(rank, alpha or rank)
    config = make_config(file, kind, strengths, alpha_field=alpha_field, **fields)
    return config, assumed_alpha(file, assumed, "the training library")


def _lokr_rank(module: LycorisModule) -> int | None:
    for factor in ("lokr_w1_b", "lokr_w2_b"):
        if factor in module.names:
            return module.axis(factor, 0, 2)
    return None


def _is_on_input(module: LycorisModule) -> bool:
    return read_number(module.source, module.tensor("on_input")) != 0


def _tucker(module: LycorisModule) -> Derived:
    """A of a convolution `[r, in, *kernel]` from down `[r, in, 1..]` and mid `[r, r, *kernel]`."""
    down, mid = module.shape("lora_down.weight"), module.shape("lora_mid.weight")
    ones = (1,) * len(down[2:])
    if len(down) < 3 or down[2:] != ones or len(mid) != len(down) or mid[:2] != (down[0],) * 2:
        raise AdapterError(
            f"lora_mid has shape {list(mid)} beside lora_down of shape {list(down)}, expected "
            "[r, r, kernel...] beside [r, in, 1...]",
            where=module.where("lora_mid.weight"),
            hint=_SAVE_AGAIN,
        )

    def product(mid_values: FloatArray, down_values: FloatArray) -> FloatArray:
        flat = down_values.reshape(down[:2]).astype(np.float64)
        made = np.einsum("mn...,ni->mi...", mid_values.astype(np.float64), flat)
        return np.asarray(made, np.float32)

    sources = (module.tensor("lora_mid.weight"), module.tensor("lora_down.weight"))
    return Derived(sources, (down[0], down[1], *mid[2:]), "F32", product)


def _magnitude(module: LycorisModule) -> Derived:
    """`[out, 1, ...]` as PEFT stores it: `[out]`, or `[1, out, 1, ...]` for a convolution."""
    shape, axes = module.shape("dora_scale"), len(module.shape("lora_up.weight"))
    out = module.axis("lora_up.weight", 0, 2)
    if shape != (out, *(1,) * (axes - 1)):
        raise UnsupportedAdapterError(
            f"dora_scale has shape {list(shape)}, expected {[out] + [1] * (axes - 1)}: it scales "
            "the inputs (wd_on_output=False), where PEFT's DoRA scales the outputs",
            where=module.where("dora_scale"),
            hint="train with wd_on_output=True, or merge it into the base and export that",
        )
    target = (out,) if axes == 2 else (1, out, *(1,) * (axes - 2))
    return reshaped(module.source, module.tensor("dora_scale"), target)


def _refuse_magnitude(module: LycorisModule, kind: str) -> None:
    if "dora_scale" in module.names:
        raise UnsupportedAdapterError(
            f"the tensor is the magnitude of DoRA, which PEFT's {kind} has no place for",
            where=module.where("dora_scale"),
            hint="train without dora_wd, or merge it into the base and export that",
        )
