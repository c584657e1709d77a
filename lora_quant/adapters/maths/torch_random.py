"""The random numbers of torch on a CPU, in NumPy, draw for draw.

Some adapters save a seed instead of the matrices that it makes. A generator here, given the same
seed and the same calls in the same order, hands out what `torch.Generator` does:

    torch.manual_seed(7), uniform_, randperm   ->   TorchGenerator(7), uniform, randperm

Source of truth: torch 2.13 on x86-64 with AVX2 or more. Everything is equal bit for bit but
`normal` from 16 values on, whose docstring has the bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.errors import NOWHERE, AdapterError, Where

_WORD = 2**32
# A word makes a float32 of its 24 low bits, two words a float64 of their 53 low bits.
_FLOAT32_BITS = 24
_FLOAT64_BITS = 53
# From this length on torch permutes by another algorithm, with two words a step.
_LONG_PERMUTATION = (_WORD - 1) // 20
# Shorter normal tensors are made value by value in double precision.
_NORMAL_BLOCK = 16
_BLOCK = 1 << 18


class TorchGenerator:
    """One stream of random words (MT19937) and the ways in which torch spends them.

    `seed` is a whole number from -2**63 to 2**64 - 1, of which torch uses the 32 low bits; anything
    else is an AdapterError at `where`. Every call continues where the last one stopped.
    """

    def __init__(self, seed: int, where: Where = NOWHERE) -> None:
        if not -(2**63) <= seed < 2**64:
            raise AdapterError(
                f"the seed is {seed}, expected a whole number from -2**63 to 2**64 - 1",
                where=where,
                hint="torch takes no other seed; correct the adapter's configuration",
            )
        state: Any = np.random.RandomState(seed % _WORD).get_state(legacy=False)
        self._words = np.random.MT19937()
        self._words.state = state
        # Words that torch has spent and nobody asked for; they are skipped when one is needed.
        self._owed = 0
        # Box-Muller makes two values; the second waits here for the next short tensor.
        self._spare: float | None = None

    def uniform(
        self,
        shape: Sequence[int],
        low: float = 0.0,
        high: float = 1.0,
        dtype: type[np.generic] = np.float32,
    ) -> NDArray[Any]:
        """`low + u (high - low)` in `shape`, as `Tensor.uniform_` fills a tensor of `dtype`.

        u is a multiple of 2**-24 from 0 to below 1. The bounds and their difference are rounded to
        float32, product and sum together once more (a fused multiply-add; torch on a CPU without
        one rounds twice and is up to 1 ulp off), then the result to `dtype`: float32 or bfloat16. A
        result equal to the upper bound becomes the lower one. Exact where `high - low` is at least
        a 32nd of the bounds, which lets the sum fit in a float64.
        """
        lowest, highest = np.float32(low), np.float32(high)
        span = np.float64(highest - lowest)
        bottom, top = lowest.astype(dtype), highest.astype(dtype)
        values: NDArray[Any] = np.empty(shape, dtype)
        for block in _blocks(values.reshape(-1)):
            block[:] = (self._units(block.size) * span + lowest).astype(np.float32).astype(dtype)
            block[block == top] = bottom
        return values

    def kaiming_uniform(
        self,
        shape: Sequence[int],
        negative_slope: float = 0.0,
        dtype: type[np.generic] = np.float32,
    ) -> NDArray[Any]:
        """`uniform` within +-sqrt(6 / ((1 + negative_slope**2) fan)), `nn.init.kaiming_uniform_`.

        `shape` is [out, in, *kernel] and the fan is the product of all but its first axis.
        """
        # The operations and their order are torch's: another order is another last bit.
        gain = math.sqrt(2.0 / (1 + negative_slope**2))
        bound = math.sqrt(3.0) * (gain / math.sqrt(math.prod(shape[1:])))
        return self.uniform(shape, -bound, bound, dtype)

    def normal(
        self, shape: Sequence[int], mean: float = 0.0, std: float = 1.0
    ) -> NDArray[np.float32]:
        """Normal values in `shape`, float32, as `Tensor.normal_` and `torch.normal` make them.

        Fewer than 16 values are Box-Muller in double precision, rounded once, and equal to torch's.
        More are Box-Muller on float32 uniforms, 16 at a time: 8 radii, then 8 angles; of a length
        that 16 does not divide, the last 16 values are drawn again. torch computes these with
        polynomials in float32, which differ between its own builds; here they are computed in
        float64 from the same uniforms and rounded once. With mean 0 each is within 7 ulp of torch's
        with AVX2 or AVX512 (largest measured in 8 million values: 4; 3 in 5 are equal), and within
        4e-6 std of torch's without (largest measured: 2.4e-6).
        """
        values: NDArray[np.float32] = np.empty(shape, np.float32)
        flat = values.reshape(-1)
        if flat.size < _NORMAL_BLOCK:
            for i in range(flat.size):
                flat[i] = self._one_normal() * std + mean
            return values
        rest = flat.size % _NORMAL_BLOCK
        scale, shift = np.float64(np.float32(std)), np.float64(np.float32(mean))
        for block in _blocks(flat[: flat.size - rest]):
            block[:] = self._normals(block.size) * scale + shift
        if rest:
            self._owed += rest
            flat[-_NORMAL_BLOCK:] = self._normals(_NORMAL_BLOCK) * scale + shift
        return values

    def randperm(self, n: int) -> NDArray[np.int64]:
        """`torch.randperm(n)`: the numbers from 0 to n - 1 in random order, int64 `[n]`."""
        return self.randperm_head(n, n)

    def randperm_head(self, n: int, k: int) -> NDArray[np.int64]:
        """The first `k` entries of `torch.randperm(n)`, int64 `[k]`, 0 <= k <= n.

        Memory is O(k). Time is O(k) for n below 214 748 364, plus the words that the rest of the
        permutation spends if the generator is used again; from there on torch's algorithm needs two
        words for each of the n entries, and so does this one. (Old versions of torch had no second
        algorithm: there, adapters of such modules have other permutations.)
        """
        if not 0 <= k <= n:
            raise ValueError(f"k is {k}, expected 0 to {n}")
        return self._inside_out(n, k) if n >= _LONG_PERMUTATION else self._swaps(n, k)

    def _swaps(self, n: int, k: int) -> NDArray[np.int64]:
        """Fisher-Yates from the front: entry i is swapped with one of the entries from i on."""
        head = np.arange(k, dtype=np.int64)
        steps = min(k, max(n - 1, 0))
        moved: dict[int, int] = {}
        for block in _blocks(head[:steps]):
            left = (n - block).astype(np.uint64)
            partners = block + (self._take(block.size) % left).astype(np.int64)
            for i, j in zip(block.tolist(), partners.tolist(), strict=True):
                own = moved.pop(i, i)
                head[i] = moved.get(j, j) if j != i else own
                if j != i:
                    moved[j] = own
        if k > steps:
            head[steps:] = moved.pop(steps, steps)
        self._owed += max(n - 1, 0) - steps
        return head

    def _inside_out(self, n: int, k: int) -> NDArray[np.int64]:
        """Fisher-Yates from the back: entry i moves where an earlier one was, which moves to i."""
        head = np.zeros(k, np.int64)
        for start in range(0, n, _BLOCK):
            counts = np.arange(start + 1, min(start + _BLOCK, n) + 1, dtype=np.uint64)
            targets = self._take64(counts.size) % counts
            seen = np.flatnonzero(targets < k)
            for i, j in zip((seen + start).tolist(), targets[seen].tolist(), strict=True):
                if i < k:
                    head[i] = head[j]
                head[j] = i
        return head

    def _normals(self, count: int) -> NDArray[np.float64]:
        units = self._units(count).reshape(-1, 2, _NORMAL_BLOCK // 2)
        radius = np.sqrt(-2.0 * np.log(1.0 - units[:, 0]))
        # torch rounds the angle to float32; near a zero of the cosine every bit of it matters
        angle = (units[:, 1] * np.float32(2.0 * math.pi)).astype(np.float32).astype(np.float64)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)

    def _one_normal(self) -> float:
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        units = self._take64(2) & np.uint64(2**_FLOAT64_BITS - 1)
        first, second = (int(u) * 2.0**-_FLOAT64_BITS for u in units)
        # `math` is the C library's, as in torch; NumPy's own functions may differ in a last bit
        radius, angle = math.sqrt(-2.0 * math.log1p(-second)), 2.0 * math.pi * first
        self._spare = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _units(self, count: int) -> NDArray[np.float64]:
        """Multiples of 2**-24 from 0 to below 1."""
        bits = self._take(count) & np.uint64(2**_FLOAT32_BITS - 1)
        return bits * np.float64(2.0**-_FLOAT32_BITS)

    def _take64(self, count: int) -> NDArray[np.uint64]:
        words = self._take(2 * count).reshape(-1, 2)
        joined: NDArray[np.uint64] = words[:, 0] << np.uint64(32) | words[:, 1]
        return joined

    def _take(self, count: int) -> NDArray[np.uint64]:
        """The next `count` words of 32 bits."""
        if self._owed:
            self._words.random_raw(self._owed, output=False)
            self._owed = 0
        return self._words.random_raw(count)


def _blocks(flat: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Views of consecutive parts, so that a large tensor needs no large intermediate values."""
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK]
