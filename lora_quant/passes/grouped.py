"""Low rank within the weight of a grouped convolution, as a branch that reads all channels.

LoRA's own A reads all channels. The other kinds factor the weight as it is stored, `[out, in /
groups, *kernel]`: their A reads the channels of one group, and is the same for each. As a branch it
is repeated, group by group, and each group's outputs read the ranks of their own:

    A [r, in / g, *kernel]  ->  [g * r, in, *kernel], zero outside of the group's channels
    B [out, r]              stays: row o reads the ranks of its group
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lora_quant.adapters.lowered import Lowered, ModuleShape
from lora_quant.graph.attach.resolver import ModuleSizes


def is_per_group(shape: ModuleShape, sizes: ModuleSizes) -> bool:
    """Whether a module's A reads one group's channels of a grouped convolution."""
    return sizes.groups > 1 and shape.groups == 1 and shape.rank > 0


def spread_shape(shape: ModuleShape, sizes: ModuleSizes) -> ModuleShape:
    """The shape of the repeated module."""
    return replace(
        shape,
        rank=shape.rank * sizes.groups,
        groups=sizes.groups,
        in_features=sizes.in_features,
        kernel=sizes.kernel,
    )


def spread(lowered: Lowered, sizes: ModuleSizes) -> Lowered:
    """Repeat A for each group; s with it."""
    rank, channels = lowered.rank, sizes.in_features // sizes.groups
    one = lowered.A.reshape(rank, channels, *sizes.kernel)
    wide = np.zeros((rank * sizes.groups, sizes.in_features, *sizes.kernel), one.dtype)
    for group in range(sizes.groups):
        ranks = slice(group * rank, (group + 1) * rank)
        wide[ranks, group * channels : (group + 1) * channels] = one
    return replace(lowered, A=wide, s=np.tile(lowered.s, sizes.groups))
