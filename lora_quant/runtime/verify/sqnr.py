"""How much of the signal quantization leaves: of the outputs, and of what the adapters change.

    SQNR = 10 log10( sum ref^2 / sum (got - ref)^2 )                       in dB

    output      got against ref
    effect      got - got_off against ref - ref_off
    strength    <got - got_off, ref - ref_off> / <ref - ref_off, ref - ref_off>

off is without adapters. A base that is far larger than what the adapters add hides a wrong adapter
in the first figure; in the second it cancels. The third is 1 for an adapter at its strength, 0 for
one that is not applied: noise that has nothing to do with the effect does not move it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_quant.engines.onnxruntime import Array

_MORE_NOISE = 2.0
"""3 dB: grids of a use case that has no adapter are as good as the graph's own, or nearly."""


@dataclass(frozen=True)
class OutputSqnr:
    """SQNR of one output of floats, in dB; infinite without any noise, NaN if not comparable.

    effect: of what the adapters change, at least `bound`. None where they change nothing; then
    `ok` says that the graph changes nothing either, beyond the noise that it has without adapters.
    strength: what the effect amounts to, of 1.
    """

    use_case: str
    output: str
    sqnr: float
    effect: float | None
    strength: float | None
    bound: float
    ok: bool
    gates: str = ""


def compare_sqnr(
    use_case: str,
    got: Mapping[str, Array],
    off: Mapping[str, Array],
    wanted: Mapping[str, Array],
    plain: Mapping[str, Array],
    bound: float,
    *,
    gates: str = "",
) -> list[OutputSqnr]:
    """Figures of every output of floats that has elements; `off` and `plain` are without adapters.

    `got` and `off` are of the quantized graph, `wanted` and `plain` of the reference.
    """
    found = []
    for name, reference in wanted.items():
        if reference.dtype.kind != "f" or not reference.size:
            continue
        arrays = [_flat(one[name]) for one in (got, off, wanted, plain)]
        if len({one[name].shape for one in (got, off, wanted, plain)}) > 1:
            nan = float("nan")
            found.append(OutputSqnr(use_case, name, nan, nan, nan, bound, ok=False, gates=gates))
            continue
        found.append(_figures(use_case, name, arrays, bound, gates))
    return found


def decibels_of(reference: Array, got: Array) -> float:
    """SQNR of `got`, in dB; NaN for another shape."""
    if reference.shape != got.shape:
        return float("nan")
    wanted = _flat(reference)
    return _decibels(wanted, _flat(got) - wanted)


def _decibels(signal: NDArray[np.float64], noise: NDArray[np.float64]) -> float:
    """10 log10 of the ratio of energies: infinite without noise, -infinite without a signal."""
    energy, lost = float(signal @ signal), float(noise @ noise)
    if not (math.isfinite(energy) and math.isfinite(lost)):
        return float("nan")
    if lost == 0:
        return math.inf
    return 10 * math.log10(energy / lost) if energy else -math.inf


def _figures(
    use_case: str, name: str, arrays: list[NDArray[np.float64]], bound: float, gates: str
) -> OutputSqnr:
    got, off, wanted, plain = arrays
    sqnr = _decibels(wanted, got - wanted)
    wanted_effect, effect = wanted - plain, got - off
    energy = float(wanted_effect @ wanted_effect)
    if energy == 0:
        noise, noise_off = got - wanted, off - plain
        quiet = bool(noise @ noise <= _MORE_NOISE * (noise_off @ noise_off))
        return OutputSqnr(use_case, name, sqnr, None, None, bound, ok=quiet, gates=gates)
    reached = _decibels(wanted_effect, effect - wanted_effect)
    strength = float(effect @ wanted_effect) / energy
    passed = reached >= bound
    return OutputSqnr(use_case, name, sqnr, reached, strength, bound, ok=passed, gates=gates)


def _flat(values: Array) -> NDArray[np.float64]:
    return values.astype(np.float64).reshape(-1)
