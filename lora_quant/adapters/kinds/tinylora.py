"""TINYLORA: a tiny trained vector mixes fixed random matrices between two frozen factors.

    ΔW = B (sum over i of v_i P_i) A        A [r, in], B [out, r], P [u, r, r], v [u]

A and B come from the base's weight and are in the file. P is in the file, or made from a seed and
the module's number. v is shared by groups of modules, and its number follows from the module's as
well: modules are numbered in the order of the model, which no file tells.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.frame.siblings import adapted_modules, in_model_order
from lora_quant.adapters.frame.unsaved import expect_seeded
from lora_quant.adapters.lowered import Lowered, ModuleShape, Need
from lora_quant.adapters.maths.seeded import tinylora_projection
from lora_quant.errors import AdapterError, UnsupportedAdapterError

_V = "tinylora_v"


class TinyloraRule(KindRule):
    """ΔW = B R A, R = sum of v_i P_i."""

    kind: ClassVar[str] = "TINYLORA"
    rank = "r"
    required = ("tinylora_A", "tinylora_B")
    optional = ("tinylora_P",)
    shared = (_V,)
    rank_field = ("r", 2)
    used = frozenset({"projection_seed", "save_projection", "u", "weight_tying"})
    neutral = frozenset({"fan_in_fan_out", "init_v_bound", "init_weights", "tinylora_dropout"})

    def shape(self, headers: Headers) -> ModuleShape:
        """Rank and sizes from A and B; PEFT cuts the rank where a side of the weight is smaller."""
        rank, inputs = headers.dims("tinylora_A", 2)
        out, _ = headers.dims("tinylora_B", 2)
        headers.expect({"tinylora_B": (out, rank)})
        expected = min(headers.rank, inputs, out)
        if rank != expected:
            headers.expect_rank("tinylora_A", rank)
        u = headers.config.positive("u", 64)
        for name in headers.shared:
            (values,) = headers.shared_dims(name, 1)
            if values != u:
                raise headers.error("tinylora_A", f"{name} has {values} values, expected {u}")
        if headers.has("tinylora_P"):
            headers.expect({"tinylora_P": (u, rank, rank)})
        else:
            expect_seeded(headers.config, "save_projection", "tinylora_P")
        return ModuleShape(headers.module, rank, inputs, out, scale=headers.scale, need=Need.SIZES)

    def formula(self, module: ModuleTensors) -> Lowered:
        """A = R A, B = B, s = 1."""
        name = module.shape.module
        if module.base.sizes(name).is_embedding:
            raise UnsupportedAdapterError(
                "TINYLORA on an embedding is not implemented: its tensors are those of a linear "
                "module, transposed",
                where=module.where,
                hint="leave the embedding out of target_modules",
            )
        adapted = adapted_modules(module.source, self.required)
        order = in_model_order(module.base, adapted, module.source)
        number = order.index(name)
        v = self._vector(module, number, len(order))
        R = np.einsum("i,ijk->jk", v, self._projection(module, number))
        return Lowered(R @ module["tinylora_A"], module["tinylora_B"], module.s)

    @staticmethod
    def _vector(module: ModuleTensors, number: int, count: int) -> NDArray[np.float64]:
        """PEFT forms round(modules * (1 - weight_tying)) groups of neighbours."""
        tying = module.config.number("weight_tying", 0.0)
        groups = max(1, round(count * (1.0 - tying)))
        size = max(1, count // groups)
        name = f"{_V}.{min(number // size, groups - 1)}"
        if name not in module:
            raise AdapterError(
                f"the file has no {name}, which {count} modules with weight_tying = {tying} need",
                where=module.where,
                hint="the checkpoint is incomplete; save or download it again",
            )
        return module[name]

    @staticmethod
    def _projection(module: ModuleTensors, number: int) -> NDArray[np.float64]:
        if "tinylora_P" in module:
            return module["tinylora_P"]
        config = module.config
        seed, vectors = config.whole("projection_seed", 42), config.positive("u", 64)
        made = tinylora_projection(seed, number, vectors, module.shape.rank, where=module.where)
        return made.astype(np.float64)
