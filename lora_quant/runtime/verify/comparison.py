"""Comparing the outputs of the compiled graph with those of the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.errors import VerificationError, Where


@dataclass(frozen=True)
class OutputError:
    """How far one output is from the reference.

    effect: what the adapters change, max|y_ref - y_base|. bound: what `error` may be. Figures of
    floats are largest absolute values. Those of other types (`exact`) count elements: that differ
    from the reference, that the adapters change, that there are; none may differ.

    `gates` tells how the gates were set, "" without any. `from_exact`: how far the output is from
    that with the exact update, where the adapters are approximated; it has no bound.
    """

    use_case: str
    output: str
    error: float
    effect: float
    magnitude: float
    bound: float
    exact: bool = False
    gates: str = ""
    from_exact: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the error is within the bound; NaN is not."""
        return self.error <= self.bound


def compare(
    use_case: str,
    got: Mapping[str, NDArray[Any]],
    wanted: Mapping[str, NDArray[Any]],
    plain: Mapping[str, NDArray[Any]],
    tolerance: float,
    floors: Mapping[str, float],
    *,
    gates: str = "",
    without_loss: Mapping[str, NDArray[Any]] | None = None,
) -> list[OutputError]:
    """The error of every output that has elements; `plain` are the outputs of the base graph.

    `floors` tells what rounding may change in each output of floats. `without_loss` are outputs
    with exact updates, where `wanted` has approximations.

    Raises VerificationError if there is none: then nothing would be compared.
    """
    results = []
    for name, reference in wanted.items():
        if reference.size == 0 and got[name].size == 0:
            continue
        exact = not np.issubdtype(reference.dtype, np.floating)
        measure = _differing if exact else largest_difference
        effect = measure(reference, plain[name])
        magnitude = (
            reference.size if exact else largest_difference(reference, np.zeros_like(reference))
        )
        results.append(
            OutputError(
                use_case=use_case,
                output=name,
                error=measure(got[name], reference),
                effect=effect,
                magnitude=magnitude,
                bound=0.0 if exact else tolerance * effect + floors[name],
                exact=exact,
                gates=gates,
                from_exact=None if without_loss is None else measure(got[name], without_loss[name]),
            )
        )
    if not results:
        names = ", ".join(repr(name) for name in wanted)
        raise VerificationError(
            f"nothing can be compared: got outputs without elements ({names or 'none at all'}), "
            "expected at least one with values",
            where=Where(use_case=use_case),
            hint="give inputs that are not empty with --inputs FILE",
        )
    return results


def equal(one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]) -> bool:
    """Whether outputs are the same bit for bit, but for the sign of zeros; NaN equals NaN."""
    return all(
        np.array_equal(one[name], values, equal_nan=values.dtype.kind == "f")
        for name, values in other.items()
    )


def largest_difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    """max|one - other|, NaN for other shapes or where the difference is not finite."""
    if one.shape != other.shape:
        return float("nan")
    difference = np.abs(one.astype(np.float64) - other.astype(np.float64))
    return float(difference.max(initial=0.0)) if np.isfinite(difference).all() else float("nan")


def _differing(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.count_nonzero(one != other) if one.shape == other.shape else other.size or 1)
