"""target_parameters: experts out of the factors of a fused weight, and which factors are whose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_quant.adapters.lowered import ModuleShape
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.builders import PREFIX, Q0, Array, load, low_rank, pair

M = "model.layers.0.mlp.experts"
UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
HIDDEN, INNER, EXPERTS = 6, 5, 3
UP_SIZE, DOWN_SIZE = (HIDDEN, 2 * INNER), (INNER, HIDDEN)


def level(depth: int, size: tuple[int, int], rank: int = 4, experts: int = EXPERTS) -> Any:
    """A and B of one wrapper around M, `depth` wrappers inside the outermost."""
    return pair(M + ".base_layer" * depth, rank=rank * experts, features=size)


def parameters(*names: str, **fields: Any) -> dict[str, Any]:
    return {"target_modules": None, "target_parameters": list(names), **fields}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(experts=st.integers(1, 4), rank=st.integers(1, 3), seed=st.integers(0, 99))
def test_each_expert_has_its_rows_of_a_and_its_columns_of_b(
    experts: int, rank: int, seed: int, tmp_path: Path
) -> None:
    tensors = level(0, (5, 7), rank, experts)
    rng = np.random.default_rng(seed)
    a, b = tensors
    for name in (a, b):
        tensors[name] = rng.normal(size=tensors[name].shape).astype(np.float32)
    adapter = load(tmp_path, tensors, **parameters(DOWN, r=rank))
    assert list(adapter.shapes) == [f"{M}.down_proj.{e}" for e in range(experts)]
    for e in range(experts):
        name = f"{M}.down_proj.{e}"
        assert adapter.shapes[name] == ModuleShape(name, rank, 5, 7, (), 8 / rank)
        lowered = low_rank(adapter, name)
        for r in range(rank):
            np.testing.assert_array_equal(lowered.A[r], tensors[a][e * rank + r])
            np.testing.assert_array_equal(lowered.B[:, r], tensors[b][:, r * experts + e])
        assert lowered.A.base is None, "the tensors of all experts are not kept"
        assert lowered.B.base is None, "the tensors of all experts are not kept"


@pytest.mark.parametrize("names", [(UP, DOWN), (DOWN, UP), ("gate_up_proj", "down_proj")])
@pytest.mark.parametrize("outermost", [UP, DOWN])
def test_sizes_tell_the_widening_projection_from_the_narrowing_one(
    tmp_path: Path, names: tuple[str, str], outermost: str
) -> None:
    sizes = (UP_SIZE, DOWN_SIZE) if outermost == UP else (DOWN_SIZE, UP_SIZE)
    adapter = load(tmp_path, level(0, sizes[0]) | level(1, sizes[1]), **parameters(*names))
    assert len(adapter.shapes) == 2 * EXPERTS
    for parameter, size in (("gate_up_proj", UP_SIZE), ("down_proj", DOWN_SIZE)):
        shape = adapter.shapes[f"{M}.{parameter}.{EXPERTS - 1}"]
        assert (shape.in_features, shape.out_features) == size


def test_ranks_of_their_own_tell_unknown_parameters_apart(tmp_path: Path) -> None:
    fields = parameters("experts.one", "experts.two", rank_pattern={"experts.one": 3})
    tensors = level(0, (5, 7), 3) | level(1, (7, 5), 4)
    adapter = load(tmp_path, tensors, **fields)
    assert {shape.rank for m, shape in adapter.shapes.items() if ".one." in m} == {3}
    assert {shape.in_features for m, shape in adapter.shapes.items() if ".one." in m} == {5}
    scales = {shape.scale for m, shape in adapter.shapes.items() if ".one." in m}
    assert scales == {8 / 3}


def test_beside_modules_only_what_they_do_not_name_is_a_parameter(tmp_path: Path) -> None:
    fields = parameters("down_proj", target_modules=["q_proj"])
    adapter = load(tmp_path, pair(Q0) | level(0, DOWN_SIZE), **fields)
    assert Q0 in adapter.shapes
    assert f"{M}.down_proj.0" in adapter.shapes


def test_the_weight_of_a_module_is_the_module(tmp_path: Path) -> None:
    tensors = pair(Q0)
    adapter = load(tmp_path, tensors, **parameters("q_proj.weight"))
    assert dict(adapter.shapes) == {Q0: ModuleShape(Q0, 4, 6, 5, (), 2.0)}
    np.testing.assert_array_equal(low_rank(adapter, Q0).A, next(iter(tensors.values())))


def test_a_parameter_without_tensors_is_reported(tmp_path: Path) -> None:
    adapter = load(tmp_path, pair(Q0), target_parameters=[DOWN])
    (finding,) = adapter.findings
    assert finding.rule == "adapter/target-without-tensors"
    message = f"target {DOWN!r} of target_parameters has no tensors in the checkpoint"
    assert finding.message == message


@pytest.mark.parametrize(
    ("tensors", "fields", "kind", "message"),
    [
        (
            level(0, (5, 5)) | level(1, (5, 5)),
            parameters("experts.one", "experts.two"),
            UnsupportedAdapterError,
            "which tensors adapt which of 'one', 'two' is not told by the file, and 2 arrangements",
        ),
        (
            level(0, (5, 7)) | level(1, (5, 7)),
            parameters(UP, DOWN),
            UnsupportedAdapterError,
            "and no arrangements agree with their ranks and sizes, expected one",
        ),
        (
            level(0, DOWN_SIZE),
            parameters(UP, DOWN),
            AdapterError,
            "tensors for 1 parameters of the module, expected 2 as target_parameters names: down_",
        ),
        (
            level(0, DOWN_SIZE, rank=1, experts=10),
            parameters(DOWN),
            AdapterError,
            "A has 10 rows, expected a multiple of the rank 4, one for each expert",
        ),
        (
            level(0, DOWN_SIZE) | {f"{PREFIX}{M}.lora_B.bias": np.ones(6)},
            parameters(DOWN),
            UnsupportedAdapterError,
            "the tensor is lora_B.bias of a wrapped parameter, expected only lora_A.weight and",
        ),
        (
            dict(list(level(0, DOWN_SIZE).items())[:1]),
            parameters(DOWN),
            AdapterError,
            "the module has lora_A.weight but no lora_B.weight",
        ),
        (
            pair(Q0),
            parameters("down_proj", target_modules="all-linear"),
            UnsupportedAdapterError,
            "names a parameter without its module, beside a target_modules of 'all-linear'",
        ),
        (pair(Q0), parameters("experts."), AdapterError, "expected names of parameters"),
        (
            {k: v for d in range(5) for k, v in level(d, (5, 7)).items()},
            parameters(*(f"experts.p{n}" for n in range(5))),
            UnsupportedAdapterError,
            "5 parameters of one module are adapted, expected at most 4",
        ),
    ],
    ids=["open", "none", "count", "rank", "bias", "lone", "all-linear", "empty", "deep"],
)
def test_what_cannot_be_told_apart_is_refused(
    tmp_path: Path,
    tensors: dict[str, Array],
    fields: dict[str, Any],
    kind: type[AdapterError],
    message: str,
) -> None:
    with pytest.raises(kind, match=message) as caught:
        load(tmp_path, tensors, **fields)
    assert caught.value.hint
