"""Encodings of how the strength reaches the branches: E from its values, s from alpha times E.

Each column of E has at most one entry, so that a grid per column stores it exactly. A gate is
between 0 and 1: s keeps its range, and alpha * gate has that of alpha.
"""

from __future__ import annotations

import numpy as np

from lora_quant.encodings.calibrate import from_range
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.products import times
from lora_quant.graph.records import BranchedGraph
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.factors import expansion_matrix
from lora_quant.passes.merging.collected import UseCaseEncodings
from lora_quant.passes.merging.strength_inputs import StrengthInputs


def add_scale(
    result: UseCaseEncodings, compilation: Compilation, inputs: StrengthInputs
) -> Encoding | None:
    """Add E, s in every form and alpha * gate; returns the grid of s.

    A use case without ranks has no E of its own, and None for s.
    """
    branched: BranchedGraph = compilation.having("branched")
    scale = branched.scale
    if scale is None:
        return None
    low, high = inputs.gate_range
    gated = times(inputs.alpha, low, high)
    if scale.expansion is None:
        result.encodings.update((t, gated) for t in scale.scales)
        return gated
    slots = tuple(s for s in compilation.having("slots").use_cases[result.use_case] if s.rank)
    products = scale.gated[:1]
    result.encodings.update((tensor, gated) for tensor in products)
    if not slots:
        return None
    options = compilation.options
    matrix = expansion_matrix(scale.expansion, slots).astype(np.float64)
    result.encodings[scale.expansion.name] = from_range(
        matrix.min(axis=0),
        matrix.max(axis=0),
        bits=options.weight_bits,
        symmetric=True,
        axis=1,
        single=True,
    )
    result.owned[scale.expansion.name] = tuple(
        rank for slot in slots for rank in range(slot.start, slot.start + slot.rank)
    )
    strength = _strength(gated, [slot.scale for slot in slots], options.activation_bits)
    result.encodings.update((t, strength) for t in scale.scales if t not in products)
    return strength


def _strength(alpha: Encoding, factors: list[float], bits: int) -> Encoding:
    if alpha.scale is None:
        return alpha
    ends = [float(end) * factor for factor in factors for end in (alpha.minimum, alpha.maximum)]
    return from_range(min(ends), max(ends), bits=bits, symmetric=False)
