"""RANDLORA: a sum of random low-rank bases, each scaled by trained vectors, of full rank together.

    ΔW = s A' B'      min = in or out, whichever is smaller, max the other, n = ceil(min / r) bases

The frozen A is `[r, 1, >= min]` and B `[>= max, >= n, r]`, shared by all modules; lambda `[r, n]`
and gamma `[n, min]` are trained. PEFT lays the r * n scaled rows of A (rank-major) beside the n * r
columns of B (basis-major), and multiplies them in that order; so do we. The rank is r * n, at least
as large as the weight's own.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import ClassVar

import numpy as np

from lora_quant.adapters.base_modules import BaseSizes
from lora_quant.adapters.description import Description
from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.frame.siblings import adapted_modules, largest_sizes
from lora_quant.adapters.frame.unsaved import expect_seeded
from lora_quant.adapters.lowered import Lowered, ModuleShape, Need
from lora_quant.adapters.maths.seeded import Projections, randlora_projections
from lora_quant.errors import AdapterError
from lora_quant.findings import Finding, Severity

_SPARSE = 3.0
_PAIR = ("randlora_A", "randlora_B")
# the shared pair beside a module's own copy of it, which takes its name
_SHARED = "shared "


class RandloraRule(KindRule):
    """ΔW = s sum over j of (lambda_j gamma_n(j) A_r(j)) B_j."""

    kind: ClassVar[str] = "RANDLORA"
    rank = "r ceil(min(in, out) / r)"
    required = ("randlora_lambda", "randlora_gamma")
    # every module's state may repeat the shared pair, and PEFT uses the shared one
    optional = _PAIR
    shared = _PAIR
    rank_field = ("r", 32)
    alpha_field = ("randlora_alpha", 640.0)
    used = frozenset({"projection_prng_key", "save_projection", "sparse", "very_sparse"})
    neutral = frozenset({"fan_in_fan_out", "init_weights", "randlora_dropout"})

    def describe(self, checkpoint: Checkpoint) -> Description:
        """As for every kind, with a note where a dense pair comes from its seed."""
        found = super().describe(checkpoint)
        is_sparse = _sparsity(checkpoint.config, 1) is not None
        if is_sparse or any("randlora_A" in shape.tensors for shape in found.shapes.values()):
            return found
        note = Finding(
            rule="adapter/seeded-bfloat16",
            severity=Severity.NOTE,
            message="the random bases are not in the file and are made from their seed as PEFT "
            "does where bfloat16 is available; without it, PEFT draws others",
            where=checkpoint.config.where("save_projection"),
            hint="train with save_projection to be independent of the machine",
        )
        return replace(found, findings=(*found.findings, note))

    def shape(self, headers: Headers) -> ModuleShape:
        """Rank r * n; gamma tells the smaller of in and out, not which of them it is."""
        rank, bases = headers.dims("randlora_lambda", 2)
        _, smaller = headers.dims("randlora_gamma", 2)
        headers.expect({"randlora_gamma": (bases, smaller)})
        headers.expect_rank("randlora_lambda", rank)
        if bases != -(-smaller // rank):
            raise headers.error(
                "randlora_lambda",
                f"the module has {bases} bases of rank {rank}, expected {-(-smaller // rank)} for "
                f"the {smaller} columns of randlora_gamma",
            )
        if headers.has("randlora_A") or "randlora_A" in headers.shared:
            self._expect_pair(headers, rank, bases, smaller)
        else:
            expect_seeded(headers.config, "save_projection", "randlora_A")
        return ModuleShape(
            headers.module,
            rank * bases,
            None,
            None,
            scale=headers.scale,
            tensors={**headers.shared, **headers.names, **_compared(headers)},
            need=Need.SIZES,
        )

    def formula(self, module: ModuleTensors) -> Lowered:
        """With in as min: A = gamma_n * A_r, B = B'; else the two change places, transposed.

        s = scale * lambda, since each of the r * n rows has a lambda of its own.
        """
        sizes = module.base.sizes(module.shape.module)
        pair_A, pair_B = self._pair(module)
        gamma, weights = module["randlora_gamma"], module["randlora_lambda"]
        bases, smaller = gamma.shape
        larger = max(sizes.in_features, sizes.out_features)
        self._expect_sizes(module, sizes, smaller, len(pair_B))
        small = pair_A[:, :, :smaller].astype(np.float64) * gamma[None]
        small = small.reshape(-1, smaller)
        large = pair_B[:larger, :bases].astype(np.float64).reshape(larger, -1)
        s = module.shape.scale * weights.reshape(-1)
        if smaller == sizes.in_features:
            return Lowered(small, large, s)
        return Lowered(np.ascontiguousarray(large.T), np.ascontiguousarray(small.T), s)

    def _pair(self, module: ModuleTensors) -> Projections:
        if "randlora_A" in module:
            for name in _PAIR:
                _expect_copy(module, name)
            return module.stored("randlora_A"), module.stored("randlora_B")
        config = module.config
        modules = adapted_modules(module.source, self.required)
        max_in, max_out = largest_sizes(module.base, modules)
        rank = config.positive("r", 32)
        seed = config.whole("projection_prng_key", 0)
        return _made(seed, rank, max_in, max_out, _sparsity(config, min(max_in, max_out)))

    @staticmethod
    def _expect_pair(headers: Headers, rank: int, bases: int, smaller: int) -> None:
        of = headers.dims if headers.has("randlora_A") else headers.shared_dims
        rows, one, columns = of("randlora_A", 3)
        _, count, depth = of("randlora_B", 3)
        if (rows, one) != (rank, 1) or columns < smaller or count < bases or depth != rank:
            raise headers.error(
                "randlora_A",
                f"randlora_A is {[rows, one, columns]} and randlora_B has {[count, depth]} beside "
                f"its rows, expected [{rank}, 1, {smaller} or more] and [{bases} or more, {rank}]",
            )

    @staticmethod
    def _expect_sizes(module: ModuleTensors, sizes: BaseSizes, smaller: int, rows: int) -> None:
        got = (sizes.in_features, sizes.out_features)
        if min(got) != smaller or max(got) > rows:
            raise AdapterError(
                f"the base's module has {got[0]} inputs and {got[1]} outputs, expected {smaller} "
                f"for the smaller and at most {rows} for the larger from the adapter's tensors",
                where=module.where,
                hint="the adapter was trained on another model; check the base",
            )


def _compared(headers: Headers) -> dict[str, str]:
    """The shared tensors that the module has copies of; AdapterError for another dtype or shape."""
    found = {}
    for name in _PAIR:
        if not headers.has(name) or name not in headers.shared:
            continue
        copy, shared = (headers.source.info(of[name]) for of in (headers.names, headers.shared))
        if (copy.dtype, copy.shape) != (shared.dtype, shared.shape):
            raise headers.error(
                name,
                f"the module's {name} is {copy.dtype} {list(copy.shape)}, expected the one that "
                f"the modules share, {shared.dtype} {list(shared.shape)}",
            )
        found[_SHARED + name] = headers.shared[name]
    return found


def _expect_copy(module: ModuleTensors, name: str) -> None:
    shared = _SHARED + name
    if shared in module and not np.array_equal(module.stored(name), module.stored(shared)):
        raise AdapterError(
            f"the values of the module's {name} are not those of the one that the modules share, "
            "expected a copy",
            where=module.where,
            hint="PEFT uses the shared one, so the file is not as it was trained; save the "
            "adapter again",
        )


def _sparsity(config: PeftConfig, smaller: int) -> float | None:
    if config.flag("very_sparse"):
        return math.sqrt(smaller)
    return _SPARSE if config.flag("sparse") else None


# kept for the next module, since all modules share the pair
@lru_cache(maxsize=1)
def _made(seed: int, rank: int, max_in: int, max_out: int, sparsity: float | None) -> Projections:
    return randlora_projections(seed, rank, max_in, max_out, sparsity=sparsity)
