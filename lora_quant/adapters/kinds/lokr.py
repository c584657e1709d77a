"""LOKR: the update is a Kronecker product, of two factors that are whole or of low rank.

    (U1 V1) kron (U2 V2) = (U1 kron U2) (V1 kron V2)        rank r1 * r2

A whole factor `[m, n]` has the rank min(m, n): the identity is its other part. w1 is `[a, c]`, w2
`[b, d]` and the update `[a b, c d]`. In a convolution the kernel belongs to w2: `[b, d, *kernel]`
whole, w2_b `[r, d * kernel]`, or a core t2 `[r, r, *kernel]` with w2_a `[r, b]` and w2_b `[r, d]`.

PEFT multiplies a whole w2 of three axes (a convolution over one) by w1 without giving w1 a third
axis. What comes out is the product in the other order, w2 kron w1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.kinds.cores import core_kernel, with_core
from lora_quant.adapters.lowered import Lowered, ModuleShape
from lora_quant.adapters.maths.algebra import shortest, whole
from lora_quant.errors import AdapterError, Where, short

Matrix = NDArray[np.float64]

# "logical" where w1 kron w2 is meant for a whole w2 of three axes too, as LyCORIS multiplies
KRONECKER_ORDER = "lora_quant_kronecker_order"
_LOGICAL = "logical"


@dataclass(frozen=True)
class _Factor:
    """Shape of w1 or w2: `columns` includes the kernel, which is None if it is not told."""

    rows: int
    columns: int
    rank: int
    kernel: tuple[int, ...] | None = ()


class LokrRule(KindRule):
    """ΔW = s (w1 kron w2), s = alpha / r with the configuration's r."""

    kind: ClassVar[str] = "LOKR"
    rank = "min(r1 r2, in, out), of its factors"
    optional = (
        "lokr_w1",
        "lokr_w1_a",
        "lokr_w1_b",
        "lokr_w2",
        "lokr_w2_a",
        "lokr_w2_b",
        "lokr_t2",
    )
    rank_field = ("r", 8)
    alpha_field = ("alpha", 8.0)
    patterns = True
    used = frozenset({KRONECKER_ORDER, "decompose_both"})
    neutral = frozenset(
        {
            "decompose_factor",  # the shapes tell how it was decomposed
            "init_weights",
            "module_dropout",
            "rank_dropout",
            "rank_dropout_scale",
            "use_effective_conv2d",
        }
    )

    def check(self, config: PeftConfig) -> None:
        """Refuse an order of factors that is not known."""
        order = config.fields.get(KRONECKER_ORDER)
        if order not in (None, _LOGICAL):
            raise AdapterError(
                f"{KRONECKER_ORDER} is {short(order)}, expected {_LOGICAL!r}",
                where=config.where(KRONECKER_ORDER),
                hint="remove it for a file that PEFT wrote",
            )

    def shape(self, headers: Headers) -> ModuleShape:
        """Rank r1 * r2, where a whole factor counts as min(rows, columns)."""
        one, two = _first(headers), _second(headers)
        _check_whole(headers, one, two)
        inputs = one.columns * two.columns // math.prod(two.kernel or ())
        return ModuleShape(
            headers.module,
            one.rank * two.rank,
            inputs,
            one.rows * two.rows,
            two.kernel,
            headers.scale,
        )

    def formula(self, module: ModuleTensors) -> Lowered:
        """A = V1 kron V2, B = U1 kron U2, in the other order for a whole w2 of three axes."""
        U1, V1 = _parts(module, "lokr_w1")
        U2, V2 = _parts(module, "lokr_w2")
        kernel = module.shape.kernel
        if kernel and len(kernel) == 1 and "lokr_w2" in module and not _is_logical(module):
            V2 = V2.reshape(len(V2), -1, *kernel)
            A = np.einsum("pdk,qc->pqdck", V2, V1)
            return Lowered(A.reshape(module.shape.rank, -1, *kernel), np.kron(U2, U1), module.s)
        A = np.kron(V1, V2)
        shaped = A if kernel is None else A.reshape(len(A), -1, *kernel)
        return Lowered(shaped, np.kron(U1, U2), module.s)


