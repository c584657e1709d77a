"""Products of matrices that turn other kinds of updates into B A."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def khatri_rao(one: Matrix, other: Matrix) -> Matrix:
    """Row by row Kronecker product: `[n, r]`, `[n, q]` -> `[n, r * q]`."""
    return (one[:, :, None] * other[:, None, :]).reshape(len(one), -1)


def shortest(left: Matrix, right: Matrix) -> tuple[Matrix, Matrix]:
    """The same product `[m, r] [r, n]`, with min(m, n) ranks if r is more than that."""
    rows, rank = left.shape
    columns = right.shape[1]
    if rank <= min(rows, columns):
        return left, right
    return whole(left @ right)


def whole(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """A matrix `[m, n]` as a product of min(m, n) ranks, one factor of which is the identity."""
    rows, columns = matrix.shape
    return (np.eye(rows), matrix) if rows <= columns else (matrix, np.eye(columns))
