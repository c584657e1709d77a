"""What PEFT makes from a seed when a checkpoint does not hold it, as PEFT 0.21.2 makes it.

    save_projection=False, seed, sizes   ->   the frozen matrices or index sets of the adapter

Sizes are those of the modules that PEFT adapts: `max_in` and `max_out` are the largest of them all,
each on its own, and an `index` counts target modules in the order of the model. `where` names the
file and module of the adapter; the errors add the field.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.maths.torch_random import TorchGenerator
from lora_quant.errors import NOWHERE, AdapterError, Where

Projections = tuple[NDArray[np.float32], NDArray[np.float32]]

_BLOCK = 1 << 18


def vera_projections(
    seed: int, rank: int, max_in: int, max_out: int, *, where: Where = NOWHERE
) -> Projections:
    """A `[rank, max_in]` and B `[max_out, rank]` of VERA, float32; exact.

    A, then B, uniform within +-sqrt(6 / fan), the fan being the second axis. A module uses
    `A[:, :in]` and `B[:out]`. `seed` is projection_prng_key.
    """
    generator = _generator(seed, "projection_prng_key", where)
    return generator.kaiming_uniform((rank, max_in)), generator.kaiming_uniform((max_out, rank))


def pvera_projections(
    seed: int, rank: int, max_in: int, max_out: int, *, where: Where = NOWHERE
) -> Projections:
    """A `[2 rank, max_in]` and B `[max_out, rank]` of PVERA, float32; exact.

    As for VERA; the first half of A's rows makes the means, the second their log-variances.
    """
    generator = _generator(seed, "projection_prng_key", where)
    return generator.kaiming_uniform((2 * rank, max_in)), generator.kaiming_uniform((max_out, rank))


def randlora_projections(
    seed: int,
    rank: int,
    max_in: int,
    max_out: int,
    *,
    sparsity: float | None = None,
    where: Where = NOWHERE,
) -> Projections:
    """A `[rank, 1, min]` and B `[max, bases, rank]` of RANDLORA, float32.

    min and max are the smaller and the larger of `max_in` and `max_out`, bases = ceil(min / rank).

    Dense (`sparsity` None): A, then each base `[max, 1, rank]` of B, uniform in bfloat16 within
    +-1 / sqrt(fan), the fan being the last axis; then each of both over its own standard deviation,
    rounded to bfloat16. Sparse: A, then B, u uniform from 0 to 1 -> -1 where
    u < 1 / (2 sparsity), 1 where u > 1 - 1 / (2 sparsity), else 0; then each over its own standard
    deviation. `sparsity` is 3 for `sparse` and sqrt(min) for `very_sparse`.

    The draws are exact, and so are the quotients unless a deviation lies next to a rounding
    boundary: it is computed in float64 and rounded once, torch may sum in another order. PEFT
    draws float16 instead of bfloat16 where the training's accelerator lacks the latter, which no
    checkpoint tells; that is not made here.

    Raises AdapterError when all values of A or of B are equal: PEFT divides by zero there.
    """
    generator = _generator(seed, "projection_prng_key", where)
    smaller, larger = sorted((max_in, max_out))
    bases = -(-smaller // rank)
    if sparsity is not None:
        A = _ternary(generator.uniform((rank, 1, smaller)), sparsity)
        B = _ternary(generator.uniform((larger, bases, rank)), sparsity)
        dtype: type[np.generic] = np.float32
    else:
        dtype = ml_dtypes.bfloat16
        slope = math.sqrt(5)
        A = generator.kaiming_uniform((rank, 1, smaller), slope, dtype).astype(np.float32)
        B = np.empty((larger, bases, rank), np.float32)
        for base in range(bases):
            B[:, base] = generator.kaiming_uniform((larger, 1, rank), slope, dtype)[:, 0]
    for name, values in (("A", A), ("B", B)):
        _over_deviation(values, dtype, f"randlora_{name}", where)
    return A, B


def fourierft_indices(
    seed: int, out_features: int, in_features: int, count: int, *, where: Where = NOWHERE
) -> NDArray[np.int64]:
    """Rows and columns `[2, count]` of FOURIERFT's spectrum in `[out, in]`, int64; exact.

    The first `count` of a permutation of the out * in places, each split into row and column.
    `seed` is random_loc_seed, `count` n_frequency; AdapterError when it exceeds the places.
    """
    places = out_features * in_features
    if count > places:
        raise AdapterError(
            f"n_frequency is {count}, expected at most the {places} entries of the module",
            where=replace(where, field="n_frequency"),
            hint="the adapter was not trained on a module of this shape; check the base model",
        )
    generator = _generator(seed, "random_loc_seed", where)
    return _split(generator.randperm_head(places, count), in_features)


def waveft_indices(
    seed: int, out_features: int, in_features: int, count: int, *, where: Where = NOWHERE
) -> NDArray[np.int64]:
    """Rows and columns `[2, count]` of WAVEFT's coefficients in `[out, in]`: as FOURIERFT's."""
    return fourierft_indices(seed, out_features, in_features, count, where=where)


def shira_indices(
    seed: int, rank: int, out_features: int, in_features: int, *, where: Where = NOWHERE
) -> NDArray[np.int64]:
    """Rows and columns `[2, rank (out + in)]` of SHIRA's random mask, int64; exact.

    The first rank (out + in) of a permutation of the out * in places, sorted. `seed` is
    random_seed; where that is null, PEFT has torch's default, 67280421310721. PEFT saves these
    indices: this is for files that lack them.
    Raises AdapterError when the mask has more entries than the module.
    """
    places, count = out_features * in_features, rank * (out_features + in_features)
    if count > places:
        raise AdapterError(
            f"r = {rank} makes {count} entries, expected at most the {places} of the module",
            where=replace(where, field="r"),
            hint="the adapter was not trained on a module of this shape; check the base model",
        )
    generator = _generator(seed, "random_seed", where)
    return _split(np.sort(generator.randperm_head(places, count)), in_features)


def tinylora_projection(
    seed: int, index: int, vectors: int, rank: int, *, where: Where = NOWHERE
) -> NDArray[np.float32]:
    """P `[vectors, rank, rank]` of TINYLORA's target module number `index`, float32.

    Normal values of variance 1 / rank from a generator of its own, seeded with seed + index. Of 16
    values or more each is within 7 ulp of torch's, fewer are exact. `seed` is projection_seed,
    `vectors` u, and `rank` at most the smaller side of the module, whatever r says.
    """
    generator = _generator(seed + index, "projection_seed", where)
    return generator.normal((vectors, rank, rank), std=1.0 / rank**0.5)


@dataclass(frozen=True, eq=False)
class UniLoraIndices:
    """One module of UNILORA: A = theta[a] * a_scale, B = theta[b] * b_scale.

    a, a_scale: `[rank, in]`; b, b_scale: `[out, rank]`; int64 indices and float32 scales.
    """

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    a_scale: NDArray[np.float32]
    b_scale: NDArray[np.float32]


def unilora_indices(
    seed: int,
    theta_length: int,
    rank: int,
    features: Sequence[tuple[int, int]],
    *,
    where: Where = NOWHERE,
) -> list[UniLoraIndices]:
    """Indices and scales of UNILORA for all modules, given `(in, out)` of each in model order.

    Every index of theta occurs D // theta_length times, D being the number of entries of all A and
    B; NumPy's default generator picks D % theta_length indices that occur once more, then shuffles
    all. They fill A, then B, of one module after the other. The scale of an index that occurs n
    times is 1 / sqrt(n); PEFT rounds it to the dtype of the base. Exact. `seed` is proj_seed;
    AdapterError when it is negative, which NumPy does not take.
    """
    if seed < 0:
        raise AdapterError(
            f"proj_seed is {seed}, expected a whole number from 0",
            where=replace(where, field="proj_seed"),
            hint="NumPy takes no other seed; correct the adapter's configuration",
        )
    total = sum(rank * (inside + outside) for inside, outside in features)
    every, extra = divmod(total, theta_length)
    random = np.random.default_rng(seed)
    indices = np.repeat(np.arange(theta_length, dtype=np.int64), every)
    if extra:
        indices = np.concatenate([indices, random.choice(theta_length, extra, replace=False)])
    random.shuffle(indices)
    counts = np.bincount(indices, minlength=theta_length).astype(np.float32)
    # an index that does not occur has no scale; 1 stands in for its division by zero
    roots = np.sqrt(np.maximum(counts, np.float32(1)))
    scales = np.divide(np.float32(1), roots, dtype=np.float32)
    modules, start = [], 0
    for inside, outside in features:
        middle, end = start + rank * inside, start + rank * (inside + outside)
        a = indices[start:middle].reshape(rank, inside)
        b = indices[middle:end].reshape(outside, rank)
        modules.append(UniLoraIndices(a, b, scales[a], scales[b]))
        start = end
    return modules


def frod_indices(
    seed: int, sizes: Sequence[int], sparse_rate: float, *, where: Where = NOWHERE
) -> list[NDArray[np.int64]]:
    """Rows and columns `[2, n]` of FROD's sparse core for each category of modules, int64; exact.

    `sizes` holds the input size d of each category, the categories sorted by name. One generator
    serves them all: for each, the first n = int(d * d * sparse_rate) of a permutation of the
    d (d - 1) places off the diagonal, at least one if the rate is positive and no more than there
    are; none at all draws nothing. `seed` is projection_prng_key.
    """
    generator = _generator(seed, "projection_prng_key", where)
    found = []
    for size in sizes:
        places = size * (size - 1)
        count = min(int(size * size * sparse_rate), places)
        if sparse_rate > 0 and places > 0:
            count = max(1, count)
        if count == 0:
            found.append(np.empty((2, 0), np.int64))
            continue
        rows, columns = _split(generator.randperm_head(places, count), size - 1)
        found.append(np.stack([rows, columns + (columns >= rows)]))
    return found


def _generator(seed: int, field: str, where: Where) -> TorchGenerator:
    return TorchGenerator(seed, replace(where, field=field))


def _split(places: NDArray[np.int64], columns: int) -> NDArray[np.int64]:
    return np.stack([places // columns, places % columns])


def _ternary(units: NDArray[np.float32], sparsity: float) -> NDArray[np.float32]:
    edge = 1 / (2 * sparsity)
    # torch compares in float32, so each edge is rounded first
    signs = (units > np.float32(1 - edge)).astype(np.float32)
    signs -= units < np.float32(edge)
    return signs


def _over_deviation(
    values: NDArray[np.float32], dtype: type[np.generic], name: str, where: Where
) -> None:
    """Divide `values` by their standard deviation (n - 1) in place, both rounded to `dtype`."""
    flat = values.reshape(-1)
    blocks = [flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK)]
    total = squares = 0.0
    for block in blocks:
        wide = block.astype(np.float64)
        total += float(wide.sum())
        squares += float(wide @ wide)
    # the squares of equal values may leave a rounding error beside their mean
    if flat.min() == flat.max():
        raise AdapterError(
            f"all {flat.size} values of {name} are equal, expected some to differ",
            where=replace(where, field="r"),
            hint="PEFT divides by zero here; train with save_projection and a larger rank",
        )
    variance = (squares - total * total / flat.size) / (flat.size - 1)
    deviation: Any = np.sqrt(variance).astype(dtype).astype(np.float32)
    for block in blocks:
        block[:] = (block / deviation).astype(dtype).astype(np.float32)
