"""The closed sets that describe a grid."""

from __future__ import annotations

from enum import Enum


class Granularity(Enum):
    """Over which part of a tensor one scale reaches; the values are the names of AIMET 1.0.0."""

    PER_TENSOR = "PER_TENSOR"
    PER_CHANNEL = "PER_CHANNEL"
    PER_BLOCK = "PER_BLOCK"
    LPBQ = "LPBQ"


BLOCKWISE = (Granularity.PER_BLOCK, Granularity.LPBQ)


class NumberKind(Enum):
    """Integer grids have scale and offset; float encodings only name a bit width."""

    INT = "int"
    FLOAT = "float"
