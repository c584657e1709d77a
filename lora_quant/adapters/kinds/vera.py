"""VERA and PVERA: one pair of frozen random matrices for all modules, scaled by two vectors.

    ΔW = diag(lambda_b) B diag(lambda_d) A        A [r, largest in], B [largest out, r]

A module uses the first `in` columns of A and the first `out` rows of B. The pair is in the file, or
made again from its seed, for which the sizes of all adapted modules have to be known. PVERA draws
its activations from a distribution while it trains; what it computes afterwards is the mean, which
the first halves of A and lambda_d make.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.frame.fields import Refusal
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.frame.siblings import adapted_modules, largest_sizes
from lora_quant.adapters.frame.unsaved import expect_seeded
from lora_quant.adapters.lowered import Lowered, ModuleShape, Need
from lora_quant.adapters.maths.seeded import Projections, pvera_projections, vera_projections
from lora_quant.errors import AdapterError


class _SharedPair(KindRule):
    """What VERA and PVERA have in common; `halves` is 2 where only the first half is used."""

    halves: ClassVar[int]
    make: ClassVar[Callable[..., Projections]]
    rank_field = ("r", 256)
    used = frozenset({"projection_prng_key", "save_projection"})

    def shape(self, headers: Headers) -> ModuleShape:
        """Rank from lambda_d, out from lambda_b; the file does not tell in."""
        lambda_d, lambda_b = self.required
        name_A, name_B = self.shared
        (rows,) = headers.dims(lambda_d, 1)
        (out,) = headers.dims(lambda_b, 1)
        rank = rows // self.halves
        if rows % self.halves:
            raise headers.error(lambda_d, f"{lambda_d} has {rows} values, expected an even number")
        headers.expect_rank(lambda_d, rank)
        if name_A in headers.shared or name_B in headers.shared:
            rows_A, _ = headers.shared_dims(name_A, 2)
            rows_B, columns_B = headers.shared_dims(name_B, 2)
            if rows_A != rows or columns_B != rank or rows_B < out:
                raise headers.error(
                    lambda_d,
                    f"{name_A} has {rows_A} rows and {name_B} is {[rows_B, columns_B]}, expected "
                    f"{rows} rows, and {rank} columns with at least {out} rows",
                )
        else:
            expect_seeded(headers.config, "save_projection", name_A)
        return ModuleShape(headers.module, rank, None, out, scale=headers.scale, need=Need.SIZES)

    @abstractmethod
    def formula(self, module: ModuleTensors) -> Lowered:
        """The docstring of each kind."""

    def pair(self, module: ModuleTensors) -> Projections:
        """A and B for all modules: from the file, else from the seed."""
        name_A, name_B = self.shared
        if name_A in module:
            return module.stored(name_A), module.stored(name_B)
        modules = adapted_modules(module.source, self.required)
        max_in, max_out = largest_sizes(module.base, modules)
        seed = module.config.whole("projection_prng_key", 0)
        return _made(type(self).make, seed, module.shape.rank, max_in, max_out)


class VeraRule(_SharedPair):
    """ΔW = diag(lambda_b) B diag(lambda_d) A."""

    kind: ClassVar[str] = "VERA"
    rank = "r"
    halves = 1
    make = staticmethod(vera_projections)
    required = ("vera_lambda_d", "vera_lambda_b")
    shared = ("vera_A", "vera_B")
    neutral = frozenset({"d_initial", "fan_in_fan_out", "init_weights", "vera_dropout"})

    def formula(self, module: ModuleTensors) -> Lowered:
        """A = A[:, :in], B = diag(lambda_b) B[:out], s = lambda_d."""
        return _lowered(module, *self.pair(module), *(module[name] for name in self.required))


class PveraRule(_SharedPair):
    """ΔW = diag(lambda_b) B diag(lambda_d[:r]) A[:r]: the mean."""

    kind: ClassVar[str] = "PVERA"
    rank = "r"
    halves = 2
    make = staticmethod(pvera_projections)
    required = ("pvera_lambda_d", "pvera_lambda_b")
    shared = ("pvera_A", "pvera_B")
    neutral = frozenset(
        {"d_initial", "fan_in_fan_out", "generator_seed", "init_weights", "pvera_dropout"}
    )
    refused: ClassVar[dict[str, Refusal]] = {
        "sample_at_inference": Refusal(
            "the adapter draws new random activations for every input",
            "set sample_at_inference to false to compile the mean, which is what PEFT merges",
        )
    }

    def formula(self, module: ModuleTensors) -> Lowered:
        """A = A[:r, :in], B = diag(lambda_b) B[:out], s = lambda_d[:r]."""
        return _lowered(module, *self.pair(module), *(module[name] for name in self.required))


def _lowered(
    module: ModuleTensors,
    pair_A: NDArray[np.floating],
    pair_B: NDArray[np.floating],
    lambda_d: NDArray[np.float64],
    lambda_b: NDArray[np.float64],
) -> Lowered:
    rank, inputs = module.shape.rank, module.base.sizes(module.shape.module).in_features
    if pair_A.shape[1] < inputs:
        raise AdapterError(
            f"the shared A has {pair_A.shape[1]} columns, expected at least {inputs} for the "
            "base's module",
            where=module.where,
            hint="the adapter was trained on a smaller model; check the base",
        )
    B = lambda_b[:, None] * pair_B[: len(lambda_b)].astype(np.float64)
    return Lowered(np.ascontiguousarray(pair_A[:rank, :inputs]), B, lambda_d[:rank])


# kept for the next module, since all modules share the pair
@lru_cache(maxsize=1)
def _made(
    make: Callable[..., Projections], seed: int, rank: int, max_in: int, max_out: int
) -> Projections:
    return make(seed, rank, max_in, max_out)
