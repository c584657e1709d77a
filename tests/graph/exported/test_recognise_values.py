"""What is read as the values of a branch: types, casts, gains, and what cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from lora_quant.errors import InputMissingError
from lora_quant.graph.exported.branch_values import scale_values, weight_values
from lora_quant.graph.exported.recognise import recognise_branches
from lora_quant.graph.exported.records import ExportedGraph, FoundBranch, ScaleSource
from tests.builders import GraphBuilder
from tests.graph.helpers import opened

Array = NDArray[Any]
IN, RANK, OUT = 6, 3, 5
TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(ml_dtypes.bfloat16): TensorProto.BFLOAT16,
    np.dtype(np.float64): TensorProto.DOUBLE,
}


class Net:
    """One base linear on x `[1, IN]`, and what a test adds to it."""

    def __init__(self, dtype: str = "float32") -> None:
        self.graph = GraphBuilder(dtype)
        self.x = self.graph.input("x", (1, IN))
        self.h = self.graph.matmul("base", self.x, in_features=IN, out_features=OUT)

    def found(
        self, l_: str, folder: Path, *, external: bool = False
    ) -> tuple[ExportedGraph, FoundBranch]:
        self.graph.output(self.graph.node("Add", [self.h, l_], "sum"), (1, OUT))
        found = recognise_branches(opened(self.graph.model(), folder, external=external))
        assert found.near == ()
        ((branch,),) = (point.branches for point in found.points)
        return found, branch


@pytest.mark.parametrize(
    ("stored", "to", "given"),
    [
        ("float32", "float32", "float32"),
        ("float16", "float32", "float16"),
        ("bfloat16", "float32", "bfloat16"),
        ("float32", "float16", "float16"),
        ("float64", "float32", "float32"),
        ("bfloat16", "float16", "float16"),
    ],
)
def test_weights_keep_their_type_unless_a_cast_rounds_them(
    tmp_path: Path, stored: str, to: str, given: str
) -> None:
    net = Net(to)
    values = np.random.default_rng(0).normal(size=(IN, RANK)).astype(np.dtype(stored))
    weight = net.graph.constant("A", values)
    weight = net.graph.node("Cast", [weight], "cast", to=TYPES[np.dtype(to)])
    low = net.graph.node("MatMul", [net.x, weight], "first")
    found, branch = net.found(
        net.graph.matmul("second", low, in_features=RANK, out_features=OUT), tmp_path
    )
    got = weight_values(found.graph, branch.a)
    assert (got.dtype, branch.a.dtype) == (np.dtype(given), to)
    assert np.array_equal(got, values.astype(np.dtype(to)).astype(np.dtype(given)).T)


def test_the_gain_of_a_gemm_is_left_to_the_caller(tmp_path: Path) -> None:
    net = Net()
    a, b = net.graph.weight("A", RANK, IN), net.graph.weight("B", RANK, OUT)
    low = net.graph.node("Gemm", [net.x, a], "first", transB=1, alpha=0.5)
    high = net.graph.node("Gemm", [low, b], "second", alpha=4.0)
    found, branch = net.found(high, tmp_path)
    assert (branch.a.gain, branch.b.gain) == (0.5, 4.0)
    assert np.array_equal(weight_values(found.graph, branch.a), net.graph.weights["A"])
    assert np.array_equal(weight_values(found.graph, branch.b), net.graph.weights["B"].T)


def test_one_row_of_x_is_no_strength(tmp_path: Path) -> None:
    net = Net()
    strengths = net.graph.input("strengths", (2,))
    matrix = np.arange(2 * RANK, dtype=np.float32).reshape(2, RANK)
    scale = net.graph.node("MatMul", [strengths, net.graph.constant("E", matrix)], "scale")
    low = net.graph.matmul("first", net.x, in_features=IN, out_features=RANK)
    low = net.graph.node("Mul", [scale, low], "scaled")
    found, branch = net.found(
        net.graph.matmul("second", low, in_features=RANK, out_features=OUT), tmp_path
    )
    (taken,) = branch.scales
    assert (taken.source, taken.tensor, taken.expansion) == (
        ScaleSource.EXPANDED,
        "strengths",
        "E",
    )
    values = scale_values(found.graph, taken)
    assert values is not None
    assert np.array_equal(values, matrix)


def test_an_input_without_a_default_has_no_values(tmp_path: Path) -> None:
    net = Net()
    low = net.graph.matmul("first", net.x, in_features=IN, out_features=RANK)
    low = net.graph.node("Mul", [low, net.graph.input("alpha", (1, RANK))], "scaled")
    found, branch = net.found(
        net.graph.matmul("second", low, in_features=RANK, out_features=OUT), tmp_path
    )
    assert branch.scales[0].source is ScaleSource.INPUT
    assert scale_values(found.graph, branch.scales[0]) is None


def test_a_data_file_that_vanished_is_an_error(tmp_path: Path) -> None:
    net = Net()
    low = net.graph.matmul("first", net.x, in_features=IN, out_features=RANK)
    found, branch = net.found(
        net.graph.matmul("second", low, in_features=RANK, out_features=OUT),
        tmp_path,
        external=True,
    )
    (tmp_path / "base.data").unlink()
    with pytest.raises(InputMissingError, match="the data file cannot be read"):
        weight_values(found.graph, branch.a)
