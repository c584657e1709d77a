"""ROAD: the outputs of a module are rotated in pairs, and each scaled.

    y_i     = a_i cos(t_i) y_i  -  b_i sin(u_i) y_(i+h)        i in the first half of a group
    y_(i+h) = a cos(t) y_(i+h)  +  b sin(u) y_i                h = group_size / 2

Angles t, u and scales a, b: one pair for two outputs (road_1: out / 2 values), one for each output
(road_2: out), or two for each (road_4: 2 out, in each group those of the first column, then those
of the second). The bias is rotated too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.base_modules import whole_weight
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.lowered import Dense, ModuleShape, Need
from lora_quant.adapters.maths.weight_products import expect_weight
from lora_quant.errors import UnsupportedAdapterError

Vector = NDArray[np.float64]

# values in the file for two outputs
_PER_PAIR: Mapping[str, int] = {"road_1": 1, "road_2": 2, "road_4": 4}


class RoadRule(KindRule):
    """W' = R W, b' = R b, R of 2 x 2 rotations."""

    kind: ClassVar[str] = "ROAD"
    adds_up = False
    rank = "full"
    required = ("road_theta", "road_alpha")
    used = frozenset({"group_size", "variant"})
    neutral = frozenset({"init_weights"})

    def check(self, config: PeftConfig) -> None:
        """Refuse a variant that is not known."""
        if _variant(config) not in _PER_PAIR:
            raise UnsupportedAdapterError(
                f"variant is {_variant(config)!r}, expected one of {', '.join(_PER_PAIR)}",
                where=config.where("variant"),
                hint="merge the adapter into the base with PEFT",
            )

    def shape(self, headers: Headers) -> ModuleShape:
        """Outputs from the number of angles; the file does not tell in."""
        (count,) = headers.dims("road_theta", 1)
        headers.expect({"road_alpha": (count,)})
        per_pair = _PER_PAIR[_variant(headers.config)]
        group = headers.config.positive("group_size", 64)
        out = 2 * count // per_pair
        if out * per_pair != 2 * count or out % group or group % 2:
            raise headers.error(
                "road_theta",
                f"road_theta has {count} values for {_variant(headers.config)} in groups of "
                f"{group}, expected whole groups of an even size",
            )
        return ModuleShape(
            headers.module,
            0,
            None,
            out,
            (),
            headers.scale,
            vectors=frozenset({"c"}),
            need=Need.WEIGHT,
            dense=True,
        )

    def formula(self, module: ModuleTensors) -> Dense:
        """delta = R W - W, c = R b - b; no c where the base has no bias to change."""
        name, config = module.shape.module, module.config
        group = config.positive("group_size", 64)
        first, second = columns(_variant(config), group, module["road_theta"], module["road_alpha"])
        expect_weight(module.base, name, module.source.path, out=len(first))
        W, b = whole_weight(module.base, name), module.base.bias(name)
        delta = rotate_rows(W, first, second, group) - W
        turned = rotate_rows(b[:, None], first, second, group)[:, 0]
        return Dense(delta, c=turned - b if b.any() else None)


def columns(variant: str, group: int, theta: Vector, alpha: Vector) -> tuple[Vector, Vector]:
    """a cos(t) and b sin(u) of every output, `[out]` each."""
    if variant == "road_4":
        t, a = theta.reshape(-1, 2, group), alpha.reshape(-1, 2, group)
        first, second = a[:, 0] * np.cos(t[:, 0]), a[:, 1] * np.sin(t[:, 1])
        return first.reshape(-1), second.reshape(-1)
    if variant == "road_1":
        theta, alpha = (
            np.repeat(v.reshape(-1, 1, group // 2), 2, axis=1).reshape(-1) for v in (theta, alpha)
        )
    return alpha * np.cos(theta), alpha * np.sin(theta)


def rotate_rows(matrix: Vector, first: Vector, second: Vector, group: int) -> Vector:
    """R matrix: row i of each group is paired with row i + group / 2, `[out, n]` -> `[out, n]`."""
    halves = matrix.reshape(-1, 2, group // 2, matrix.shape[1])
    turned = np.stack([-halves[:, 1], halves[:, 0]], axis=1).reshape(matrix.shape)
    return first[:, None] * matrix + second[:, None] * turned


def _variant(config: PeftConfig) -> str:
    return str(config.names("variant") or "road_1")