def _first(headers: Headers) -> _Factor:
    _check_present(headers, "lokr_w1")
    if headers.has("lokr_w1"):
        rows, columns = headers.dims("lokr_w1", 2)
        return _Factor(rows, columns, min(rows, columns))
    rows, _ = headers.dims("lokr_w1_a", 2)
    rank, columns = headers.dims("lokr_w1_b", 2)
    headers.expect({"lokr_w1_a": (rows, rank)})
    headers.expect_rank("lokr_w1_b", rank)
    return _Factor(rows, columns, min(rank, rows, columns))


def _second(headers: Headers) -> _Factor:
    _check_present(headers, "lokr_w2")
    if headers.has("lokr_w2"):
        dims = headers.dims("lokr_w2")
        if headers.has("lokr_t2"):
            raise headers.error("lokr_t2", "the module has lokr_t2 beside a whole lokr_w2")
        if len(dims) not in (2, 3, 4):
            raise headers.error("lokr_w2", f"lokr_w2 has shape {list(dims)}, expected 2 to 4 axes")
        rows, columns = dims[0], math.prod(dims[1:])
        return _Factor(rows, columns, min(rows, columns), dims[2:])
    rank, inputs = headers.dims("lokr_w2_b", 2)
    headers.expect_rank("lokr_w2_b", rank)
    if not headers.has("lokr_t2"):
        rows, _ = headers.dims("lokr_w2_a", 2)
        headers.expect({"lokr_w2_a": (rows, rank)})
        return _Factor(rows, inputs, min(rank, rows, inputs), None)
    _, rows = headers.dims("lokr_w2_a", 2)
    core = headers.dims("lokr_t2")
    if len(core) not in (3, 4):
        raise headers.error("lokr_t2", f"lokr_t2 has shape {list(core)}, expected 3 or 4 axes")
    headers.expect({"lokr_w2_a": (rank, rows), "lokr_t2": (rank, rank, *core[2:])})
    columns = inputs * math.prod(core[2:])
    return _Factor(rows, columns, min(rank, rows, columns), core_kernel(core))


def _check_whole(headers: Headers, one: _Factor, two: _Factor) -> None:
    """Hold the configuration's rank against factors that are whole: it was large enough for that.

    Their shapes do not tell the rank, and the scale depends on it. LyCORIS has other rules.
    """
    if headers.config.fields.get(KRONECKER_ORDER) == _LOGICAL:
        return
    factors = {"lokr_w2": two}
    if headers.config.flag("decompose_both"):
        factors["lokr_w1"] = one
    for name, factor in factors.items():
        columns = factor.columns // math.prod(factor.kernel or ())
        least = -(-max(factor.rows, columns) // 2)
        if headers.has(name) and headers.rank < least:
            raise headers.error(
                name,
                f"module {headers.module!r} has a whole {name} of {factor.rows} by {columns} in "
                f"the weights, which PEFT trains from rank {least} on, expected {name}_a and "
                f"{name}_b at rank {headers.rank} from the configuration",
                hint="the configuration is not the one that the weights were saved with, and "
                "their scale depends on it",
            )


def _check_present(headers: Headers, name: str) -> None:
    parts = [part for part in (f"{name}_a", f"{name}_b") if headers.has(part)]
    if headers.has(name) != bool(parts):
        return
    got = f"{name} beside {parts[0]}" if parts else f"neither {name} nor {name}_a"
    raise AdapterError(
        f"the module has {got}, expected {name} alone, or {name}_a and {name}_b",
        where=Where(file=headers.source.path, module=headers.module),
        hint="the checkpoint is incomplete; save or download it again",
    )


def _parts(module: ModuleTensors, name: str) -> tuple[Matrix, Matrix]:
    """w1 `[m, n]` or w2 `[m, n * kernel]` as a product `[m, r] [r, n * kernel]`."""
    if name in module:
        matrix = module[name]
        return whole(matrix.reshape(len(matrix), -1))
    left, right = module[f"{name}_a"], module[f"{name}_b"]
    if name == "lokr_w2" and "lokr_t2" in module:
        left, right = left.T, with_core(module["lokr_t2"], right)
    return shortest(left, right)


def _is_logical(module: ModuleTensors) -> bool:
    return module.config.fields.get(KRONECKER_ORDER) == _LOGICAL
