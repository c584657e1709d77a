"""Every tensor gets a grid, constants become codes, and what has no range is named."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from lora_quant.errors import EncodingsError, GraphError, Where
from lora_quant.graph.device.constant_data import QuantizedData
from lora_quant.graph.device.constant_grids import ConstantGrid, constant_grids
from lora_quant.graph.device.grids import BaseGrids, range_grid
from lora_quant.graph.files.model_file import ModelFile
from lora_quant.graph.quantized.grid import Grid

Array = NDArray[Any]
WHERE = Where(file=Path("base.onnx"))
NARROW = range_grid(-1.0, 3.0, "uint16")
WIDE = range_grid(-8.0, 8.0, "uint16")


def model(
    nodes: Sequence[NodeProto],
    stored: Mapping[str, Array],
    *,
    x: Sequence[int] = (1, 4),
    element: int = TensorProto.FLOAT,
) -> ModelFile:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", element, x)],
        [helper.make_tensor_value_info("y", element, None)],
        [numpy_helper.from_array(values, name) for name, values in stored.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    return ModelFile(Path("base.onnx"), proto, ())


def grids(
    file: ModelFile,
    given_grids: Mapping[str, Grid | None],
    weights: Mapping[str, ConstantGrid] | None = None,
) -> tuple[dict[str, Grid], dict[str, ConstantGrid]]:
    base = BaseGrids(file.proto, given_grids, WHERE)
    constants = constant_grids(file, base, weights or {}, "uint16")
    return base.activations(), constants


def ends(grid: Grid) -> tuple[float, float]:
    scale, zero = float(grid.scale[0]), int(grid.zero_point[0])
    limits = np.iinfo(grid.dtype)
    return (int(limits.min) - zero) * scale, (int(limits.max) - zero) * scale


def per_channel(values: Array, axis: int) -> ConstantGrid:
    others = tuple(i for i in range(values.ndim) if i != axis)
    scale = (np.abs(values).max(axis=others) / 127).astype(np.float32)
    return ConstantGrid.whole(Grid("int8", scale, np.zeros(scale.shape, np.int8), axis=axis))


def test_what_is_moved_keeps_its_grid_in_both_directions() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["reshaped"]),
        helper.make_node("Transpose", ["reshaped"], ["turned"]),
        helper.make_node("Softmax", ["turned"], ["soft"]),
        helper.make_node("Unsqueeze", ["soft", "axes"], ["y"]),
    ]
    stored = {"shape": np.array([2, 2]), "axes": np.array([0])}
    found, constants = grids(model(nodes, stored), {"x": WIDE, "y": NARROW})
    assert found == {"x": WIDE, "reshaped": WIDE, "turned": WIDE, "soft": NARROW, "y": NARROW}
    assert constants == {}


def test_what_is_looked_up_is_on_the_grid_of_the_table() -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["row"]),
        helper.make_node("Add", ["row", "x"], ["y"]),
    ]
    table = np.array([[-8.0, 0.0, 1.0, 4.0]], np.float32)
    file = model(nodes, {"table": table, "ids": np.array([0])})
    found, constants = grids(file, {"x": WIDE, "row": NARROW, "y": WIDE})
    assert found["row"] is constants["table"].grid
    assert ends(found["row"]) == pytest.approx((-8.0, 4.0), abs=1e-3)


def test_tensors_that_are_joined_on_different_grids_tell_nothing_of_the_result() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["other"]),
        helper.make_node("Concat", ["x", "other"], ["joined"], axis=1),
        helper.make_node("Softmax", ["joined"], ["y"]),
    ]
    with pytest.raises(EncodingsError, match=r"1 tensors have no encoding.*: 'joined'"):
        grids(model(nodes, {}), {"x": WIDE, "other": NARROW, "y": NARROW})
    found, _ = grids(model(nodes, {}), {"x": WIDE, "other": WIDE, "y": NARROW})
    assert found["joined"] is WIDE


def test_a_product_before_its_bias_reaches_as_far_as_the_bias_can_move_it() -> None:
    weight, bias = np.ones((4, 2), np.float32), np.array([-0.5, 2.0], np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Add", ["bias", "product"], ["y"]),
    ]
    file = model(nodes, {"weight": weight, "bias": bias})
    found, constants = grids(file, {"x": WIDE, "y": NARROW}, {"weight": per_channel(weight, 1)})
    low, high = ends(found["product"])
    step = float(found["product"].scale[0])
    # y in [-1, 3] minus b in [-0.5, 2]; the offset is rounded to a step.
    assert low == pytest.approx(-3.0, abs=step)
    assert high == pytest.approx(3.5, abs=step)
    assert ends(constants["bias"].grid) == pytest.approx((-0.5, 2.0), abs=step)


def test_what_a_relu_reads_may_be_clipped_like_its_result() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "weight"], ["product"]),
        helper.make_node("Relu", ["product"], ["y"]),
    ]
    weight = np.ones((2, 4, 1, 1), np.float32)
    file = model(nodes, {"weight": weight}, x=(1, 4, 2, 2))
    positive = range_grid(0.0, 3.0, "uint16")
    found, _ = grids(file, {"x": WIDE, "y": positive}, {"weight": per_channel(weight, 0)})
    assert found["product"] is positive


def test_what_others_read_as_well_is_not_clipped_for_a_relu() -> None:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["inner"]),
        helper.make_node("Relu", ["inner"], ["positive"]),
        helper.make_node("Add", ["inner", "positive"], ["y"]),
    ]
    with pytest.raises(EncodingsError) as caught:
        grids(model(nodes, {}), {"x": WIDE, "positive": NARROW, "y": WIDE})
    assert "'inner'" in caught.value.message
    assert caught.value.where.tensor == "inner"


def test_the_bias_of_a_convolution_is_on_the_grid_of_the_sums() -> None:
    weight, bias = np.ones((2, 4, 1, 1), np.float32), np.array([1.0, -1.0], np.float32)
    weight[1] *= 4
    nodes = [helper.make_node("Conv", ["x", "weight", "bias"], ["y"])]
    file = model(nodes, {"weight": weight, "bias": bias}, x=(1, 4, 2, 2))
    made = per_channel(weight, 0)
    _, constants = grids(file, {"x": WIDE, "y": WIDE}, {"weight": made})
    found = constants["bias"].grid
    assert (found.dtype, found.axis) == ("int32", 0)
    np.testing.assert_array_equal(found.scale, WIDE.scale[0] * made.grid.scale)


def test_numbers_that_set_an_operator_up_stay_as_they_are() -> None:
    nodes = [
        helper.make_node("Clip", ["x", "low", "high"], ["clipped"]),
        helper.make_node("Pow", ["clipped", "two"], ["y"]),
    ]
    stored: dict[str, Array] = {}
    for name, number in (("low", 0), ("high", 1), ("two", 2)):
        stored[name] = np.array(number, np.float32)
    _, constants = grids(model(nodes, stored), {"x": WIDE, "clipped": NARROW, "y": NARROW})
    assert list(constants) == ["two"]


def test_what_is_meant_to_stay_float_has_no_grid() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["inner"]), helper.make_node("Exp", ["inner"], ["y"])]
    found, _ = grids(model(nodes, {}), {"x": WIDE, "inner": None, "y": WIDE})
    assert list(found) == ["x", "y"]


def test_what_a_graph_has_quantized_already_is_left_alone() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["back"]),
        helper.make_node("Exp", ["back"], ["y"]),
    ]
    stored: dict[str, Array] = {"scale": np.array(0.1, np.float32), "zero": np.array(3, np.uint8)}
    found, constants = grids(model(nodes, stored), {"y": WIDE})
    assert list(found) == ["y"]
    assert constants == {}


def test_a_graph_of_another_float_type_is_refused() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    file = model(nodes, {}, element=TensorProto.FLOAT16)
    with pytest.raises(GraphError, match="computes in float16, expected float32") as caught:
        BaseGrids(file.proto, {}, WHERE)
    assert caught.value.where.node == "relu"


@pytest.mark.parametrize("far", [-np.inf, -3.4e38])
def test_a_mask_is_cut_where_every_sum_is_beyond_its_grid(far: float) -> None:
    nodes = [helper.make_node("Add", ["x", "mask"], ["y"])]
    file = model(nodes, {"mask": np.array([0.0, 0.0, far, far], np.float32)})
    _, constants = grids(file, {"x": NARROW, "y": WIDE})
    # From -8 - 3, which y has at most, and the mask's own 0.
    assert ends(constants["mask"].grid) == pytest.approx((-11.0, 0.0), abs=1e-3)


def test_a_constant_with_infinities_needs_an_encoding() -> None:
    nodes = [helper.make_node("Mul", ["x", "mask"], ["y"])]
    mask = np.array([0.0, 0.0, -np.inf, -np.inf], np.float32)
    file = model(nodes, {"mask": mask})
    with pytest.raises(EncodingsError, match="not finite") as caught:
        grids(file, {"x": WIDE, "y": WIDE})
    assert caught.value.where.tensor == "mask"
    _, constants = grids(file, {"x": WIDE, "y": WIDE}, {"mask": ConstantGrid.whole(WIDE)})
    assert constants["mask"].grid is WIDE


@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(["int8", "uint8", "int16", "uint16"]),
    data=st.data(),
)
def test_codes_are_those_of_quantizelinear(
    shape: list[int], seed: int, dtype: str, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    axis = data.draw(st.none() | st.integers(0, len(shape) - 1))
    values = rng.standard_normal(shape).astype(np.float32)
    count = 1 if axis is None else shape[axis]
    limits = np.iinfo(dtype)
    scale = rng.uniform(0.01, 0.2, count).astype(np.float32)
    zero = rng.integers(limits.min, limits.max, count, dtype=dtype, endpoint=True)
    lowest, highest = sorted(rng.integers(limits.min, limits.max, 2, endpoint=True).tolist())
    tensor = numpy_helper.from_array(values, "w")
    file = model([helper.make_node("Relu", ["x"], ["y"])], {})
    stored = QuantizedData(file, "model.data")
    stored.zeros(3)
    place = stored.constant(tensor, ConstantGrid(Grid(dtype, scale, zero, axis), lowest, highest))
    sink = io.BytesIO()
    stored.write(sink)
    assert len(sink.getvalue()) == stored.size
    assert place.offset % 64 == 0
    found = np.frombuffer(sink.getvalue(), dtype, offset=place.offset).reshape(shape)
    layout = [1] * len(shape)
    if axis is not None:
        layout[axis] = -1
    wide_scale = scale.astype(np.float64).reshape(layout)
    wide_zero = zero.astype(np.int64).reshape(layout)
    expected = np.clip(np.rint(values / wide_scale) + wide_zero, lowest, highest)
    np.testing.assert_array_equal(found, expected)


@given(low=st.floats(-1e6, 0), high=st.floats(0, 1e6), dtype=st.sampled_from(["uint8", "uint16"]))
def test_a_range_is_covered_but_for_half_a_step(low: float, high: float, dtype: str) -> None:
    """The offset is rounded, which moves both ends by half a step; float32 adds 2**-23 of them."""
    grid = range_grid(low, high, dtype)
    bottom, top = ends(grid)
    slack = 0.5 * float(grid.scale[0]) + (high - low) * 2.0**-22
    assert bottom <= low + slack
    assert top >= high - slack
    assert np.iinfo(dtype).min <= int(grid.zero_point[0]) <= np.iinfo(dtype).max
