"""GLORA: the base's weight and bias are scaled and shifted.

    W' = W + W * A + P        b' = b + b * D + E + W C

(P is B in the paper and in the file.) Each of the five is a low-rank product X_d X_u (A, P, C), one
number for each output (A, P, D, E) or input (C), a single number, or absent: then the file holds
zeros in its place. With numbers for each output

    g = 1 + A,  rank 1 with ones for A and P for B,  c = b * (D - A) + E + W C

and with products the update has no low rank. The bias terms are there only if the base has a bias.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.fields import Refusal
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.kinds.glora_parts import read_parts
from lora_quant.adapters.lowered import Dense, Lowered, ModuleShape, Need
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where

Vector = NDArray[np.float64]

_BIAS = Refusal(
    "the base's bias is replaced, and its scale and shift are trained for the new one",
    'train with bias="none", or merge it into the base with PEFT and export that',
)


class GloraRule(KindRule):
    """g, rank 1 and c; a dense update where A and B are products."""

    kind: ClassVar[str] = "GLORA"
    adds_up = False
    rank = "1; full for lora"
    optional = tuple(
        f"glora_{path}.{tensor}" for path in "ABCDE" for tensor in ("X", "Xd", "Xu", "zeros")
    )
    rank_field = ("r", 8)
    used = frozenset({"config_A_B", "config_C", "config_D_E"})
    neutral = frozenset({"init_weights"})

    def check(self, config: PeftConfig) -> None:
        """Refuse a replaced bias."""
        if config.names("bias") not in (None, "none"):
            raise UnsupportedAdapterError(
                f"bias is set: {_BIAS.reason}", where=config.where("bias"), hint=_BIAS.hint
            )

    def shape(self, headers: Headers) -> ModuleShape:
        """Rank 1 if there is a P; in is told by C, out by whatever is as long."""
        parts = read_parts(headers)
        present = {path for path, part in parts.items() if part.form != "none"}
        if parts["A"].form == "product":
            need, rank, vectors = Need.WEIGHT, 0, frozenset("")
        else:
            rank = 1 if "B" in present else 0
            vectors = frozenset(("g" if "A" in present else "") + ("c" if present - {"B"} else ""))
            need = Need.WEIGHT if "C" in present else Need.SIZES if present else Need.NOTHING
        outs = {part.out for part in parts.values()} - {None}
        return ModuleShape(
            headers.module,
            rank,
            parts["C"].inputs,
            min((out for out in outs if out is not None), default=None),
            vectors=vectors,
            need=need,
            dense=parts["A"].form == "product",
        )

    def formula(self, module: ModuleTensors) -> Lowered | Dense:
        """As in the module's text; ones for A, so that the rank adds the sum of the inputs."""
        values = _Values(module)
        if module.shape.dense:
            return values.dense()
        shape, a, p = module.shape, values.outputs("A"), values.outputs("B")
        ones = np.ones((shape.rank, shape.in_features or 0))
        B = np.zeros((len(p), 0)) if not shape.rank else p[:, None]
        g = 1 + a if "g" in shape.vectors else None
        c = values.shift(values.outputs("D") - a) if "c" in shape.vectors else None
        return Lowered(ones, B, module.s, g=g, c=c)


class _Values:
    """The values of the five parts of one module."""

    def __init__(self, module: ModuleTensors) -> None:
        self._module = module
        out = module.shape.out_features
        if out is None:
            out = module.base.sizes(module.shape.module).out_features
        self._out = out
        for parameter, tensor in module.shape.tensors.items():
            if parameter.endswith(".zeros") and module[parameter].any():
                raise AdapterError(
                    "the tensor has values that are not zero, where the part is not trained",
                    where=Where(file=module.source.path, module=module.shape.module, tensor=tensor),
                    hint="it was written by another version of the training library",
                )

    def outputs(self, path: str) -> Vector:
        """A, P, D or E as one number for each output."""
        name = f"glora_{path}.X"
        if name not in self._module:
            return np.zeros(self._out)
        return np.broadcast_to(self._module[name].reshape(-1), self._out).astype(np.float64)

    def shift(self, factor: Vector) -> Vector:
        """`b * factor + E + W C`."""
        module = self._module
        base, name = module.base, module.shape.module
        shift = base.bias(name) * factor + self.outputs("E")
        if "glora_C.zeros" in module:
            return shift
        column = self._product("C") if "glora_C.Xd" in module else module["glora_C.X"]
        for tile in base.tiles(name):
            shift[tile.rows] += tile.values.astype(np.float64) @ column[tile.columns, 0]
        return shift

    def dense(self) -> Dense:
        """`W * A + P` and its shift of the bias."""
        module = self._module
        delta, factor = self._product("B"), self._product("A")
        for tile in module.base.tiles(module.shape.module):
            place = tile.rows, tile.columns
            delta[place] += factor[place] * tile.values
        return Dense(delta, c=self.shift(self.outputs("D")))

    def _product(self, path: str) -> NDArray[np.float64]:
        return self._module[f"glora_{path}.Xd"] @ self._module[f"glora_{path}.Xu"]
