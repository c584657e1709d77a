"""The closest update of low rank to one that has none.

    delta [out, in * kernel]   ->   B A,  B [out, rank], A [rank, in * kernel]

No other factors of that rank leave a smaller Frobenius error (Eckart and Young). They come from the
singular vectors: B = U sqrt(S), A = sqrt(S) V', so that both have one range and quantize alike.
At full rank one factor is the identity and the other delta itself, which is exact.

Up to `_SVD_SIDE` on its smaller side a matrix is decomposed directly. Beyond, the vectors are those
of the smaller of its two Gram matrices, which costs a fraction of it; that squares the singular
values, so what is below 2**-26 of the largest one is not told apart. Errors are then within
2e-8 of the smallest ones possible.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.lowered import Dense, Lowered

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

_SVD_SIDE = 512


@dataclass(frozen=True, eq=False)
class Approximation:
    """`lowered` stands in for a Dense; `error` is ||delta - B A|| / ||delta||, Frobenius."""

    lowered: Lowered
    error: float


def approximate(dense: Dense, rank: int) -> Approximation:
    """The best factors of `rank`, or of full rank if that is smaller; A is `[rank, in, *kernel]`.

    The bias of `dense` is kept as it is. The error is measured on the factors, float64, and 0 for a
    delta that is zero. ValueError for a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}, expected at least 1")
    delta = _matrix(dense)
    full = min(delta.shape)
    B, A = _identity_factor(delta) if rank >= full else _factors(delta, rank)
    norm = float(np.linalg.norm(delta))
    error = float(np.linalg.norm(delta - B @ A)) / norm if norm else 0.0
    shaped = A.reshape(len(A), *dense.delta.shape[1:])
    return Approximation(Lowered(shaped, B, np.ones(len(A)), c=dense.c), error)


def rank_for(dense: Dense, max_error: float) -> int:
    """The smallest rank, from 1, whose error is at most `max_error`; full rank for 0."""
    values = _singular_values(_matrix(dense))
    if max_error <= 0 and values[0] > 0:
        return len(values)
    # summed from the smallest on, so that a small tail is not lost beside the rest
    tails = np.sqrt(np.cumsum(values[::-1] ** 2))[::-1]
    fits = np.append(tails[1:], 0.0) <= max_error * tails[0]
    return int(np.argmax(fits)) + 1


def _matrix(dense: Dense) -> Matrix:
    return dense.delta.astype(np.float64).reshape(len(dense.delta), -1)


def _identity_factor(delta: Matrix) -> tuple[Matrix, Matrix]:
    out, inputs = delta.shape
    return (np.eye(out), delta) if out <= inputs else (delta, np.eye(inputs))


def _factors(delta: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """B and A of equal range, from the first left (or right) singular vectors."""
    if delta.shape[0] > delta.shape[1]:
        A, B = _factors(delta.T, rank)
        return B.T, A.T
    left = _left_vectors(delta)[:, :rank]
    right = left.T @ delta
    # the length of a row is its singular value, to more digits than a root of an eigenvalue has
    roots = np.sqrt(np.linalg.norm(right, axis=1))
    inverse = np.divide(1.0, roots, out=np.zeros(rank), where=roots > 0)
    return left * roots, right * inverse[:, None]


def _left_vectors(wide: Matrix) -> Matrix:
    """Left singular vectors in columns, those of the largest values first; out <= in."""
    if len(wide) <= _SVD_SIDE:
        return np.linalg.svd(wide, full_matrices=False)[0]
    return np.linalg.eigh(wide @ wide.T)[1][:, ::-1]


def _singular_values(delta: Matrix) -> Vector:
    """All singular values, largest first."""
    wide = delta if delta.shape[0] <= delta.shape[1] else delta.T
    if len(wide) <= _SVD_SIDE:
        values: Vector = np.linalg.svd(wide, compute_uv=False).astype(np.float64, copy=False)
        return values
    squares: Vector = np.linalg.eigvalsh(wide @ wide.T)[::-1].astype(np.float64, copy=False)
    return np.sqrt(np.maximum(squares, 0.0))
